"""Random and TopPopular: what they click, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import attacks
from models.data import Interactions

USERS, ITEMS = 30, 24


@pytest.fixture
def train(rng):
    return Interactions.from_dense((rng.random((USERS, ITEMS)) < 0.3).astype(float))


@pytest.mark.parametrize("make", [attacks.random, attacks.top_popular])
@pytest.mark.parametrize("budget", [0, 1, 7, ITEMS - 2])
def test_rows_hold_all_targets_and_exactly_the_budget(train, key, make, budget):
    targets = jnp.array([3, 20])
    rows = make(fakes=5, budget=budget)(key, train, targets).to_rows()
    np.testing.assert_array_equal(rows.sum(axis=1), budget + 2)
    assert (rows[:, targets] == 1).all()


def test_split_gives_every_fake_user_one_target_in_turn(train, key):
    targets = jnp.array([3, 20, 9])
    profiles = attacks.random(fakes=5, budget=4, target_mode="split")(key, train, targets)
    own = profiles.to_rows()[:, targets]
    np.testing.assert_array_equal(own, np.eye(3)[[0, 1, 2, 0, 1]])
    np.testing.assert_array_equal(profiles.to_rows().sum(axis=1), 5)
    assert not profiles.clicks_targets


def test_random_fillers_are_uniform_over_the_non_targets(train):
    attack, targets = attacks.random(fakes=20, budget=6), jnp.array([1, 5])
    keys = jax.random.split(jax.random.key(7), 200)
    rows = jax.vmap(lambda key: attack(key, train, targets).to_rows())(keys)
    counts = np.asarray(rows.sum(axis=(0, 1)))
    fillers = np.delete(counts, [1, 5])
    assert fillers.sum() == 200 * 20 * 6
    # Drawn without replacement the counts vary less than multinomial ones, so the test is conservative.
    assert scipy.stats.chisquare(fillers).pvalue > 1e-3


def test_random_differs_between_keys_and_between_fake_users(train):
    attack, targets = attacks.random(fakes=6, budget=8), jnp.array([0])
    one, two = (attack(jax.random.key(seed), train, targets).to_rows() for seed in (0, 1))
    assert (one != two).any()
    assert len(np.unique(one, axis=0)) == 6


def test_top_popular_takes_the_most_clicked_items_and_breaks_ties_by_id(key):
    clicks = np.zeros((4, 6))
    clicks[:3, 5] = clicks[:2, 1] = clicks[:2, 4] = clicks[:2, 2] = clicks[0, 0] = 1
    train = Interactions.from_dense(clicks)
    rows = attacks.top_popular(fakes=2, budget=2)(key, train, jnp.array([5])).to_rows()
    np.testing.assert_array_equal(rows, [[0, 1, 1, 0, 0, 1]] * 2)


def test_padding_is_not_popularity(train, key):
    attack, targets = attacks.top_popular(fakes=1, budget=5), jnp.array([0])
    padded = train.pad(train.capacity + 500)
    np.testing.assert_array_equal(
        attack(key, train, targets).to_rows(), attack(key, padded, targets).to_rows()
    )


@pytest.mark.parametrize("make", [attacks.random, attacks.top_popular])
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"fakes": 1, "budget": 2, "track": "explicit"}, "'explicit'.*clicks only"),
        ({"fakes": 1, "budget": 2, "track": "sequence"}, "'sequence'.*clicks only"),
        ({"fakes": 1, "budget": None}, "budget is None"),
        ({"fakes": 1, "budget": 2, "target_mode": "each"}, "target_mode is 'each'"),
    ],
)
def test_refusals(make, arguments, match):
    with pytest.raises(ValueError, match=match):
        make(**arguments)
