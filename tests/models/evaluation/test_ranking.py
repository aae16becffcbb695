"""Recall, NDCG, hit ratio and precision on lists worked out by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from models.evaluation import hr_test, ndcg, precision, recall, relevance

RELEVANT = jnp.array([[True, False, True, False], [False, False, False, True], [False] * 4, [True] * 4])
COUNT = jnp.array([2, 1, 0, 6])


def test_values_by_hand():
    two, three, four = (1 / np.log2(r + 1) for r in (2, 3, 4))
    np.testing.assert_allclose(recall(RELEVANT, COUNT, 3), [1.0, 0.0, np.nan, 0.5])
    np.testing.assert_allclose(precision(RELEVANT, COUNT, 3), [2 / 3, 0.0, np.nan, 1.0], rtol=1e-6)
    np.testing.assert_allclose(hr_test(RELEVANT, COUNT, 3), [1.0, 0.0, np.nan, 1.0])
    # The ideal list has min(K, |test|) hits: 2, 1, -, 4 of 6.
    want = [(1 + three) / (1 + two), four, np.nan, 1.0]
    np.testing.assert_allclose(ndcg(RELEVANT, COUNT, 4), want, rtol=1e-6)


def test_ndcg_is_not_the_one_that_cuts_the_list_at_the_number_of_relevant_items():
    # One test item at position 2: RevAdv's code, cutting at min(K, 1), would give 0.
    np.testing.assert_allclose(
        ndcg(jnp.array([[False, True]]), jnp.array([1]), 2), [1 / np.log2(3)], rtol=1e-6
    )


def test_relevance_leaves_places_empty_when_the_unseen_items_run_out():
    scores = jnp.array([[-jnp.inf, 2.0, -jnp.inf, -jnp.inf]])
    test = jnp.array([[True, True, False, True]])
    assert relevance(scores, test, 3).tolist() == [[True, False, False]]


def test_leave_one_out_hit_ratio_is_recall():
    one = jnp.eye(4, dtype=bool)
    count = jnp.ones(4, int)
    np.testing.assert_array_equal(hr_test(one, count, 2), recall(one, count, 2))
