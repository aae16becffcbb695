"""Measures of camouflage against their definitions."""

import numpy as np
import pytest

from models.data import Interactions, Profiles
from models.evaluation.stealth import (
    clicked_popularity,
    mean_jaccard,
    neighbor_purity,
    pairwise_jaccard,
    plane,
    popularity_distance,
)


def test_popularity_distance_is_that_of_scipy(rng):
    stats = pytest.importorskip("scipy.stats")
    for _ in range(5):
        train = Interactions.from_dense((rng.random((12, 9)) < 0.4).astype(float))
        profiles = Profiles.from_rows((rng.random((3, 9)) < 0.5).astype(float), np.array([0]))
        rows = np.asarray(profiles.to_rows())
        if not rows.any():
            continue
        real = clicked_popularity(np.asarray(train.dense()), train)
        expected = stats.ks_2samp(clicked_popularity(rows, train), real).statistic
        np.testing.assert_allclose(popularity_distance(profiles, train), expected)


def test_copies_of_all_real_users_are_at_no_distance(rng):
    dense = (rng.random((12, 9)) < 0.4).astype(float)
    train = Interactions.from_dense(dense)
    assert popularity_distance(Profiles.from_rows(dense, np.array([0])), train) == 0
    with pytest.raises(ValueError, match="0 fake"):
        popularity_distance(Profiles.from_rows(np.zeros((2, 9)), np.array([0])), train)


def test_jaccard_is_that_of_sets(rng):
    rows = rng.random((6, 8)) < 0.4
    rows[2] = rows[3] = False
    found = pairwise_jaccard(rows)
    for a in range(6):
        for b in range(6):
            one, other = set(np.flatnonzero(rows[a])), set(np.flatnonzero(rows[b]))
            expected = len(one & other) / len(one | other) if one | other else 1.0
            assert found[a, b] == pytest.approx(expected)
    profiles = Profiles.from_rows(rows.astype(float), np.array([0]))
    assert mean_jaccard(profiles) == pytest.approx(found[~np.eye(6, dtype=bool)].mean())
    assert np.isnan(mean_jaccard(Profiles.from_rows(np.ones((1, 3)), np.array([0]))))


def test_neighbor_purity_is_one_for_a_cluster_and_the_base_rate_for_chance(rng):
    real, far = rng.normal(size=(200, 4)), 50 + rng.normal(size=(20, 4))
    assert neighbor_purity(np.concatenate([real, far]), 20) == 1
    mixed = np.mean([neighbor_purity(rng.normal(size=(220, 4)), 20) for _ in range(10)])
    assert abs(mixed - 19 / 219) < 0.03
    for arguments in ({"fakes": 1}, {"fakes": 220}, {"fakes": 5, "k": 5}):
        with pytest.raises(ValueError, match="expected"):
            neighbor_purity(real, **arguments)


def test_the_plane_keeps_the_most_variance_and_reflections_do_not_matter(rng):
    points = rng.normal(size=(50, 5)) * [5, 3, 1, 0.5, 0.1]
    found = plane(points)
    values = np.linalg.eigvalsh(np.cov(points.T))[::-1][:2]
    np.testing.assert_allclose(found.var(axis=0, ddof=1), values)
    turned = points @ np.linalg.qr(rng.normal(size=(5, 5)))[0]
    np.testing.assert_allclose(np.abs(plane(turned)), np.abs(found), atol=1e-10)
    with pytest.raises(ValueError, match="umap"):
        plane(points, "umap")  # type: ignore[arg-type]
