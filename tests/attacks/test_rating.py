"""Ratings of fake users: statistics against NumPy, draws against the exact law of a rounded, clipped normal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks.rating import draw_ratings, item_statistics, rate, target_rating, to_grid
from attacks.threat import Ratings
from models.data import Interactions

GRID = Ratings(1.0, 5.0, 1.0)
USERS, ITEMS = 12, 7


def explicit(matrix, capacity=USERS * ITEMS):
    return Interactions.from_dense(matrix, track="explicit", capacity=capacity)


def drawn(seed):
    rng = np.random.default_rng(seed)
    matrix = rng.integers(1, 6, (USERS, ITEMS)) * (rng.random((USERS, ITEMS)) < 0.5)
    matrix[:, 2] = 0  # nobody rated it
    matrix[:, 3] = 0
    matrix[4, 3] = 2  # one rating: no spread
    matrix[0, 0], matrix[1, 0] = 1, 4
    return matrix.astype(float)


statistics = jax.jit(item_statistics)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40)
def test_statistics_are_those_of_the_rated_cells(seed):
    matrix = drawn(seed)
    found = statistics(explicit(matrix))
    every = matrix[matrix > 0]
    np.testing.assert_allclose(
        [found.overall_mean, found.overall_deviation], [every.mean(), every.std()], 1e-5
    )
    for i in range(ITEMS):
        own = matrix[matrix[:, i] > 0, i]
        own = own if own.size and own.std() > 0 else every
        np.testing.assert_allclose([found.mean[i], found.deviation[i]], [own.mean(), own.std()], 1e-5)
    np.testing.assert_array_equal(found.count, (matrix > 0).sum(0))


def test_equal_ratings_have_no_spread_though_their_mean_is_rounded():
    matrix = np.zeros((USERS, ITEMS))
    matrix[:, 0] = 0.1  # float32: the mean of twelve 0.1 is not 0.1
    matrix[:6, 1] = 0.9
    found = statistics(explicit(matrix))
    np.testing.assert_allclose(found.mean[0], matrix[matrix > 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(found.deviation[0], matrix[matrix > 0].std(), rtol=1e-5)


def test_no_rating_at_all_gives_no_nan(key):
    found = statistics(explicit(np.zeros((USERS, ITEMS))))
    assert all(np.isfinite(leaf).all() for leaf in found)
    np.testing.assert_array_equal(jax.jit(lambda key: draw_ratings(key, found, 2, GRID))(key), 1.0)


def test_clicks_have_no_ratings_to_average():
    with pytest.raises(ValueError, match=r"'implicit'.*'explicit'"):
        item_statistics(Interactions.from_dense(np.eye(3)))


def law(mean, deviation, grid):
    """Mean and deviation of a normal that is rounded to the grid and clipped."""
    levels = np.arange(grid.low, grid.high + grid.step / 2, grid.step)
    edges = np.concatenate([[-np.inf], levels[:-1] + grid.step / 2, [np.inf]])
    chance = np.diff(scipy.stats.norm(mean, deviation).cdf(edges))
    first = chance @ levels
    return first, np.sqrt(chance @ (levels - first) ** 2)


@pytest.mark.parametrize("rule", ["item", "global"])
def test_draws_follow_the_rounded_and_clipped_normal_of_each_item(key, rule):
    found = statistics(explicit(drawn(1)))
    fakes = 4000
    rows = np.asarray(
        jax.jit(lambda key, found: draw_ratings(key, found, fakes, GRID, rule=rule))(key, found)
    )
    assert np.isin(rows, [1, 2, 3, 4, 5]).all()
    for i in range(ITEMS):
        mean, deviation = (
            (found.mean[i], found.deviation[i])
            if rule == "item"
            else (found.overall_mean, found.overall_deviation)
        )
        first, second = law(float(mean), float(deviation), GRID)
        assert abs(rows[:, i].mean() - first) < 4 * second / np.sqrt(fakes)
        assert abs(rows[:, i].std() - second) < 0.06 * second
    assert abs(np.corrcoef(rows.T) - np.eye(ITEMS)).max() < 0.08


@pytest.mark.parametrize(("rule", "value"), [("max", 5.0), ("min", 1.0)])
def test_ends_of_the_grid(key, rule, value):
    rows = draw_ratings(key, statistics(explicit(drawn(2))), 3, GRID, rule=rule)
    np.testing.assert_array_equal(rows, np.full((3, ITEMS), value))


def test_an_unknown_rule_is_refused(key):
    with pytest.raises(ValueError, match="rule is 'mean'; expected one of 'global'"):
        draw_ratings(key, statistics(explicit(drawn(2))), 3, GRID, rule="mean")


@pytest.mark.parametrize(
    "grid", [GRID, Ratings(0.5, 4.0, 0.5), Ratings(0.1, 0.7, 0.1), Ratings(2.0, 2.0, 1.0)]
)
def test_the_grid_is_hit_exactly_and_its_ends_are_legal(grid):
    levels = np.unique(to_grid(jnp.linspace(-3, 9, 2001), grid))
    expected = np.arange(round((grid.high - grid.low) / grid.step) + 1) * grid.step + grid.low
    np.testing.assert_allclose(levels, expected, rtol=1e-6)
    assert levels[0] == np.float32(grid.low)
    assert levels[-1] == np.float32(grid.high)


def test_targets_get_the_end_of_the_goal_where_they_are_clicked():
    clicks = jnp.array([[1.0, 1, 0, 1], [0, 1, 1, 0]])
    fillers, targets = jnp.full((2, 4), 3.0), jnp.array([3, 0])
    up = rate(clicks, fillers, targets, goal="promote", ratings=GRID)
    down = rate(clicks, fillers, targets, goal="demote", ratings=GRID)
    none = rate(clicks, fillers, jnp.zeros(0, int), goal="availability", ratings=GRID)
    np.testing.assert_array_equal(up, [[5, 3, 0, 5], [0, 3, 3, 0]])
    np.testing.assert_array_equal(down, [[1, 3, 0, 1], [0, 3, 3, 0]])
    np.testing.assert_array_equal(none, 3 * clicks)
    with pytest.raises(ValueError, match="no targets"):
        target_rating("availability", GRID)
