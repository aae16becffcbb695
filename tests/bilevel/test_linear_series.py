"""Neumann and LiSSA: what a truncated series is, when it converges, and that it says when it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bilevel.linear import Code, cg, lissa, neumann, nystrom


def spd(x, n=8, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]
    return jnp.asarray((q * np.asarray(x)) @ q.T), jnp.asarray(q)


EIGENVALUES = np.linspace(0.5, 10.0, 8)


@pytest.fixture
def system(x64):
    a, q = spd(EIGENVALUES)
    return a, q, jnp.asarray(np.random.default_rng(1).normal(size=8))


def run(solver, a, b, sampled=None, key=None):
    call = lambda a, b, key: solver.solve(lambda v: a @ v, b, sampled=sampled, key=key)
    return jax.jit(call)(a, b, key)


def test_lissa_at_the_largest_eigenvalue_with_many_terms_is_cg(system):
    a, _, b = system
    series = run(lissa(2000, scale=float(EIGENVALUES[-1]), rtol=1e-10), a, b)
    krylov = run(cg(rtol=1e-12), a, b)
    assert Code(int(series.code)) is Code.OK
    assert float(jnp.linalg.norm(series.value - krylov.value) / jnp.linalg.norm(krylov.value)) < 1e-10


@pytest.mark.parametrize("terms", [1, 40])
def test_truncated_series_formula(system, terms):
    """Per eigenvalue: LiSSA `(1 - (1 - h)^(J+1)) / (h scale)`, Neumann the same with J terms (check C15)."""
    a, q, b = system
    scale = 12.0
    h = EIGENVALUES / scale
    part = q.T @ b
    got = run(lissa(terms, scale=scale), a, b).value
    np.testing.assert_allclose(got, q @ ((1 - (1 - h) ** (terms + 1)) / (h * scale) * part), rtol=1e-11)
    got = run(neumann(terms, step=1 / scale), a, b).value
    np.testing.assert_allclose(got, q @ ((1 - (1 - h) ** terms) / (h * scale) * part), rtol=1e-11)


@pytest.mark.parametrize("share", [0.2, 0.49])
def test_lissa_below_half_the_largest_eigenvalue_diverges(system, share):
    a, _, b = system
    for terms in (
        3,
        300,
        5000,
    ):  # too few terms for it to show in the residual, and so many that it overflows
        result = run(lissa(terms, scale=share * EIGENVALUES[-1]), a, b)
        assert Code(int(result.code)) is Code.DIVERGED


@pytest.mark.parametrize("share", [0.52, 2.0])
def test_lissa_above_half_the_largest_eigenvalue_converges(system, share):
    a, _, b = system
    assert Code(int(run(lissa(2000, scale=share * EIGENVALUES[-1], rtol=1e-6), a, b).code)) is Code.OK


def test_neumann_with_a_long_step_diverges_and_estimates_a_good_one(system):
    a, _, b = system
    assert Code(int(run(neumann(50, step=0.21), a, b).code)) is Code.DIVERGED
    assert (
        Code(int(run(neumann(50, step=0.21, probe=0), a, b).code)) is Code.DIVERGED
    )  # from the residual alone
    assert Code(int(run(neumann(500), a, b).code)) is Code.OK


def test_too_few_terms_is_not_ok(system):
    a, _, b = system
    assert Code(int(run(neumann(3), a, b).code)) is Code.NOT_CONVERGED
    assert Code(int(run(lissa(3), a, b).code)) is Code.NOT_CONVERGED


@pytest.mark.parametrize("solver", [neumann(3), lissa(3), nystrom(1, damping=0.1), cg(max_steps=2)], ids=repr)
def test_a_tangent_does_not_depend_on_the_start(system, solver):
    """What a few terms leave over of a good start is no derivative: where nothing moves there is none."""
    a, _, b = system
    answer = lambda b, start: solver.solve(lambda v: a @ v, b, start=start).value
    tangent = jax.jit(lambda start, v: jax.jvp(lambda b: answer(b, start), (b,), (v,))[1])
    near = jnp.linalg.solve(a + solver.config["damping"] * jnp.eye(8), b)
    v = jnp.cos(jnp.arange(8.0))
    np.testing.assert_array_equal(tangent(near, 0 * v), 0 * v)
    np.testing.assert_allclose(tangent(near, 1e-6 * v), 1e-6 * tangent(0 * v, v), rtol=1e-9)
    np.testing.assert_allclose(answer(b, near), near, rtol=1e-9)


@pytest.mark.slow
def test_minibatch_lissa_estimates_the_full_solution(x64):
    """Rows of a least-squares problem, four at a time, the mean of their Hessians being the Hessian."""
    rng = np.random.default_rng(2)
    rows = jnp.asarray(rng.normal(size=(64, 4)))
    a = rows.T @ rows / 64
    b = jnp.asarray(rng.normal(size=4))

    def sampled(v, key):
        batch = rows[jax.random.permutation(key, 64)[:16]]
        return batch.T @ (batch @ v) / 16

    solver = lissa(200, scale=4.0, repeats=200, minibatch=True, rtol=0.1)
    compiled = jax.jit(lambda key: solver.solve(lambda v: a @ v, b, sampled=sampled, key=key))
    one, other = compiled(jax.random.key(0)), compiled(jax.random.key(1))
    exact = jnp.linalg.solve(a, b)
    assert Code(int(one.code)) is Code.OK
    assert 0 < float(jnp.linalg.norm(one.value - exact) / jnp.linalg.norm(exact)) < 0.05
    assert float(jnp.linalg.norm(one.value - other.value)) > 0
    noisy = run(lissa(200, scale=4.0, minibatch=True, rtol=1e-3), a, b, sampled=sampled)
    assert Code(int(noisy.code)) is Code.NOT_CONVERGED  # judged by the full product, not by its own samples
