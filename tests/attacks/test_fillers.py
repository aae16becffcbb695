"""Which items: in-degrees and cosines against NumPy with exact fractions, ranks, sets and draws."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import fillers
from attacks.fillers import alike, by_clicks, indegree, pick, popular_set, ranked
from models.data import Interactions

USERS, ITEMS = 10, 9
NEIGHBORS, COMMON = 3, 2
TARGETS = jnp.array([4, 0])


def drawn(seed, track):
    rng = np.random.default_rng(seed)
    matrix = (rng.random((USERS, ITEMS)) < rng.choice([0.2, 0.5, 0.8])) * 1.0
    matrix[:, rng.integers(ITEMS)] = 0  # an item nobody knows
    return matrix * rng.integers(1, 6, matrix.shape) if track == "explicit" else matrix


def interactions(matrix, track):
    if track != "sequence":
        return Interactions.from_dense(matrix, track=track, capacity=USERS * ITEMS)
    user, item = np.nonzero(matrix)
    user, item = np.r_[user, user[::2]], np.r_[item, item[::2]]  # every second visit once more, later
    when = np.arange(user.size)
    sizes = {"users": USERS, "items": ITEMS, "capacity": 2 * USERS * ITEMS}
    return Interactions.from_arrays(user, item, time=when, track="sequence", **sizes)


def brute_indegree(matrix):
    """Pairs one by one, similarities as exact fractions: cos^2 = (r_i . r_j)^2 / (|r_i|^2 |r_j|^2)."""
    whole = matrix.astype(int)
    count = np.zeros(ITEMS, int)
    for i in range(ITEMS):
        near = []
        for j in range(ITEMS):
            if i != j and np.sum((whole[:, i] > 0) & (whole[:, j] > 0)) >= COMMON:
                dot = int(whole[:, i] @ whole[:, j])
                squares = int(whole[:, i] @ whole[:, i]) * int(whole[:, j] @ whole[:, j])
                near.append((-Fraction(dot * dot, squares), j))
        for _, j in sorted(near)[:NEIGHBORS]:
            count[j] += 1
    return count


@pytest.fixture(scope="module")
def compiled():
    """In-degrees in blocks of four items, the last one with a single one, and cosines."""

    def both(train):
        return indegree(train, neighbors=NEIGHBORS, common=COMMON), alike(train, TARGETS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fillers, "CELLS", 4 * USERS)
        made = jax.jit(both)
        for track in ("implicit", "explicit", "sequence"):
            made(interactions(drawn(0, track), track))
    return made


@pytest.mark.parametrize("track", ["implicit", "explicit", "sequence"])
@given(seed=st.integers(0, 100_000))
@settings(max_examples=60)
def test_indegree_and_cosines_are_those_of_brute_force(compiled, track, seed):
    matrix = drawn(seed, track)
    degree, cosine = compiled(interactions(matrix, track))
    np.testing.assert_array_equal(degree, brute_indegree(matrix))
    length = np.linalg.norm(matrix, axis=0)
    over = np.outer(length, length)
    expected = np.divide(matrix.T @ matrix, over, out=np.zeros_like(over), where=over > 0)
    np.testing.assert_allclose(cosine, expected[np.asarray(TARGETS)], atol=1e-6)


def test_indegree_maps_over_data_sets():
    sets = [interactions(drawn(seed, "implicit"), "implicit") for seed in range(3)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *sets)
    found = jax.jit(jax.vmap(lambda train: indegree(train, neighbors=NEIGHBORS, common=COMMON)))(batch)
    np.testing.assert_array_equal(found, [brute_indegree(drawn(seed, "implicit")) for seed in range(3)])


def test_ranks_break_ties_by_clicks_and_then_by_id():
    train = interactions(drawn(3, "implicit"), "implicit")
    clicks = np.asarray(train.popularity())
    scores = np.array([[2, 0, 0, 2, 1, 0, 0, 2, 1], [0] * 9], float)
    for row, score in zip(jax.jit(ranked)(scores, train), scores, strict=True):
        expected = sorted(range(ITEMS), key=lambda i: (-score[i], -clicks[i], i))
        np.testing.assert_array_equal(np.argsort(-np.asarray(row)), expected)


def test_the_popular_set_are_the_most_clicked_others():
    train = interactions(drawn(3, "implicit"), "implicit")
    clicks = np.asarray(train.popularity())
    order = sorted(set(range(ITEMS)) - {4, 0}, key=lambda i: (-clicks[i], i))
    sizes = {0.01: 1, 0.4: 3, 1.0: 7}
    found = jax.jit(
        lambda train: (by_clicks(train, TARGETS), [popular_set(train, TARGETS, p) for p in sizes])
    )
    every, sets = found(train)
    np.testing.assert_array_equal(every, order)
    for mask, size in zip(sets, sizes.values(), strict=True):
        assert set(np.flatnonzero(mask)) == set(order[:size])


def test_picked_rows_hold_the_selected_and_avoid_the_last_as_long_as_they_can(key):
    wish, last = jnp.arange(9.0)[None], jnp.arange(9) >= 5  # wished: 8, 7; then some of 1..3; then of 5, 6
    budgets = {3: [], 5: [1, 2, 3], 6: [1, 2, 3]}
    made = jax.jit(
        lambda key: [pick(key, wish, TARGETS, fakes=40, selected=2, budget=b, last=last) for b in budgets]
    )(key)
    for rows, (budget, sure) in zip(made, budgets.items(), strict=True):
        clicked = np.asarray(rows.clicked)
        np.testing.assert_array_equal(rows.selected, np.tile(np.isin(np.arange(9), [7, 8]), (40, 1)))
        np.testing.assert_array_equal(clicked.sum(1), budget)
        assert not clicked[:, [0, 4]].any()
        assert clicked[:, [7, 8, *sure]].all()
        if budget == 3:
            assert not clicked[:, [5, 6]].any()
