"""The promotion loss: its value, its gradient, and that blocks change neither."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from attacks import promotion

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
