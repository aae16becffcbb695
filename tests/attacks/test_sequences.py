"""Heuristic attacks as click sequences: length, order, and how often what is clicked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import attacks
from models.data import Interactions, Profiles, inject

USERS, ITEMS, FAKES, CLICKS = 15, 32, 5, 9
TARGETS = np.array([30, 31])  # new items: nobody clicked them
OTHERS = np.arange(30)
POPULAR = 3
TURNS = {
    "random": attacks.random,
    "popular": attacks.popular,
    "bandwagon": attacks.bandwagon,
    "hcars_bandwagon": attacks.hcars_bandwagon,
    "top_popular": attacks.top_popular,
    "segment": attacks.segment,
}
EVERY = TURNS | {"middle": attacks.middle}


@pytest.fixture(scope="module")
def train():
    rng = np.random.default_rng(2)
    chance = rng.dirichlet(np.full(30, 0.7))
    user, item = np.repeat(np.arange(USERS), 12), rng.choice(30, 12 * USERS, p=chance)
    return Interactions.from_arrays(user, item, time=np.arange(user.size), items=ITEMS, track="sequence")


@pytest.fixture(scope="module")
def clicks(train):
    """`{(name, mode): ids (keys, F, T)}`, in one compiled call."""
    made = {
        (name, mode): make(fakes=FAKES, clicks=CLICKS, track="sequence", target_mode=mode)
        for name, make in EVERY.items()
        for mode in (("all", "split") if name in ("random", "middle") else ("all",))
    }
    targets = jnp.array(TARGETS)
    every = jax.jit(jax.vmap(lambda key: [attack(key, train, targets).clicks for attack in made.values()]))
    found = every(jax.random.split(jax.random.key(3), 400))
    return dict(zip(made, map(np.asarray, found), strict=True))


def order(train):
    count = np.asarray(train.popularity())
    return sorted(OTHERS, key=lambda i: (-count[i], i))


def uniform(values, over):
    counts = [(values == value).sum() for value in over]
    assert sum(counts) == values.size
    return scipy.stats.chisquare(counts).pvalue > 1e-3


def test_every_sequence_is_legal_and_has_its_length(train, clicks):
    for (name, _), ids in clicks.items():
        assert ids.shape[1:] == (FAKES, CLICKS), name
        profiles = Profiles.from_clicks(ids[0], TARGETS, items=ITEMS)
        threat = EVERY[name](fakes=FAKES, clicks=CLICKS, track="sequence").threat
        threat.validate(profiles, USERS)  # exactly CLICKS clicks, legal ids


def test_sequences_enter_the_data_with_all_their_clicks(train, clicks):
    profiles = Profiles.from_clicks(clicks["random", "all"][0], TARGETS, items=ITEMS)
    poisoned = jax.jit(inject)(train, profiles)
    assert int(poisoned.count) == int(train.count) + FAKES * CLICKS


def test_targets_and_items_take_turns(clicks):
    for name in TURNS:
        ids = clicks[name, "all"]
        assert uniform(ids[..., ::2], TARGETS), name
        assert not np.isin(ids[..., 1::2], TARGETS).any(), name


def test_what_is_between_the_targets(train, clicks):
    between = {name: clicks[name, "all"][..., 1::2] for name in TURNS}  # four places
    most = order(train)
    assert uniform(between["random"], OTHERS)
    assert uniform(between["popular"], most[:POPULAR])
    assert uniform(clicks["random", "all"][..., 1], OTHERS)
    repeats = [len(set(row)) < 4 for row in between["random"].reshape(-1, 4)]
    assert 0.1 < np.mean(repeats) < 0.3  # 1 - 29/30 28/30 27/30 = 0.19: with repeats
    for name in ("bandwagon", "hcars_bandwagon", "top_popular", "segment"):
        assert all(len(set(row)) == 4 for row in between[name].reshape(-1, 4)), name
    np.testing.assert_array_equal(np.isin(between["bandwagon"], most[:3]).sum(-1), 3)
    np.testing.assert_array_equal(np.isin(between["hcars_bandwagon"], most[:POPULAR]).sum(-1), POPULAR)
    assert uniform(between["top_popular"][..., 0], most[:4])  # in random order
    assert uniform(between["segment"], most[:4])  # like new items nothing is: the most clicked ones


def test_middle_draws_its_kinds_alike_and_uniformly_within(train, clicks):
    ids = clicks["middle", "all"]
    most = order(train)
    kind = np.where(np.isin(ids, TARGETS), 0, np.where(np.isin(ids, most[:POPULAR]), 1, 2))
    assert uniform(kind, range(3))
    for which, pool in enumerate((TARGETS, most[:POPULAR], most[POPULAR:])):
        assert uniform(ids[kind == which], pool)
    follow = np.mean((kind[..., 1:] == 0) & (kind[..., :-1] == 0))
    assert abs(follow - 1 / 9) < 0.01  # targets follow one another: steps are independent


def test_split_keeps_every_fake_user_to_one_target(clicks):
    for name in ("random", "middle"):
        ids = clicks[name, "split"]
        for fake in range(FAKES):
            own = ids[:, fake][np.isin(ids[:, fake], TARGETS)]
            assert set(own) == {TARGETS[fake % 2]}


def test_more_turns_than_items_start_again_and_one_click_is_a_target(key):
    train = Interactions.from_arrays([0, 0], [0, 1], items=3, track="sequence")
    long = attacks.top_popular(fakes=2, clicks=9, track="sequence")(key, train, jnp.array([2]))
    np.testing.assert_array_equal(np.asarray(long.clicks)[:, ::2], 2)
    assert (np.asarray(long.clicks)[:, [1, 3]].sum(1) == 1).all()  # 0 and 1 in some order
    np.testing.assert_array_equal(long.clicks[:, 1], long.clicks[:, 5])
    for make in (attacks.random, attacks.bandwagon):
        short = make(fakes=2, clicks=1, track="sequence")(key, train, jnp.array([2]))
        np.testing.assert_array_equal(short.clicks, [[2], [2]])


def test_middle_without_others_has_two_kinds(key):
    train = Interactions.from_arrays([0, 0], [0, 1], track="sequence")
    made = attacks.middle(fakes=50, clicks=20)(key, train, jnp.array([1]))
    assert uniform(np.asarray(made.clicks), [0, 1])
