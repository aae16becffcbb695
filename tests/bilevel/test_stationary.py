"""The condition at a point: the distance to a solution, without a unit and from below; products of minibatches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import Code
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


def test_the_distance_has_no_unit_in_float32_either():
    """Squares of such gradients overflow or underflow: a run that diverged must not pass for converged."""
    p = jnp.array([2.0, 3.0])
    measure = jax.jit(lambda scale: distance_to_stationarity(lambda p: scale * (p - 1), p))
    newton = float(jnp.linalg.norm(p - 1) / jnp.linalg.norm(p))
    for scale in (1e-30, 1e-20, 1e-13, 1.0, 1e13, 1e20, 1e30):
        assert float(measure(scale)) == pytest.approx(newton, rel=1e-5), scale
        assert float(measure(-scale)) == np.inf, scale
    assert float(measure(1e38)) == pytest.approx(newton, rel=1e-5)
    assert float(measure(3e38)) == np.inf  # the gradient itself overflows
    steep = jax.custom_jvp(lambda p: p - 1)  # its derivative overflows, its value does not
    steep.defjvp(lambda at, along: (at[0] - 1, jnp.inf * along[0]))
    assert float(distance_to_stationarity(steep, p)) == np.inf


def test_diverged_training_is_not_ok():
    """Descent on a quartic whose gradient overflows while the parameters and the linear solve are finite."""
    quartic = lambda p, x, data, ctx: jnp.sum((p - x) ** 4)
    solve = bilevel.implicit(bilevel.gradient_descent(quartic, optax.sgd(1.0), 3))
    judged = jax.jit(bilevel.value_and_hypergrad(lambda p, x, data: jnp.sum(p), solve))
    found = judged(jnp.array([1.0, -1.0]), jnp.array([2.5, 1.0]), None, KEY)
    assert np.all(np.isfinite(found.grad))
    assert Code(int(found.diagnosis.code)) is Code.NOT_STATIONARY


def _distance(a, solution, steps, scale, unit, p):
    return distance_to_stationarity(lambda p: scale * (a @ (p / unit - solution)), p, steps=steps)


def test_unsymmetric_distance_extrapolates_slow_sweeps(x64):
    """Sweeps that contract by 0.99: twenty of them see a fifth of the way, the extrapolation all of it."""
    solution, p = jnp.array([3.0, -1.0]), jnp.array([2.0, 1.0])
    turn = 0.99 * jnp.array([[0.6, -0.8], [0.8, 0.6]])
    for sweep in (lambda d: 0.99 * d, lambda d: turn @ d):
        condition = lambda p, sweep=sweep: (p - solution) - sweep(p - solution)
        distance = distance_to_stationarity(condition, p, symmetric=False)
        newton = float(jnp.linalg.norm(p - solution) / jnp.linalg.norm(p))
        alike = float(
            jnp.linalg.norm(condition(p)) / 0.01 / jnp.linalg.norm(p)
        )  # all sweeps in one direction
        assert 0.3 * newton < float(distance) < alike * (1 + 1e-9)
    straight = distance_to_stationarity(lambda p: 0.01 * (p - solution), p, symmetric=False)
    assert float(straight) == pytest.approx(float(jnp.linalg.norm(p - solution) / jnp.linalg.norm(p)))
    growing = distance_to_stationarity(lambda p: -0.01 * (p - solution), p, symmetric=False)
    assert float(growing) == np.inf


def test_minibatch_products_are_those_of_the_last_step():
    """A loss annealed by the step: its Hessian is 10 times as large after 9 steps as at the first."""

    def loss(p, x, rows, ctx):
        return (1 + ctx.step) * jnp.mean(jnp.where(ctx.batch.mask, (rows[ctx.batch.index] - p - x) ** 2, 0))

    inner = bilevel.gradient_descent(loss, optax.sgd(1e-3), 9, batches=bilevel.minibatches(8, 8))
    solve = bilevel.implicit(inner, bilevel.lissa(200, scale=30.0, minibatch=True))
    found = jax.jit(bilevel.value_and_hypergrad(lambda p, x, rows: p, solve))(2.5, 1.0, jnp.arange(8.0), KEY)
    assert Code(int(found.diagnosis.code)) is Code.OK
    np.testing.assert_allclose(found.grad, -1.0, rtol=1e-4)
