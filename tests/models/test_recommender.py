"""What every recommender promises: an exact hypergradient, pure functions, and that only the clicks count."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from models import als, itemae, train, wrmf
from models.data import Interactions, Profiles, inject
from models.recommender import cell_weights

U, I, F = 6, 7, 3

FAMILY = {
    "wrmf-dense": wrmf.wrmf(factors=2, learning_rate=0.1, l2=0.05, epochs=4, form="dense", scale=1.0),
    "wrmf-batches": wrmf.wrmf(factors=2, learning_rate=0.1, epochs=2, batch=4, form="observed", scale=1.0),
    "als": als.als(factors=2, l2=0.5, sweeps=3, scale=1.0),
    "itemae-dense": itemae.itemae(hidden=(3, 2), learning_rate=0.05, l2=0.1, epochs=3, form="dense"),
    "itemae-batches": itemae.itemae(
        hidden=(3,), activation="selu", learning_rate=0.05, epochs=2, batch=3, form="observed"
    ),
}
everyone = pytest.mark.parametrize("name", FAMILY)
one_each = pytest.mark.parametrize(
    "name", ["wrmf-batches", "als", "itemae-batches"]
)  # the forms: see the last test


@cache
def clicks():
    rng = np.random.default_rng(0)
    matrix = rng.random((U, I)) < 0.35
    matrix[:, 0] = [1, 0, 0, 0, 0, 0]
    return Interactions.from_dense(matrix.astype(float))


def relaxed():
    """Interior fake rows, some cells of which count as clicked."""
    rng = np.random.default_rng(1)
    return jnp.array(rng.uniform(0.1, 0.9, (F, I))), jnp.array(rng.random((F, I)) < 0.5)


def problem(name):
    model = FAMILY[name]
    x, observed = relaxed()
    data = model.prepare(clicks())._replace(observed=observed)
    return model, x, data, model.init(jax.random.key(2), U, I, F), jax.random.key(3)


def promotion(model, params, x, data):
    return -jnp.sum(jax.nn.log_softmax(model.scores(params, x, data, jnp.arange(U)))[:, 0])


def differences(f, x, step=1e-5):
    """Central differences of `f` in every entry of `x`."""
    moves = step * np.eye(x.size).reshape(-1, *x.shape)
    return np.reshape([f(x + move) - f(x - move) for move in moves], x.shape) / (2 * step)


def close(a, b, tolerance):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@everyone
def test_hypergradient_equals_central_differences(x64, name):
    model, x, data, params, key = problem(name)
    solve = bilevel.unrolled(model.trainer(U, I, F))
    f = lambda x: promotion(model, solve(x, params, data, key), x, data)
    both = jax.jit(jax.value_and_grad(f))
    exact = both(x)[1]
    assert np.abs(exact).max() > 1e-4
    error = jnp.linalg.norm(exact - differences(lambda x: both(x)[0], x)) / jnp.linalg.norm(exact)
    assert error < 1e-6


@one_each
def test_partial_derivative_is_what_the_scores_read(x64, name):
    """C4: exactly 0 for WRMF, whose scores read parameters only, and not 0 for ALS and ItemAE."""
    model, x, data, params, key = problem(name)
    solve = bilevel.detached(model.trainer(U, I, F))
    gradient = jax.jit(jax.grad(lambda x: promotion(model, solve(x, params, data, key), x, data)))(x)
    if name.startswith("wrmf"):
        assert not np.any(gradient)
    else:
        trained = solve(x, params, data, key)
        held = jax.jit(lambda x: promotion(model, trained, x, data))
        close(gradient, differences(held, x), 1e-7)
        assert np.abs(gradient).max() > 1e-4


@one_each
def test_hard_fake_rows_are_ordinary_users(x64, name):
    """The same loss, hence the same training, whether fakes are rows `x` or injected interactions."""
    model = FAMILY[name]
    x = (relaxed()[0] > 0.5).astype(float)
    poisoned = inject(clicks(), Profiles.from_rows(x, targets=[0]))
    apart = model.init(jax.random.key(2), U, I, F)
    joined = apart
    if "fake" in apart:
        both = jnp.concatenate([apart["user"], apart["fake"]])
        joined = {"user": both, "item": apart["item"], "fake": apart["fake"][:0]}
    ctx = model.trainer(U, I, F).context(
        jax.random.key(4), 1
    )  # a batch with fakes in it, where there are batches
    none = jnp.zeros((0, I))
    loss = jax.jit(lambda params, x, train: model.loss(params, x, model.prepare(train), ctx))
    close(loss(apart, x, clicks()), loss(joined, none, poisoned), 1e-12)
    scores = jax.jit(lambda params, x, train: model.scores(params, x, model.prepare(train), jnp.arange(U)))
    close(scores(apart, x, clicks()), scores(joined, none, poisoned), 1e-12)


@one_each
def test_padding_changes_nothing(x64, name):
    model, x, _, params, key = problem(name)
    ctx = model.trainer(U, I, F).context(key, 0)
    loss = lambda params, x, train: model.loss(params, x, model.prepare(train), ctx)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    pair = (jax.tree.leaves(gradient(params, x, data)) for data in (clicks(), clicks().pad(60)))
    for a, b in zip(*pair, strict=True):
        close(a, b, 1e-12)


@one_each
def test_vmap_over_keys_equals_a_loop(name):
    keys = jax.random.split(jax.random.key(5), 2)
    f = lambda key: train.fit(FAMILY[name], clicks(), key).scores(jnp.arange(U))
    close(jax.vmap(f)(keys), jnp.stack([f(key) for key in keys]), 1e-4)


@one_each
def test_fit_learns_repeats_itself_and_passes_lost_events_on(name):
    model = FAMILY[name]
    first, second = (train.fit(model, clicks(), jax.random.key(0)) for _ in range(2))
    assert first.scores(jnp.arange(U)).tobytes() == second.scores(jnp.arange(U)).tobytes()
    ctx = model.trainer(U, I, 0).final_context(jax.random.key(1))
    objective = jax.jit(lambda params: model.loss(params, first.x, first.data, ctx))
    assert objective(first.params) < 0.95 * objective(model.init(jax.random.key(0), U, I, 0))
    lost = replace(
        clicks(), weight=jnp.full_like(clicks().weight, jnp.nan)
    )  # what inject makes of too small a capacity
    assert np.all(np.isnan(train.fit(model, lost, jax.random.key(0)).scores(jnp.arange(U))))


@everyone
def test_ratings_are_refused(name):
    ratings = Interactions.from_arrays([0, 1], [0, 1], [3.0, 5.0])
    with pytest.raises(ValueError, match="binarize"):
        FAMILY[name].prepare(ratings)


@everyone
def test_config_rebuilds_the_model(name):
    model = FAMILY[name]
    factory = {"wrmf": wrmf.wrmf, "als": als.als, "itemae": itemae.itemae}[model.name]
    assert dict(factory(**model.config).config) == dict(model.config)
    assert repr(model).startswith(f"{model.name}(")
    with pytest.raises(TypeError):
        model.config["factors"] = 1


def test_weights_of_relaxed_cells_are_constants():
    x = jnp.array([[0.0, 0.2, 1.0]])
    frozen = jnp.array([[True, False, False]])
    assert cell_weights(x, None, 20.0).tolist() == [[1.0, 20.0, 20.0]]
    assert cell_weights(x, frozen, 20.0).tolist() == [[20.0, 1.0, 1.0]]
    assert not np.any(jax.grad(lambda x: jnp.sum(cell_weights(x, None, 20.0)))(x))


def test_both_forms_train_to_the_same_numbers(x64):
    """WRMF and ItemAE: the rule that picks a form may change the seconds, never the result."""
    for make, size in ((wrmf.wrmf, {"factors": 3}), (itemae.itemae, {"hidden": (4,)})):
        dense, observed = (
            train.fit(make(**size, epochs=5, form=form), clicks(), jax.random.key(0))
            for form in ("dense", "observed")
        )
        close(
            dense.scores(jnp.arange(U)), observed.scores(jnp.arange(U)), 1e-9
        )  # Adam divides by small gradients
