"""Implicit gradients against dense oracles, and what the diagnosis says where they must not be believed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bilevel
from bilevel.hypergrad import value_and_hypergrad
from bilevel.implicit import implicit
from bilevel.linear import Code, cg, dense, gmres, lissa, neumann, normal_cg, nystrom

KEY = jax.random.key(0)


def close(got, want, tolerance):
    assert float(jnp.linalg.norm(got - want)) <= tolerance * float(jnp.linalg.norm(want))


def quadratic(p, x, data, ctx):
    a, b, _ = data
    return 0.5 * p @ a @ p - p @ b @ x


@jax.jit
def _quadratics(a, b, x, v):
    """Gradients and codes for a batch of quadratic problems that start at their solution."""
    inner = bilevel.gradient_descent(quadratic, optax.sgd(1e-12), steps=1)
    hypergrad = value_and_hypergrad(lambda p, x, data: p @ data[2], implicit(inner, cg(rtol=1e-12)))
    one = lambda a, b, x, v: hypergrad(x, jnp.linalg.solve(a, b @ x), (a, b, v), KEY)
    estimate = jax.vmap(one)(a, b, x, v)
    return estimate.grad, estimate.diagnosis.code


@given(low=st.floats(0, 9), seed=st.integers(0, 2**31))
def test_quadratics_of_any_condition_number(x64, low, seed):
    """Up to a condition number of 1e3: OK and right to 1e-10. Beyond: within what the residual promises, or not OK."""
    n, count = 8, 32
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(count, n, n)))[0]
    condition = 10.0 ** rng.uniform(low, low + 3, size=(count, 1))
    inner_values = rng.uniform(size=(count, n - 2))
    values = condition ** -np.concatenate([np.zeros((count, 1)), np.ones((count, 1)), inner_values], 1)
    a = np.einsum("bij,bj,bkj->bik", q, values, q)
    b, x, v = rng.normal(size=(count, n, 5)), rng.normal(size=(count, 5)), rng.normal(size=(count, n))
    grad, code = _quadratics(*map(jnp.asarray, (a, b, x, v)))
    w = np.einsum("bij,bj->bi", q, np.einsum("bij,bi->bj", q, v) / values)
    exact = np.einsum("bij,bi->bj", b, w)
    # b' w can be small where w is large: errors are measured against what w could give
    size = np.linalg.norm(b, axis=(1, 2)) * np.linalg.norm(w, axis=1)
    errors = np.linalg.norm(np.asarray(grad) - exact, axis=1) / size
    fine, tame = np.asarray(code) == Code.OK, condition[:, 0] <= 1e3
    assert fine[tame].all()
    assert (
        np.linalg.norm(np.asarray(grad) - exact, axis=1)[tame] <= 1e-10 * np.linalg.norm(exact, axis=1)[tame]
    ).all()
    assert (errors[fine] <= 2e-12 * condition[fine, 0]).all()


def robust(p, x, data, ctx):
    """Weighted logistic-like loss with a quartic: not quadratic, in parameters or in the upper variable."""
    residual = data["rows"] @ p["w"] + p["bias"] - data["y"] - x["shift"]
    return (
        jnp.sum(x["weight"] * jnp.logaddexp(residual, -residual))
        + 0.5 * jnp.sum(p["w"] ** 2)
        + 0.1 * p["bias"] ** 4
    )


def robust_problem():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape))
    data = {"rows": draw(12, 4), "y": draw(12), "ids": jnp.arange(12)}
    x = {"shift": draw(12), "weight": jnp.exp(draw(12)), "count": jnp.array(12)}
    return x, {"w": jnp.zeros(4), "bias": jnp.zeros(())}, data


def promote(p, x, data):
    return jnp.sum(jnp.sin(p["w"])) * p["bias"] + jnp.sum(p["w"]) * x["weight"][0]


def dense_oracle(x, params, data):
    """The implicit gradient with a materialized Hessian and cross derivative."""
    flat, back = jax.flatten_util.ravel_pytree(params)
    floats = {name: x[name] for name in ("shift", "weight")}
    flat_x, back_x = jax.flatten_util.ravel_pytree(floats)
    loss = lambda p, x: robust(back(p), {**back_x(x)}, data, None)
    outer = lambda p, x: promote(back(p), back_x(x), data)

    @jax.jit
    def solved(flat, flat_x):
        hessian = jax.hessian(loss)(flat, flat_x)
        cross = jax.jacfwd(jax.grad(loss), 1)(flat, flat_x)
        v, direct = jax.grad(outer, (0, 1))(flat, flat_x)
        return direct - cross.T @ jnp.linalg.solve(hessian, v)

    return solved(flat, flat_x)


@functools.cache
def descended():
    """A problem and where plain descent ends: trained once, in double precision."""
    x, params0, data = robust_problem()
    inner = bilevel.gradient_descent(robust, optax.sgd(0.01), steps=4000)
    return inner, x, params0, data, bilevel.detached(inner)(x, params0, data, KEY)


@pytest.fixture
def trained(x64):
    return descended()


def flat_x(grad):
    return jax.flatten_util.ravel_pytree({name: grad[name] for name in ("shift", "weight")})[0]


slow = pytest.mark.slow


SOLVERS = [
    None,
    cg(rtol=1e-13),
    dense(rtol=1e-10),
    pytest.param(gmres(rtol=1e-13), marks=slow),
    pytest.param(neumann(400, rtol=1e-11), marks=slow),
    pytest.param(nystrom(5, damping=1e-13, rtol=1e-8), marks=slow),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_against_the_dense_oracle(trained, solver):
    inner, x, params0, data, params = trained
    estimate = jax.jit(value_and_hypergrad(promote, implicit(inner, solver)))(x, params0, data, KEY)
    assert Code(int(estimate.diagnosis.code)) is Code.OK
    assert float(estimate.diagnosis.gradient_norm) < 1e-10
    assert float(estimate.diagnosis.residual) < 1e-5
    assert float(estimate.diagnosis.negative_curvature) > 0
    close(flat_x(estimate.grad), dense_oracle(x, params, data), 1e-10 if solver is not None else 1e-4)
    assert estimate.grad["count"] is None


def test_equals_unrolled_at_convergence_in_x_and_in_data(trained):
    inner, x, params0, data, _ = trained

    def value(solve, weight, rows, params0):
        held = {**data, "rows": rows}
        return promote(solve({**x, "weight": weight}, params0, held, KEY), x, held)

    exact, ours = (
        jax.jit(jax.grad(lambda *args, s=s: value(s, *args), (0, 1, 2)))(x["weight"], data["rows"], params0)
        for s in (bilevel.unrolled(inner), implicit(inner, cg(rtol=1e-13)))
    )
    close(ours[0], exact[0], 1e-9)
    close(ours[1], exact[1], 1e-9)
    assert float(jnp.abs(ours[2]["w"]).max()) == 0  # a solution does not remember its start
    assert float(jnp.abs(exact[2]["w"]).max()) < 1e-9


@pytest.mark.parametrize("solver", [None, cg(), dense(), gmres()])
def test_second_derivatives_where_neither_the_hessian_nor_the_slope_moves(x64, solver):
    """`theta = sin x` of a quadratic loss; one unknown, so that the solvers are exact."""
    inner = bilevel.gradient_descent(lambda p, x, data, ctx: (p - jnp.sin(x)) ** 2, optax.sgd(0.25), steps=60)
    solve = implicit(inner) if solver is None else implicit(inner, solver)
    theta = lambda x: solve(x, jnp.array(0.0), None, KEY)
    at = jnp.array(0.7)
    found = jax.jit(lambda x: (jax.grad(theta)(x), jax.grad(jax.grad(theta))(x), jax.hessian(theta)(x)))(at)
    np.testing.assert_allclose(found, (jnp.cos(at), -jnp.sin(at), -jnp.sin(at)), rtol=1e-9)


@pytest.mark.slow
def test_composes(trained):
    """Forward mode, vmap, and second derivatives in both orders, against the unrolled loop."""
    inner, x, params0, data, _ = trained
    solve, reference = implicit(inner, cg(rtol=1e-13)), bilevel.unrolled(inner, memory="keep")
    f = lambda s, shift: promote(s({**x, "shift": shift}, params0, data, KEY), x, data)
    ours, exact = (lambda shift, s=s: f(s, shift) for s in (solve, reference))
    shift, along = x["shift"], jnp.linspace(-1, 1, 12)
    gradient = jax.jit(jax.grad(exact))(shift)
    pushed = jax.jit(lambda s: jax.jvp(ours, (s,), (along,)))(shift)
    assert float(pushed[0]) == float(jax.jit(ours)(shift))
    assert float(pushed[1]) == pytest.approx(float(gradient @ along), rel=1e-9)
    batch = jax.jit(jax.vmap(jax.grad(ours)))(jnp.stack([shift, 0.5 * shift]))
    close(batch[0], gradient, 1e-9)
    reverse_reverse = jax.jit(jax.grad(lambda s: jax.grad(ours)(s) @ along))(shift)
    forward_reverse = jax.jit(lambda s: jax.jvp(jax.grad(ours), (s,), (along,))[1])(shift)
    want = jax.jit(lambda s: jax.jvp(jax.grad(exact), (s,), (along,))[1])(shift)
    close(reverse_reverse, want, 1e-7)
    close(forward_reverse, want, 1e-7)


def test_warm_started_linear_solve(trained):
    inner, x, params0, data, _ = trained
    carried = value_and_hypergrad(
        promote, implicit(inner, cg(rtol=1e-10)), warm_params=True, warm_linear=True
    )
    state = carried.init(x, params0, data)
    update = jax.jit(carried.update)
    first, state = update(state, x, params0, data, KEY)
    second, _ = update(state, x, params0, data, KEY)
    assert int(second.diagnosis.iterations) < int(first.diagnosis.iterations)
    assert Code(int(second.diagnosis.code)) is Code.OK  # a warm start is no reason to call it unconverged
    close(flat_x(second.grad), flat_x(first.grad), 1e-9)


def test_unconverged_convex_problem_is_not_stationary(trained):
    _, x, params0, data, _ = trained
    short = bilevel.gradient_descent(robust, optax.sgd(0.01), steps=30)
    estimate = jax.jit(value_and_hypergrad(promote, implicit(short, cg())))(x, params0, data, KEY)
    assert Code(int(estimate.diagnosis.code)) is Code.NOT_STATIONARY


@pytest.mark.slow
def test_weight_decay_inside_the_optimizer_moves_the_solution(trained):
    """adamw stops where the loss alone is not stationary: reported, and right with the decay in `objective`."""
    _, x, params0, data, _ = trained
    inner = bilevel.gradient_descent(
        robust, optax.chain(optax.add_decayed_weights(2.0), optax.sgd(0.01)), steps=4000
    )
    plain = jax.jit(value_and_hypergrad(promote, implicit(inner, cg())))(x, params0, data, KEY)
    assert Code(int(plain.diagnosis.code)) is Code.NOT_STATIONARY
    whole = lambda p, x, d, ctx: robust(p, x, d, ctx) + jnp.sum(p["w"] ** 2) + p["bias"] ** 2
    solve = implicit(inner, cg(rtol=1e-13), objective=whole)
    ours = jax.jit(value_and_hypergrad(promote, solve))(x, params0, data, KEY)
    exact = jax.jit(value_and_hypergrad(promote, bilevel.unrolled(inner)))(x, params0, data, KEY)
    assert Code(int(ours.diagnosis.code)) is Code.OK
    close(flat_x(ours.grad), flat_x(exact.grad), 1e-9)


def test_nan_in_the_outer_loss_is_reported(trained):
    inner, x, params0, data, _ = trained
    broken = lambda p, x, data: jnp.log(-1.0 - p["w"][0] ** 2)
    estimate = jax.jit(value_and_hypergrad(broken, implicit(inner, cg())))(x, params0, data, KEY)
    assert Code(int(estimate.diagnosis.code)) is Code.NON_FINITE


def contraction(p, x, data, ctx):
    return 0.5 * jnp.tanh(data @ p + x["s"])


@pytest.mark.parametrize(
    "solver", [None, pytest.param(normal_cg(rtol=1e-12), marks=slow), neumann(200, rtol=1e-10)], ids=repr
)
def test_fixed_point_loops_are_not_symmetric(x64, solver):
    rng = np.random.default_rng(0)
    data, x = (
        jnp.asarray(0.4 * rng.normal(size=(5, 5))),
        {"s": jnp.asarray(rng.normal(size=5)), "n": jnp.array(5)},
    )
    inner = bilevel.fixed_point(contraction, steps=150)
    outer = lambda p, x, data: jnp.sum(p**2) + x["s"] @ p
    run = lambda solve: jax.jit(value_and_hypergrad(outer, solve))(x, jnp.zeros(5), data, KEY)
    ours, exact = run(implicit(inner, solver)), run(bilevel.unrolled(inner))
    assert Code(int(ours.diagnosis.code)) is Code.OK
    close(ours.grad["s"], exact.grad["s"], 1e-9 if solver else 1e-3)
    by_jax = jax.jit(
        jax.grad(lambda s: outer(implicit(inner, solver)({**x, "s": s}, jnp.zeros(5), data, KEY), x, data))
    )
    close(by_jax(x["s"]) + ours.params, exact.grad["s"], 1e-9 if solver else 1e-3)
    early = implicit(bilevel.fixed_point(contraction, steps=3), solver)
    assert Code(int(run(early).diagnosis.code)) is Code.NOT_STATIONARY


def test_parameters_of_another_dtype_than_x(x64):
    """float32 parameters moved by a float64 `x`, by JAX's derivative and with a diagnosis."""
    solve = implicit(bilevel.fixed_point(lambda p, x, data, ctx: 0.5 * p + x, 60))
    at = (jnp.ones(2), jnp.zeros(2, jnp.float32), None, KEY)
    judged = jax.jit(value_and_hypergrad(lambda p, x, data: jnp.sum(p), solve))(*at)
    assert Code(int(judged.diagnosis.code)) is Code.OK
    for slope in (judged.grad, jax.jit(jax.grad(lambda *at: jnp.sum(solve(*at))))(*at)):
        np.testing.assert_allclose(slope, 2.0, rtol=1e-6)


def test_auxiliary_state_of_any_dtype_rides_along(x64):
    """The point is judged with the state the loop ended with, and no derivative flows through it."""
    aux = bilevel.Aux(
        lambda p, x, data, key: {"count": jnp.array(0), "key": key, "pull": jnp.zeros(())},
        lambda aux, p, x, data, ctx: {
            **aux,
            "count": aux["count"] + 1,
            "pull": 0.5 * (aux["pull"] + p.sum()),
        },
    )
    loss = lambda p, x, data, ctx: jnp.sum((p - x**2 - 0.1 * ctx.aux["pull"]) ** 2)
    inner = bilevel.gradient_descent(loss, optax.sgd(0.2), steps=200, aux=aux)
    solve, x = implicit(inner, cg(rtol=1e-12)), jnp.array([1.0, 2.0])
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(solve(x, jnp.zeros(2), None, KEY))))(x)
    np.testing.assert_allclose(gradient, 2 * x, rtol=1e-9)
    estimate = jax.jit(value_and_hypergrad(lambda p, x, d: jnp.sum(p), solve))(x, jnp.zeros(2), None, KEY)
    assert Code(int(estimate.diagnosis.code)) is Code.OK
    np.testing.assert_allclose(estimate.grad, gradient, rtol=1e-9)


def test_a_parameter_that_nothing_moves_beside_one_that_moves(x64):
    """Real users of a factor model, whose rows see no fake click: their part of the right side is a constant 0."""

    def loss(params, x, data, ctx):
        return jnp.sum((params["still"] - 1) ** 2) + jnp.sum((params["moved"] - x**2) ** 2)

    solve = implicit(bilevel.gradient_descent(loss, optax.sgd(0.25), steps=60))
    start = {"still": jnp.zeros(2), "moved": jnp.zeros(3)}
    outer = lambda x: sum(
        jnp.sum(leaf**2) for leaf in jax.tree.leaves(solve(x, start, None, jax.random.key(0)))
    )
    x = jnp.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(jax.jit(jax.grad(outer))(x), 4 * x**3, rtol=1e-6)


@pytest.mark.slow
def test_a_structures_own_product_and_solve_are_used(trained):
    """Handed-in pieces give the generic numbers; a wrong solve is caught by its residual."""
    _, x, params0, data, params = trained
    calls = []

    def product(p, x, d, ctx, v):
        calls.append("product")
        held = lambda q, y: robust(q, {**x, **y}, d, ctx)
        floats = {name: x[name] for name in ("shift", "weight")}
        through, cross = jax.jvp(lambda q: jax.grad(held, (0, 1))(q, floats), (p,), (v,))[1]
        return through, {**cross, "count": None}

    def solve(p, x, d, ctx, b, error=0.0):
        calls.append("solve")
        flat, back = jax.flatten_util.ravel_pytree(p)
        hessian = jax.hessian(lambda q: robust(back(q), x, d, ctx))(flat)
        return back((1 + error) * jnp.linalg.solve(hessian, jax.flatten_util.ravel_pytree(b)[0]))

    def run(structure):
        inner = bilevel.gradient_descent(robust, optax.sgd(0.01), steps=4000, structure=structure)
        return jax.jit(value_and_hypergrad(promote, implicit(inner)))(x, params0, data, KEY)

    estimate = run(bilevel.Structure(product=product, solve=solve))
    assert set(calls) == {"product", "solve"}
    assert Code(int(estimate.diagnosis.code)) is Code.OK
    close(flat_x(estimate.grad), dense_oracle(x, params, data), 1e-10)
    wrong = run(bilevel.Structure(solve=lambda *args: solve(*args, error=0.01)))
    assert Code(int(wrong.diagnosis.code)) is Code.NOT_CONVERGED


@pytest.mark.slow
def test_minibatch_lissa_draws_from_the_loops_batches(x64):
    rng = np.random.default_rng(0)
    data = {"rows": jnp.asarray(rng.normal(size=(40, 3))), "y": jnp.asarray(rng.normal(size=40))}

    def loss(p, x, d, ctx):
        index = jnp.arange(40) if ctx.batch is None else ctx.batch.index
        mask = jnp.ones(40) if ctx.batch is None else ctx.batch.mask
        error = d["rows"][index] @ p - d["y"][index] - x[index]
        return 0.5 * jnp.sum(mask * error**2) / jnp.sum(mask)

    batches = bilevel.minibatches(40, 10)
    inner = bilevel.gradient_descent(loss, optax.sgd(0.1), steps=1, batches=batches)
    solution = jnp.linalg.lstsq(data["rows"], data["y"])[0]
    solver = lissa(60, scale=4.0, repeats=200, minibatch=True, rtol=0.1)
    at = (jnp.zeros(40), solution, data, KEY)
    # one minibatch step moves the start, so the tolerance is opened: the subject is the solve
    run = lambda s: jax.jit(
        value_and_hypergrad(lambda p, x, d: jnp.sum(p), implicit(inner, s, tolerance=10.0))
    )(*at)
    noisy, exact = run(solver), run(cg(rtol=1e-10))
    assert Code(int(noisy.diagnosis.code)) is Code.OK
    assert float(jnp.linalg.norm(noisy.grad - exact.grad)) > 0
    close(noisy.grad, exact.grad, 0.1)


LOOP = bilevel.gradient_descent(lambda p, x, data, ctx: jnp.sum((p - x) ** 2), optax.sgd(0.1), steps=2)


FIXED = bilevel.fixed_point(lambda p, x, data, ctx: 0.5 * p + x, steps=2)


@pytest.mark.parametrize(
    ("make", "error_type", "text"),
    [
        (lambda: implicit("loop"), TypeError, "expected an Inner"),
        (lambda: implicit(LOOP, "cg"), TypeError, "expected a linear solver such as bilevel.cg"),
        (lambda: implicit(LOOP, cg), TypeError, "got function"),
        (lambda: implicit(LOOP, tolerance=0), ValueError, "tolerance=0: expected a finite number > 0"),
        (lambda: implicit(FIXED, cg()), ValueError, "use gmres, normal_cg, neumann or dense"),
        (lambda: implicit(FIXED, structure=bilevel.Structure()), ValueError, "a fixed_point loop has none"),
        (lambda: implicit(LOOP, cg(preconditioner="block_jacobi")), ValueError, "bilevel.diagonal_blocks"),
        (lambda: implicit(LOOP, lissa(3, minibatch=True)), ValueError, "batches=minibatches"),
    ],
)
def test_bad_calls(make, error_type, text):
    with pytest.raises(error_type, match=text):
        make()


def test_a_loss_that_closes_over_a_traced_value_is_refused(x64):
    def value(rate):
        inner = bilevel.gradient_descent(
            lambda p, x, data, ctx: rate * jnp.sum((p - x) ** 2), optax.sgd(0.1), steps=2
        )
        return jnp.sum(implicit(inner, cg())(jnp.ones(2), jnp.zeros(2), None, KEY))

    with pytest.raises(TypeError, match="closes over traced values"):
        jax.grad(value)(1.0)


def test_repr():
    assert repr(implicit(LOOP)).startswith("implicit(gradient_descent(steps=2), cg(")
    assert "gmres" in repr(implicit(FIXED))
