"""What every recommender promises: an exact hypergradient, pure functions, and that only the clicks count."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import bilevel
from models import (
    als,
    autorec,
    bpr,
    cml,
    itemae,
    lightgcn,
    mf,
    multvae,
    ncf,
    ngcf,
    pcmf,
    plug,
    pmf,
    registry,
    train,
    wrmf,
)
from models.data import Interactions, Profiles, inject
from models.recommender import cell_weights

U, I, F = 6, 7, 3
SAMPLED = {"factors": 2, "learning_rate": 0.05, "epochs": 2, "scale": 0.5}
GRAPH = {"factors": 2, "learning_rate": 0.05, "epochs": 2, "batch": 9, "form": "observed"}


class TwoTowers(nnx.Module):
    """A user's own NNX model: two embeddings and a small network on their concatenation, with dropout."""

    def __init__(self, users, items, *, rngs):
        kind = {"param_dtype": jnp.result_type(float), "rngs": rngs}
        self.user, self.item = nnx.Embed(users, 2, **kind), nnx.Embed(items, 2, **kind)
        self.hidden, self.last = nnx.Linear(4, 3, **kind), nnx.Linear(3, 1, **kind)
        self.drop = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, user, item):
        a, b = self.user(user)[:, None], self.item(item)
        h = jnp.concatenate([jnp.broadcast_to(a, b.shape), b], -1)
        return self.last(self.drop(jnp.tanh(self.hidden(h))))[..., 0]


class Biases(linen.Module):
    """A user's own Linen model: a product and an item bias."""

    users: int
    items: int

    @linen.compact
    def __call__(self, user, item):
        kind = {"param_dtype": jnp.result_type(float)}
        a = linen.Embed(self.users, 2, name="user", **kind)(user)
        b = linen.Embed(self.items, 3, name="item", **kind)(item)
        return jnp.einsum("bd,bnd->bn", a, b[..., :2]) + b[..., 2]


CLICKS = {
    "wrmf-dense": wrmf.wrmf(factors=2, learning_rate=0.1, l2=0.05, epochs=4, form="dense", scale=1.0),
    "wrmf-batches": wrmf.wrmf(factors=2, learning_rate=0.1, epochs=2, batch=4, form="observed", scale=1.0),
    "als": als.als(factors=2, l2=0.5, sweeps=3, scale=1.0),
    "itemae-dense": itemae.itemae(hidden=(3, 2), learning_rate=0.05, l2=0.1, epochs=3, form="dense"),
    "itemae-batches": itemae.itemae(
        hidden=(3,), activation="selu", learning_rate=0.05, epochs=2, batch=3, form="observed"
    ),
    "bpr-full": bpr.bpr(**{**SAMPLED, "epochs": 4}, l2=0.1, batch=None),
    "bpr-batches": bpr.bpr(**SAMPLED, l2=0.1, batch=5, negatives=2),
    "gmf": ncf.gmf(**SAMPLED, l2=0.1, batch=9),
    "neumf": ncf.neumf(**SAMPLED, tower=2, hidden=(3, 2), batch=9, negatives=2),
    "neumf-linear": ncf.neumf(**SAMPLED, tower=2, hidden=(), summed_penalty=True, l2=0.01, batch=None),
    "cml": cml.cml(**SAMPLED, margin=2.0, batch=9, negatives=3),
    "cml-original": cml.cml(**SAMPLED, margin=0.5, batch=None, unit_ball=True, rank_weight=True),
    "pmf": pmf.pmf(**{**SAMPLED, "learning_rate": 0.1}, batch=9),
    "multvae": multvae.multvae(hidden=4, latent=2, learning_rate=0.05, epochs=2, batch=4, beta_step=0.1),
    "multvae-revadv": multvae.preset("revadv", hidden=4, latent=2, learning_rate=0.05, epochs=3),
    "lightgcn": lightgcn.lightgcn(**GRAPH, layers=2, l2=0.1),
    "lightgcn-norm": lightgcn.lightgcn(
        **{**GRAPH, "batch": None, "form": "dense"}, layers=1, l2=0.1, penalty="norm"
    ),
    "ngcf": ngcf.ngcf(**GRAPH, layers=(3, 2), l2=0.1),
    "plug-nnx": plug.plug(TwoTowers, learning_rate=0.05, epochs=2, batch=9, objective="cross-entropy"),
    "plug-linen": plug.plug(Biases, learning_rate=0.05, epochs=2, batch=9, l2=0.01),
    "autorec-user": autorec.autorec(hidden=3, learning_rate=0.05, epochs=2, batch=4),
    "autorec-item": autorec.autorec(by="item", hidden=3, learning_rate=0.05, epochs=2, batch=3),
}
RATINGS = {
    "mf": mf.mf(factors=2, learning_rate=0.3, l2=0.1, epochs=2, batch=9),
    "pmf-ratings": pmf.pmf(**{**SAMPLED, "learning_rate": 0.1}, batch=None),
    "autorec-ratings": autorec.autorec(hidden=3, learning_rate=0.05, epochs=2, batch=4),
    "autorec-item-ratings": autorec.autorec(by="item", hidden=3, learning_rate=0.05, epochs=2, batch=None),
    "pcmf": pcmf.pcmf(rank=2, fills=2, updates=2),
}
FAMILY = CLICKS | RATINGS
VARIANTS = (
    "wrmf-dense",
    "itemae-dense",
    "bpr-full",
    "neumf-linear",
    "cml-original",
    "multvae",
    "lightgcn-norm",
)
VARIANTS += ("pmf-ratings", "autorec-ratings", "autorec-item-ratings", "gmf", "autorec-user", "plug-nnx")
VARIANTS += ("multvae-revadv", "itemae-batches")
"""Other forms of models that are judged anyway, or slow to compile: `make test-all` judges them too."""


def named(*left_out):
    return [
        pytest.param(name, marks=[pytest.mark.slow] if name in VARIANTS else [])
        for name in FAMILY
        if name not in left_out
    ]


def slowly(*names):
    """Members that `make test` leaves to `make test-all`, where the others show the same."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


everyone = pytest.mark.parametrize("name", FAMILY)
one_each = pytest.mark.parametrize("name", named())
surrogates = pytest.mark.parametrize(
    "name",
    [
        *named("pcmf", "ngcf"),
        *slowly("ngcf"),
    ],  # PCMF's signed root has no derivative at 0; NGCF is LightGCN and layers
)
# The scores of these read the fake rows themselves, beside the parameters.
READS = (
    "als",
    "itemae",
    "lightgcn",
    "ngcf",
    "autorec-item",
    "autorec-ratings",
    "pcmf",
)  # ratings: by their mean


@cache
def clicks():
    rng = np.random.default_rng(0)
    matrix = rng.random((U, I)) < 0.35
    matrix[:, 0] = [1, 0, 0, 0, 0, 0]
    return Interactions.from_dense(matrix.astype(float))


@cache
def ratings():
    rng = np.random.default_rng(0)
    events = clicks()
    stars = rng.integers(1, 6, int(events.count)).astype(float)
    real = events.real()
    return Interactions.from_arrays(
        np.asarray(events.user)[real],
        np.asarray(events.item)[real],
        stars,
        users=U,
        items=I,
        track="explicit",
    )


def events(name):
    return ratings() if name in RATINGS else clicks()


def relaxed():
    """Interior fake rows, some cells of which count as clicked."""
    rng = np.random.default_rng(1)
    return jnp.array(rng.uniform(0.1, 0.9, (F, I))), jnp.array(rng.random((F, I)) < 0.5)


def problem(name):
    model = FAMILY[name]
    x, observed = relaxed()
    data = model.prepare(events(name))._replace(observed=observed)
    return model, x, data, model.init(jax.random.key(2), U, I, F), jax.random.key(3)


def promotion(model, params, x, data):
    return -jnp.sum(jax.nn.log_softmax(model.scores(params, x, data, jnp.arange(U)))[:, 0])


def differences(f, x, step=1e-5):
    """Central differences of `f` in every entry of `x`."""
    moves = step * np.eye(x.size).reshape(-1, *x.shape)
    return np.reshape([f(x + move) - f(x - move) for move in moves], x.shape) / (2 * step)


def close(a, b, tolerance):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@surrogates
def test_hypergradient_equals_central_differences(x64, name):
    model, x, data, params, key = problem(name)
    solve = bilevel.unrolled(model.trainer(U, I, F, events(name).capacity))
    f = lambda x: promotion(model, solve(x, params, data, key), x, data)
    both = jax.jit(jax.value_and_grad(f))
    exact = both(x)[1]
    assert np.abs(exact).max() > 1e-5
    error = jnp.linalg.norm(exact - differences(lambda x: both(x)[0], x)) / jnp.linalg.norm(exact)
    assert error < 1e-6


@one_each
def test_partial_derivative_is_what_the_scores_read(x64, name):
    """C4: exactly 0 for WRMF, whose scores read parameters only, and not 0 for ALS and ItemAE."""
    model, x, data, params, _ = problem(name)
    held = jax.jit(jax.value_and_grad(lambda x: promotion(model, params, x, data)))
    gradient = held(x)[1]
    if name.startswith(READS):
        close(gradient, differences(lambda x: held(x)[0], x), 1e-6)
        assert np.abs(gradient).max() > 1e-6
    else:
        assert not np.any(gradient)


@pytest.mark.parametrize("name", ["wrmf-batches", "als", "itemae-batches", "multvae-revadv", "autorec-user"])
def test_hard_fake_rows_are_ordinary_users(x64, name):
    """The same loss, hence the same training, whether fakes are rows `x` or injected interactions."""
    model = FAMILY[name]
    x = (relaxed()[0] > 0.5).astype(float)
    poisoned = inject(clicks(), Profiles.from_rows(x, targets=[0]))
    _same_loss(model, clicks(), poisoned, x, model.trainer(U, I, F).context(jax.random.key(4), 1))


@pytest.mark.parametrize("name", ["cml", "pmf", "lightgcn", *slowly("bpr-full", "gmf", "neumf", "ngcf")])
def test_hard_fake_rows_are_ordinary_users_to_sampled_losses_too(x64, name):
    """Every user lacks one item, which is then its only negative: nothing is left to chance."""
    model = FAMILY[name]
    lacks = np.ones((3, 4)) - np.eye(4)[[0, 2, 3]]
    x = jnp.ones((2, 4)) - jnp.eye(4)[jnp.array([1, 2])]
    train = Interactions.from_dense(lacks)
    poisoned = inject(train, Profiles.from_rows(x, targets=[0]))
    if name == "ngcf":  # its dropout is drawn for real and fake users apart
        model = ngcf.ngcf(**{**GRAPH, "batch": None}, layers=(3,), dropout=0.0)
    _same_loss(model, train, poisoned, x, bilevel.Ctx(jax.random.key(4), 1))


def _same_loss(model, train, poisoned, x, ctx):
    (users, items), fakes = (train.users, train.items), x.shape[0]
    apart = model.init(jax.random.key(2), users, items, fakes)
    joined = dict(apart)
    for name in [name for name in apart if name.endswith("fake")]:
        real = name.removesuffix("fake") + "user"
        joined[real] = jnp.concatenate([apart[real], apart[name]])
        joined[name] = apart[name][:0]
    none = jnp.zeros((0, items))
    loss = jax.jit(lambda params, x, train: model.loss(params, x, model.prepare(train), ctx))
    close(loss(apart, x, train), loss(joined, none, poisoned), 1e-12)
    who = jnp.arange(users)
    scores = jax.jit(lambda params, x, train: model.scores(params, x, model.prepare(train), who))
    close(scores(apart, x, train), scores(joined, none, poisoned), 1e-12)


NOTHING_DRAWN = ["wrmf-batches", "als", "itemae-batches", "multvae-revadv", "autorec-user", "autorec-item"]
NOTHING_DRAWN += ["autorec-ratings", "autorec-item-ratings", "pmf-ratings", "pcmf"]


@pytest.mark.parametrize("name", NOTHING_DRAWN)  # padded slots draw negatives of their own
def test_padding_changes_nothing(x64, name):
    model, x, _, params, key = problem(name)
    ctx = model.trainer(U, I, F, events(name).capacity).context(key, 0)
    loss = lambda params, x, train: model.loss(params, x, model.prepare(train), ctx)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    pair = (jax.tree.leaves(gradient(params, x, data)) for data in (events(name), events(name).pad(60)))
    for a, b in zip(*pair, strict=True):
        close(a, b, 1e-12)


@pytest.mark.parametrize("name", ["als", "mf", *slowly("wrmf-batches", "bpr-batches", "multvae-revadv")])
def test_vmap_over_keys_equals_a_loop(name):
    keys = jax.random.split(jax.random.key(5), 2)
    f = lambda key: train.fit(FAMILY[name], events(name), key).scores(jnp.arange(U))
    close(jax.vmap(f)(keys), jnp.stack([f(key) for key in keys]), 1e-4)


LIKE_OTHERS = (
    "multvae-revadv",
    "ngcf",
    "autorec-item",
    "itemae-batches",
    "plug-linen",
    "cml",
)  # fit trains them alike


@pytest.mark.parametrize("name", [*named(*LIKE_OTHERS), *slowly(*LIKE_OTHERS)])
def test_fit_learns_repeats_itself_and_passes_lost_events_on(name):
    model = FAMILY[name]
    first, second = (train.fit(model, events(name), jax.random.key(0)) for _ in range(2))
    assert first.scores(jnp.arange(U)).tobytes() == second.scores(jnp.arange(U)).tobytes()
    ctx = model.trainer(U, I, 0, events(name).capacity).final_context(jax.random.key(1))
    objective = jax.jit(lambda params: model.loss(params, first.x, first.data, ctx))
    start = model.init(jax.random.split(jax.random.key(0))[0], U, I, 0)  # the one that fit draws
    assert objective(first.params) < objective(start)
    lost = replace(  # what inject makes of too small a capacity
        events(name), weight=jnp.full_like(events(name).weight, jnp.nan)
    )
    assert np.all(np.isnan(train.fit(model, lost, jax.random.key(0)).scores(jnp.arange(U))))


@everyone
def test_the_wrong_track_is_refused(name):
    if name in ("pmf", "pmf-ratings") or name.startswith("autorec"):
        pytest.skip("learns from clicks and from ratings")
    wrong = clicks() if name in RATINGS else ratings()
    with pytest.raises(ValueError, match="ratings"):
        FAMILY[name].prepare(wrong)


@pytest.mark.parametrize("name", [name for name in FAMILY if not name.startswith("plug")])
def test_config_rebuilds_the_model(name):
    model = FAMILY[name]
    assert dict(registry.make(model.name, **model.config).config) == dict(model.config)
    assert repr(model).startswith(f"{model.name}(")
    with pytest.raises(TypeError):
        model.config["factors"] = 1


@pytest.mark.parametrize("name", ["mf", *slowly("lightgcn", "bpr-batches", "multvae-revadv")])
def test_poisoned_copies_of_the_data_share_one_compiled_model(name):
    """`vmap` over injected data of one capacity equals fitting one copy after the other."""
    train_data, track = events(name), "explicit" if name in RATINGS else "implicit"
    rows = [(relaxed()[0] > level).astype(float) * (3 if name in RATINGS else 1) for level in (0.4, 0.7)]
    width = train_data.capacity + F * I
    copies = [
        inject(train_data, Profiles.from_rows(r, targets=[0], track=track), capacity=width) for r in rows
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies)
    model, key, calls = FAMILY[name], jax.random.key(0), []

    @jax.jit
    def scores(data):
        calls.append(1)
        return train.fit(model, data, key).scores(jnp.arange(U))

    together = jax.vmap(lambda data: train.fit(model, data, key).scores(jnp.arange(U)))(stacked)
    for one, copy in zip(together, copies, strict=True):
        close(one, scores(copy), 1e-4)
    assert len(calls) == 1


def test_plug_refuses_what_is_no_module():
    with pytest.raises(TypeError, match=r"expected an nnx\.Module"):
        plug.plug(lambda users, items, *, rngs: 3).init(jax.random.key(0), U, I, 0)
    with pytest.raises(TypeError, match="needs an argument rngs"):
        plug.plug(lambda users, items: TwoTowers).init(jax.random.key(0), U, I, 0)
    with pytest.raises(ValueError, match="objective='hinge'"):
        plug.plug(TwoTowers, objective="hinge")


def test_weights_of_relaxed_cells_are_constants():
    x = jnp.array([[0.0, 0.2, 1.0]])
    frozen = jnp.array([[True, False, False]])
    assert cell_weights(x, None, 20.0).tolist() == [[1.0, 20.0, 20.0]]
    assert cell_weights(x, frozen, 20.0).tolist() == [[20.0, 1.0, 1.0]]
    assert not np.any(jax.grad(lambda x: jnp.sum(cell_weights(x, None, 20.0)))(x))


@pytest.mark.slow
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
