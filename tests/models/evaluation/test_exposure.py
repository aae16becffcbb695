"""Ranks by counting, rank shift, prediction shift and robustness improvement."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.evaluation import (
    average_rank,
    evaluate,
    hr_any,
    hr_mean,
    hr_sum,
    prediction_shift,
    rank_shift,
    robustness_improvement,
    target_ranks,
)


@pytest.mark.parametrize("count", [1, 5, 8, 9, 20])
def test_counting_equals_sorting_for_any_number_of_targets(rng, count):
    scores = rng.integers(0, 6, size=(50, 30)).astype(np.float32)
    scores[rng.random((50, 30)) < 0.3] = -np.inf
    targets = rng.permutation(30)[:count]
    ranks = jax.jit(target_ranks)(jnp.asarray(scores), jnp.asarray(targets))
    order = np.argsort(-scores, axis=1, kind="stable")
    position = np.argsort(order, axis=1) + 1
    seen = np.isneginf(scores[:, targets])
    np.testing.assert_array_equal(ranks.id, np.where(seen, 0, position[:, targets]))
    level = (scores[:, None, :] >= scores[:, targets][:, :, None]).sum(axis=2)
    np.testing.assert_array_equal(ranks.worst, np.where(seen, 0, level))


def test_any_is_at_least_mean_with_equality_iff_all_or_none(rng):
    rank = jnp.asarray(rng.integers(0, 8, size=(2000, 3)))
    one, mean, total = hr_any(rank, 3), hr_mean(rank, 3), hr_sum(rank, 3)
    assert np.all(one >= mean - 1e-6)
    np.testing.assert_array_equal(np.isclose(one, mean), np.isin(total, [0.0, 3.0]))
    np.testing.assert_allclose(total, 3 * mean, rtol=1e-6)


def test_average_rank_leaves_out_pairs_without_a_rank():
    rank = jnp.array([[2, 0], [0, 0], [4, 9]])
    assert float(average_rank(rank)) == 5.0
    assert float(average_rank(rank, jnp.array([True, True, False]))) == 2.0
    assert np.isnan(average_rank(jnp.zeros((3, 2), int)))


def test_average_rank_of_a_large_catalog_does_not_overflow():
    assert float(average_rank(jnp.full((200_000, 1), 100_000))) == pytest.approx(100_000, rel=1e-5)


def test_rank_and_prediction_shift_of_two_evaluations(rng):
    from models.data.interactions import Interactions

    table = jnp.asarray(rng.normal(size=(20, 10)))
    train = Interactions.from_dense((rng.random((20, 10)) < 0.3).astype(float))
    lifted = table.at[:, 4].add(100.0)
    before, after = (
        evaluate(lambda u, s=s: s[u], train, targets=[4, 7], k=3, per_user=True).per_user
        for s in (table, lifted)
    )
    shift = np.asarray(rank_shift(before.target_rank, after.target_rank))
    seen = np.asarray(before.target_seen)
    np.testing.assert_array_equal(np.isnan(shift), seen.all(axis=1))
    assert np.all(
        shift[~seen[:, 0] & ~seen[:, 1]] <= 0.5
    )  # the lifted one moves up, the other down by at most one
    np.testing.assert_allclose(prediction_shift(before.target_score, after.target_score), 50.0, rtol=1e-5)
    only = jnp.array([[True, False]])
    np.testing.assert_allclose(
        prediction_shift(before.target_score, after.target_score, only), 100.0, rtol=1e-5
    )


def test_robustness_improvement_of_the_clean_and_the_attacked_model():
    assert float(robustness_improvement(0.05, 0.2, 0.05).value) == 1.0  # back at the clean rate
    assert float(robustness_improvement(0.2, 0.2, 0.05).value) == 0.0  # nothing undone
    assert float(robustness_improvement(0.0, 0.2, 0.05).value) > 1.0  # below the clean rate


def test_robustness_improvement_is_nan_where_the_attack_changed_nothing():
    ri = robustness_improvement([0.1, 0.0, 0.3], [0.1, 0.2, 0.1], [0.1, 0.0, 0.1])
    np.testing.assert_array_equal(ri.value, [np.nan, 1.0, np.nan])
    assert float(ri.mean) == 1.0
    assert int(ri.undefined) == 2
    none = robustness_improvement(0.3, 0.1, 0.1)
    assert np.isnan(none.value)
    assert np.isnan(none.mean)
    # A diverged model's NaN is no undefined cell: it must not vanish from the mean.
    assert np.isnan(robustness_improvement([jnp.nan, 0.1], [0.2, 0.2], 0.1).mean)


def test_robustness_improvement_under_jit_and_broadcast():
    ri = jax.jit(robustness_improvement)(jnp.array([[0.1], [0.2]]), jnp.array([0.2, 0.3]), 0.1)
    assert ri.value.shape == (2, 2)
    np.testing.assert_allclose(ri.value, [[1.0, 1.0], [0.0, 0.5]], atol=1e-6)
