"""Copied rows: which users are copied, and what of them."""

import jax
import numpy as np
import pytest

from attacks.initial import copied_rows
from models.data import Interactions

# Users with 0, 1, ..., 7 clicks; user u has the last u items.
ITEMS = 7
STAIRS = np.flip(np.tri(8, 7, -1), axis=1)


@pytest.fixture
def train():
    return Interactions.from_dense(STAIRS, capacity=100)


def test_first_takes_the_lowest_users_that_fit(train, key):
    np.testing.assert_array_equal(copied_rows(key, train, 3, rule="first", clicks=4), STAIRS[[1, 2, 3]])


def test_random_users_are_distinct_users_that_fit(train):
    draw = jax.jit(lambda key: copied_rows(key, train, 3, clicks=4))
    seen = set()
    for seed in range(30):
        held = np.asarray(draw(jax.random.key(seed)).sum(axis=1)).astype(int)
        assert len(set(held)) == 3
        assert set(held) <= {1, 2, 3, 4}
        seen.add(tuple(held))
    assert len(seen) > 10


@pytest.mark.parametrize("rule", ["first", "random_users"])
def test_more_fakes_than_fitting_users_copies_them_again_in_turn(train, key, rule):
    held = np.asarray(copied_rows(key, train, 20, rule=rule, clicks=2).sum(axis=1)).astype(int)
    assert set(held) == {1, 2}
    np.testing.assert_array_equal(held, np.tile(held[:2], 10))


def test_no_user_fits_then_the_least_active_are_copied(key):
    train = Interactions.from_dense(STAIRS[[0, 5, 7, 4, 6]])
    np.testing.assert_array_equal(
        copied_rows(key, train, 4, rule="first", clicks=2).sum(axis=1), [4, 5, 6, 7]
    )


def test_rows_of_the_copies_are_the_real_rows(rng, key):
    dense = (rng.random((40, 15)) < 0.3).astype(float)
    dense[:, 0] = 1
    rows = np.asarray(copied_rows(key, Interactions.from_dense(dense), 12))
    assert all((dense == row).all(axis=1).any() for row in rows)
