"""RAPU-G: the surrogate that doubts its data, its hypergradient, the popularity in the projection, RevAdv as a case."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import attacks
import bilevel
from attacks.denoised import denoised
from attacks.objective import make_objective, ranking
from attacks.pgm import Matrix, Pgm, Ratios, em, responsibilities
from attacks.rapu_g import popular_projection, rapu_g
from attacks.surrogate import hypergradient, make_estimator
from bilevel.unroll import run_some
from models.als import als
from models.data import Interactions
from models.itemae import itemae
from models.wrmf import wrmf

USERS, ITEMS, FAKES = 12, 9, 3
TARGETS = jnp.array([2, 7])
EPOCHS, LAST = 4, 2
SMALL: dict[str, Any] = {"factors": 3, "learning_rate": 0.1, "epochs": EPOCHS, "scale": 0.5, "l2": 0.1}
AE: dict[str, Any] = {"hidden": (3,), "learning_rate": 0.1, "epochs": EPOCHS, "l2": 0.1}
DOUBT = Pgm(r_bar=0.5, iterations=5)  # 0.5: what is believed differs from cell to cell


@pytest.fixture
def train(rng):
    return Interactions.from_dense((rng.random((USERS, ITEMS)) < 0.35).astype(float), capacity=USERS * ITEMS)


@pytest.fixture
def rows(rng):
    return jnp.asarray((rng.random((FAKES, ITEMS)) < 0.4).astype(float))


def drawn(rng, low=0.1, high=0.9):
    return Ratios(*(jnp.asarray(rng.uniform(low, high, size)) for size in (USERS, ITEMS, USERS, ITEMS)))


# ------------------------------------------------------------------------------------------------ the inner loss


def differences(model, denoising, rows, train, ratios, batches=()):
    """The surrogate's scores, and its loss with responsibilities minus that without: whole, and by batches."""

    @jax.jit
    def run(rows, train, ratios, batches):
        params = model.init(jax.random.key(1), USERS, ITEMS, FAKES)

        def added(batch):
            ctx = bilevel.Ctx(jax.random.key(0), 0, batch, ratios)
            doubt = denoising.loss(params, rows, denoising.prepare(train), ctx)
            return doubt - model.loss(params, rows, model.prepare(train), ctx)

        scores = model.scores(params, rows, model.prepare(train), jnp.arange(USERS))
        return scores, added(None), jax.lax.map(added, batches) if batches else 0.0

    return run(rows, train, ratios, batches)


def expected_share(pgm, scores, train, ratios):
    seen = jnp.asarray(train.dense())
    table = Matrix(lambda u: seen[u] > 0, lambda u: scores[u], 0.5)
    share = np.asarray(jax.jit(lambda: responsibilities(pgm, table, ratios, jnp.arange(USERS)))())
    assert np.ptp(share) > 0.1
    cost = np.where(seen > 0, 20.0, 1) * (seen - np.asarray(scores)) ** 2
    return share, cost


@pytest.mark.parametrize("model", [wrmf(**SMALL), itemae(**AE)], ids=lambda model: model.name)
def test_believing_everything_is_the_plain_loss(x64, train, rows, model):
    ones = Ratios(jnp.ones(USERS), jnp.ones(ITEMS), jnp.ones(USERS), jnp.ones(ITEMS))
    denoising = denoised(model, Pgm(), renormalize=model.name == "wrmf")

    @jax.jit
    def slopes(rows, train):
        params = model.init(jax.random.key(1), USERS, ITEMS, FAKES)
        ctx = bilevel.Ctx(jax.random.key(0), 0, None, ones)
        pairs = ((m, m.prepare(train)) for m in (model, denoising))
        return [jax.value_and_grad(m.loss)(params, rows, data, ctx) for m, data in pairs]

    plain, doubt = slopes(rows, train)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), doubt, plain)


def batches_of(*batches):
    index = jnp.array(batches, jnp.int32)
    return bilevel.Batch(index, index >= 0)


@pytest.mark.parametrize(
    ("model", "m_step", "batches"),
    [
        # Users and fake users; items, the last batch padded.
        (wrmf(**SMALL), "paper", batches_of((0, 13, 2, 3, 9), (1, 4, 14, 5, 6), (7, 8, 10, 11, 12))),
        (itemae(**AE), "hard", batches_of((0, 3, 2, 8), (1, 4, 5, 6), (7, -1, -1, -1))),
    ],
    ids=["wrmf", "itemae-hard"],
)
def test_every_real_cell_is_weighted_by_what_is_believed_of_it(x64, rng, train, rows, model, m_step, batches):
    pgm, ratios = Pgm(r_bar=0.5, m_step=m_step, block=5), drawn(rng)
    scores, whole, parts = differences(model, denoised(model, pgm), rows, train, ratios, batches)
    share, cost = expected_share(pgm, scores, train, ratios)
    np.testing.assert_allclose(whole, ((share - 1) * cost).sum(), rtol=1e-9)
    if batches:
        np.testing.assert_allclose(parts.sum(), whole, rtol=1e-9)  # every cell is in one batch


def test_renormalized_the_mean_responsibility_is_one(x64, rng, train, rows):
    model, ratios = wrmf(**SMALL), drawn(rng)
    scores, whole, _ = differences(model, denoised(model, DOUBT, renormalize=True), rows, train, ratios)
    share, cost = expected_share(DOUBT, scores, train, ratios)
    np.testing.assert_allclose(whole, ((share / share.mean() - 1) * cost).sum(), rtol=1e-9)


def test_em_runs_in_the_last_epochs_and_those_before_are_the_surrogates_own(train, rows, key):
    # 12 users and 3 fake ones in batches of 5: 3 steps an epoch, 12 in all, EM every 6 of them from the 6th on.
    model, first, runs = wrmf(**SMALL, batch=5), 6, [6]

    @functools.partial(jax.jit, static_argnums=0)
    def states(model, rows, train, key):
        inner, data = model.trainer(USERS, ITEMS, FAKES, train.capacity), model.prepare(train)

        def step(state, number):
            state = run_some(inner, state, rows, data, key, number, 1)
            return state, (state.params["item"], state.aux)

        state = inner.init(model.init(key, USERS, ITEMS, FAKES), rows, data, key)
        return jax.lax.scan(step, state, jnp.arange(inner.steps))[1]

    plain, _ = states(model, rows, train, key)
    doubting, ratios = states(denoised(model, DOUBT, last=LAST, every=2), rows, train, key)
    np.testing.assert_array_equal(plain[:first], doubting[:first])
    assert np.abs(plain - doubting)[first:].max(axis=(1, 2)).min() > 1e-4
    kappa = np.concatenate([np.full((1, USERS), 0.8, np.float32), ratios.kappa_user])
    np.testing.assert_array_equal(np.flatnonzero(np.abs(np.diff(kappa, axis=0)).max(1)), runs)


# ------------------------------------------------------------------------------------------------ the hypergradient


def gradient(model, rows, train, key, **estimator):
    objective = make_objective("promote", "wmw", k=3, width=0.5)

    @jax.jit
    def run(rows, train, key):
        found = hypergradient(model, make_estimator(**estimator), objective, rows, train, TARGETS, key)
        return found.value, found.grad

    return run(rows, train, key)


def written_out(model, train, rows, key):
    """WRMF's training as a loop of its own: EM's responsibilities of every step, and `F(x, responsibilities)`."""
    start, seen = model.init(jax.random.split(key)[0], USERS, ITEMS, FAKES), jnp.asarray(train.dense())
    real, fake = (
        jnp.where(seen > 0, 20.0, 1.0),
        jnp.where(rows > 0, 20.0, 1.0),
    )  # frozen: see models.recommender
    adam = optax.adam(SMALL["learning_rate"])

    def loss(p, x, share):
        lost = jnp.sum(share * real * (seen - p["user"] @ p["item"].T) ** 2)
        lost += jnp.sum(fake * (x - p["fake"] @ p["item"].T) ** 2)
        return lost + SMALL["l2"] / 2 * sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(p))

    def moved(p, opt, x, share):
        change, opt = adam.update(jax.grad(loss)(p, x, share), opt, p)
        return optax.apply_updates(p, change), opt

    def record(carry, step):
        p, opt, ratios = carry
        matrix = Matrix(lambda u: seen[u] > 0, lambda u: (p["user"] @ p["item"].T)[u], 0.5)
        new, doubts = em(DOUBT, matrix, ratios).ratios, step >= EPOCHS - LAST
        ratios = jax.tree.map(lambda a, b: jnp.where(doubts, a, b), new, ratios)
        share = jnp.where(doubts, responsibilities(DOUBT, matrix, ratios, jnp.arange(USERS)), 1.0)
        return (*moved(p, opt, rows, share), ratios), share

    def outer(x, shares):
        body = lambda carry, share: (moved(*carry, x, share), None)
        p = jax.lax.scan(body, (start, adam.init(start)), shares)[0][0]
        return ranking(lambda u: p["user"][u] @ p["item"].T, train, TARGETS, k=3, width=0.5)

    first = (start, adam.init(start), DOUBT.begin(USERS, ITEMS))
    shares = jax.jit(lambda: jax.lax.scan(record, first, jnp.arange(EPOCHS))[1])()
    return jax.jit(jax.vmap(lambda x: outer(x, shares))), shares


def test_the_gradient_with_frozen_responsibilities_is_the_central_difference(x64, train, rows, key):
    model = wrmf(**SMALL)
    value, slope = gradient(denoised(model, DOUBT, last=LAST), rows, train, key, name="exact")
    outer, shares = written_out(model, train, rows, key)
    assert shares.min() < 0.9  # something is doubted
    unit, step = np.eye(FAKES * ITEMS).reshape(-1, FAKES, ITEMS), 1e-5
    up, down = (np.asarray(outer(rows + way * unit)) for way in (step, -step))
    np.testing.assert_allclose((up + down) / 2, float(value), rtol=1e-6)
    np.testing.assert_allclose(np.ravel(slope), (up - down) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_a_derivative_left_to_jax_finds_no_way_through_em(x64, train, rows, key):
    doubting = denoised(wrmf(**SMALL), DOUBT, last=LAST)
    value, slope = gradient(doubting, rows, train, key, name="exact")
    again, kept = gradient(doubting, rows, train, key, name="exact", memory="keep")
    np.testing.assert_allclose(again, value, rtol=1e-12)
    np.testing.assert_allclose(kept, slope, rtol=1e-9, atol=1e-13)


def test_minimizing_what_is_above_the_targets_is_maximizing_what_is_below(x64, rng, train):
    # C8: g(x) + g(-x) = 1, so the code's sum of g(s_v - s_t) is the paper's -sum of g(s_t - s_v) plus U T K.
    def papers(table):
        shown = jax.lax.top_k(jax.lax.stop_gradient(table), 4)[1]
        gap = table[:, None, TARGETS] - jnp.take_along_axis(table, shown, 1)[:, :, None]
        return -jnp.sum(jax.nn.sigmoid(gap / 0.1))

    def ours(table):
        return ranking(lambda u: table[u], train, TARGETS, k=4, mask=False)

    table = jnp.asarray(rng.normal(size=(USERS, ITEMS)) * 0.2)
    (a, slope_a), (b, slope_b) = (jax.jit(jax.value_and_grad(f))(table) for f in (ours, papers))
    np.testing.assert_allclose(a, b + USERS * 2 * 4, rtol=1e-12)
    np.testing.assert_allclose(slope_a, slope_b, atol=1e-12)


# ------------------------------------------------------------------------------------------------ the attack


def test_a_large_beta_clicks_the_most_popular_items_and_every_row_is_full(counting, train, key):
    budget = 6  # more than most users clicked: the rows it starts from are filled too
    attack = rapu_g(counting, fakes=FAKES, budget=budget, beta=1e9, pgm=False, steps=3, tau=1, k=3)
    profiles, history = attack.trace(key, train, TARGETS)
    np.testing.assert_array_equal(history["mean_clicks"], budget + 2)
    count = np.asarray(train.popularity()).astype(float)
    count[np.asarray(TARGETS)] = -1
    best = np.argsort(-count, kind="stable")[:budget]
    for row in np.asarray(profiles.to_rows()):
        np.testing.assert_array_equal(np.flatnonzero(row), np.sort([*best, 2, 7]))


def test_the_projection_adds_the_share_of_the_most_clicked_item(train, rng):
    x, beta = rng.normal(size=(FAKES, ITEMS)), 0.7
    rows = np.asarray(popular_projection(3, beta)(jnp.asarray(x), train, TARGETS))
    count = np.asarray(train.popularity())
    wish = x + beta * count / count.max()
    wish[:, [2, 7]] = -np.inf
    for row, best in zip(rows, np.argsort(-wish, axis=1)[:, :3]):
        np.testing.assert_array_equal(np.flatnonzero(row), np.sort([*best, 2, 7]))


def test_without_its_parts_it_is_revadv(counting, train, key):
    # Rows that are full already, so that RevAdv's first iterate is as long as all others.
    initial = np.zeros((FAKES, ITEMS))
    initial[:, [0, 1, 3]] = 1
    options: dict[str, Any] = {"fakes": FAKES, "budget": 3, "steps": 4, "tau": 1, "k": 3}
    ours = rapu_g(counting, beta=0.0, objective="cross_entropy", pgm=False, **options)
    theirs = attacks.revadv(counting, estimator="truncated", projection="topk", click_targets=True, **options)
    (rows, history), (expected, other) = (
        a.trace(key, train, TARGETS, initial=initial) for a in (ours, theirs)
    )
    np.testing.assert_array_equal(rows.to_rows(), expected.to_rows())
    for name in ("loss", "target_hr", "grad_norm"):
        np.testing.assert_allclose(history[name], other[name], rtol=1e-6)


@pytest.mark.slow
def test_with_its_parts_it_runs_batched_over_data(train, make_keys):
    # Users without clicks, and targets nobody clicked, beside the usual.
    empty = Interactions.from_arrays([3, 3], [0, 1], users=USERS, items=ITEMS, capacity=train.capacity)
    data = jax.tree.map(lambda a, b: jnp.stack([a, b]), train, empty)
    model = wrmf(**SMALL | {"epochs": 3, "form": "dense"})
    attack = rapu_g(model, fakes=FAKES, budget=4, m_step="exact", steps=2, tau=2, k=3)
    batch = jax.jit(jax.vmap(lambda key, train: attack(key, train, TARGETS).to_rows()))(make_keys(2), data)
    np.testing.assert_array_equal(batch.sum(2), 6)


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"surrogate": als()}, ValueError, "surrogate is als.*cannot carry responsibilities.*pgm=False"),
        ({"surrogate": "wrmf"}, TypeError, "Recommender"),
        ({"budget": None}, ValueError, "budget is None"),
        ({"beta": -1.0}, ValueError, r"beta is -1\.0"),
        ({"beta": float("inf")}, ValueError, "beta is inf"),
        ({"objective": "bpr"}, ValueError, "objective is 'bpr'"),
        ({"objective": "cross_entropy", "mask": False}, ValueError, "'cross_entropy' has no use for mask"),
        ({"pgm": False, "r_bar": 0.5, "em_last": 3}, ValueError, "pgm=False has no use for"),
        ({"pgm": False, "renormalize": True}, ValueError, "no use for renormalize"),
        ({"pgm": 1}, TypeError, "pgm is 1"),
        ({"m_step": "soft"}, ValueError, "m_step is 'soft'"),
        ({"em_last": -1}, ValueError, "em_last is -1"),
        ({"em_last": 0}, ValueError, "em_last is 0, so no epoch is trained with responsibilities"),
        ({"tau": 0}, ValueError, "tau is 0, so no epoch is trained with responsibilities"),
        ({"em_every": 0}, ValueError, "em_every is 0"),
        ({"goal": "demote"}, ValueError, "serves 'promote' only"),
        ({"tau": -1}, ValueError, "tau is -1"),
        ({"steps": 0}, ValueError, "steps is 0"),
    ],
)
def test_the_factory_refuses(arguments, error, match):
    given: dict[str, Any] = {"surrogate": wrmf(), "fakes": 2, "budget": 3} | arguments
    with pytest.raises(error, match=match):
        rapu_g(given.pop("surrogate"), **given)


@pytest.mark.slow
def test_responsibilities_fit_into_the_training(train, key):
    attack = rapu_g(wrmf(**SMALL), fakes=2, budget=3, tau=2, em_last=EPOCHS + 1, k=3)
    with pytest.raises(ValueError, match="em_last is 5 epochs, but the surrogate trains for 4 only"):
        attack(key, train, TARGETS)
