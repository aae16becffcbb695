"""Dense and Nystrom solves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.linear import Code, dense, nystrom


def spd(values, seed=0):
    n = len(values)
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return jnp.asarray((q * np.asarray(values)) @ q.T), jnp.asarray(np.random.default_rng(1).normal(size=n))


@functools.cache
def compiled(solver):
    return jax.jit(lambda a, b, key: solver.solve(lambda v: a @ v, b, key=key))


def run(solver, a, b, key=None):
    return compiled(solver)(a, b, key)


def relative(value, exact):
    return float(jnp.linalg.norm(value - exact) / jnp.linalg.norm(exact))


@pytest.mark.parametrize("damping", [1e-6, 10.0])
def test_nystrom_is_exact_at_full_rank(x64, damping):
    a, b = spd(np.logspace(0, -6, 12))
    result = run(nystrom(12, damping=damping, rtol=1e-6), a, b)
    assert Code(int(result.code)) is Code.OK
    assert relative(result.value, jnp.linalg.solve(a + damping * jnp.eye(12), b)) < 1e-8


def test_nystrom_is_exact_on_a_low_rank_matrix(x64):
    a, b = spd([5.0, 3.0, 1.0] + [0.0] * 17)
    result = run(nystrom(4, damping=0.1, rtol=1e-6), a, b)
    assert Code(int(result.code)) is Code.OK
    assert relative(result.value, jnp.linalg.solve(a + 0.1 * jnp.eye(20), b)) < 1e-8


def test_nystrom_improves_with_rank_and_says_when_it_is_not_enough(x64):
    a, b = spd(np.logspace(1, -3, 40))
    exact = jnp.linalg.solve(a + jnp.eye(40), b)
    results = [run(nystrom(rank, damping=1.0, rtol=1e-2), a, b) for rank in (2, 15, 35)]
    errors = [relative(result.value, exact) for result in results]
    assert errors[0] > errors[1] > errors[2]
    assert [int(result.iterations) for result in results] == [2, 15, 35]
    assert Code(int(results[0].code)) is Code.NOT_CONVERGED
    assert Code(int(results[2].code)) is Code.OK


def test_nystrom_key(x64):
    a, b = spd(np.logspace(1, -3, 40))
    solver = nystrom(10, damping=1e-2)
    same = [run(solver, a, b, key=jax.random.key(k)).value for k in (3, 3, 4)]
    assert bool(jnp.array_equal(same[0], same[1]))
    assert not bool(jnp.array_equal(same[0], same[2]))


def test_nystrom_float32_keeps_small_eigenvalues():
    with jax.enable_x64(True):
        a, b = spd(np.logspace(0, -3, 16))
        exact = jnp.linalg.solve(a + 1e-3 * jnp.eye(16), b)
    result = run(
        nystrom(16, damping=1e-3, rtol=1e-3), jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    )
    assert Code(int(result.code)) is Code.OK
    assert np.linalg.norm(np.asarray(result.value) - np.asarray(exact)) < 1e-3 * np.linalg.norm(
        np.asarray(exact)
    )


def test_dense_measures_the_smallest_eigenvalue(x64):
    a, b = spd([4.0, 2.0, -0.25])
    result = run(dense(), a, b)
    assert Code(int(result.code)) is Code.INDEFINITE
    assert float(result.negative_curvature) == pytest.approx(-0.25)


def test_dense_ill_conditioned_is_not_called_singular(x64):
    a, b = spd(np.logspace(0, -9, 12))
    result = run(dense(), a, b)
    assert Code(int(result.code)) is Code.OK
    assert relative(result.value, jnp.linalg.solve(a, b)) < 1e-5
