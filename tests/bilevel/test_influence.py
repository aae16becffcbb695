"""Influence of training examples against retraining."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from bilevel.implicit import influence
from bilevel.linear import Code, block, cg, dense, lissa

KEY = jax.random.key(0)


def ridge(p, w, data, ctx):
    rows, y = data
    return 0.5 * jnp.sum(w * (rows @ p - y) ** 2) + 0.5 * 0.7 * jnp.sum(p**2)


@pytest.fixture
def ridge_problem(x64):
    rng = np.random.default_rng(0)
    rows, y = jnp.asarray(rng.normal(size=(30, 4))), jnp.asarray(rng.normal(size=30))
    fit = lambda w: jnp.linalg.solve((rows.T * w) @ rows + 0.7 * jnp.eye(4), rows.T @ (w * y))
    probe = jnp.asarray(rng.normal(size=4))
    return rows, y, fit, probe


def test_influence_is_leave_one_out_on_ridge(ridge_problem):
    """To first order, and exactly with Sherman and Morrison's factor `1 / (1 - h_z)`."""
    rows, y, fit, probe = ridge_problem
    w = jnp.ones(30)
    params = fit(w)
    found = influence(ridge, lambda p, w, d: probe @ p, params, w, (rows, y), solver=cg(rtol=1e-13))
    assert Code(int(found.linear.code)) is Code.OK
    left_out = jax.vmap(lambda z: probe @ (fit(w.at[z].set(0.0)) - params))(jnp.arange(30))
    inverse = jnp.linalg.inv(rows.T @ rows + 0.7 * jnp.eye(4))
    leverage = jnp.einsum("zd,de,ze->z", rows, inverse, rows)
    np.testing.assert_allclose(-found.effect / (1 - leverage), left_out, rtol=1e-9)
    assert float(jnp.corrcoef(-found.effect, left_out)[0, 1]) > 0.99
    step = 1e-5
    ahead, behind = (
        jax.vmap(lambda z, s=s: probe @ fit(w.at[z].add(s)))(jnp.arange(30)) for s in (step, -step)
    )
    np.testing.assert_allclose(found.effect, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-10)


def test_influence_of_contents_and_of_a_scalar_that_reads_them(ridge_problem):
    rows, y, _, probe = ridge_problem
    fit = lambda y: jnp.linalg.solve(rows.T @ rows + 0.7 * jnp.eye(4), rows.T @ y)
    loss = lambda p, y, rows, ctx: ridge(p, jnp.ones(30), (rows, y), ctx)
    scalar = lambda p, y, rows: jnp.sin(probe @ p) + y[0] ** 2
    found = influence(loss, scalar, fit(y), y, rows, solver=dense())
    np.testing.assert_allclose(found.effect, jax.grad(lambda y: scalar(fit(y), y, rows))(y), rtol=1e-9)


def test_influence_on_one_users_own_parameters(ridge_problem):
    """`block` holds everything else fixed: fast influence analysis."""
    rows, y, fit, probe = ridge_problem
    w = jnp.ones(30)
    found = influence(ridge, lambda p, w, d: probe @ p, fit(w), w, (rows, y), solver=block(lambda p: p[:2]))
    gradients = rows * (rows @ fit(w) - y)[:, None]
    own = rows[:, :2].T @ rows[:, :2] + 0.7 * jnp.eye(2)
    np.testing.assert_allclose(found.effect, -gradients[:, :2] @ jnp.linalg.solve(own, probe[:2]), rtol=1e-9)
    assert Code(int(found.linear.code)) is Code.OK


def test_influence_in_a_context_by_the_problems_own_solve(ridge_problem):
    """The loss reads the step and a batch; the Hessian that is handed in is asked at that very context."""
    rows, y, fit, probe = ridge_problem
    seen, w = [], jnp.ones(30)
    loss = lambda p, w, data, ctx: ctx.step * ridge(p, ctx.batch.mask * w, data, None)

    def solve(p, w, data, ctx, b):
        seen.append(ctx)
        return jnp.linalg.solve(ctx.step * (rows.T * ctx.batch.mask @ rows + 0.7 * jnp.eye(4)), b)

    ctx = bilevel.Ctx(KEY, jnp.asarray(3), bilevel.Batch(jnp.arange(30), jnp.arange(30) < 20))

    @jax.jit
    def both(w):
        how = {"structure": bilevel.Structure(solve=solve), "ctx": ctx}
        found = influence(loss, lambda p, w, d: probe @ p, fit(ctx.batch.mask * w), w, (rows, y), **how)
        return found, jax.grad(lambda w: probe @ fit(ctx.batch.mask * w))(w)

    found, expected = both(w)
    assert seen[0] is ctx
    assert Code(int(found.linear.code)) is Code.OK
    np.testing.assert_allclose(found.effect, expected, rtol=1e-9, atol=1e-14)


def test_influence_composes_and_is_judged(ridge_problem):
    rows, y, fit, _ = ridge_problem
    w = jnp.ones(30)
    ask = lambda p, probe: influence(ridge, lambda p, w, d: probe @ p, p, w, (rows, y), solver=cg(rtol=1e-12))
    many = jax.jit(jax.vmap(ask, (None, 0)))(fit(w), jnp.eye(4))  # the scores of four items
    assert many.effect.shape == (4, 30)
    assert set(many.linear.code.tolist()) == {int(Code.OK)}
    away = jax.jit(ask)(fit(w) + 1.0, jnp.ones(4))
    assert Code(int(away.linear.code)) is Code.NOT_STATIONARY


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tolerance": -1}, "tolerance=-1"),
        ({"solver": lissa(3, minibatch=True)}, "batches=minibatches"),
        ({"solver": block()}, "needs diagonal blocks"),
        ({"structure": bilevel.Structure(gradient=False)}, "not its derivative"),
    ],
)
def test_bad_calls(options, text):
    with pytest.raises(ValueError, match=text):
        influence(ridge, None, 0.0, 0.0, **options)
