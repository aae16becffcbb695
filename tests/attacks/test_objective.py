"""The promotion loss: its value, its gradient, and that blocks change neither."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks import make_objective, promotion
from attacks.objective import ranking
from models.data import Interactions

USERS, ITEMS = 23, 11


@pytest.fixture
def table(rng):
    return rng.normal(size=(USERS, ITEMS)) * 3


@pytest.mark.parametrize("targets", [[0], [4], [1, 5, 10]])
def test_value_is_the_sum_over_users_of_the_mean_log_softmax(x64, table, targets):
    share = np.exp(table) / np.exp(table).sum(axis=1, keepdims=True)
    expected = -np.log(share[:, targets]).mean(axis=1).sum()
    scores = jnp.asarray(table)
    found = promotion(lambda users: scores[users], USERS, jnp.array(targets))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("block", [1, 2, 7, 22, 23, 24, 100])
def test_blocks_change_neither_value_nor_gradient(x64, table, block):
    scores, targets = jnp.asarray(table), jnp.array([2, 9])

    def loss(scores, block):
        return promotion(lambda users: scores[users], USERS, targets, block=block)

    whole = jax.value_and_grad(loss)(scores, None)
    blocked = jax.value_and_grad(loss)(scores, block)
    np.testing.assert_allclose(blocked[0], whole[0], rtol=1e-13)
    np.testing.assert_allclose(blocked[1], whole[1], atol=1e-13)


def test_many_cells_are_blocked_by_themselves_and_memory_follows_the_block():
    users, items = 40_000, 1_000  # 40 million cells: three blocks

    def loss(factors, block):
        return promotion(lambda ids: factors[0][ids] @ factors[1].T, users, jnp.array([3]), block=block)

    factors = (jax.ShapeDtypeStruct((users, 4), jnp.float32), jax.ShapeDtypeStruct((items, 4), jnp.float32))

    def temporaries(block):
        compiled = jax.jit(jax.grad(lambda f: loss(f, block))).lower(factors).compile()
        analysis = compiled.memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    whole, automatic, small = (temporaries(block) for block in (users, None, 1000))
    assert automatic < 0.7 * whole
    assert small < 0.1 * whole


def test_scores_that_do_not_fit_in_exp_stay_finite():
    scores = jnp.array([[1e4, -1e4, 0.0]])
    value, gradient = jax.value_and_grad(lambda s: promotion(lambda ids: s[ids], 1, jnp.array([1])))(scores)
    assert value == 2e4
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize(("users", "block", "match"), [(0, None, "users is 0"), (5, 0, "block is 0")])
def test_refusals(users, block, match):
    with pytest.raises(ValueError, match=match):
        promotion(lambda ids: jnp.zeros((ids.shape[0], 3)), users, jnp.array([0]), block=block)


# ------------------------------------------------------------------------------------------------ other goals


@pytest.fixture
def train(rng):
    seen = (rng.random((USERS, ITEMS)) < 0.3).astype(float)
    seen[5] = 0  # a user without clicks
    return Interactions.from_dense(seen, capacity=USERS * ITEMS)


def brute_force(goal, wish, table, seen, targets, k):
    """Every loss as a loop over users, for the head of attacks/objective.py."""
    total = 0.0
    for scores, own in zip(table, seen.astype(bool), strict=True):
        share = scores - np.log(np.exp(scores).sum())
        if goal == "availability":
            total += share[own].mean() if own.any() else 0.0
        elif wish == "cross_entropy":
            total += -share[targets].mean() * (1 if goal == "promote" else -1)
        else:
            listed = [v for v in np.argsort(-scores, kind="stable") if not own[v]][:k]
            gaps = np.array([scores[v] - scores[t] for v in listed for t in targets])
            total += (1 / (1 + np.exp(-(gaps if goal == "promote" else -gaps) / 0.5))).sum()
    return total


@pytest.mark.parametrize(
    ("goal", "wish"),
    [
        ("promote", "cross_entropy"),
        ("demote", "cross_entropy"),
        ("promote", "wmw"),
        ("demote", "wmw"),
        ("availability", "cross_entropy"),
    ],
)
def test_every_goal_is_its_formula_whatever_the_block(x64, table, train, goal, wish):
    targets = np.array([] if goal == "availability" else [2, 9], int)
    expected = brute_force(goal, wish, table, np.asarray(train.dense()), targets, 4)

    @jax.jit
    def values(scores, block_of=(None, 1, 7)):
        found = [make_objective(goal, wish, k=4, width=0.5, block=block) for block in block_of]
        return [
            jax.value_and_grad(lambda s, f=f: f(lambda u: s[u], train, jnp.asarray(targets)))(scores)
            for f in found
        ]

    whole, *blocked = values(jnp.asarray(table))
    np.testing.assert_allclose(whole[0], expected, rtol=1e-12)
    for value, slope in blocked:
        np.testing.assert_allclose(value, whole[0], rtol=1e-12)
        np.testing.assert_allclose(slope, whole[1], atol=1e-12)
    if wish == "wmw":  # the lists are constants, so differences are taken where none changes
        direction = np.zeros_like(table)
        direction[3, 2] = 1e-6
        up, down = (values(jnp.asarray(table + step * direction))[0][0] for step in (1, -1))
        np.testing.assert_allclose((up - down) / 2e-6, whole[1][3, 2], rtol=1e-6)


def test_minimizing_wmw_of_gaps_is_maximizing_it_of_the_opposite_gaps(x64, table, train):
    # C8: g(x) + g(-x) = 1
    targets = jnp.array([2, 9])
    value = lambda sign: ranking(lambda u: jnp.asarray(table)[u], train, targets, k=4, sign=sign)
    pairs = np.minimum(4, ITEMS - np.asarray(train.degrees())).sum() * 2
    np.testing.assert_allclose(value(1) + value(-1), pairs, rtol=1e-12)


def test_what_has_no_formula_is_refused():
    with pytest.raises(ValueError, match="has no targets to rank"):
        make_objective("availability", "wmw")
    with pytest.raises(ValueError, match="'demote'"):
        make_objective("nuke")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="width is 0"):
        make_objective("promote", "wmw", width=0.0)(lambda u: u, None, None)  # type: ignore[arg-type]
