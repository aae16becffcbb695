"""A loop that reads a function of x: the same numbers and derivatives as the loop whose loss has it inside."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel

DATA = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
KEY = jax.random.key(0)


def loss(p, x, data, ctx):
    mixed = data @ p - jnp.sum(x**2) * jnp.arange(4.0) + ctx.aux
    return jnp.sum(jnp.tanh(mixed) ** 2) + jnp.sum((p - x) ** 2)


def half(x, data):
    return x * jax.nn.sigmoid(jnp.sum(x) + data[0, 0])


def loop(of, batches=None):
    aux = bilevel.Aux(
        lambda params0, x, data, key: jnp.sum(x),
        lambda old, params, x, data, ctx: (
            jnp.sum(params) + jnp.sum(of(x, data)) if of else jnp.sum(params) + jnp.sum(x)
        ),
    )
    inside = loss if of is None else lambda p, x, data, ctx: loss(p, of(x, data), data, ctx)
    return bilevel.gradient_descent(inside, optax.adam(0.1), 12, aux=aux)


@pytest.mark.parametrize(
    "estimator",
    [
        bilevel.unrolled,
        lambda inner: bilevel.truncated(inner, tau=4),
        bilevel.one_step,
        lambda inner: bilevel.implicit(inner, bilevel.dense()),
    ],
    ids=["unrolled", "truncated", "one_step", "implicit"],
)
def test_it_is_the_loss_of_the_transform(x64, estimator):
    x = jnp.array([0.3, -0.2, 0.5])
    outer = lambda inner: lambda x: jnp.sum(jnp.sin(estimator(inner)(x, jnp.zeros(3), DATA, KEY)))
    value, grad = jax.value_and_grad(outer(bilevel.precompose(loop(None), half)))(x)
    expected, expected_grad = jax.value_and_grad(outer(loop(half)))(x)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-9)


def test_a_problems_own_product_goes_through_it(x64):
    A = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
    quadratic = lambda p, x, data, ctx: 0.5 * p @ A @ p - p @ x
    own = bilevel.Structure(product=lambda p, x, data, ctx, v: (A @ v, -v))
    plain = bilevel.gradient_descent(quadratic, optax.sgd(0.1), 9)
    told = bilevel.gradient_descent(quadratic, optax.sgd(0.1), 9, structure=own)
    x = jnp.array([0.3, -0.2, 0.5])
    grad = lambda inner: jax.grad(
        lambda x: jnp.sum(bilevel.unrolled(bilevel.precompose(inner, half))(x, jnp.zeros(3), DATA, KEY) ** 2)
    )(x)
    np.testing.assert_allclose(grad(told), grad(plain), rtol=1e-10)


def test_the_derivative_in_the_data(x64):
    """The data reach the loss by themselves and through the transform; integers among them ride along."""
    transform = lambda x, data: half(x, data[0])
    within = lambda p, x, data, ctx: (
        jnp.sum(jnp.tanh(data[0] @ p - transform(x, data)[0]) ** 2) + jnp.sum(p * x)
    )
    plain = lambda p, x, data, ctx: jnp.sum(jnp.tanh(data[0] @ p - x["moved"][0]) ** 2) + jnp.sum(p * x["x"])
    told = bilevel.gradient_descent(within, optax.adam(0.1), 5)
    inner = bilevel.gradient_descent(plain, optax.adam(0.1), 5)
    inner = bilevel.precompose(inner, lambda x, data: {"x": x, "moved": transform(x, data)})
    value = lambda inner, data: jnp.sum(bilevel.unrolled(inner)(jnp.ones(3), jnp.zeros(3), (data, 7), KEY))
    found, expected = jax.jit(lambda data: [jax.grad(lambda d: value(i, d))(data) for i in (inner, told)])(
        DATA
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9)
