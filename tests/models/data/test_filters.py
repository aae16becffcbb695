"""Filters: `once` against `iterated` by hand, the k-core, the binarization presets."""

import numpy as np
import pytest

from models.data import Interactions, binarize, min_count

# User 2 has one event, on item 3. Without it item 3 has one event left, then user 1 has one, and so on.
#          item 0  1  2  3
# user 0        x  x
# user 1        x     x  x      item 2 has only user 1
# user 2                 x
HAND = Interactions.from_arrays([0, 0, 1, 1, 1, 2], [0, 1, 0, 2, 3, 3])


def test_once_uses_raw_counts():
    kept = min_count(HAND, users=2, items=2, mode="once")
    # Raw counts: users 2, 3, 1; items 2, 1, 1, 2. What stays: (0,0), (1,0), (1,3); user 0 now has one event.
    assert kept.users.tolist() == [0, 1]
    assert kept.items.tolist() == [0, 3]
    assert kept.interactions.dense().tolist() == [[1, 0], [1, 1]]


def test_iterated_goes_on():
    with pytest.raises(ValueError, match="leaves no event"):
        min_count(HAND, users=2, items=2, mode="iterated")
    block = Interactions.from_arrays([0, 0, 1, 1, 2, 3], [0, 1, 0, 1, 1, 2])
    kept = min_count(block, users=2, items=2, mode="iterated")
    assert kept.interactions.dense().tolist() == [[1, 1], [1, 1]]
    assert (kept.users.tolist(), kept.items.tolist()) == ([0, 1], [0, 1])


def test_iterated_is_a_core_and_the_largest_one():
    rng = np.random.default_rng(0)
    matrix = rng.random((60, 50)) < 0.08
    kept = min_count(Interactions.from_dense(matrix * 1).pad(800), users=4, items=3)
    x = kept.interactions.validate(empty_users="error")
    assert int(x.degrees().min()) >= 4
    assert int(x.popularity().min()) >= 3
    left = matrix.copy()
    while True:  # the textbook peeling, one row or column at a time
        rows = np.flatnonzero((left.sum(1) > 0) & (left.sum(1) < 4))
        columns = np.flatnonzero((left.sum(0) > 0) & (left.sum(0) < 3))
        if not rows.size and not columns.size:
            break
        if rows.size:
            left[rows[0]] = False
        else:
            left[:, columns[0]] = False
    assert np.array_equal(left[np.ix_(kept.users, kept.items)], np.asarray(x.dense()) > 0)
    assert left.sum() == int(x.count)


def test_only_users_and_default_drop_the_empty():
    data = Interactions.from_arrays([0, 0, 4], [1, 3, 3], [2.0, 3.0, 4.0], [5, 6, 7], users=9, items=6)
    kept = min_count(data)
    assert (kept.users.tolist(), kept.items.tolist()) == ([0, 4], [1, 3])
    assert kept.interactions.weight.tolist() == [2, 3, 4]
    assert kept.interactions.time.tolist() == [5, 6, 7]
    assert min_count(data, users=2).users.tolist() == [0]


@pytest.mark.parametrize(
    ("rule", "clicked"),
    [("hcars", [5]), ("accent", [3, 4, 5]), ("all", [1, 2, 3, 4, 5]), (4.0, [4, 5])],
)
def test_binarize(rule, clicked):
    ratings = Interactions.from_arrays([0, 0, 0, 1, 1], [0, 1, 2, 0, 1], [1.0, 2, 3, 4, 5], items=4).pad(9)
    clicks = binarize(ratings, rule).validate()
    assert clicks.track == "implicit"
    assert (clicks.users, clicks.items) == (2, 4)
    stars = np.asarray(ratings.dense())[np.asarray(clicks.dense()) > 0]
    assert sorted(stars.tolist()) == clicked
    assert int(binarize(ratings, 4.0, strict=True).count) == 1
