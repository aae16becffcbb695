"""APT's bounds: golden values, how they move, and that the first theorem holds in a simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defenses.bounds import (
    Setting,
    confidence,
    helpers_needed,
    signal,
    spread,
    tolerated,
    tolerated_adversarial,
    tolerated_poisoning,
)

GOLDEN = Setting(1000.0, 64.0, 1.0, 8.0, 3.0, 0.01)


def test_golden_values(x64):
    np.testing.assert_allclose(tolerated(GOLDEN), 60.699, atol=5e-4)
    np.testing.assert_allclose(tolerated_adversarial(GOLDEN, epsilon=0.05, tau=4.0), 61.067, atol=5e-4)
    np.testing.assert_allclose(tolerated_poisoning(GOLDEN, helpers=50.0, tau=4.0), 61.740, atol=5e-4)
    np.testing.assert_allclose(confidence(GOLDEN), 0.9634, atol=5e-5)
    for same in (
        tolerated_adversarial(GOLDEN, epsilon=0.0, tau=4.0),
        tolerated_poisoning(GOLDEN, helpers=0.0, tau=4.0),
    ):
        np.testing.assert_allclose(same, tolerated(GOLDEN), rtol=1e-12)


def test_more_users_change_and_helpers_raise_them(x64):
    n = jnp.linspace(100.0, 5000.0, 30)
    assert (np.diff(tolerated(GOLDEN._replace(n=n))) > 0).all()
    assert (np.diff(tolerated_adversarial(GOLDEN, epsilon=jnp.linspace(0, 5, 30), tau=4.0)) > 0).all()
    assert (np.diff(tolerated_poisoning(GOLDEN, helpers=jnp.linspace(0, 500, 30), tau=4.0)) > 0).all()
    assert float(tolerated(GOLDEN._replace(alpha=8.0, sigma=50.0))) == 0  # no guarantee
    assert np.isnan(tolerated_adversarial(GOLDEN, epsilon=200.0, tau=4.0))  # outside the theorem


@pytest.mark.parametrize(("more", "beats"), [(0.99, False), (1.01, True)])
def test_helpers_needed_is_where_apt_overtakes(x64, more, beats):
    helpers = more * helpers_needed(GOLDEN, epsilon=0.05, tau=4.0)
    apt = tolerated_poisoning(GOLDEN, helpers=helpers, tau=4.0)
    assert bool(apt > tolerated_adversarial(GOLDEN, epsilon=0.05, tau=4.0)) is beats


@pytest.mark.parametrize("gain", [0.05, 2.0])
def test_helpers_needed_of_negative_bounds_is_that_of_the_formulas(x64, gain):
    weak = GOLDEN._replace(sigma=3.0, alpha=8.0)
    n, d, gamma, tau = 1000.0, 64.0, 3.0, 4.0
    left = signal(weak) - spread(weak)
    assert float(tolerated(weak)) == 0
    helpers = helpers_needed(weak, epsilon=gain, tau=tau)
    apt = (n * left + helpers * gamma * tau) / (d * gamma**2)
    adversarial = n / (d * gamma**2 - gain * tau) * (left + gain * tau)
    assert float(left) < 0
    np.testing.assert_allclose(apt, adversarial, rtol=1e-9)


def test_the_error_stays_below_beta_under_the_worst_poison_of_each_user(x64):
    """100,000 test users, features cut at gamma; n'_none poisoning users, each the worst for the user at hand."""
    n, d, sigma, gamma = 1000, 64, 1.0, 3.0
    key, for_real, for_test = jax.random.split(jax.random.key(0), 3)
    mean = jnp.ones(d)  # |ubar| = sqrt(d)
    cut = lambda key, count: mean + sigma * jax.random.truncated_normal(key, -2.0, 2.0, (count, d))
    real = cut(for_real, n)  # r_i u_i, whatever the sign of r_i
    vhat = jnp.mean(real, 0)
    setting = Setting(float(n), float(d), sigma, float(jnp.linalg.norm(vhat)), gamma, 0.01)
    users = cut(for_test, 100_000)
    poison = (
        tolerated(setting) / n * gamma * jnp.sum(jnp.abs(users), 1)
    )  # r'u' = -gamma sign(r u), counted in the mean
    errors = jnp.mean(users @ vhat - poison <= 0)
    assert float(errors) <= 0.01
    assert float(jnp.mean(users @ vhat - 40 * poison <= 0)) > 0.01  # which many more of them would break
