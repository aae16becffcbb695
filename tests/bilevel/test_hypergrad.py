"""The diagnosed hypergradient: the numbers of jax.grad, a code that is never wrongly OK, warm starts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel import Code

KEY = jax.random.key(0)


def test_equals_jax_grad(problem):
    solve = bilevel.unrolled(problem.inner(optax.adam(0.05), 5))
    estimate = jax.jit(bilevel.value_and_hypergrad(problem.outer, solve))(
        problem.x, problem.params0, problem.data, KEY
    )
    halves = bilevel.trees.split(problem.x)
    value = lambda inexact: problem.outer(
        solve(bilevel.trees.join(inexact, halves.rest), problem.params0, problem.data, KEY),
        bilevel.trees.join(inexact, halves.rest),
        problem.data,
    )
    expected_value, expected = jax.value_and_grad(value)(halves.inexact)
    np.testing.assert_allclose(estimate.value, expected_value, rtol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), estimate.grad, expected
    )
    assert int(estimate.diagnosis.code) == Code.OK
    assert np.isnan(estimate.diagnosis.residual)


def quadratic(steps, optimizer=None):
    matrix = jnp.diag(jnp.array([1.0, 3.0, 10.0]))
    loss = lambda p, x, data, ctx: 0.5 * p @ data @ p - p @ x
    return bilevel.gradient_descent(loss, optimizer or optax.sgd(0.05), steps), matrix


def outer(params, x, data):
    return jnp.sum(params**3)


def test_gradient_norm_is_that_of_the_inner_problem(x64):
    inner, matrix = quadratic(4)
    x = jnp.array([1.0, -2.0, 0.5])
    estimate = bilevel.value_and_hypergrad(outer, bilevel.unrolled(inner))(x, jnp.ones(3), matrix, KEY)
    np.testing.assert_allclose(
        estimate.diagnosis.gradient_norm, jnp.linalg.norm(matrix @ estimate.params - x), rtol=1e-12
    )


@pytest.mark.slow
def test_an_unconverged_implicit_estimate_is_not_ok(x64):
    inner, matrix = quadratic(2)
    args = (jnp.array([1.0, -2.0, 0.5]), 10 * jnp.ones(3), matrix, KEY)
    early = bilevel.value_and_hypergrad(outer, bilevel.implicit(inner, bilevel.cg()))(*args)
    assert int(early.diagnosis.code) != Code.OK
    late = bilevel.value_and_hypergrad(outer, bilevel.implicit(quadratic(2000)[0], bilevel.cg()))(*args)
    assert int(late.diagnosis.code) == Code.OK
    expected = jnp.linalg.solve(matrix, 3 * jnp.linalg.solve(matrix, args[0]) ** 2)
    np.testing.assert_allclose(late.grad, expected, rtol=1e-8)


def test_non_finite_is_reported():
    loss = lambda p, x, data, ctx: jnp.sum((p - x) ** 4)
    solve = bilevel.unrolled(bilevel.gradient_descent(loss, optax.sgd(1e6), 20))
    estimate = bilevel.value_and_hypergrad(outer, solve)(jnp.ones(3), 3 * jnp.ones(3), None, KEY)
    assert int(estimate.diagnosis.code) == Code.NON_FINITE


def test_gradient_norm_sees_the_auxiliary_state_of_the_end():
    """The loss pulls p to aux * x; aux is 0 at first and 5 from then on, so at p = 5 the loop is at rest."""
    aux = bilevel.Aux(init=lambda *_: jnp.zeros(()), update=lambda aux, p, x, data, ctx: jnp.full((), 5.0))
    inner = bilevel.gradient_descent(
        lambda p, x, d, ctx: jnp.sum((p - ctx.aux * x) ** 2), optax.sgd(0.25), 40, aux=aux
    )
    for memory in ("keep", "replay", "lean"):
        solve = bilevel.value_and_hypergrad(outer, bilevel.unrolled(inner, memory=memory))
        assert float(solve(jnp.ones(2), jnp.zeros(2), None, KEY).diagnosis.gradient_norm) < 1e-4


def test_losses_that_need_their_batch(x64):
    """A loss that reads ctx.batch without asking whether it is there is judged on all rows at once."""
    loss = lambda p, x, d, ctx: jnp.sum(ctx.batch.mask * (d[ctx.batch.index] - p - x) ** 2)
    inner = bilevel.gradient_descent(loss, optax.sgd(0.05), 4, batches=bilevel.minibatches(5, 2))
    estimate = bilevel.value_and_hypergrad(lambda p, x, d: p**2, bilevel.unrolled(inner))(
        0.5, 1.0, jnp.arange(5.0), KEY
    )
    slope = -2 * jnp.sum(jnp.arange(5.0) - estimate.params - 0.5)
    np.testing.assert_allclose(estimate.diagnosis.gradient_norm, abs(slope), rtol=1e-12)


@pytest.mark.slow
def test_a_diverged_linear_solve_is_not_carried(x64):
    loss = lambda p, x, data, ctx: jnp.sum((p - x) ** 2)
    inner = bilevel.gradient_descent(loss, optax.sgd(0.25), 40)
    warm = bilevel.value_and_hypergrad(
        outer, bilevel.implicit(inner, bilevel.neumann(5, step=1.5)), warm_linear=True
    )
    x, params0 = jnp.ones(2), jnp.zeros(2)
    state = warm.init(x, params0, None)
    for _ in range(3):
        estimate, state = warm.update(state, x, params0, None, KEY)
    assert int(estimate.diagnosis.code) == Code.DIVERGED
    np.testing.assert_array_equal(state.linear, 0)


def test_warm_parameters_are_carried(x64):
    inner, matrix = quadratic(3)
    warm = bilevel.value_and_hypergrad(outer, bilevel.unrolled(inner), warm_params=True)
    x, params0 = jnp.array([1.0, -2.0, 0.5]), jnp.ones(3)
    state = warm.init(x, params0, matrix)
    first, state = warm.update(state, x, params0, matrix, KEY)
    second, state = warm.update(state, x, params0, matrix, KEY)
    twice = bilevel.unrolled(quadratic(6)[0])(x, params0, matrix, KEY)
    np.testing.assert_allclose(second.params, twice, rtol=1e-12)
    assert float(second.diagnosis.gradient_norm) < float(first.diagnosis.gradient_norm)


def test_warm_linear_solve_is_carried(x64):
    inner, matrix = quadratic(2000)
    warm = bilevel.value_and_hypergrad(
        outer, bilevel.implicit(inner, bilevel.cg(rtol=1e-10)), warm_linear=True
    )
    x, params0 = jnp.array([1.0, -2.0, 0.5]), jnp.ones(3)
    state = warm.init(x, params0, matrix)
    first, state = warm.update(state, x, params0, matrix, KEY)
    second, _ = warm.update(state, x, params0, matrix, KEY)
    assert int(second.diagnosis.iterations) < int(first.diagnosis.iterations)
    np.testing.assert_allclose(second.grad, first.grad, rtol=1e-8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bilevel.value_and_hypergrad(outer, outer), "solve must be an estimator"),
        (
            lambda: bilevel.value_and_hypergrad(None, bilevel.unrolled(quadratic(2)[0])),
            "outer must be a function",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(TypeError, match=message):
        call()
