"""Detectors against their formulas, planted fakes, and what every detector promises; judging against brute force."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from defenses import detectors, neighbors
from defenses.filtering import filtered, flagged
from models.als import als
from models.data import Interactions
from models.evaluation.detection import detection
from models.train import fit

KEY = jax.random.key(0)
ALL = {**detectors.DETECTORS, **detectors.OF_RATINGS}


def world(rng, track="implicit", users=40, items=30):
    dense = (rng.random((users, items)) < 0.3) * (
        1.0 if track == "implicit" else rng.integers(1, 6, (users, items))
    )
    dense[:, 0] += dense.sum(1) == 0
    return Interactions.from_dense(dense, track=track)


def permuted(train, order):
    dense = np.asarray(train.dense())
    return Interactions.from_dense(dense[order], track=train.track)


@pytest.mark.parametrize("name", ALL)
def test_permuting_the_users_permutes_the_scores(rng, name):
    train = world(rng, "explicit" if name in detectors.OF_RATINGS else "implicit")
    order = rng.permutation(train.users)
    before, after = ALL[name](train), ALL[name](permuted(train, order))
    assert before.shape == (train.users,)
    assert np.isfinite(before).all()
    np.testing.assert_allclose(after, before[order], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("track", ["implicit", "explicit"])
def test_rdma_and_its_sisters_are_their_formulas(rng, track):
    train = world(rng, track)
    R = np.asarray(train.dense())
    count = np.maximum((R > 0).sum(0), 1)
    level = count / len(R) if track == "implicit" else R.sum(0) / count
    for u, row in enumerate(R):
        inside = row > 0
        terms = np.abs(row - level)[inside]
        found = (
            detectors.rdma(train)[u],
            detectors.rdma(train, power=2)[u],
            detectors.rdma(train, mean=False)[u],
        )
        c = count[inside]
        np.testing.assert_allclose(
            found, [np.mean(terms / c), np.mean(terms / c**2), np.sum(terms / c)], rtol=1e-6
        )


def test_similarity_and_duplicates_are_their_formulas(rng):
    train = world(rng)
    R = np.asarray(train.dense())
    unit = R / np.linalg.norm(R, axis=1, keepdims=True)
    near = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    np.testing.assert_allclose(
        detectors.deg_sim(train, neighbors=5), np.sort(near, 1)[:, -5:].mean(1), rtol=1e-6
    )
    shared = R @ R.T
    jaccard = shared / (R.sum(1)[:, None] + R.sum(1)[None] - shared)
    np.fill_diagonal(jaccard, 0)
    np.testing.assert_allclose(detectors.duplicate(train, block=7), jaccard.max(1), rtol=1e-6)


def test_similarity_of_ratings_is_the_correlation_with_nothing_for_what_is_missing(rng):
    train = world(rng, "explicit")
    R = np.asarray(train.dense(), float)
    away = np.where(R > 0, R - R.sum(1, keepdims=True) / (R > 0).sum(1, keepdims=True), 0)
    near = away @ away.T / np.linalg.norm(away, axis=1)[:, None] / np.linalg.norm(away, axis=1)
    np.fill_diagonal(near, -np.inf)
    np.testing.assert_allclose(
        detectors.deg_sim(train, neighbors=5), np.sort(near, 1)[:, -5:].mean(1), rtol=1e-6
    )


def test_lof_and_knn_are_their_formulas_in_an_embedding(rng):
    """Breunig et al., definitions 5 to 7, with points in general position: no ties."""
    points, k = rng.normal(size=(40, 3)), 6
    apart = np.linalg.norm(points[:, None] - points, axis=2)
    near = np.argsort(apart, 1)[:, 1 : k + 1]
    reach = np.sort(apart, 1)[:, k]  # distance to the k-th neighbor
    away = np.take_along_axis(apart, near, 1)
    density = 1 / np.maximum(reach[near], away).mean(1)
    train = world(rng)
    found = detectors.lof(train, embedding=points, neighbors=k)
    np.testing.assert_allclose(found, density[near].mean(1) / density, rtol=1e-6)
    np.testing.assert_allclose(detectors.knn(train, embedding=points, neighbors=k), -away.mean(1), rtol=1e-6)
    with pytest.raises(ValueError, match="a row a user"):
        detectors.knn(train, embedding=points[1:])


@pytest.mark.parametrize(("detector", "neighbors"), [(detectors.knn, 3), (detectors.lof, 10)])
def test_a_victims_user_vectors_give_obvious_fakes_away(rng, detector, neighbors):
    """Four copies that click what nobody else does: close together, and far from the next ones."""
    real = (rng.random((80, 30)) < 0.6) & (np.arange(30) < 20)
    fakes = np.tile(np.arange(30) >= 20, (4, 1))
    train = Interactions.from_dense(np.concatenate([real, fakes]).astype(float))
    vectors = np.asarray(fit(als(factors=6), train, KEY).embedding["user"])
    scores = detector(train, embedding=vectors, neighbors=neighbors)
    assert detection(scores, np.arange(84) >= 80).auc > 0.95


def test_varselect_is_the_eigenvectors_of_the_covariance_of_z_scores(rng):
    train = world(rng)
    R = np.asarray(train.dense(), float)
    Z = (R - R.mean(1, keepdims=True)) / R.std(1, keepdims=True)
    _, vectors = np.linalg.eigh(Z @ Z.T)
    np.testing.assert_allclose(detectors.pca(train), -(vectors[:, -3:] ** 2).sum(1), rtol=1e-5, atol=1e-9)


def test_popularity_is_a_divergence(rng):
    dense = np.zeros((6, 20))
    dense[:5, :10] = 1  # five users of the popular half
    dense[5, 10:] = 1  # and one of what nobody else clicked
    scores = detectors.popularity(Interactions.from_dense(dense), bins=4)
    assert scores.argmax() == 5
    assert (scores >= 0).all()
    assert (scores <= 1).all()
    assert detectors.popularity(Interactions.from_dense(np.ones((3, 5))), bins=2).max() < 1e-12


def test_suspicion_walks_from_seeds_to_whom_they_share_items_with():
    train = Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 2, 3])
    scores = detectors.fap(train, seeds=np.array([True, False, False]))
    np.testing.assert_allclose(scores, [1.0, 1.0, 0.0], atol=1e-4)
    with pytest.raises(ValueError, match="0 seeds"):
        detectors.fap(train, seeds=np.zeros(3, bool))


@pytest.mark.parametrize("track", ["implicit", "explicit"])
def test_fap_is_its_two_means_told_plainly(rng, track):
    R = (rng.random((8, 6)) < 0.5) * (rng.integers(1, 6, (8, 6)) if track == "explicit" else 1)
    R[:, 0], R[0] = 1, 1  # nobody and nothing is empty
    held = np.arange(8) < 2
    score = held.astype(float)
    for _ in range(2):
        item = [np.average(score, weights=R[:, i]) for i in range(6)]
        score = np.where(held, 1, [np.average(item, weights=R[u]) for u in range(8)])
    train = Interactions.from_dense(R.astype(float), track=track)
    np.testing.assert_allclose(detectors.fap(train, seeds=held, rounds=2), score, rtol=1e-6)


def test_directions_of_a_matrix_of_lower_rank_are_as_many_as_there_are():
    """Twelve users of two kinds: the rest would be rounding divided by rounding."""
    rows = np.tile(np.eye(2, 9), (6, 1))
    _, values, right = neighbors.directions(Interactions.from_dense(rows), 8)
    assert values.shape == (2,)
    np.testing.assert_allclose(np.linalg.norm(right, axis=0), 1, rtol=1e-6)


def test_users_who_are_all_alike_have_no_directions():
    scores = detectors.pca(Interactions.from_dense(np.ones((6, 5))))
    np.testing.assert_array_equal(scores, np.zeros(6))


def test_copies_are_found_and_only_there(rng):
    dense = np.asarray(world(rng).dense())
    fakes = np.tile((rng.random(30) < 0.3).astype(float), (4, 1))
    train = Interactions.from_dense(np.concatenate([dense, fakes]))
    assert (detectors.duplicate(train)[-4:] == 1).all()
    assert detectors.judged(detectors.duplicate, train, 40).auc > 0.99


def test_mean_var_and_fmtd(rng):
    ratings = np.array([[5.0, 3.0, 3.0, 0.0], [5.0, 1.0, 5.0, 1.0], [4.0, 0.0, 0.0, 0.0]])
    train = Interactions.from_dense(ratings, track="explicit")
    mean = np.array([14 / 3, 2, 4, 1])
    expected = [
        -((3 - mean[1]) ** 2 + (3 - mean[2]) ** 2) / 2,
        -((1 - mean[1]) ** 2 + (1 - mean[3]) ** 2) / 2,
    ]
    found = detectors.mean_var(train)
    np.testing.assert_allclose(found[:2], expected, rtol=1e-6)
    assert found[2] == found.min()
    np.testing.assert_allclose(detectors.fmtd(train), [2.0, 4.0, 0.0])
    with pytest.raises(ValueError, match="reads ratings"):
        detectors.fmtd(Interactions.from_dense(np.eye(2)))


@given(seed=st.integers(0, 2**20), level=st.floats(0, 1))
def test_the_users_flagged_are_the_most_suspicious_and_as_many_as_asked(seed, level):
    scores = np.random.default_rng(seed).integers(0, 4, 37).astype(float)
    users = flagged(scores, level)
    assert users.sum() == round(level * 37)
    if users.any() and not users.all():
        assert scores[users].min() >= scores[~users].max()


def test_equal_scores_are_decided_by_lot_and_not_by_who_was_injected_last():
    users = flagged(np.zeros(1000), 0.05)
    assert users.sum() == 50
    assert users[-100:].sum() < 15  # by id it would be 50


def test_a_filter_takes_the_events_of_whom_it_flags(rng):
    train = world(rng)
    left, users = filtered(train, detectors.rdma, level=0.05)
    assert users.sum() == 2
    dense, kept = np.asarray(train.dense()), np.asarray(left.dense())
    np.testing.assert_array_equal(kept[~users], dense[~users])
    assert not kept[users].any()


def test_a_supervised_detector_finds_an_attack_it_was_not_shown(rng):
    def attacked(fakes):
        train = Interactions.from_dense(np.concatenate([np.asarray(world(rng).dense()), fakes]))
        return train, np.arange(train.users) >= 40

    copies = np.tile((rng.random(30) < 0.3).astype(float), (5, 1))
    near = copies.copy()
    near[np.arange(5), np.arange(5)] = 1 - near[np.arange(5), np.arange(5)]
    learned = detectors.supervised([attacked(copies)])
    train, fake = attacked(near)
    assert detection(learned(train), fake).auc > 0.9
    with pytest.raises(ValueError, match="at least one"):
        detectors.supervised([])


def test_a_learned_detector_reads_nothing_it_must_not(rng):
    def attacked(budget):  # fake users are told by the number of their clicks, and by little else
        fakes = np.zeros((5, 30))
        for row in fakes:
            row[rng.choice(30, budget, replace=False)] = 1
        train = Interactions.from_dense(np.concatenate([np.asarray(world(rng).dense()), fakes]))
        return train, np.arange(train.users) >= 40

    train, _ = attacked(25)
    whole, less = detectors.features(train), detectors.features(train, ["length-var"])
    column = list(detectors.DETECTORS).index("length-var")
    np.testing.assert_array_equal(np.delete(whole, column, 1), less)
    longer = detectors.supervised([attacked(25)], without=["length-var"])
    assert longer(train).shape == (45,)
    with pytest.raises(ValueError, match="there are: rdma"):
        detectors.features(train, ["length"])


@given(seed=st.integers(0, 2**20))
def test_judging_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    scores, fake = rng.integers(0, 6, 30).astype(float), rng.random(30) < 0.3
    fake[:2] = True, False
    found = detection(scores, fake)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[fake] for b in scores[~fake]]
    np.testing.assert_allclose(found.auc, np.mean(pairs), rtol=1e-12)
    above = [
        scores >= t for t in np.unique(scores)[::-1]
    ]  # every threshold: users with equal scores come together
    precision = np.array([fake[a].mean() for a in above])
    gained = np.diff([0, *(fake[a].sum() / fake.sum() for a in above)])
    np.testing.assert_allclose(found.average_precision, gained @ precision, rtol=1e-12)
    draws = [np.lexsort((rng.random(30), -scores))[: fake.sum()] for _ in range(2000)]
    np.testing.assert_allclose(found.precision_at_count, np.mean([fake[d].mean() for d in draws]), atol=0.03)
    reach = [t for t in [*np.unique(scores), -1] if np.mean(scores[~fake] > t) <= 0.05]
    np.testing.assert_allclose(found.recall_at_5, np.mean(scores[fake] > min(reach)), rtol=1e-12)


@pytest.mark.parametrize(
    ("scores", "fake", "match"),
    [
        ([1.0, 2.0], [True], "one score a user"),
        ([1.0, np.nan], [True, False], "not finite"),
        ([1.0, 2.0], [True, True], "some of both"),
    ],
)
def test_what_cannot_be_judged(scores, fake, match):
    with pytest.raises(ValueError, match=match):
        detection(scores, fake)
