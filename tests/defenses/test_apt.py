"""APT: the influence vector by its definition and by retraining, the helpful users, and the training beside them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from scipy.stats import norm, rankdata

import attacks
import bilevel
from defenses.adversarial import adversarial
from defenses.apt import Helpers, apt
from defenses.filtering import soft_filter
from defenses.helped import apt_surrogate
from defenses.helpful import choose, ratings
from defenses.influence import RELATIVE, Point, influence_vector, smallest
from models import registry
from models.als import als
from models.autorec import autorec
from models.bpr import bpr
from models.data import Interactions, Profiles, inject
from models.data.relations import clusters
from models.mf import mf
from models.ncf import neumf
from models.pmf import pmf
from models.train import Start, begin, fit
from models.wrmf import wrmf

KEY = jax.random.key(0)
U, I = 14, 9


@pytest.fixture
def train(rng):
    dense = (rng.random((U, I)) < 0.6) * rng.integers(1, 6, (U, I))
    dense[:, 0] += (dense.sum(1) == 0) * 3
    return Interactions.from_dense(dense.astype(float), track="explicit")


def small(**changes):
    return mf(**{"factors": 3, "epochs": 8, "batch": None, "learning_rate": 0.3, **changes})


OF_RATINGS = {
    "mf": small(l2=0.5),
    "pmf": pmf(factors=3, epochs=8, batch=None, learning_rate=0.3, l2=0.5),
    "autorec": autorec(hidden=3, epochs=8, learning_rate=0.1),
    "neumf": neumf(
        factors=2,
        tower=2,
        hidden=(3,),
        epochs=8,
        batch=None,
        learning_rate=0.05,
        l2=0.5,
        weight_decay=0.1,
        scale=0.5,
        objective="ratings",
    ),
}


def point(model, train, steps=None, x=None):
    """Parameters after the model's training (or of `steps` by plain descent, 0: its first ones), in float64."""
    start = begin(model, train, KEY, x)
    wide = lambda tree: jax.tree.map(
        lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
    )
    start = Start(start.inner, wide(start.params), wide(start.x), wide(start.data), start.key)
    if steps == 0:
        return Point(start, start.params, start.x, train)
    inner = start.inner if steps is None else bilevel.gradient_descent(model.loss, optax.adam(0.02), steps)
    params = bilevel.detached(inner)(start.x, start.params, start.data, start.key)
    return Point(start, params, start.x, train)


def asked(model, at, **settings):
    """The influence vector and its code, compiled in one piece."""
    return jax.jit(lambda: influence_vector(model, at, **settings))()


# ------------------------------------------------------------------------------------------------ influence


@pytest.mark.parametrize(
    ("name", "risk"),
    [
        ("pmf", "paper"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("mf", "paper"), ("mf", "code"), ("autorec", "paper"), ("neumf", "paper"))
        ),
    ],
)
def test_the_vector_is_the_derivative_of_eq_5(x64, train, name, risk):
    """`-(1/n) v' d/dz_j grad L(z)` with `L(z) = mean_j (z_j - s_zj)^2` written out, `v` by a dense inverse."""
    model = OF_RATINGS[name]
    at = point(model, train, steps=0)
    highest = model.config.get("highest", 1.0)
    level = jnp.sum(train.weight) / train.count if name in ("pmf", "autorec") else 0.0  # not learned
    found, _ = asked(model, at, solver=bilevel.dense(damping=1e-2), risk=risk, references=2, highest=highest)
    flat, unravel = ravel_pytree(at.params)
    ctx = at.start.inner.final_context(at.start.key)
    loss = lambda theta: model.loss(unravel(theta), at.x, at.start.data, ctx)

    def empirical(theta):
        if risk == "code":
            return loss(theta)  # the direction of sigmoid(L), whose factor no choice of items sees
        scores = model.scores(unravel(theta), at.x, at.start.data, jnp.arange(U))
        error = train.weight / highest - level - scores[train.user, train.item]
        return jnp.sum(jnp.where(train.mask, jax.nn.sigmoid(error**2), 0))

    H, slope = jax.jit(lambda: (jax.hessian(loss)(flat), jax.grad(empirical)(flat)))()
    v = np.linalg.solve(H + 1e-2 * np.eye(flat.size), slope)
    users = smallest(train, 2)

    def of_row(theta, z):
        return jnp.sum(jnp.mean((z - model.scores(unravel(theta), at.x, at.start.data, users)) ** 2, 1))

    mixed = jax.jit(jax.jacfwd(jax.grad(of_row), argnums=1))(flat, jnp.zeros((2, I)))
    expected = -np.einsum("t,tzj->j", v, mixed) / U
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_it_ranks_what_retraining_with_a_row_does(x64, seed):
    """`w L(z')` on z's own vector, w = 1e-4, at a converged ridge problem: Delta L_ER against `I . z'` for rows z'."""
    rng = np.random.default_rng(seed)
    dense = (rng.random((U, I)) < 0.6) * rng.integers(1, 6, (U, I)).astype(float)
    dense[:, 0] += (dense.sum(1) == 0) * 3
    train = Interactions.from_dense(dense, track="explicit")
    model = mf(factors=3, epochs=1, batch=None, l2=0.05)
    at = point(model, train, steps=4000)
    influence, _ = asked(model, at, solver=bilevel.dense(), risk="paper", references=1, highest=5.0)
    (user,) = smallest(train, 1)
    ctx = at.start.inner.final_context(at.start.key)

    def retrained(z, w):
        def loss(params, z, data, ctx):
            own = jnp.mean((z - params["item"] @ params["user"][user]) ** 2)
            return model.loss(params, at.x, data, ctx) + w * own

        inner = bilevel.gradient_descent(loss, optax.sgd(0.5), 6000)
        params = bilevel.detached(inner)(z, at.params, at.start.data, at.start.key)
        error = train.weight / 5 - jnp.sum(params["user"][train.user] * params["item"][train.item], 1)
        return jnp.sum(jnp.where(train.mask, jax.nn.sigmoid(error**2), 0))

    slope = jax.grad(model.loss)(at.params, at.x, at.start.data, ctx)
    assert float(jnp.linalg.norm(ravel_pytree(slope)[0])) < 1e-6
    rows = jnp.asarray(rng.random((24, I)))
    change = jax.jit(jax.vmap(lambda z: retrained(z, 1e-4)))(rows)
    assert np.corrcoef(rankdata(change), rankdata(rows @ influence))[0, 1] > 0.95  # Spearman


@pytest.mark.slow
def test_lissa_of_blocks_is_the_truncated_series_of_each_block(x64, train):
    model = small()
    at = point(model, train)
    found, _ = asked(model, at, solver="lissa_block", risk="code", references=1, highest=5.0)
    ctx = at.start.inner.final_context(at.start.key)
    loss = lambda params: model.loss(params, at.x, at.start.data, ctx)
    slope = jax.grad(loss)(at.params)
    moved = {}
    for name in ("user", "item"):
        block = jax.hessian(lambda leaf, name=name: loss({**at.params, name: leaf}))(at.params[name])
        size = at.params[name].size
        h, vectors = np.linalg.eigh(np.asarray(block).reshape(size, size))
        series = np.where(h == 0, 1001, (1 - (1 - h) ** 1001) / np.where(h == 0, 1, h))
        moved[name] = (vectors @ (series * (vectors.T @ np.ravel(slope[name])))).reshape(
            at.params[name].shape
        )
    (user,) = smallest(train, 1)
    expected = moved["user"][user] @ at.params["item"].T + moved["item"] @ at.params["user"][user]
    np.testing.assert_allclose(found, 2 / (U * I) * expected, rtol=1e-6, atol=1e-14)


def penalty(name, params, user, item):
    """The penalty of each of `OF_RATINGS`, written out over the observed cells."""
    p, q = jnp.concatenate([params["user"], params["fake"]])[user], params["item"][item]
    if name == "mf":
        return 0.5 * jnp.mean(p**2 + q**2)
    looked_up = jnp.sum(p**2) + jnp.sum(q**2)
    if name == "pmf":
        return 0.25 * looked_up / len(user)
    looked_up += jnp.sum(params["tower_user"][user] ** 2) + jnp.sum(params["tower_item"][item] ** 2)
    return 0.25 * looked_up / len(user) + 0.05 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["mf", *(pytest.param(n, marks=pytest.mark.slow) for n in ("pmf", "neumf"))])
def test_gauss_newton_is_the_positive_part_with_the_penalty(x64, train, rng, name):
    """`H = 2 J'J / E + the penalty's Hessian`, J the derivatives of the observed scores; PMF with fake rows beside."""
    fakes = 2 if name == "pmf" else 0
    x = (rng.random((fakes, I)) < 0.5) * rng.integers(1, 6, (fakes, I)).astype(float)
    model = OF_RATINGS[name]
    at = point(model, train, steps=0, x=jnp.asarray(x))
    highest = model.config.get("highest", 1.0)
    found, code = asked(model, at, solver="gauss_newton", risk="code", references=3, highest=highest)
    assert code == bilevel.Code.OK
    flat, back = ravel_pytree(at.params)
    user, item = np.nonzero(np.concatenate([train.dense(), x]))

    def seen(flat):
        params = back(flat)
        every = {**params, "user": jnp.concatenate([params["user"], params["fake"]])}
        return model.score(every, jnp.arange(U + fakes))[user, item]

    ctx = at.start.inner.final_context(at.start.key)
    loss = lambda flat: model.loss(back(flat), at.x, at.start.data, ctx)
    hard = lambda flat: penalty(name, back(flat), user, item)
    J, P, full, slope = map(
        np.asarray,
        jax.jit(
            lambda: (
                jax.jacobian(seen)(flat),
                *(jax.hessian(f)(flat) for f in (hard, loss)),
                jax.grad(loss)(flat),
            )
        )(),
    )
    H = 2 * J.T @ J / len(user) + P
    assert np.linalg.eigvalsh(full)[0] < 0
    damping = 1e-3 if name == "mf" else RELATIVE * np.linalg.eigvalsh(H)[-1]
    moved = back(jnp.linalg.solve(H + damping * np.eye(flat.size), slope))
    scores = lambda params: model.scores(params, at.x, at.start.data, smallest(train, 3))
    exact = 2 / (U * I) * jax.jit(lambda: jax.jvp(scores, (at.params,), (moved,))[1].sum(0))()
    np.testing.assert_allclose(found, exact, rtol=1e-2, atol=1e-3 * np.abs(exact).max())


@pytest.mark.slow
def test_solvers_agree_where_they_should(x64, train):
    model = small(l2=0.5)
    at = point(model, train, steps=400)
    ask = lambda solver: asked(model, at, solver=solver, risk="paper", references=3, highest=5.0)[0]
    exact = ask(bilevel.dense(damping=1e-3))
    np.testing.assert_allclose(ask("cg"), exact, rtol=1e-2, atol=1e-3 * np.abs(exact).max())
    assert np.abs(np.asarray(ask("identity") - exact)).max() > 1e-3 * np.abs(np.asarray(exact)).max()


OF_CLICKS = {
    "wrmf": {"factors": 2},
    "bpr": {"factors": 2, "batch": 8},
    "gmf": {"factors": 2, "batch": 16},
    "neumf": {"factors": 2, "batch": 16},
    "itemae": {},
    "multvae": {"hidden": 4, "latent": 2, "batch": None},
    "autorec": {},
    "cml": {"factors": 2},
    "pmf": {"factors": 2},
    "lightgcn": {"factors": 2},
    "ngcf": {},
    "ncr": {"factors": 4},
    "rcf": {"relations": clusters(np.arange(40) % 4), "factors": 2, "attention": 2, "hidden": (4,)},
}


@pytest.mark.parametrize(
    "name",
    [name if name in ("wrmf", "gmf") else pytest.param(name, marks=pytest.mark.slow) for name in OF_CLICKS],
)
def test_on_clicks_somebody_helps_whatever_the_recommender(name, rng):
    """A loss that is a sum saturates a sigmoid in float32: nobody helped, and nothing said so."""
    clicks = Interactions.from_dense((rng.random((60, 40)) < 0.25).astype(float))
    model = registry.make(name, epochs=3, **OF_CLICKS[name])
    defense = apt(model, users=5, items=6, pretrain=1, every=1, grid=None, references=2, solver="identity")
    fitted, said = defense.trace(clicks, KEY)
    assert set(np.unique(said["rows"])) == {0.0, 1.0}
    np.testing.assert_array_equal(said["items"], 6)
    assert ((said["negative"] > 0) & (said["negative"] < 1)).all()  # below the mean of the row: some, not all
    assert np.isfinite(np.asarray(fitted.scores(jnp.arange(60)))).all()


def of_one_rating(rng):
    """Ratings of which those of an item are all the same: what a helpful user without a bonus gives it."""
    return (rng.random((U, I)) < 0.6) * (1.0 + np.arange(I) % 5)


@pytest.mark.parametrize(
    "name", ["pmf", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mf", "autorec", "neumf"))]
)
def test_on_ratings_somebody_helps_whatever_the_recommender(name, rng):
    """PMF, AutoRec and NeuMF take ratings as they are: the unit of the helpful users is that of the grid."""
    dense = of_one_rating(rng)
    train, each = Interactions.from_dense(dense, track="explicit"), dense.max(0)
    few = {"users": 3, "items": 4, "pretrain": 1, "every": 4, "references": 2, "bonus": 0.0}
    defense = apt(OF_RATINGS[name], risk="paper", solver="identity", **few)
    fitted, said = defense.trace(train, KEY)
    assert (said["negative"] > 0).all()
    rows = np.asarray(said["rows"])
    np.testing.assert_allclose(rows, np.where(rows > 0, each, 0), rtol=1e-6)
    assert np.isfinite(np.asarray(fitted.scores(jnp.arange(U)))).all()


@pytest.mark.parametrize("name", [pytest.param("mf", marks=pytest.mark.slow), "pmf"])
def test_helpful_users_of_the_surrogate_have_the_unit_of_its_model(name, rng):
    """They are ratings of the grid; MF's fake rows are divided by the largest one, PMF's are not."""
    dense = of_one_rating(rng)
    train, model = Interactions.from_dense(dense, track="explicit"), OF_RATINGS[name]
    known = apt_surrogate(apt(model, users=3, items=I, pretrain=1, every=4, references=2, selection="random"))
    start = begin(known, train, KEY, jnp.zeros((2, I)))
    inner = start.inner
    assert inner.aux is not None
    renew = inner.aux.update

    @jax.jit
    def at(step):
        ctx = inner.context(start.key, step)
        return renew(jnp.zeros((3, I)), start.params, start.x, start.data, ctx)

    expected = np.tile(dense.max(0) / model.config.get("highest", 1.0), (3, 1))
    np.testing.assert_allclose(at(1), expected, rtol=1e-6)  # an epoch is one step
    np.testing.assert_array_equal(at(2), 0)  # not due: as they were


def test_where_nobody_helps_it_says_so(train):
    nothing = lambda system: bilevel.dense().run(system._replace(b=jax.tree.map(jnp.zeros_like, system.b)))
    solver = bilevel.LinearSolver("nothing", {}, nothing)
    defense = apt(small(epochs=3), users=2, items=2, pretrain=1, every=1, references=1, solver=solver)
    with pytest.warns(UserWarning, match="2 of 2 renewals no item"):
        defense.fit(train, KEY)


def test_negative_curvature_is_refused(x64, train):
    """Conjugate gradients met it: the influences are the plain gradient's; a direct solver has no such limit."""
    model = small()
    at = point(model, train, steps=0)
    ask = lambda solver: asked(model, at, solver=solver, risk="paper", references=3, highest=5.0)
    refused, code = ask(bilevel.cg(damping=0.0, max_steps=200))
    assert code == bilevel.Code.INDEFINITE
    np.testing.assert_allclose(refused, ask("identity")[0], rtol=1e-12)
    assert np.abs(ask(bilevel.dense())[0] / refused - 1).max() > 0.01


@pytest.mark.parametrize(
    "solver", ["cg", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lissa", "lissa_block"))]
)
def test_on_clicks_the_damping_is_of_the_size_of_the_loss(x64, rng, solver):
    """A sum over cells has other eigenvalues than a mean, negative ones too: no absolute damping fits."""
    clicks = Interactions.from_dense((rng.random((U, I)) < 0.4).astype(float))
    model = wrmf(factors=2, epochs=6, learning_rate=0.05)
    at = point(model, clicks)
    found, code = asked(model, at, solver=solver, risk="code", references=3, highest=1.0)
    assert code == bilevel.Code.OK
    flat, back = ravel_pytree(at.params)
    ctx = at.start.inner.final_context(at.start.key)
    loss = lambda flat: model.loss(back(flat), at.x, at.start.data, ctx)
    H, slope = map(np.asarray, jax.jit(lambda: (jax.hessian(loss)(flat), jax.grad(loss)(flat)))())
    if solver == "lissa_block":
        ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(at.params)])
        own = np.searchsorted(ends, np.arange(flat.size), side="right")
        H = np.where(own[:, None] == own, H, 0)
    h = np.linalg.eigvalsh(H)
    damping = RELATIVE * h[-1] + 2 * max(0, -h[0])
    moved = back(np.linalg.solve(H + damping * np.eye(flat.size), slope))
    scores = lambda params: model.scores(params, at.x, at.start.data, smallest(clicks, 3))
    exact = 2 / (U * I) * jax.jit(lambda: jax.jvp(scores, (at.params,), (moved,))[1].sum(0))()
    np.testing.assert_allclose(found, exact, rtol=0.05, atol=0.02 * np.abs(exact).max())
    if solver != "lissa_block":  # the blocks are convex
        assert h[0] < 0


@pytest.mark.parametrize(
    ("model", "solver", "match"),
    [
        (bpr(factors=2, epochs=3, batch=8), "gauss_newton", "gauss_newton"),
        (als(factors=2, sweeps=3), "cg", "no gradient"),
    ],
    ids=["gauss-newton", "als"],
)
def test_what_has_no_such_curvature_is_refused(model, solver, match, rng):
    clicks = Interactions.from_dense((rng.random((U, I)) < 0.5).astype(float))
    with pytest.raises(ValueError, match=match):
        apt(model, users=2, items=2, pretrain=1, every=1, grid=None, references=2, solver=solver).fit(
            clicks, KEY
        )


# ------------------------------------------------------------------------------------------------ the training


LOOP = small(epochs=6, batch=16)


def test_without_helpful_users_it_is_plain_training_bit_for_bit(train):
    plain, defended = fit(LOOP, train, KEY), fit(apt(LOOP, users=0), train, KEY)
    jax.tree.map(np.testing.assert_array_equal, defended.params, plain.params)


def beside(train, rows, width=5):
    return inject(train, Profiles.from_rows(rows, jnp.zeros(0, jnp.int32), track="explicit", width=width))


def answering(params, key):
    """Rows of three users that answer to the parameters and to the key, so that every renewal has its own."""
    taste = jnp.sum(params["item"], 1)
    wish = taste / jnp.std(taste) + jax.random.gumbel(key, (3, I))
    return jnp.zeros((3, I)).at[jnp.arange(3)[:, None], jax.lax.top_k(wish, 5)[1]].set(4.0)


def renewed_by(monkeypatch, rows):
    """Helpful users are made by `rows(params, key)`."""
    made = lambda self, model, at, key, level, number: (
        rows(at.params, key),
        -jnp.ones(I),
        jnp.zeros((), jnp.int32),
    )
    monkeypatch.setattr(Helpers, "renewed", made)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_helpful_users_that_stay_the_same_are_users_like_any_other_bit_for_bit(train, monkeypatch, every):
    """However the epochs are cut into blocks, also with a shorter last one, it is one training on the same data."""
    rows = jnp.where(jnp.arange(I) % 3 == jnp.arange(3)[:, None], 4.0, 0.0)
    renewed_by(monkeypatch, lambda params, key: rows)
    fitted = apt(LOOP, users=3, items=5, pretrain=0, every=every, references=1).fit(train, KEY)
    plain = fit(LOOP, beside(train, rows), jax.random.split(KEY)[0])
    jax.tree.map(np.testing.assert_array_equal, fitted.params, plain.params)


def test_the_loop_is_the_algorithm_by_hand(train, monkeypatch):
    """One epoch alone, then renewals before epochs 1, 3 and 5, the optimizer's state and the count of steps kept."""
    renewed_by(monkeypatch, answering)
    fitted, told = apt(LOOP, users=3, items=5, pretrain=1, every=2, references=1).trace(train, KEY)
    for_start, for_draws = jax.random.split(KEY)
    start = begin(LOOP, beside(train, jnp.zeros((3, I)), 0), for_start)
    before, after = start.inner, LOOP.trainer(U + 3, I, 0, train.capacity + 15)
    assert before.steps_per_epoch < after.steps_per_epoch

    def stepping(inner):
        step = lambda state, data, at: inner.step(state, start.x, data, inner.context(start.key, at))[0]
        return jax.jit(step)

    first, then = stepping(before), stepping(after)
    state = before.init(start.params, start.x, start.data, start.key)
    for at in range(before.steps_per_epoch):
        state = first(state, start.data, at)
    rows, made = None, []
    for epoch in range(1, 6):
        if epoch % 2:
            rows = answering(state.params, jax.random.fold_in(for_draws, epoch // 2))
            made.append(np.asarray(rows))
            data = LOOP.prepare(beside(train, rows))
        for at in range(epoch * after.steps_per_epoch, (epoch + 1) * after.steps_per_epoch):
            state = then(state, data, at)
    assert (made[0] != made[1]).any()
    np.testing.assert_array_equal(told["rows"], made[-1])
    assert told["items"].shape == (3,)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), fitted.params, state.params
    )


def test_helpful_users_rate_items_and_vmap_over_keys_is_the_loop(train):
    defense = apt(
        small(epochs=9, batch=16), users=4, items=3, pretrain=4, every=2, references=3, solver="identity"
    )
    keys = jax.random.split(KEY, 3)
    fitted, said = jax.vmap(lambda key: defense.trace(train, key))(keys)
    helpful = np.asarray(said["rows"])
    negative = np.asarray(said["negative"])[:, -1:] * I
    assert ((helpful > 0).sum(2) == np.minimum(3, np.round(negative))).all()
    np.testing.assert_allclose(helpful, np.round(helpful), atol=1e-5)
    assert fitted.params["user"].shape == (3, U + 4, 3)
    assert said["negative"].shape == (3, 3)  # epochs 4, 6 and 8
    np.testing.assert_allclose(said["items"][:, -1], (helpful > 0).sum(2).mean(1))
    alone = jnp.stack([defense.fit(train, key).scores(jnp.arange(U)) for key in keys])
    together = jax.vmap(lambda made: made.scores(jnp.arange(U)))(fitted)
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_random_users_have_no_bonus_any_item_and_the_ratings_they_are_told(train):
    defense = apt(
        small(epochs=3), users=200, items=1, pretrain=1, every=5, selection="random", bonus=4.0, references=1
    )
    dense = np.asarray(train.dense())
    others = Interactions.from_dense(np.where(dense > 0, 6 - dense, 0), track="explicit")
    for clean in (None, others):
        helpful = np.asarray(defense.trace(train, KEY, clean)[1]["rows"])
        assert (helpful > 0).any(0).all()
        told = dense if clean is None else np.asarray(others.dense())
        mean = told.sum(0) / np.maximum((told > 0).sum(0), 1)
        ours = helpful.sum(0) / np.maximum((helpful > 0).sum(0), 1)
        assert np.abs(ours - mean).max() < 1.3  # a bonus of 4 would put all at 5


# ------------------------------------------------------------------------------------------------ the draws


@given(seed=st.integers(0, 2**20))
def test_a_chosen_item_has_negative_influence_and_there_are_as_many_as_can_be(seed):
    influence = jnp.asarray(np.random.default_rng(seed).normal(size=8).astype(np.float32))
    chosen = np.asarray(_choose(jax.random.key(seed), influence))
    negative = np.asarray(influence) < 0
    assert not chosen[:, ~negative].any()
    assert (chosen.sum(1) == min(3, negative.sum())).all()


_choose = jax.jit(lambda key, influence: choose(key, influence, 2.0, 3, 5))


def test_the_first_draw_has_the_weights_of_the_paper():
    influence, t = jnp.array([-4.0, -3.0, 1.0, -1.0]), 2.0
    chosen = np.asarray(choose(KEY, influence, t, 1, 20_000)).mean(0)
    scaled = (np.array([-4.0, -3.0, np.inf, -1.0]) + 1) / 3  # the highest of the negative ones is -1
    weight = np.exp(-t * scaled)
    np.testing.assert_allclose(chosen, weight / weight.sum(), atol=0.01)


def test_the_mean_rating_is_that_of_the_clipped_rounded_normal():
    mean, deviation = jnp.array([0.3, 0.75, 1.0]), jnp.array([0.2, 0.3, 0.0])
    found = np.asarray(ratings(KEY, (mean, deviation), 40_000, bonus=1.0, grid=(5.0, 1.0)))
    for j in range(3):
        edges = (np.arange(5) + 0.5) / 5  # what rounds to k/5 lies between two of them
        below = norm.cdf(edges, mean[j], max(float(deviation[j]), 1e-9))
        mass = np.diff(np.concatenate([[0], below, [1]]))
        expected = np.sum(mass * np.minimum(np.arange(6) + 1, 5))
        np.testing.assert_allclose(found[:, j].mean(), expected, atol=0.025)
    assert set(np.round(np.unique(found)).astype(int)) <= {1, 2, 3, 4, 5}


# ------------------------------------------------------------------------------------------------ who knows of it


def test_an_attacker_may_optimize_against_helpful_users_that_are_held(x64, rng):
    clicks = Interactions.from_dense((rng.random((U, I)) < 0.5).astype(float))
    model = wrmf(factors=2, epochs=3, learning_rate=0.1)
    rows = jnp.asarray((rng.random((2, I)) < 0.5).astype(float))
    known = apt_surrogate(model, rows)
    x = jnp.asarray((rng.random((3, I)) < 0.5).astype(float))
    found = fit(known, clicks, KEY, fakes_rows=x).scores(jnp.arange(U))
    expected = fit(model, clicks, KEY, fakes_rows=jnp.concatenate([x, rows])).scores(jnp.arange(U))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    attack = attacks.revadv(known, fakes=3, budget=2, projection="topk", steps=2, k=3)
    profiles = attack(KEY, clicks, jnp.array([1]))
    assert profiles.to_rows().shape == (3, I)


@pytest.mark.slow
def test_an_attacker_may_optimize_through_their_renewal(x64, rng):
    """All items below the mean are taken, so that nothing is drawn: the training by hand, and central differences."""
    clicks = Interactions.from_dense((rng.random((U, I)) < 0.5).astype(float))
    model = wrmf(factors=2, epochs=6, learning_rate=0.1)
    defense = apt(model, users=2, items=I, pretrain=2, every=2, grid=None, references=2, solver="identity")
    known = apt_surrogate(defense)
    x = jnp.asarray(0.2 + 0.6 * rng.random((3, I)))
    at = begin(known, clicks, KEY, x)
    wide = lambda leaf: leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    params, data = jax.tree.map(wide, (at.params, at.data))
    solve = bilevel.unrolled(at.inner)
    trained = jax.jit(lambda x: solve(x, params, data, at.key))

    inner = model.trainer(U, I, 5, clicks.capacity)
    state, rows = inner.init(params, x, data.plain, at.key), jnp.zeros((2, I))
    for step in range(6):
        if step in (2, 4):
            whole = jnp.concatenate([x, jnp.zeros((2, I))])
            start = Start(inner, state.params, whole, data.plain, at.key)
            influence, _ = asked(
                model,
                Point(start, state.params, whole, clicks),
                solver="identity",
                risk="code",
                references=2,
                highest=1.0,
            )
            rows = jnp.tile((influence < influence.mean()).astype(float), (2, 1))
            assert 0 < rows.sum() < rows.size
        ctx = inner.context(at.key, step)
        state = inner.step(state, jnp.concatenate([x, rows]), data.plain, ctx)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), trained(x), state.params)

    outer = jax.jit(
        lambda x: jnp.sum(known.scores(solve(x, params, data, at.key), x, data, jnp.arange(U))[:, 1])
    )
    slope, h = jax.grad(outer)(x), 1e-5
    for _ in range(6):
        v = jnp.asarray(rng.normal(size=x.shape))
        expected = (outer(x + h * v) - outer(x - h * v)) / (2 * h)
        np.testing.assert_allclose(jnp.sum(slope * v), expected, rtol=1e-5)


@pytest.mark.slow
def test_the_renewing_surrogate_is_attacked(rng):
    clicks = Interactions.from_dense((rng.random((U, I)) < 0.5).astype(float))
    for model in (wrmf(factors=2, epochs=3), registry.make("itemae", epochs=3)):
        known = apt_surrogate(
            apt(model, users=2, items=2, pretrain=1, every=1, grid=None, references=2, solver="identity")
        )
        attack = attacks.revadv(known, fakes=3, budget=2, projection="topk", steps=2, k=3)
        assert attack(KEY, clicks, jnp.array([1])).to_rows().shape == (3, I)


@pytest.mark.slow
def test_at_within_apt_is_seen_through_a_filter_and_has_no_hessian():
    clicks = Interactions.from_dense((np.random.default_rng(0).random((U, I)) < 0.5).astype(float))
    hard = adversarial(wrmf(factors=2, epochs=4), epsilon=0.1)
    inside = soft_filter(hard, lambda x, data: jnp.sum(x, 1), cut=3.0)
    with pytest.raises(ValueError, match="AT within APT loses its adjoint"):
        apt_surrogate(apt(inside, users=2, grid=None)).trainer(U, I, 1)
    few = {"users": 2, "items": 3, "grid": None, "pretrain": 1, "references": 3}
    with pytest.raises(ValueError, match="follow no gradient"):
        apt(hard, **few).fit(clicks, KEY)
    assert np.isfinite(apt(hard, solver="identity", **few).fit(clicks, KEY).scores(jnp.arange(2))).all()


def test_a_surrogate_has_rows_or_makes_them():
    defense = apt(wrmf(), users=2, grid=None)
    with pytest.raises(ValueError, match="makes its own"):
        apt_surrogate(defense, jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="give the helpful users"):
        apt_surrogate(wrmf())
    with pytest.raises(ValueError, match="no gradient-descent loop"):
        apt_surrogate(apt(als(), users=2, grid=None)).trainer(4, 3, 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"items": 0}, "items"),
        ({"every": 0}, "every"),
        ({"selection": "best"}, "selection"),
        ({"solver": "newton"}, "solver"),
        ({"risk": "mean"}, "risk"),
        ({"pretrain": 1.5}, "pretrain"),
    ],
)
def test_bad_settings(change, match):
    with pytest.raises(ValueError, match=match):
        apt(small(), **change)


def test_what_does_not_fit_the_data(train):
    with pytest.raises(ValueError, match=r"users=0\.01 of"):
        apt(small(), users=0.01).fit(train, KEY)
    with pytest.raises(ValueError, match="highest=5"):
        apt(small(), users=2, items=2, references=2, grid=(8.0, 1.0)).fit(train, KEY)
    with pytest.raises(ValueError, match="more than the largest of grid"):
        apt(OF_RATINGS["pmf"], users=2, items=2, references=2, grid=(4.0, 1.0)).fit(train, KEY)
    doubled = dataclasses.replace(train, weight=2 * train.weight)
    with pytest.raises(ValueError, match="more than the largest of grid"):
        apt(OF_RATINGS["pmf"], users=2, items=2, references=2, grid=(5.0, 1.0)).fit(train, KEY, clean=doubled)
    with pytest.raises(ValueError, match=r"users=2\.5 of"):
        apt(small(), users=2.5).fit(train, KEY)
    with pytest.raises(ValueError, match="references=50"):
        apt(small(), users=2, items=2, references=50).fit(train, KEY)
    with pytest.raises(ValueError, match="pretrain=8"):
        apt(small(), users=2, items=2, pretrain=8, references=2).fit(train, KEY)
