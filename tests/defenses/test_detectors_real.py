"""Detectors on real attacks: what the attacks' documentation says finds them, what does not, and what nobody is told.

A drawn community has tastes, a long tail of items and users of different zeal; every attack of `attacks` that is used
injects 5% fake users of average length into it. The slow tests do the same with MovieLens-100K at 3%.
"""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import betabinom, mannwhitneyu

import attacks
from defenses import detectors
from defenses.filtering import filtered
from models.data import Interactions, dataset, inject, load
from models.evaluation.detection import detection
from models.wrmf import wrmf

USERS, ITEMS, FAKES = 400, 250, 20
FAKE = np.arange(USERS + FAKES) >= USERS
STARS = (1.0, 5.0, 1.0)
TRACKS = ("explicit", "implicit")
ATTACKS = {"explicit": ("random", "average", "bandwagon"), "implicit": ("random", "bandwagon", "rapu-r")}


def community(track, seed=0):
    """Clicks by taste times popularity, lengths log-normal; ratings by quality, taste and the user's level."""
    rng = np.random.default_rng(seed)
    liking = rng.normal(size=(USERS, 4)) @ rng.normal(size=(4, ITEMS)) / 2
    appeal = liking - 1.1 * np.log(5 + rng.permutation(ITEMS)) + rng.gumbel(size=(USERS, ITEMS))
    length = np.clip(np.exp(rng.normal(3.2, 0.6, USERS)), 8, 120)
    clicks = appeal.argsort(1).argsort(1) >= ITEMS - length[:, None]
    if track == "implicit":
        return Interactions.from_dense(clicks.astype(float))
    quality, level = rng.normal(3.6, 0.5, ITEMS), rng.normal(0, 0.4, (USERS, 1))
    stars = np.round(quality + level + 0.5 * liking + rng.normal(0, 0.7, (USERS, ITEMS)))
    return Interactions.from_dense(clicks * np.clip(stars, 1, 5), track="explicit")


def attack_of(name, track, fakes, budget):
    spent = {"fakes": fakes, "budget": budget}
    if name == "rapu-r":
        return attacks.rapu_r(
            wrmf(factors=4, epochs=10, learning_rate=0.05), **{**spent, "budget": budget // 2}
        )
    if name == "pga":
        return attacks.pga(**spent, ratings=STARS, steps=3, factors=4, sweeps=3)
    if track == "explicit":
        extra = {} if name == "average" else {"track": "explicit"}
        return getattr(attacks, name)(**spent, ratings=STARS, **extra)
    return getattr(attacks, name)(**spent)


def attacked(train, name, fakes):
    """The data with the fake users of an attack on five unpopular items; their profiles have an average length."""
    targets = np.argsort(np.asarray(train.popularity()), kind="stable")[train.items // 10 :][:5]
    budget = round(float(train.count) / train.users)
    attack = attack_of(name, train.track, fakes, budget)
    return inject(train, attack(jax.random.key(1), train, jnp.asarray(targets, jnp.int32)))


@functools.cache
def clean(track, seed=0):
    return community(track, seed)


@functools.cache
def poisoned(track, name):
    return attacked(clean(track), name, FAKES)


def of(track):
    """The detectors that can read such data."""
    return {**detectors.DETECTORS, **(detectors.OF_RATINGS if track == "explicit" else {})}


def finds(scores, real, least):
    """Above chance beyond doubt, and by as much as is claimed."""
    assert detection(scores, np.arange(len(scores)) >= real).auc >= least
    assert mannwhitneyu(scores[real:], scores[:real], alternative="greater").pvalue < 1e-3


def permuted(train, order):
    """The same users in another order: user k is who was user `order[k]`."""
    return Interactions.from_dense(np.asarray(train.dense())[order], track=train.track)


# ------------------------------------------------------------------------------------------------ who finds what


CLAIMS = {
    # a uniform choice of items has the rare ones that RDMA weighs, no taste, and an odd popularity profile
    ("explicit", "random"): {"rdma": 0.9, "wdma": 0.9, "wda": 0.8, "pca": 0.9, "popularity": 0.65},
    ("explicit", "average"): {"wdma": 0.85, "wda": 0.75, "pca": 0.9, "popularity": 0.65},
    ("explicit", "bandwagon"): {"rdma": 0.85, "wdma": 0.9, "pca": 0.9, "popularity": 0.65},
    ("implicit", "random"): {"rdma": 0.9, "wda": 0.8, "pca": 0.9, "popularity": 0.65},
    ("implicit", "bandwagon"): {"rdma": 0.9, "wda": 0.8, "pca": 0.9, "knn": 0.8},
    # the same few popular items again and again: equal profiles
    ("implicit", "rapu-r"): {"duplicate": 0.99, "deg-sim": 0.9, "fap": 0.9, "knn": 0.9, "popularity": 0.8},
}


DEAR = (("explicit", "random"), ("implicit", "rapu-r"))
"""Which take seconds to make."""


@pytest.mark.parametrize(
    ("track", "name"),
    [
        pytest.param(*claim, marks=[pytest.mark.slow] * (claim in DEAR), id="-".join(claim))
        for claim in CLAIMS
    ],
)
def test_detectors_find_what_the_attacks_say_finds_them(track, name):
    train = poisoned(track, name)
    for detector, least in CLAIMS[track, name].items():
        finds(of(track)[detector](train), USERS, least)


@pytest.mark.slow
def test_rating_deviation_finds_pga():
    for detector in ("rdma", "wdma", "pca"):
        finds(of("explicit")[detector](poisoned("explicit", "pga")), USERS, 0.85)


def test_equal_profiles_of_rapu_r_have_a_duplicate_and_nobody_else_has():
    train = poisoned("implicit", "rapu-r")
    scores = detectors.duplicate(train)
    rows = np.asarray(train.dense())[USERS:]
    again = np.array([np.sum((rows == row).all(1)) > 1 for row in rows])
    assert again.sum() > FAKES / 2
    np.testing.assert_array_equal(scores[USERS:] == 1, again)
    assert scores[:USERS].max() < 1


def test_no_single_detector_is_enough():
    """Similarity is blind to random profiles, deviation to popular ones: below chance, not only at it."""
    area = lambda detector, name: (
        detectors.judged(of("implicit")[detector], poisoned("implicit", name), USERS).auc
    )
    assert max(area("deg-sim", "random"), area("duplicate", "random")) < 0.4
    assert max(area("rdma", "rapu-r"), area("pca", "rapu-r")) < 0.4


def test_fillers_of_the_average_attack_lie_closer_to_the_means_than_random_ones():
    spread = {}
    for name in ("average", "random"):
        spread[name] = detectors.mean_var(poisoned("explicit", name))[USERS:]
    assert mannwhitneyu(spread["average"], spread["random"], alternative="greater").pvalue < 1e-3


# ------------------------------------------------------------------------------------------------ learned ones


def known_attacks(track, but):
    """The data under the other attacks, and who is fake."""
    return [(poisoned(track, name), FAKE) for name in ATTACKS[track] if name != but]


@pytest.mark.parametrize(
    ("track", "name"),
    [
        ("explicit", "average"),
        ("implicit", "bandwagon"),
        pytest.param("explicit", "random", marks=pytest.mark.slow),
        pytest.param("explicit", "bandwagon", marks=pytest.mark.slow),
        pytest.param("explicit", "pga", marks=pytest.mark.slow),
        pytest.param("implicit", "random", marks=pytest.mark.slow),
        pytest.param("implicit", "popular", marks=pytest.mark.slow),
    ],
)
def test_a_learned_detector_finds_an_attack_that_it_was_not_shown(track, name):
    learned = detectors.supervised(known_attacks(track, name))
    train = poisoned(track, name)
    finds(learned(train), USERS, 0.9)
    order = np.random.default_rng(3).permutation(train.users)
    moved = learned(permuted(train, order))
    assert detection(moved, order >= USERS).auc > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("track", TRACKS)
def test_a_learned_detector_finds_it_among_other_users_too(track):
    """Neither the attack nor the community was in what it learned from."""
    learned = detectors.supervised(known_attacks(track, "bandwagon"))
    train = attacked(community(track, seed=1), "bandwagon", FAKES)
    finds(learned(train), USERS, 0.9)


# ------------------------------------------------------------------------------------------------ what nobody is told


@pytest.mark.parametrize("track", TRACKS)
def test_permuting_users_with_fakes_among_them_permutes_the_scores(track):
    """So the place of the fake users, at the end, is not what gives them away."""
    train = poisoned(track, "bandwagon")
    order = np.random.default_rng(2).permutation(train.users)
    moved = permuted(train, order)
    for name, detector in of(track).items():
        scores, again = detector(train), detector(moved)
        if name == "fap":  # with its own seeds: below
            seeds = np.arange(train.users) % 100 == 7
            scores, again = detectors.fap(train, seeds=seeds), detectors.fap(moved, seeds=seeds[order])
        assert scores.shape == (train.users,), name
        assert np.isfinite(scores).all(), name
        np.testing.assert_allclose(again, scores[order], rtol=1e-5, atol=1e-8, err_msg=name)


def test_the_seeds_that_fap_finds_do_not_depend_on_the_order_of_the_users():
    """Similarity is mutual: the five most similar users nearly always leave a sixth, as similar as the fifth."""
    train = poisoned("implicit", "bandwagon")
    order = np.random.default_rng(2).permutation(train.users)
    np.testing.assert_allclose(detectors.fap(permuted(train, order)), detectors.fap(train)[order], rtol=1e-5)


def test_equal_profiles_are_found_wherever_they_stand():
    """Of equally suspicious users FAP takes all as seeds, more than five if need be."""
    train = poisoned("implicit", "rapu-r")
    order = np.random.default_rng(4).permutation(train.users)
    moved, fake = permuted(train, order), order >= USERS
    for name in ("duplicate", "deg-sim", "knn", "fap"):
        scores = of("implicit")[name](moved)
        assert detection(scores, fake).auc > 0.9, name


@pytest.mark.parametrize("track", TRACKS)
def test_a_detector_asks_for_the_data_and_for_nothing_else(track):
    for name, detector in of(track).items():
        given = inspect.signature(detector).parameters.values()
        assert [p.name for p in given if p.default is p.empty] == ["train"], name
    made = detectors.supervised(known_attacks(track, "bandwagon")[:1])
    assert len(inspect.signature(made).parameters) == 1


@pytest.mark.parametrize("track", TRACKS)
def test_a_threshold_from_half_of_a_clean_community_flags_its_share_of_the_other(track):
    """5% of one half lie above it; the users are drawn alike, so of the other half beta-binomially many do.

    Over four communities. Both halves are scored as one data set: FAP's scores of one say nothing about another's.
    """
    half, most, seeds = USERS // 2, USERS // 40, range(4)
    law = betabinom(half, most + 1, half - most).pmf(np.arange(half + 1))
    low, high = np.searchsorted(
        np.cumsum(functools.reduce(np.convolve, [law] * len(seeds))), [5e-4, 1 - 5e-4]
    )
    for name, detector in of(track).items():
        above = 0
        for seed in seeds:
            scores = detector(clean(track, seed))
            above += (scores[half:] > np.sort(scores[:half])[::-1][most]).sum()
        assert low <= above <= high, (name, low, above, high)


def test_a_filter_takes_the_fake_users_of_a_random_attack_and_leaves_most_others():
    train = poisoned("implicit", "random")
    left, users = filtered(train, detectors.rdma, level=0.06)
    assert users[USERS:].mean() > 0.8
    assert users[:USERS].mean() < 0.03
    lost = np.asarray(train.degrees())[users].sum()
    assert int(left.count) == int(train.count) - lost


# ------------------------------------------------------------------------------------------------ MovieLens-100K


@functools.cache
def movielens(track, name):
    """943 users and 28 fake ones."""
    found = dataset("ml-100k", track="explicit") if track == "explicit" else load("ml-100k", threshold=4)
    return attacked(found.interactions, name, 28)


@pytest.mark.slow
@pytest.mark.parametrize(("track", "name"), CLAIMS, ids=map("-".join, CLAIMS))
def test_movielens(data_dir, track, name):
    train = movielens(track, name)
    real = train.users - 28
    for detector in CLAIMS[track, name]:
        finds(of(track)[detector](train), real, 0.6)
    order = np.random.default_rng(5).permutation(train.users)
    for detector in ("rdma", "pca", "knn"):
        scores = of(track)[detector](train)
        moved = of(track)[detector](permuted(train, order))
        np.testing.assert_allclose(moved, scores[order], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("track", "name"), [("explicit", "average"), ("implicit", "bandwagon")])
def test_movielens_learned(data_dir, track, name):
    others = [movielens(track, other) for other in ATTACKS[track] if other != name]
    learned = detectors.supervised([(train, np.arange(train.users) >= train.users - 28) for train in others])
    train = movielens(track, name)
    finds(learned(train), train.users - 28, 0.9)
