"""Implicit gradients of matrix factorization: unconverged, converged and singular, ALS, sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import bilevel
from bilevel.hypergrad import value_and_hypergrad
from bilevel.implicit import implicit
from bilevel.linear import Code, cg, dense, gmres
from bilevel.products import diagonal_blocks, hvp

KEY = jax.random.key(0)
slow = pytest.mark.slow


def close(got, want, tolerance):
    assert float(jnp.linalg.norm(got - want)) <= tolerance * float(jnp.linalg.norm(want))


def wrmf(p, x, data, ctx):
    """Weighted matrix factorization with fake rows `x`; the weight of a relaxed cell is frozen."""
    rows = jnp.concatenate([data["real"], x])
    weight = jnp.where(rows > 0, 20.0, 1.0)
    fit = jnp.sum(weight * (rows - p["P"] @ p["Q"].T) ** 2)
    return fit + data["penalty"] * (jnp.sum(p["P"] ** 2) + jnp.sum(p["Q"] ** 2))


def promotion(p, x, data):
    scores = p["P"][: data["real"].shape[0]] @ p["Q"].T
    return -jnp.sum(jax.nn.log_softmax(scores, axis=-1)[:, 0])


def toy(key, rows, items, width, scale):
    a, c = jax.random.split(key)
    true = jax.random.normal(a, (rows, 20)) @ jax.random.normal(c, (20, items))
    p, q = jax.random.split(jax.random.key(7))
    start = {
        "P": scale * jax.random.normal(p, (rows, width)),
        "Q": scale * jax.random.normal(q, (items, width)),
    }
    return (true > 5).astype(start["P"].dtype), start


@pytest.mark.parametrize(
    ("rate", "scale", "penalty"),
    [
        pytest.param(1e-2, 0.1, 0.5, id="measured"),
        pytest.param(0.5, 1.0, 0.0, id="preset", marks=pytest.mark.slow),
    ],
)
def test_the_papers_unconverged_toy_is_not_ok(x64, rate, scale, penalty):
    """The paper's size, L = 100: a gradient norm near a thousand or above, an indefinite Hessian."""
    rows, params0 = toy(KEY, 1000, 300, 16, scale)
    data = {"real": rows[:900], "penalty": jnp.asarray(penalty)}
    inner = bilevel.gradient_descent(wrmf, optax.adam(rate), steps=100)
    solver = cg(max_steps=60)
    estimate = jax.jit(value_and_hypergrad(promotion, implicit(inner, solver)))(
        rows[900:], params0, data, KEY
    )
    assert Code(int(estimate.diagnosis.code)) is not Code.OK
    assert float(estimate.diagnosis.gradient_norm) > 500
    if penalty:
        assert Code(int(estimate.diagnosis.code)) is Code.INDEFINITE
        assert float(estimate.diagnosis.negative_curvature) < -50
    # Damping beyond the negative curvature mends the solve, and the point is still no solution.
    damped = jax.jit(value_and_hypergrad(promotion, implicit(inner, cg(damping=1e4, rtol=1e-3))))
    assert Code(int(damped(rows[900:], params0, data, KEY).diagnosis.code)) is Code.NOT_STATIONARY


@pytest.mark.slow
def test_a_converged_factorization_is_ok_and_its_singular_hessian_consistent(x64):
    """Rotating P and Q changes no score: the Hessian is singular at every optimum, penalty or not (3 directions)."""
    rows, params0 = toy(KEY, 14, 10, 3, 0.3)
    data = {"real": rows[:12], "penalty": jnp.asarray(2.0)}
    fakes = rows[12:]
    inner = bilevel.gradient_descent(wrmf, optax.sgd(6e-3), steps=8000)
    run = lambda solver: jax.jit(value_and_hypergrad(promotion, implicit(inner, solver)))(
        fakes, params0, data, KEY
    )
    estimate = run(cg(rtol=1e-9, max_steps=400))
    flat, back = jax.flatten_util.ravel_pytree(estimate.params)
    hessian = jax.jit(jax.hessian(lambda p: wrmf(back(p), fakes, data, None)))(flat)
    values = jnp.linalg.eigvalsh(hessian)
    assert float(jnp.abs(values[:3]).max()) < 1e-6 * float(values[-1]) < float(values[3])
    assert Code(int(estimate.diagnosis.code)) is Code.OK
    assert Code(int(run(dense(rtol=1e-6)).diagnosis.code)) is Code.OK
    exact = jax.jit(jax.grad(lambda x: promotion(bilevel.unrolled(inner)(x, params0, data, KEY), x, data)))(
        fakes
    )
    close(estimate.grad, exact, 1e-6)
    # An outer loss that does see the rotation has no derivative: the system is inconsistent, and that is said.
    seen = value_and_hypergrad(
        lambda p, x, d: jnp.sum(p["P"] ** 3), implicit(inner, cg(rtol=1e-9, max_steps=400))
    )
    assert Code(int(jax.jit(seen)(fakes, params0, data, KEY).diagnosis.code)) is Code.SINGULAR


def als(p, x, data, ctx):
    """One sweep of alternating least squares for `wrmf`, users and then items."""
    rows = jnp.concatenate([data["real"], x])
    weight = jnp.where(rows > 0, 20.0, 1.0)
    half = lambda weight, rows, other: jax.vmap(
        lambda w, r: jnp.linalg.solve(
            (other.T * w) @ other + data["penalty"] * jnp.eye(other.shape[1]), other.T @ (w * r)
        )
    )(weight, rows)
    users = half(weight, rows, p["Q"])
    return {"P": users, "Q": half(weight.T, rows.T, users)}


@pytest.fixture
def als_problem(x64):
    rows, params0 = toy(KEY, 14, 10, 3, 0.3)
    data, fakes = {"real": rows[:12], "penalty": jnp.asarray(2.0)}, rows[12:]
    blocks = lambda p, x, d, ctx: diagonal_blocks(lambda v: hvp(wrmf, p, v, x, d, ctx), p)
    run = lambda solve: jax.jit(value_and_hypergrad(promotion, solve))(fakes, params0, data, KEY)
    return bilevel.fixed_point(als, steps=500), bilevel.Structure(blocks=blocks), run


@pytest.mark.slow
def test_als_with_the_loss_it_minimizes_as_objective(als_problem):
    """A symmetric system, with block Jacobi from the blocks that the sweeps invert."""
    inner, structure, run = als_problem
    plain = run(implicit(inner, cg(rtol=1e-9), objective=wrmf))
    preconditioned = cg(rtol=1e-9, preconditioner="block_jacobi")
    faster = run(implicit(inner, preconditioned, objective=wrmf, structure=structure))
    assert Code(int(plain.diagnosis.code)) is Code(int(faster.diagnosis.code)) is Code.OK
    close(faster.grad, plain.grad, 1e-5)
    assert int(faster.diagnosis.iterations) < int(plain.diagnosis.iterations)


@pytest.mark.slow
def test_als_as_a_fixed_point_and_too_few_sweeps(als_problem):
    inner, _, run = als_problem
    plain = run(implicit(inner, cg(rtol=1e-9), objective=wrmf))
    direct = run(implicit(inner, gmres(rtol=1e-9, max_steps=400, restart=60)))
    assert Code(int(direct.diagnosis.code)) is Code.OK
    close(direct.grad, plain.grad, 1e-5)
    for sweeps in (3, 10):
        few = bilevel.fixed_point(als, steps=sweeps)
        assert Code(int(run(implicit(few, cg(rtol=1e-9), objective=wrmf)).diagnosis.code)) is not Code.OK
        assert Code(int(run(implicit(few)).diagnosis.code)) is not Code.OK


@pytest.mark.slow
def test_users_sharded_over_a_mesh(x64, devices8):
    rows, params0 = toy(KEY, 16, 10, 3, 0.3)
    data, fakes = {"real": rows[:8], "penalty": jnp.asarray(5.0)}, rows[8:]
    inner = bilevel.gradient_descent(wrmf, optax.sgd(1e-3), steps=50)
    gradient = jax.jit(value_and_hypergrad(promotion, implicit(inner, cg(rtol=1e-10, damping=50.0))))
    alone = gradient(fakes, params0, data, KEY)
    mesh = Mesh(np.asarray(devices8), ("users",), axis_types=(AxisType.Auto,))
    by_user, whole = NamedSharding(mesh, PartitionSpec("users")), NamedSharding(mesh, PartitionSpec())
    put = jax.device_put
    spread = gradient(
        put(fakes, by_user),
        {"P": put(params0["P"], by_user), "Q": put(params0["Q"], whole)},
        {"real": put(data["real"], by_user), "penalty": put(data["penalty"], whole)},
        KEY,
    )
    close(spread.grad, alone.grad, 1e-9)
    assert int(spread.diagnosis.code) == int(alone.diagnosis.code)
