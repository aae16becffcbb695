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
