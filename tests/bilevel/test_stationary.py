"""The distance to a solution: without a unit, from below."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.stationary import distance_to_stationarity

KEY = jax.random.key(0)


def test_distance_to_stationarity_is_a_lower_bound_without_a_unit(x64):
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a = jnp.asarray((q * np.logspace(0, 3, 6)) @ q.T)
    solution = jnp.asarray(rng.normal(size=6))
    p = solution + 1e-4 * jnp.asarray(rng.normal(size=6))
    newton = float(jnp.linalg.norm(p - solution) / jnp.linalg.norm(p))
    distances = []
    for k in (1, 3, 6):
        measure = jax.jit(partial(_distance, a, solution, k))
        distances.append(float(measure(1.0, 1.0, p)))
        assert float(measure(7e6, 1.0, p)) == pytest.approx(distances[-1], rel=1e-4)
        assert float(measure(1.0, 9.0, 9 * p)) == pytest.approx(distances[-1], rel=1e-4)
        assert float(measure(1.0, 1.0, solution)) == 0
        assert float(measure(-1.0, 1.0, p)) == np.inf
    assert 0 < distances[0] < distances[1] < distances[2] <= newton * (1 + 1e-6)
    assert float(distance_to_stationarity(lambda p: jnp.ones(6), p)) == np.inf


def _distance(a, solution, steps, scale, unit, p):
    return distance_to_stationarity(lambda p: scale * (a @ (p / unit - solution)), p, steps=steps)


def test_unsymmetric_distance_extrapolates_slow_sweeps(x64):
    """Sweeps that contract by 0.99: twenty of them see a fifth of the way, the extrapolation all of it."""
    solution, p = jnp.array([3.0, -1.0]), jnp.array([2.0, 1.0])
    turn = 0.99 * jnp.array([[0.6, -0.8], [0.8, 0.6]])
    for sweep in (lambda d: 0.99 * d, lambda d: turn @ d):
        distance = distance_to_stationarity(
            lambda p: (p - solution) - sweep(p - solution), p, symmetric=False
        )
        newton = float(jnp.linalg.norm(p - solution) / jnp.linalg.norm(p))
        assert 0.3 * newton < float(distance)
    straight = distance_to_stationarity(lambda p: 0.01 * (p - solution), p, symmetric=False)
    assert float(straight) == pytest.approx(float(jnp.linalg.norm(p - solution) / jnp.linalg.norm(p)))
    growing = distance_to_stationarity(lambda p: -0.01 * (p - solution), p, symmetric=False)
    assert float(growing) == np.inf
