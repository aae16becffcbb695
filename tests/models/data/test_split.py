"""Splits: a partition of the events, by the papers' rules, the same for the same key."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import Interactions, holdout_one, random_events, revadv_split


def drawn(seed):
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((12, 25)) < rng.random((12, 1)))
    return Interactions.from_arrays(
        user, item, time=rng.integers(0, 50, user.size), users=12, items=25, capacity=300
    )


def degrees(part):
    return np.bincount(part.to_frame().user, minlength=part.users)  # NumPy: no compilation for each size


def pairs(part):
    return set() if part is None else set(map(tuple, part.to_frame()[["user", "item"]].values.tolist()))


def assert_partition(data, split):
    parts = [pairs(part) for part in split]
    assert set.union(*parts) == pairs(data)
    assert sum(map(len, parts)) == len(pairs(data))
    for part in split:
        if part is not None:
            part.validate()
            assert (part.users, part.items, part.track) == (data.users, data.items, data.track)


seeds = st.integers(0, 2**31)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0]))
def test_revadv_holds_out_the_floor_of_each_user(seed, fraction):
    data = drawn(seed)
    split = revadv_split(data, seed, fraction=fraction)
    assert_partition(data, split)
    exact = [int(n * round(fraction * 10)) // 10 for n in degrees(data)]
    assert degrees(split.test).tolist() == exact
    assert split.validation is None


@settings(max_examples=40, deadline=None)
@given(seeds, st.booleans(), st.sampled_from(["random", "last"]), st.integers(1, 3))
def test_holdout_one(seed, validation, order, least):
    data = drawn(seed)
    split = holdout_one(data, seed, order=order, validation=validation, least=least)
    assert_partition(data, split)
    n = degrees(data)
    assert np.array_equal(degrees(split.test), (n >= least) * 1)
    if validation:
        assert np.array_equal(degrees(split.validation), ((n >= least) & (n >= 2)) * 1)
    if order == "last":
        frames = [part.to_frame() for part in split if part is not None]
        for u in range(12):
            times = [frame[frame.user == u].time.tolist() for frame in frames]
            flat = [t for part in times for t in (sorted(part) if part is times[0] else part)]
            assert flat == sorted(flat)


@settings(max_examples=30, deadline=None)
@given(seeds, st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.0, 0.5), (1.0, 0.0, 0.0)]))
def test_random_events(seed, fractions):
    data = drawn(seed)
    split = random_events(data, seed, fractions=fractions)
    assert_partition(data, split)
    n = len(pairs(data))
    assert abs(len(pairs(split.train)) - fractions[0] * n) <= 1
    assert abs(len(pairs(split.test)) - fractions[2] * n) <= 1


def test_same_key_same_split_other_key_other_split():
    data = drawn(0)
    for rule in (revadv_split, holdout_one, random_events):
        a, b, c = (rule(data, key) for key in (7, jax.random.key(7), 8))
        assert pairs(a.test) == pairs(b.test)
        assert pairs(a.test) != pairs(c.test)


def test_every_event_is_equally_likely_to_be_held_out():
    data = Interactions.from_arrays([0] * 10, range(10))
    counts = np.zeros(10)
    for seed in range(600):
        counts[np.asarray(revadv_split(data, seed).test.item)] += 1
    # Each item is held out with probability 0.2: mean 120, standard deviation 9.8.
    assert counts.sum() == 1200
    assert np.abs(counts - 120).max() < 45


@pytest.mark.parametrize("n", [5, 10, 15, 35])
def test_floor_is_exact_at_multiples_of_five(n):
    data = Interactions.from_arrays([0] * n, range(n))
    assert int(revadv_split(data, 0).test.count) == n // 5


def test_floor_of_a_share_that_rounds_down_in_floating_point():
    assert 0.29 * 100 < 29
    data = Interactions.from_arrays([0] * 100, range(100))
    assert int(revadv_split(data, 0, fraction=0.29).test.count) == 29
