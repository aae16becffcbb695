"""WRMF by SGD: the objective of RevAdv eq. 5, its own products, row batches, presets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from models import train
from models.data import Interactions
from models.wrmf import PRESETS, preset, wrmf

U, I, F, D = 9, 12, 4, 3


@pytest.fixture
def drawn(x64, rng):
    matrix = (rng.random((U, I)) < 0.3).astype(float)
    x = rng.random((F, I)) * (rng.random((F, I)) < 0.5)
    params, v = (
        {"user": rng.normal(size=(U, D)), "item": rng.normal(size=(I, D)), "fake": rng.normal(size=(F, D))}
        for _ in range(2)
    )
    return matrix, *jax.tree.map(jnp.array, (x, params, v))


def defined(params, x, matrix, w, l2):
    """Eq. 5 by the letter, in NumPy's terms: all rows, all cells; `w` (F, I) are the fake cells' weights."""
    rows = jnp.concatenate([params["user"], params["fake"]])
    target = jnp.concatenate([matrix, x])
    weights = jnp.concatenate([jnp.where(matrix > 0, 20.0, 1.0), w])
    penalty = sum(jnp.sum(leaf**2) for leaf in params.values())
    return jnp.sum(weights * (target - rows @ params["item"].T) ** 2) + l2 / 2 * penalty


def close(a, b, tolerance=1e-12):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * max(1, np.abs(y).max(initial=0)))


@pytest.mark.parametrize("form", ["dense", "observed"])
def test_gradients_equal_the_definition(drawn, form):
    """C2: the loss, its gradient, and `dL/dx = 2 w (x - p.q)` with the weight held constant."""
    matrix, x, params, _ = drawn
    model = wrmf(factors=D, l2=0.3, form=form)
    data = model.prepare(Interactions.from_dense(matrix))
    ctx = model.trainer(U, I, F).context(jax.random.key(0), 0)
    assert ctx.batch is None
    w = jnp.where(x > 0, 20.0, 1.0)
    expected = jax.value_and_grad(defined, (0, 1))(params, x, matrix, w, 0.3)
    close(jax.jit(jax.value_and_grad(model.loss, (0, 1)))(params, x, data, ctx), expected)
    close(expected[1][1], 2 * w * (x - params["fake"] @ params["item"].T))


@pytest.mark.parametrize("form", ["dense", "observed"])
@pytest.mark.parametrize("batch", [None, 5])
def test_own_product_and_blocks_equal_the_generic_path(drawn, form, batch):
    matrix, x, params, v = drawn
    model = wrmf(factors=D, l2=0.3, form=form, batch=batch)
    data = model.prepare(Interactions.from_dense(matrix))
    inner = model.trainer(U, I, F)
    ctx = inner.context(jax.random.key(0), 1)
    gradient = jax.grad(model.loss, (0, 1))
    generic = jax.jit(lambda p, v: jax.jvp(lambda p: gradient(p, x, data, ctx), (p,), (v,))[1])
    close(jax.jit(inner.structure.product)(params, x, data, ctx, v), generic(params, v))
    if batch is None:
        blocks = jax.jit(inner.structure.blocks)(params, x, data, ctx)
        hessian = jax.jit(jax.hessian(lambda p: model.loss(p, x, data, ctx)))(params)
        close(blocks, {k: jnp.einsum("iaib->iab", hessian[k][k]) for k in params})


def test_engine_takes_the_product_and_gets_the_generic_hypergradient(drawn):
    matrix, x, params, _ = drawn
    model = wrmf(factors=D, l2=0.3, epochs=4, learning_rate=0.1)
    data = model.prepare(Interactions.from_dense(matrix))
    inner = model.trainer(U, I, F)
    plain = bilevel.gradient_descent(model.loss, optax.adam(0.1), 4)
    outer = lambda p: jnp.sum(jnp.cos(p["user"] @ p["item"].T))
    own, generic = (
        jax.jit(
            jax.grad(lambda x, loop=loop: outer(bilevel.unrolled(loop)(x, params, data, jax.random.key(0))))
        )(x)
        for loop in (inner, plain)
    )
    close(own, generic, 1e-11)


def test_one_sgd_step_has_the_closed_form_hypergradient(drawn):
    """Check (3) of RevAdv: `dF_v/dx_vi = 2 a w q_i` and `dq_i/dx_vi = 2 a w F_v` after one step from given factors."""
    matrix, x, params, v = drawn
    model = wrmf(factors=D, l2=0.0)
    data = model.prepare(Interactions.from_dense(matrix))
    solve = bilevel.unrolled(bilevel.gradient_descent(model.loss, optax.sgd(0.01), 1))
    outer = lambda x: sum(
        jnp.vdot(v[k], leaf) for k, leaf in solve(x, params, data, jax.random.key(0)).items()
    )
    w = jnp.where(x > 0, 20.0, 1.0)
    expected = 0.02 * w * (v["fake"] @ params["item"].T + params["fake"] @ v["item"].T)
    close(jax.jit(jax.grad(outer))(x), expected)


@pytest.mark.parametrize("form", ["dense", "observed"])
def test_batches_of_an_epoch_add_up_to_the_full_loss(drawn, form):
    matrix, x, params, _ = drawn
    model = wrmf(factors=D, l2=0.0, form=form, batch=4)
    data = model.prepare(Interactions.from_dense(matrix))
    inner = model.trainer(U, I, F)
    assert inner.steps_per_epoch == 4  # ceil(13 / 4)
    loss = jax.jit(lambda step: model.loss(params, x, data, inner.context(jax.random.key(1), step)))
    full = defined(params, x, matrix, jnp.where(x > 0, 20.0, 1.0), 0.0)
    close(sum(loss(step) for step in range(4)), full)


def test_full_rank_fits_exactly_and_low_rank_like_the_svd(x64, rng):
    """With w+ = 1 and no penalty WRMF is a plain factorization."""
    matrix = (rng.random((8, 10)) < 0.4).astype(float)
    data = Interactions.from_dense(matrix)
    for factors in (2, 8):
        model = wrmf(factors=factors, weight=1.0, l2=0.0, epochs=3000, learning_rate=0.01, form="dense")
        fitted = train.fit(model, data, jax.random.key(0))
        error = np.sum((matrix - fitted.scores(jnp.arange(8))) ** 2)
        best = np.sum(np.linalg.svd(matrix)[1][factors:] ** 2)
        assert error == pytest.approx(best, rel=1e-3, abs=1e-3)  # Adam never settles quite


def test_the_penalty_is_pytorchs_weight_decay(drawn):
    """`l2` in the loss and plain Adam = `optax.add_decayed_weights(l2)` before Adam: the same steps."""
    matrix, x, params, _ = drawn
    key, train_set = jax.random.key(0), Interactions.from_dense(matrix)
    with_penalty, without = (wrmf(factors=D, l2=l2, epochs=20) for l2 in (0.7, 0.0))
    decayed = optax.chain(optax.add_decayed_weights(0.7), optax.adam(1e-2))
    other = bilevel.gradient_descent(without.loss, decayed, 20)
    data = without.prepare(train_set)
    ours, theirs = (
        jax.jit(bilevel.detached(inner))(x, params, data, key)
        for inner in (with_penalty.trainer(U, I, F), other)
    )
    close(ours, theirs, 1e-10)


def test_real_factors_do_not_depend_on_the_number_of_fakes():
    few, many = (wrmf(factors=D).init(jax.random.key(0), U, I, fakes) for fakes in (0, 7))
    assert np.all(few["user"] == many["user"])
    assert np.all(few["item"] == many["item"])
    assert not np.any(many["user"][:7] == many["fake"])


def test_a_large_batch_is_one_full_step():
    assert wrmf(batch=2048, epochs=3).trainer(2000, 10, 48).steps == 3
    assert wrmf(batch=2048, epochs=3).trainer(2000, 10, 49).steps == 6
    assert wrmf(batch=None, epochs=3).trainer(5000, 10, 0).steps == 3


def test_presets_are_the_table_of_the_papers():
    rows = {
        "revadv-gowalla": (128, 1e-2, 1e-5, 50),
        "revadv-toy": (16, 0.5, 0.0, 100),
        "rapu-ml-surrogate": (64, 1e-2, 1e-5, 200),
        "rapu-ml-victim": (64, 1e-2, 1e-5, 100),
        "rapu-video-surrogate": (32, 1e-2, 1e-5, 200),
        "rapu-video-victim": (32, 2e-2, 1e-5, 100),
    }
    assert set(rows) == set(PRESETS)
    for name, row in rows.items():
        config = preset(name).config
        assert tuple(config[k] for k in ("factors", "learning_rate", "l2", "epochs")) == row
        assert config["weight"] == 20.0
    assert preset("revadv-toy").config["batch"] is None
    assert preset("revadv-toy").config["scale"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factors": 0}, "factors=0"),
        ({"epochs": -1}, "epochs=-1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"weight": 0.5}, "weight=0.5; expected a number of at least 1"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"l2": -1e-3}, "l2=-0.001; expected a number of at least 0"),
        ({"l2": "1e-3"}, "l2='1e-3'"),
        ({"batch": 0}, "batch=0"),
        ({"factors": 2.5}, "factors=2.5; expected a whole number"),
        ({"scale": 0.0}, "scale=0.0; expected a number above 0"),
        ({"form": "sparse"}, "auto, dense, observed"),
    ],
)
def test_bad_arguments_say_what_was_expected(arguments, message):
    with pytest.raises(ValueError, match=message):
        wrmf(**arguments)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'rapu-ml-victim'"):
        preset("rapu-ml-victm")
