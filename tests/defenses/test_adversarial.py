"""Adversarial training: the change of a row, its effect on the loss, and the two limits in which it is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import attacks
import bilevel
from defenses.adversarial import adversarial, tables_of, worst
from models import registry
from models.als import als
from models.autorec import autorec
from models.data import Interactions
from models.data.relations import clusters
from models.mf import mf
from models.ncf import neumf
from models.train import begin, fit
from models.wrmf import wrmf

KEY = jax.random.key(0)
U, I = 10, 7


@pytest.fixture
def ratings(rng):
    dense = (rng.random((U, I)) < 0.7) * rng.integers(1, 6, (U, I)).astype(float)
    dense[:, 0] += (dense.sum(1) == 0) * 3
    return Interactions.from_dense(dense, track="explicit")


def clicks_of(ratings):
    return Interactions.from_dense((np.asarray(ratings.dense()) > 3).astype(float))


@given(seed=st.integers(0, 2**20), epsilon=st.floats(1e-3, 10))
def test_every_row_moves_by_epsilon_or_not_at_all(seed, epsilon):
    g = np.random.default_rng(seed).normal(size=(5, 3))
    g[seed % 5] = 0
    change = worst(
        {"user": jnp.asarray(g), "item": jnp.asarray(g), "last": jnp.asarray(g)}, epsilon, ("user", "item")
    )
    length = np.linalg.norm(change["user"], axis=1)
    np.testing.assert_allclose(length, np.where(np.arange(5) == seed % 5, 0, epsilon), rtol=1e-5)
    assert not np.asarray(change["last"]).any()


def test_epsilon_0_doubles_the_loss_and_small_changes_raise_it(x64, ratings):
    model = mf(factors=3, batch=None)
    start = begin(model, ratings, KEY)
    ctx = start.inner.final_context(start.key)
    value = lambda m: m.loss(start.params, start.x, start.data, ctx)
    np.testing.assert_allclose(value(adversarial(model, epsilon=0.0)), 2 * value(model), rtol=1e-12)
    assert float(value(adversarial(model, epsilon=1e-3))) > 2 * float(value(model))
    np.testing.assert_allclose(value(adversarial(model, epsilon=0.5, weight=0.0)), value(model), rtol=1e-12)


@pytest.mark.slow
def test_weight_0_is_plain_training_and_epsilon_0_twice_the_loss(x64, ratings):
    model = mf(factors=3, epochs=5, batch=None, learning_rate=0.1)
    twice = dataclasses.replace(
        model,
        loss=lambda *args: 2 * model.loss(*args),
        trainer=lambda *sizes: bilevel.with_loss(model.trainer(*sizes), lambda *args: 2 * model.loss(*args)),
    )
    none = fit(adversarial(model, epsilon=0.0), ratings, KEY).scores(jnp.arange(U))
    np.testing.assert_allclose(none, fit(twice, ratings, KEY).scores(jnp.arange(U)), rtol=1e-9)
    plain = fit(model, ratings, KEY).scores(jnp.arange(U))
    same = fit(adversarial(model, epsilon=0.7, weight=0.0), ratings, KEY).scores(jnp.arange(U))
    other = fit(adversarial(model, epsilon=0.7), ratings, KEY).scores(jnp.arange(U))
    np.testing.assert_allclose(same, plain, rtol=1e-10)
    assert np.abs(np.asarray(other - plain)).max() > 1e-3


def test_until_it_starts_the_training_is_plain(x64, ratings):
    model = mf(factors=3, epochs=4, batch=5, learning_rate=0.1)
    scores = lambda m, epochs: fit(
        dataclasses.replace(m, trainer=lambda *sizes: cut(m.trainer(*sizes), epochs)), ratings, KEY
    ).scores(jnp.arange(U))
    cut = lambda inner, epochs: dataclasses.replace(inner, steps=epochs * inner.steps_per_epoch)
    late = adversarial(model, epsilon=0.7, start=2)
    np.testing.assert_allclose(scores(late, 2), scores(model, 2), rtol=1e-12)
    assert np.abs(np.asarray(scores(late, 3) - scores(model, 3))).max() > 1e-3
    with pytest.raises(ValueError, match="start=-1"):
        adversarial(model, start=-1)


SMALL = {"epochs": 1, "batch": None}
NEUMF = neumf(factors=2, tower=3, hidden=(), negatives=1, scale=0.5, **SMALL)


@pytest.mark.parametrize(
    ("model", "tables"),
    [
        (mf(factors=3, **SMALL), {"user": 1, "item": 1}),
        (NEUMF, {"user": 1, "item": 1, "tower_user": 1, "tower_item": 1}),
        (autorec(hidden=3, **SMALL), {"layers/0/kernel": 1, "layers/1/kernel": 0}),
    ],
    ids=["mf", "neumf", "autorec"],
)
def test_the_step_is_that_of_the_loss_at_the_changed_embeddings(x64, ratings, model, tables):
    """The vectors of users, items and an autoencoder's items move; `tables` says along which axis one lies."""
    start = begin(model, ratings if model.name == "mf" else clicks_of(ratings), KEY)
    ctx = start.inner.final_context(start.key)

    def one(path, leaf, g):
        axis = tables.get("/".join(str(key.key) for key in path))
        if axis is None:
            return leaf
        return leaf + 0.2 * g / jnp.maximum(jnp.linalg.norm(g, axis=axis, keepdims=True), 1e-300)

    @jax.jit
    def both(params):
        grad = lambda m, p: jax.grad(m.loss)(p, start.x, start.data, ctx)
        g = grad(model, params)
        moved = jax.tree_util.tree_map_with_path(one, params, g)
        expected = jax.tree.map(lambda a, b: a + 0.7 * b, g, grad(model, moved))
        return grad(adversarial(model, epsilon=0.2, weight=0.7), params), expected

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)
    jax.tree.map(close, *both(start.params))


LEARNED = [
    name for name in registry.names() if name not in ("als", "itemcf", "itempop", "covisitation", "pcmf")
]


def test_every_vector_of_our_recommenders_is_changed_and_nothing_else():
    """A parameter is a table of vectors where one of its axes is as long as there are users or items."""
    users, items, fakes = 11, 19, 3
    models = {
        n: registry.factory(n)(*([clusters([0] * items)] if registry.needs(n) else [])) for n in LEARNED
    }
    sizes = lambda n: (users, items, 0 if n == "rcf" else fakes)
    shapes = {n: jax.eval_shape(lambda n=n: models[n].init(KEY, *sizes(n))) for n in models}
    rng = np.random.default_rng(0)
    slopes = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    changes = jax.jit(lambda s: {n: worst(s[n], 0.5, tables_of(models[n])) for n in models})(slopes)
    long, related = {users, items, fakes, users + fakes}, ("['rcf']['type']", "['rcf']['value']")
    for path, change in jax.tree_util.tree_leaves_with_path(changes):
        place = jax.tree_util.keystr(path)
        if place in related or (change.ndim == 2 and long & set(change.shape)):
            length = np.linalg.norm(change, axis=1 if place in related or change.shape[0] in long else 0)
            np.testing.assert_allclose(length, 0.5, rtol=1e-5, err_msg=place)
        else:
            assert not np.asarray(change).any(), place


@pytest.mark.parametrize("wrapped", [wrmf(), adversarial(wrmf()), dataclasses.replace(wrmf(), name="own")])
def test_a_recommender_behind_a_defense_is_known_and_a_foreign_one_is_not(wrapped):
    assert tables_of(wrapped) == (None if wrapped.name == "own" else ("user", "item", "fake"))
    slope = {"user": jnp.ones((2, 3)), "other": jnp.ones((2, 3))}
    assert not np.asarray(worst(slope, 1.0, None)["other"]).any()


@pytest.mark.parametrize("memory", ["replay", pytest.param("keep", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "start", [pytest.param(0, marks=pytest.mark.slow), 2], ids=lambda start: f"from_{start}"
)
@pytest.mark.parametrize("derivative", ["exact", "held"])
def test_the_hypergradient_through_the_training_is_that_of_the_trained_rows(
    x64, rng, memory, start, derivative
):
    """Central differences of the whole training: Delta answers to the rows and to the parameters, or stays that of the
    training at the rows of which the derivative is taken.
    """
    clicks = Interactions.from_dense((rng.random((U, I)) < 0.5).astype(float))
    plain = wrmf(factors=3, epochs=6, learning_rate=0.05)
    model = adversarial(plain, epsilon=0.3, start=start, derivative=derivative)
    x = jnp.asarray(0.2 + 0.6 * rng.random((3, I)))
    at = begin(model, clicks, KEY, x)
    wide = lambda leaf: leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    params, data = jax.tree.map(wide, (at.params, at.data))
    solve, whole = bilevel.unrolled(at.inner, memory=memory), bilevel.truncated(at.inner, at.inner.steps)

    def value(solve, x):
        return jnp.sum(model.scores(solve(x, params, data, at.key), x, data, jnp.arange(U))[:, 1])

    outer, h = jax.jit(lambda x: value(solve, x)), 1e-5
    if derivative == "held":
        constant = bilevel.unrolled(_held(plain, at.inner, 0.3, start, x, params, data, at.key))
        outer = jax.jit(lambda x: value(constant, x))
        np.testing.assert_allclose(outer(x), value(solve, x), rtol=1e-12)
    slopes = jax.jit(lambda x: [jax.grad(lambda x: value(s, x))(x) for s in (solve, whole)])(x)
    for _ in range(6):
        v = jnp.asarray(rng.normal(size=x.shape))
        expected = (outer(x + h * v) - outer(x - h * v)) / (2 * h)
        for slope in slopes:
            np.testing.assert_allclose(jnp.sum(slope * v), expected, rtol=1e-5)


def _held(plain, inner, epsilon, start, x, params, data, key):
    """The training at other rows with the changes of the training at these."""
    deltas, loss = [], plain.trainer(U, I, 3).loss
    for step in range(inner.steps):  # a step of the loop is an epoch
        there = (
            bilevel.unrolled(dataclasses.replace(inner, steps=step))(x, params, data, key) if step else params
        )
        slope = jax.grad(loss)(there, x, data, inner.context(key, step))
        deltas.append(worst(slope, epsilon if step >= start else 0.0, None))
    changes = jax.tree.map(lambda *each: jnp.stack(each), *deltas)

    def held(params, x, data, ctx):
        moved = jax.tree.map(lambda p, d: p + d[ctx.step], params, changes)
        return loss(params, x, data, ctx) + jnp.where(ctx.step < start, 0.0, loss(moved, x, data, ctx))

    return bilevel.with_loss(inner, held, bilevel.Structure())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bpr", "itemae", "multvae", "gru4rec"])
def test_models_of_clicks(rng, name):
    user, item = np.nonzero(rng.random((U, I)) < 0.5)
    track = "sequence" if name == "gru4rec" else "implicit"
    clicks = Interactions.from_arrays(user, item, time=np.arange(user.size), users=U, items=I, track=track)
    model = registry.make(name, epochs=2, batch=8)
    plain, hard = (
        fit(m, clicks, KEY).scores(jnp.arange(U)) for m in (model, adversarial(model, epsilon=0.5))
    )
    assert np.isfinite(np.asarray(hard)).all()
    assert np.abs(np.asarray(hard - plain)).max() > 1e-4


@pytest.mark.slow
def test_an_attacker_who_knows(rng):
    clicks = Interactions.from_dense((rng.random((U, I)) < 0.5).astype(float))
    attack = attacks.revadv(
        adversarial(wrmf(factors=2, epochs=3), epsilon=0.1),
        fakes=2,
        budget=2,
        projection="topk",
        steps=2,
        k=3,
    )
    profiles, history = attack.trace(KEY, clicks, jnp.array([1]))
    assert profiles.to_rows().shape == (2, I)
    assert np.isfinite(np.asarray(history["loss"])).all()


def test_what_has_no_embeddings_or_no_gradient_is_refused(rng):
    clicks = Interactions.from_dense((rng.random((U, I)) < 0.5).astype(float))
    with pytest.raises(ValueError, match=r"called 'itm', 'tower'; give tables among \['fake'\], \['item'\]"):
        fit(adversarial(wrmf(factors=2, epochs=1), tables=("user", "itm", "tower")), clicks, KEY)
    with pytest.raises(ValueError, match="no parameter is called 'user', 'item', 'fake'"):
        worst({"kernel": jnp.ones((2, 2))}, 1.0, None)
    with pytest.raises(ValueError, match="not trained by gradient descent"):
        fit(adversarial(als(factors=2, sweeps=1)), clicks, KEY)
    with pytest.raises(ValueError, match="epsilon"):
        adversarial(wrmf(), epsilon=-1.0)


def test_a_field_that_is_no_gradient_has_no_implicit_derivative():
    inner = adversarial(wrmf(factors=2, epochs=1)).trainer(U, I, 1)
    for loop in (inner, bilevel.precompose(inner, lambda x, data: 2 * x)):
        with pytest.raises(ValueError, match="gradient of no loss"):
            bilevel.implicit(loop)
    bilevel.implicit(inner, objective=inner.loss)  # a loss that is given is stationary by assumption
