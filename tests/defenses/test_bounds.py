"""APT's bounds: golden values, how they move, and that the theorems hold in simulations, on their own premises."""

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


@pytest.fixture(scope="module")
def drawn():
    """1,000 users in training and 100,000 to test, features cut at gamma = 3; r u, whatever the sign of r."""
    for_real, for_test = jax.random.split(jax.random.key(0), 3)[1:]
    cut = lambda key, count: (
        1.0 + jax.random.truncated_normal(key, -2.0, 2.0, (count, 64))
    )  # |ubar| = sqrt(d)
    return cut(for_real, 1000), cut(for_test, 100_000)


def setting_of(real):
    return GOLDEN._replace(alpha=float(jnp.linalg.norm(jnp.mean(real, 0))))


def wrong(margins) -> float:
    """Share of the users on the wrong side."""
    return float(jnp.mean(margins <= 0))


def test_nobody_is_wrong_under_the_worst_poison_of_each_user(drawn):
    """n'_none poisoning users, each the worst for the user at hand: `r'u' = -gamma sign(r u)`, counted in the mean."""
    real, users = drawn
    scores, share = users @ jnp.mean(real, 0), tolerated(setting_of(real)) / 1000
    poison = share * 3 * jnp.sum(jnp.abs(users), 1)
    assert wrong(scores - poison) == 0  # of 100,000; beta is 0.01
    assert wrong(scores - 5 * poison) > 0.01
    counted = share * 64 * 3**2  # what the proof puts for each, d gamma^2: nearly all there is
    assert wrong(scores - counted) <= 2e-4
    assert wrong(scores - 1.5 * counted) > 0.01


def test_so_it_is_when_training_moves_everybody_toward_each_user(drawn):
    """Theorem 4.4's premise: all users in training, poison too, shifted by `sgn(r u) epsilon` of the user at hand."""
    (real, users), epsilon = drawn, 0.5
    scores, size = users @ jnp.mean(real, 0), jnp.sum(jnp.abs(users), 1)
    tau = float(jnp.min(jnp.sum(jnp.abs(real), 1)))
    assert 0 < float(jnp.mean(size < tau)) < 0.01  # a minimum in training is none over all users
    setting = setting_of(real)
    plain, share = tolerated(setting), tolerated_adversarial(setting, epsilon=epsilon, tau=tau) / 1000
    assert float(share) > 1.2 * float(plain) / 1000
    margin = lambda share: scores - share * 3 * size + (1 + share) * epsilon * size
    assert wrong(margin(share)) == 0
    assert wrong(margin(6 * share)) > 0.01


def test_so_it_is_with_helpful_users_who_are_aligned_with_each_user(drawn):
    """Theorem 4.5's premise: each of 100 helpful users is `r* u* = gamma sign(r u)` of the user at hand."""
    (real, users), helpers = drawn, 100.0
    scores, size = users @ jnp.mean(real, 0), jnp.sum(jnp.abs(users), 1)
    tau, setting = float(jnp.min(jnp.sum(jnp.abs(real), 1))), setting_of(real)
    share = tolerated_poisoning(setting, helpers=helpers, tau=tau) / 1000
    assert float(share) > 1.2 * float(tolerated(setting)) / 1000
    margin = lambda share: scores + (helpers / 1000 - share) * 3 * size
    assert wrong(margin(share)) == 0
    assert wrong(margin(5 * share)) > 0.01
