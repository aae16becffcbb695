"""Heuristic attacks without ratings or order: what they click, exactly; what all of them refuse."""

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


# ------------------------------------------------------------------------------------------------ refusals

GRID = (1, 5, 1)
ROWS = [
    attacks.random,
    attacks.top_popular,
    attacks.popular,
    attacks.bandwagon,
    attacks.hcars_bandwagon,
    attacks.power_item,
    attacks.segment,
]


@pytest.mark.parametrize("make", ROWS)
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"budget": None}, "budget is None.*needs budget"),
        ({"budget": -1}, "budget is -1"),
        ({"target_mode": "each"}, "target_mode is 'each'"),
        ({"track": "stars"}, "track is 'stars'"),
        ({"track": "explicit"}, r"needs ratings=\(low, high, step\)"),
        ({"ratings": GRID}, "'implicit' track has no ratings"),
        ({"clicks": 20}, "'implicit' track"),
        ({"track": "sequence"}, "clicks is None on the 'sequence' track"),
        ({"track": "sequence", "clicks": 20}, "clicks and budget are given"),
        ({"goal": "demote"}, r"'demote'.*'implicit' track.*track='explicit'.*attacks\.revadv"),
        (
            {"goal": "demote", "track": "sequence", "clicks": 20, "budget": None},
            r"'demote'.*'sequence' track.*attacks\.poisonrec",
        ),
        (
            {"goal": "availability", "track": "sequence", "clicks": 20, "budget": None},
            r"'availability'.*attacks\.random",
        ),
    ],
)
def test_refusals(make, arguments, match):
    with pytest.raises(ValueError, match=match):
        make(**{"fakes": 1, "budget": 2} | arguments)


@pytest.mark.parametrize("make", ROWS[1:])
@pytest.mark.parametrize("more", [{}, {"track": "explicit", "ratings": GRID}])
def test_attacks_built_around_targets_refuse_availability(make, more):
    with pytest.raises(ValueError, match=r"goal is 'availability'.*attacks\.random.*attacks\.average"):
        make(fakes=1, budget=2, goal="availability", **more)


@pytest.mark.parametrize(
    ("make", "arguments", "match"),
    [
        (attacks.average, {"track": "implicit", "budget": 2}, r"'implicit'.*attacks\.random"),
        (attacks.average, {"track": "sequence", "clicks": 5}, r"'sequence'.*attacks\.random"),
        (attacks.middle, {"track": "implicit", "budget": 2}, r"'implicit'.*order of clicks"),
        (attacks.middle, {"track": "explicit", "budget": 2, "ratings": GRID}, "'explicit'.*order of clicks"),
        (attacks.middle, {}, "clicks is None"),
        (attacks.middle, {"clicks": 5, "budget": 3}, "clicks and budget"),
        (attacks.middle, {"clicks": 5, "top": 0}, r"top is 0; expected a share in \(0, 1\]"),
        (attacks.popular, {"budget": 2, "share": 1.5}, r"share is 1.5; expected a share in \[0, 1\]"),
        (attacks.popular, {"track": "sequence", "clicks": 5, "share": 0.1}, "share is 0.1, but every item"),
        (attacks.hcars_bandwagon, {"budget": 2, "top": 2}, "top is 2"),
        (attacks.bandwagon, {"budget": 2, "selected": -1}, "selected is -1; expected >= 0"),
        (attacks.segment, {"budget": 2, "selected": -1}, "selected is -1"),
        (attacks.power_item, {"budget": 2, "neighbors": 0}, "neighbors is 0; expected >= 1"),
        (attacks.power_item, {"budget": 2, "common": 0}, "common is 0; expected >= 1"),
        (attacks.top_popular, {"budget": 2, "rated": "max"}, "rated is 'max'.*no ratings"),
        (
            attacks.top_popular,
            {"budget": 2, "track": "explicit", "ratings": GRID, "rated": "min"},
            "expected 'max' or 'item'",
        ),
        (
            attacks.random,
            {"budget": 2, "goal": "availability", "target_mode": "split"},
            "'split'.*no targets",
        ),
    ],
)
def test_refusals_of_one_attack(make, arguments, match):
    with pytest.raises(ValueError, match=match):
        make(fakes=1, **arguments)


@pytest.mark.parametrize(
    ("make", "arguments", "match"),
    [
        (attacks.power_item, {"neighbors": 2.0}, "neighbors is 2.0; expected an integer"),
        (attacks.hcars_bandwagon, {"top": "all"}, "top is 'all'; expected a share"),
    ],
)
def test_wrong_kinds_are_refused(make, arguments, match):
    with pytest.raises(TypeError, match=match):
        make(fakes=1, budget=2, **arguments)


def test_a_sequence_needs_an_item_that_is_no_target(key):
    train = Interactions.from_arrays([0, 0], [0, 1], track="sequence")
    with pytest.raises(ValueError, match="all 2 items are targets"):
        attacks.random(fakes=1, track="sequence", clicks=4)(key, train, jnp.array([0, 1]))
