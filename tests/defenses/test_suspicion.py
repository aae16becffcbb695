"""The soft side of detectors: the detector's own score at hard rows, and right derivatives at relaxed ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defenses import suspicion
from defenses.detectors import DETECTORS
from defenses.filtering import soft_filter
from models.data import Interactions
from models.train import fit
from models.wrmf import wrmf

U, I, F = 40, 30, 3


@pytest.fixture
def users(rng):
    return (rng.random((U, I)) < 0.1 + 0.5 * rng.random(I)).astype(float)


@pytest.fixture
def fakes(rng):
    rows = (rng.random((F, I)) < 0.3).astype(float)
    rows[0, 0] = 1.0
    return rows


def scores_of(name, users, fakes):
    return DETECTORS[name](Interactions.from_dense(np.concatenate([users, fakes])))[len(users) :]


def test_alike_is_duplicate(users, fakes):
    soft = suspicion.alike(Interactions.from_dense(users))
    np.testing.assert_allclose(soft(jnp.asarray(fakes)), scores_of("duplicate", users, fakes), rtol=1e-5)


@pytest.mark.parametrize(("name", "soft"), [("popularity", suspicion.unpopular), ("pca", suspicion.odd)])
def test_unpopular_and_odd_are_their_detectors_with_the_statistics_of_everybody(name, soft, users, fakes):
    everybody = Interactions.from_dense(np.concatenate([users, fakes]))
    found = soft(everybody)(jnp.asarray(fakes))
    np.testing.assert_allclose(found, scores_of(name, users, fakes), rtol=2e-3, atol=1e-6)


def test_crowded_is_knn_with_itself_once_more(users, fakes):
    everybody = Interactions.from_dense(np.concatenate([users, fakes[:1]]))
    found = suspicion.crowded(everybody, neighbors=21)(
        jnp.asarray(fakes[:1])
    )  # its own point is among the others
    np.testing.assert_allclose(21 * found, 20 * scores_of("knn", users, fakes[:1]), rtol=1e-3)


@pytest.mark.parametrize("name", suspicion.SOFT)
def test_derivatives(name, x64, rng, users):
    soft = suspicion.known(name, Interactions.from_dense(users)).score
    x, way = jnp.asarray(rng.uniform(0.2, 0.9, (F, I))), jnp.asarray(rng.normal(size=(F, I)))
    total = jax.jit(lambda x: jnp.sum(jnp.sin(soft(x, None))))
    step = 1e-6
    slope = (total(x + step * way) - total(x - step * way)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(jax.grad(total)(x) * way), slope, rtol=1e-5, atol=1e-9)


def test_a_bin_without_a_click_leaves_the_derivative_a_number(rng):
    """One item has most of the clicks, so that a bin of popularity is empty."""
    clicks = np.zeros((30, 12))
    clicks[:, 0] = 1
    clicks[:3, 1:3] = 1
    soft = suspicion.unpopular(Interactions.from_dense(clicks))
    x = jnp.asarray(rng.uniform(0.2, 0.9, (F, 12)))
    assert np.isfinite(soft(x)).all()
    assert np.isfinite(jax.grad(lambda x: jnp.sum(soft(x)))(x)).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", suspicion.SOFT)
def test_the_cut_takes_its_share_of_the_known_users_and_the_filter_those_above(name, users):
    train = Interactions.from_dense(users)
    found = suspicion.known(name, train, level=0.1)
    assert np.sum(DETECTORS[name](train) > found.cut) == round(0.1 * U)
    model, x = wrmf(factors=2, epochs=2), jnp.asarray(np.tile(users[:1], (25, 1)))
    score = np.asarray(found.score(x, None))
    assert np.ptp(score) < 1e-5
    hard = soft_filter(model, found.score, cut=float(score[0]) - 1, temperature=1e-3)
    left = fit(hard, train, jax.random.key(0), fakes_rows=x).scores(jnp.arange(U))
    none = fit(model, train, jax.random.key(0), fakes_rows=0 * x).scores(jnp.arange(U))
    np.testing.assert_allclose(left, none, atol=1e-6)


def test_what_is_not_soft():
    with pytest.raises(ValueError, match="'lof'"):
        suspicion.known("lof", Interactions.from_dense(np.eye(4)))
    with pytest.raises(ValueError, match="clicks only"):
        suspicion.known("knn", Interactions.from_dense(np.eye(4), track="explicit"))
