"""The oracle chain: central differences of the re-run loop judge the exact hypergradient; it judges the rest."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel.unroll import Memory

STEPS = 7
POLICIES = Memory.__args__


def also(*names):
    """Further cases of what one case shows already: `make test-all` runs them."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def relative(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


def central_differences(value, at, step=1e-5):
    """Fourth-order central differences, entry by entry."""
    directions = jnp.eye(at.size, dtype=at.dtype) * step
    run = jax.jit(jax.vmap(value))
    near = run(at + directions) - run(at - directions)
    far = run(at + 2 * directions) - run(at - 2 * directions)
    return (8 * near - far) / (12 * step)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("quadratic", "sgd"),
        ("logistic", "momentum"),
        ("wrmf", "adam"),
        ("wrmf_batches", "sgd"),
        ("nnx_mlp", "adagrad"),
        ("linen_dropout", "adam"),
    ],
)
def test_exact_equals_central_differences(name, rule, named_problem, optimizers, hypergradient):
    check_against_central_differences(named_problem(name), optimizers[rule], hypergradient)


@pytest.mark.slow
def test_exact_equals_central_differences_for_every_pair(problem, optimizer, hypergradient):
    check_against_central_differences(problem, optimizer, hypergradient)


def check_against_central_differences(problem, optimizer, hypergradient):
    value, gradient, at = hypergradient(bilevel.unrolled(problem.inner(optimizer, STEPS)), problem)
    assert relative(gradient, central_differences(value, at, 1e-4)) <= 1e-6


@pytest.mark.parametrize("rule", ["adam", *also("sgd", "momentum", "adagrad")])
def test_memory_policies_and_full_truncation_give_the_same_numbers(
    rule, optimizers, wrmf_problem, hypergradient
):
    inner = wrmf_problem.inner(optimizers[rule], STEPS)
    reference_value, reference, at = hypergradient(bilevel.unrolled(inner, memory="keep"), wrmf_problem)
    others = [bilevel.unrolled(inner, memory=memory) for memory in POLICIES if memory != "keep"]
    for solve in [
        *others,
        bilevel.truncated(inner, tau=STEPS),
        bilevel.truncated(inner, tau=STEPS, memory="keep"),
    ]:
        value, gradient, _ = hypergradient(solve, wrmf_problem)
        assert relative(gradient, reference) <= 1e-12, solve
        np.testing.assert_allclose(value(at), reference_value(at), rtol=1e-13)


@pytest.mark.parametrize("name", ["linen_dropout", *also("logistic", "wrmf_batches")])
@pytest.mark.slow
def test_policies_agree_on_other_problems(name, named_problem, hypergradient):
    problem = named_problem(name)
    inner = problem.inner(optax.adam(0.05), STEPS)
    reference = hypergradient(bilevel.unrolled(inner, memory="keep"), problem)[1]
    for memory in ("recompute", "replay", "lean"):
        assert relative(hypergradient(bilevel.unrolled(inner, memory=memory), problem)[1], reference) <= 1e-12


@pytest.mark.parametrize("memory", ["replay", *also("segments", "lean")])
@pytest.mark.slow
def test_any_number_of_segments(memory, wrmf_problem, hypergradient):
    inner = wrmf_problem.inner(optax.adam(0.05), STEPS)
    reference = hypergradient(bilevel.unrolled(inner, memory="adjoint"), wrmf_problem)[1]
    for segments in (1, 3, STEPS):
        solve = bilevel.unrolled(inner, memory=memory, segments=segments)
        assert relative(hypergradient(solve, wrmf_problem)[1], reference) <= 1e-12


@pytest.mark.parametrize(("tau", "memory"), [(1, "replay"), (3, "keep"), (5, "lean"), (5, "segments")])
def test_truncated_differentiates_a_loop_started_where_the_rest_ended(
    tau, memory, wrmf_problem, hypergradient
):
    """With plain SGD the last tau steps are a loop of their own, started from theta_{L - tau}."""
    inner, tail = (wrmf_problem.inner(optax.sgd(0.02), steps) for steps in (STEPS, tau))
    head = wrmf_problem.inner(optax.sgd(0.02), STEPS - tau)
    middle = bilevel.unrolled(head)(
        wrmf_problem.x, wrmf_problem.params0, wrmf_problem.data, jax.random.key(0)
    )
    restarted = hypergradient(bilevel.unrolled(tail), wrmf_problem._replace(params0=middle))[1]
    assert (
        relative(hypergradient(bilevel.truncated(inner, tau=tau, memory=memory), wrmf_problem)[1], restarted)
        <= 1e-12
    )


def test_truncation_replays_its_own_batches_and_keys(x64):
    """Steps L - tau .. L - 1 see the batches, keys and numbers they saw, whatever is kept of them."""
    rows = jax.random.normal(jax.random.key(0), (9, 3))

    def loss(p, x, rows, ctx):
        noise = jax.random.normal(ctx.key, p.shape)
        error = jnp.tanh(rows @ p - x)[ctx.batch.index]
        return jnp.sum(ctx.batch.mask * error**2) + (1 + ctx.step) * (p @ noise) ** 2

    batches = bilevel.minibatches(9, 4)
    inner = bilevel.gradient_descent(loss, optax.sgd(0.05, momentum=0.9), STEPS, batches=batches)
    solves = [bilevel.truncated(inner, 3, memory=memory) for memory in ("keep", "replay", "lean", "adjoint")]
    value = lambda solve, x: jnp.sum(solve(x, jnp.full(3, 0.3), rows, jax.random.key(1)) ** 3)
    slopes = jax.jit(lambda x: [jax.grad(lambda x: value(s, x))(x) for s in solves])(jnp.linspace(-1, 1, 9))
    for solve, slope in zip(solves[1:], slopes[1:], strict=True):
        assert relative(slope, slopes[0]) <= 1e-12, solve


def test_truncation_cuts_the_optimizer_state(wrmf_problem, hypergradient):
    """With momentum a cut that leaves the optimizer state attached gives another number."""
    inner = wrmf_problem.inner(optax.sgd(0.02, momentum=0.9), STEPS)
    gradients = [
        hypergradient(bilevel.truncated(inner, tau=1, memory=m), wrmf_problem)[1] for m in ("keep", "replay")
    ]
    # by hand: one step from a constant state; theta_L = theta - lr (g + 0.9 trace), d theta_L / dx = -lr d g / dx
    key, p = jax.random.key(42), wrmf_problem
    before = bilevel.unrolled(p.inner(optax.sgd(0.02, momentum=0.9), STEPS - 1))(p.x, p.params0, p.data, key)
    after = bilevel.unrolled(inner)(p.x, p.params0, p.data, key)
    slope = jax.grad(p.outer)(after, p.x, p.data)
    flow = lambda x: bilevel.trees.dot(jax.grad(p.loss)(before, x, p.data, None), slope)
    by_hand = -0.02 * jax.grad(flow)(p.x).ravel()
    for gradient in gradients:
        assert relative(gradient, by_hand) <= 1e-12


def test_one_step_and_detached(wrmf_problem, hypergradient):
    inner = wrmf_problem.inner(optax.adam(0.05), STEPS)
    one = hypergradient(bilevel.one_step(inner), wrmf_problem)[1]
    assert relative(one, hypergradient(bilevel.truncated(inner, tau=1), wrmf_problem)[1]) <= 1e-12
    assert not np.any(hypergradient(bilevel.detached(inner), wrmf_problem)[1])


@pytest.mark.parametrize("name", ["quadratic", *also("wrmf_batches", "nnx_mlp")])
def test_forward_numbers_agree_in_all(name, named_problem):
    problem = named_problem(name)
    inner, key = problem.inner(optax.adam(0.05), STEPS), jax.random.key(3)
    solves = [bilevel.unrolled(inner, memory=m) for m in POLICIES]
    solves += [
        bilevel.truncated(inner, tau=2),
        bilevel.one_step(inner),
        bilevel.detached(inner),
        bilevel.implicit(inner, bilevel.cg()),
    ]
    runs = [
        jax.flatten_util.ravel_pytree(jax.jit(s)(problem.x, problem.params0, problem.data, key))[0]
        for s in solves
    ]
    for run in runs[1:]:
        np.testing.assert_allclose(run, runs[0], rtol=1e-12, atol=1e-14)


def test_fixed_point_loops(x64):
    """Newton's iteration for a square root: d sqrt(x) / dx = 1 / (2 sqrt(x)), by every policy."""
    inner = bilevel.fixed_point(lambda p, x, data, ctx: 0.5 * (p + x / p), steps=8)
    for memory in POLICIES:
        solve = bilevel.unrolled(inner, memory=memory)
        slope = jax.grad(lambda x, solve=solve: solve(x, jnp.array(1.0), None, jax.random.key(0)))(
            jnp.array(2.0)
        )
        np.testing.assert_allclose(slope, 0.5 / np.sqrt(2.0), rtol=1e-12)


@pytest.mark.parametrize("name", ["quadratic", *also("nnx_mlp")])
def test_gradients_of_start_and_data(name, named_problem):
    """params0 and data are differentiated too where somebody asks; integer leaves ride along."""
    problem = named_problem(name)
    inner, key = problem.inner(optax.adam(0.05), STEPS), jax.random.key(1)
    halves = bilevel.trees.split(problem.data)
    flat, unflatten = jax.flatten_util.ravel_pytree((problem.params0, halves.inexact))

    def value(solve, flat):
        params0, inexact = unflatten(flat)
        data = bilevel.trees.join(inexact, halves.rest)
        return problem.outer(solve(problem.x, params0, data, key), problem.x, data)

    exact, kept = (bilevel.unrolled(inner, memory=m) for m in ("lean", "keep"))
    gradients = [jax.jit(jax.grad(lambda f, s=s: value(s, f)))(flat) for s in (exact, kept)]
    assert relative(*gradients) <= 1e-12
    cut = jax.grad(lambda f: value(bilevel.truncated(inner, tau=2), f))(flat)
    params_part = jax.flatten_util.ravel_pytree(problem.params0)[0].size
    assert not np.any(cut[:params_part])


@pytest.mark.parametrize("memory", ["replay", *also("lean")])
def test_grad_of_grad(wrmf_problem, memory):
    """Reverse over reverse through the engine's adjoint equals the plain scan differentiated twice."""
    p, key = wrmf_problem, jax.random.key(0)
    direction = jax.random.normal(jax.random.key(5), p.x.shape, jnp.float64)

    def product(memory):
        solve = bilevel.unrolled(p.inner(optax.adam(0.05), 4), memory=memory)
        value = lambda x: p.outer(solve(x, p.params0, p.data, key), x, p.data)
        return jax.jit(jax.grad(lambda x: jnp.vdot(jax.grad(value)(x), direction)))(p.x)

    assert relative(product(memory), product("keep")) <= 1e-10


def test_forward_mode_where_it_is_defined(wrmf_problem, hypergradient):
    p, inner = wrmf_problem, wrmf_problem.inner(optax.adam(0.05), STEPS)
    value, gradient, at = hypergradient(bilevel.unrolled(inner, memory="keep"), p)
    np.testing.assert_allclose(jax.jvp(value, (at,), (gradient,))[1], gradient @ gradient, rtol=1e-10)
    for solve in (bilevel.unrolled(inner), bilevel.truncated(inner, 2), bilevel.one_step(inner)):
        with pytest.raises(TypeError, match=r"reverse mode only .* Forward mode .*memory='keep'"):
            jax.jvp(lambda x, solve=solve: solve(x, p.params0, p.data, jax.random.key(0)), (p.x,), (p.x,))


@pytest.mark.slow
def test_vmap_equals_loop(wrmf_problem):
    p, solve = wrmf_problem, bilevel.unrolled(wrmf_problem.inner(optax.adam(0.05), STEPS))
    gradient = jax.grad(lambda x, key: p.outer(solve(x, p.params0, p.data, key), x, p.data))
    xs, keys = jnp.stack([p.x, 1 - p.x, p.x**2]), jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(gradient))(xs, keys)
    for x, key, one in zip(xs, keys, together, strict=True):
        np.testing.assert_allclose(one, gradient(x, key), rtol=1e-10, atol=1e-13)


def test_users_sharded_over_a_mesh(x64):
    """The problem's user rows on 8 devices give the unsharded hypergradient."""
    assert jax.device_count() >= 8, "tests/conftest.py asks for 8 simulated devices"
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("users",))
    rows, whole = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)) for spec in (("users",), ())
    )
    keys = jax.random.split(jax.random.key(0), 4)
    X = (jax.random.uniform(keys[0], (16, 5)) < 0.4).astype(jnp.float64)
    fake = jax.random.uniform(keys[1], (8, 5), jnp.float64)
    params0 = {
        "user": jax.random.normal(keys[2], (24, 2), jnp.float64),
        "item": jax.random.normal(keys[3], (5, 2), jnp.float64),
    }
    loss = lambda p, x, d, ctx: jnp.sum((jnp.concatenate([d, x]) - p["user"] @ p["item"].T) ** 2)
    for memory in ("keep", "replay"):
        solve = bilevel.unrolled(bilevel.gradient_descent(loss, optax.adam(0.05), 6), memory=memory)
        value = lambda x, p0, d, solve=solve: jnp.sum(solve(x, p0, d, jax.random.key(0))["item"][0] ** 2)
        expected = jax.jit(jax.grad(value))(fake, params0, X)
        start = {
            "user": jax.device_put(params0["user"], rows),
            "item": jax.device_put(params0["item"], whole),
        }
        sharded = jax.jit(jax.grad(value))(jax.device_put(fake, rows), start, jax.device_put(X, rows))
        np.testing.assert_allclose(sharded, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("tau", [2, 20])
def test_truncation_bound_on_converged_problems(tau, x64):
    """Strongly convex, started at the optimum: |g_tau - g| <= (1 - alpha mu)^tau |M| |v| / mu for all of
    6,000 drawn problems.

    The loss is a ridge-penalized logistic regression whose upper variable moves the linear term; at the
    optimum every step has the same Hessian H, so g_tau = alpha sum_{k < tau} v'(I - alpha H)^k M and the
    error is v'(I - alpha H)^tau H^{-1} M.
    """
    D, count = 3, 6000

    def loss(p, x, A, ctx):
        return jnp.sum(jax.nn.softplus(A @ p)) + 0.5 * p @ p - p @ x

    def newton(x, A):
        step = lambda p, _: (
            p - jnp.linalg.solve(jax.hessian(loss)(p, x, A, None), jax.grad(loss)(p, x, A, None)),
            None,
        )
        return jax.lax.scan(step, jnp.zeros(D), None, length=12)[0]

    def errors(key):
        k1, k2, k3, k4 = jax.random.split(key, 4)
        A = jax.random.normal(k1, (6, D), jnp.float64) * jnp.exp(jax.random.normal(k4, (), jnp.float64))
        x, v = jax.random.normal(k2, (D,), jnp.float64), jax.random.normal(k3, (D,), jnp.float64)
        optimum = newton(x, A)
        hessian = jax.hessian(loss)(optimum, x, A, None)
        eigenvalues = jnp.linalg.eigvalsh(hessian)
        alpha, mu = 1.0 / eigenvalues[-1], eigenvalues[0]
        scaled = lambda p, x, data, ctx: (
            loss(p, x, data["A"], ctx) * data["alpha"]
        )  # a step of size alpha, passed as data
        inner = bilevel.gradient_descent(scaled, optax.sgd(1.0), steps=40)
        solve = bilevel.truncated(inner, tau=tau)
        estimate = jax.grad(lambda x: v @ solve(x, optimum, {"A": A, "alpha": alpha}, key))(x)
        exact = jnp.linalg.solve(hessian, v)  # M = dx dtheta loss = -I
        bound = (1 - alpha * mu) ** tau * jnp.linalg.norm(v) / mu
        return jnp.linalg.norm(estimate - exact), bound, jnp.linalg.norm(exact)

    error, bound, size = jax.jit(jax.vmap(errors))(jax.random.split(jax.random.key(7), count))
    assert np.all(error <= bound * (1 + 1e-9) + 1e-10 * size)
    if tau == 2:
        assert np.mean(error > 0.01 * bound) > 0.5  # the bound is not vacuous: the error is really there


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda inner: bilevel.truncated(inner, tau=8), r"tau=8 for a loop of 7 steps"),
        (lambda inner: bilevel.truncated(inner, tau=-1), r"integer in \[0, 7\]"),
        (lambda inner: bilevel.truncated(inner, tau=2.0), r"tau=2.0"),
        (lambda inner: bilevel.unrolled(inner, memory="all"), r"expected one of keep"),
        (lambda inner: bilevel.unrolled(inner, memory="adjoint", segments=2), r"segments=2 has no meaning"),
        (lambda inner: bilevel.unrolled(inner, memory="lean", segments=0), r"segments=0"),
        (lambda inner: bilevel.unrolled(inner, memory="lean", segments=8), r"integer in \[1, 7\]"),
        (lambda inner: bilevel.unrolled(lambda x: x), r"expected an Inner"),
    ],
)
def test_bad_input(call, message):
    inner = bilevel.gradient_descent(lambda p, x, data, ctx: (p - x) ** 2, optax.sgd(0.1), steps=STEPS)
    with pytest.raises((ValueError, TypeError), match=message):
        call(inner)


@pytest.mark.slow
def test_second_derivatives_are_those_of_the_cut_loop(wrmf_problem):
    """Differentiating twice must not look behind the cut, whatever the memory policy."""
    p, key = wrmf_problem, jax.random.key(0)
    inner = p.inner(optax.adam(0.05), 5)

    def product(memory):
        solve = bilevel.truncated(inner, 2, memory=memory)
        value = lambda s: p.outer(solve(p.x * jnp.sin(s), p.params0, p.data, key), p.x, p.data)
        return jax.jit(jax.grad(jax.grad(value)))(0.7)

    expected = product("keep")
    assert abs(expected) > 1e-6
    np.testing.assert_allclose([product("replay"), product("lean")], [expected] * 2, rtol=1e-9)


def test_updates_that_promote_the_dtype():
    """bfloat16 parameters and float32 data: the carry keeps its dtype, forward and backward."""
    update = lambda p, x, data, ctx: 0.5 * p + x
    loss = lambda p, x, data, ctx: jnp.sum((p - x) ** 2)
    loops = [bilevel.fixed_point(update, 3), bilevel.gradient_descent(loss, optax.adafactor(0.1), 3)]
    for inner in loops:
        value = lambda x, inner=inner: jnp.sum(
            bilevel.unrolled(inner)(x, jnp.full(2, 0.5, jnp.bfloat16), None, jax.random.key(0))
        )
        assert np.all(np.isfinite(jax.grad(lambda x, value=value: value(x).astype(jnp.float32))(jnp.ones(2))))
