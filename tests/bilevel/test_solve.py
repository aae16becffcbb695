"""What every estimator shares: nothing silent. Closed-over tracers, unperturbed arguments, jit of the value."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel

KEY = jax.random.key(0)
ESTIMATORS = {
    "keep": lambda inner: bilevel.unrolled(inner, memory="keep"),
    "replay": bilevel.unrolled,
    "truncated": lambda inner: bilevel.truncated(inner, 2),
    "one_step": bilevel.one_step,
    "detached": bilevel.detached,
    "implicit": lambda inner: bilevel.implicit(inner, bilevel.cg()),
    "choose": lambda inner: bilevel.choose(inner, lambda p, x, data: jnp.sum(p)),
}


def closing_over(scale):
    return bilevel.gradient_descent(lambda p, x, data, ctx: scale * jnp.sum((p - x) ** 2), optax.sgd(0.1), 3)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_closed_over_tracers_are_refused(name):
    run = lambda c: jnp.sum(ESTIMATORS[name](closing_over(c))(jnp.ones(2), jnp.zeros(2), None, KEY))
    for transform in (jax.grad, jax.jit, lambda f: jax.vmap(f, in_axes=(0,))):
        argument = jnp.ones(1) if transform not in (jax.grad, jax.jit) else 1.0
        with pytest.raises(TypeError, match="closes over traced values"):
            transform(run)(argument)


def test_a_traced_learning_rate_is_refused_too():
    loss = lambda p, x, data, ctx: jnp.sum((p - x) ** 2)
    run = lambda rate: jnp.sum(
        bilevel.unrolled(bilevel.gradient_descent(loss, optax.adam(rate), 3))(
            jnp.ones(2), jnp.zeros(2), None, KEY
        )
    )
    with pytest.raises(TypeError, match="A traced learning rate"):
        jax.grad(run)(0.1)


def test_closed_over_constants_are_fine():
    solve = bilevel.unrolled(closing_over(jnp.array(2.0)))
    assert np.all(np.isfinite(solve(jnp.ones(2), jnp.zeros(2), None, KEY)))


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_estimators_are_jittable_values(name):
    solve = ESTIMATORS[name](closing_over(1.0))
    jitted = jax.jit(solve)(jnp.ones(2), jnp.zeros(2), None, KEY)
    np.testing.assert_allclose(jitted, solve(jnp.ones(2), jnp.zeros(2), None, KEY), rtol=1e-6)
    assert "gradient_descent(steps=3)" in repr(solve)


def test_nothing_is_computed_for_data_that_nobody_differentiates():
    """The cotangent of a large `data` would cost its size at every step; it must not appear in the program."""
    loss = lambda p, x, data, ctx: jnp.sum((p - x) ** 2 * jnp.sum(data))
    solve = bilevel.unrolled(bilevel.gradient_descent(loss, optax.sgd(0.1), 3))
    value = lambda x, data: jnp.sum(solve(x, jnp.zeros(2), data, KEY))
    large = jnp.ones(12345)
    only_x = str(jax.make_jaxpr(jax.grad(value))(jnp.ones(2), large))
    both = str(jax.make_jaxpr(jax.grad(value, (0, 1)))(jnp.ones(2), large))
    count = lambda text: text.count("f32[12345]")
    assert count(only_x) < count(both)


def test_an_objective_that_closes_over_a_tracer_is_refused():
    loss = lambda p, x, data, ctx: jnp.sum((p - x) ** 2)
    inner = bilevel.gradient_descent(loss, optax.sgd(0.25), 2)
    run = lambda z: jnp.sum(
        bilevel.implicit(inner, objective=lambda p, x, d, c: z * jnp.sum((p - x) ** 2))(
            jnp.ones(2), jnp.zeros(2), None, KEY
        )
    )
    with pytest.raises(TypeError, match="closes over traced values"):
        jax.grad(run)(2.0)


def test_structure_and_aux_that_close_over_tracers_are_refused():
    loss = lambda p, x, data, ctx: jnp.sum((p - x) ** 2)

    def with_structure(z):
        product = lambda p, x, data, ctx, v: (2 * z * v, -2 * v)
        return bilevel.gradient_descent(
            loss, optax.sgd(0.25), 2, structure=bilevel.Structure(product=product)
        )

    def with_aux(z):
        aux = bilevel.Aux(lambda *_: jnp.zeros(()), lambda aux, p, x, data, ctx: z)
        return bilevel.gradient_descent(loss, optax.sgd(0.25), 2, aux=aux)

    for make in (with_structure, with_aux):
        with pytest.raises(TypeError, match="closes over traced values"):
            jax.grad(
                lambda z, make=make: jnp.sum(bilevel.unrolled(make(z))(jnp.ones(2), jnp.zeros(2), None, KEY))
            )(2.0)
