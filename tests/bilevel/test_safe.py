"""No NaN hypergradient where gradient entries are exactly zero, for optimizers as optax makes them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel
from bilevel.safe import differentiable, safe_cbrt, safe_div, safe_mul, safe_pow, safe_rsqrt, safe_sqrt

OPTIMIZERS = {
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1),
    "nadam": optax.nadam(0.1),
    "amsgrad": optax.amsgrad(0.1),
    "radam": optax.radam(0.1),
    "adabelief": optax.adabelief(0.1),
    "adamax": optax.adamax(0.1),
    "rmsprop": optax.rmsprop(0.1),
    "rmsprop centered": optax.rmsprop(0.1, centered=True, momentum=0.9),
    "adagrad": optax.adagrad(0.1, initial_accumulator_value=0.0),
    "adadelta": optax.adadelta(0.1),
    "adafactor": optax.adafactor(0.1),
    "yogi": optax.yogi(0.1),
    "lamb": optax.lamb(0.1),
    "novograd": optax.novograd(0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "scheduled": optax.adam(optax.cosine_decay_schedule(0.1, 5)),
    "apply_if_finite": optax.apply_if_finite(optax.adam(0.1), 2),
    "every second": optax.MultiSteps(optax.adam(0.1), 2),
    "decayed": optax.chain(optax.add_decayed_weights(1e-2), optax.adam(0.1)),
}
PARAMS = {"w": jnp.array([[0.5, -1.0], [0.0, 0.0]]), "b": jnp.zeros(2)}


def loss(params, x, data, ctx):
    """The second row of `w` and all of `b` have gradients that are exactly zero at every step."""
    return jnp.sum((params["w"][0] - x) ** 2 * data) + 0.0 * jnp.sum(params["b"])


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_no_nan_where_a_gradient_is_zero(name):
    solve = bilevel.unrolled(bilevel.gradient_descent(loss, OPTIMIZERS[name], steps=4), memory="replay")
    value = lambda x: jnp.sum(
        jnp.square(
            jnp.concatenate([p.ravel() for p in jax.tree.leaves(solve(x, PARAMS, 1.0, jax.random.key(0)))])
        )
    )
    gradient = jax.jit(jax.grad(value))(jnp.array([1.0, 2.0]))
    assert np.all(np.isfinite(gradient))
    assert np.any(gradient != 0)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "radam", "lamb"])
def test_forward_numbers_stay_the_same(name):
    optimizer = OPTIMIZERS[name]
    grads = jax.tree.map(lambda p: p + 0.25, PARAMS)
    state = optimizer.init(PARAMS)
    plain = optimizer.update(grads, state, PARAMS)
    safe = differentiable(optimizer.update)(grads, state, PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), plain, safe)


def test_gradient_equals_the_plain_one_where_that_is_defined(x64):
    params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
    optimizer, grads = optax.adam(0.1), {"w": jnp.ones((2, 2)), "b": -jnp.ones(2)}
    # after one step: Adam's first update is lr * sign(g), whose derivative is a difference of equal numbers
    state = optimizer.update(params, optimizer.init(params), params)[1]
    total = lambda update: jax.grad(
        lambda g: sum(jnp.sum(u**2) for u in jax.tree.leaves(update(g, state, params)[0]))
    )(grads)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14),
        total(differentiable(optimizer.update)),
        total(optimizer.update),
    )


def test_rules_are_the_true_derivatives_away_from_the_singularity(x64):
    for safe, plain in (
        (safe_sqrt, jnp.sqrt),
        (safe_rsqrt, jax.lax.rsqrt),
        (safe_cbrt, jnp.cbrt),
        (lambda v: safe_pow(v, 0.3), lambda v: v**0.3),
    ):
        for order in (jax.grad(safe), jax.grad(jax.grad(safe))):
            assert np.isfinite(order(0.0))
        np.testing.assert_allclose(jax.grad(safe)(0.7), jax.grad(plain)(0.7), rtol=1e-14)
        np.testing.assert_allclose(jax.grad(jax.grad(safe))(0.7), jax.grad(jax.grad(plain))(0.7), rtol=1e-13)
    for safe, plain in ((safe_mul, jnp.multiply), (safe_div, jnp.divide)):
        for argument in (0, 1):
            np.testing.assert_allclose(
                jax.grad(safe, argument)(0.7, 1.3), jax.grad(plain, argument)(0.7, 1.3), rtol=1e-14
            )
    np.testing.assert_allclose(jax.grad(safe_pow, 1)(0.7, 1.3), jax.grad(jnp.power, 1)(0.7, 1.3), rtol=1e-14)


def test_control_flow_is_followed():
    def update(v):
        inside = jax.lax.cond(v > 1, lambda u: u, jnp.sqrt, v)
        looped = jax.lax.scan(lambda c, _: (jax.jit(jnp.sqrt)(c), None), v, None, length=2)[0]
        counted = jax.lax.while_loop(lambda c: c < 3, lambda c: c + 1, 0)
        return inside + looped + counted

    assert float(jax.grad(differentiable(update))(0.0)) == 0.0
    np.testing.assert_allclose(differentiable(update)(0.5), update(0.5))
    np.testing.assert_allclose(jax.grad(differentiable(update))(4.0), 1 + 0.25 * 4.0 ** (-0.75), rtol=1e-6)


def test_derivative_rules_of_others_are_kept():
    doubled = jax.custom_vjp(lambda y: 2 * y)
    doubled.defvjp(lambda y: (2 * y, None), lambda _, g: (7 * g,))
    assert float(jax.grad(differentiable(doubled))(1.0)) == 7.0
    straight = jax.custom_jvp(lambda v: jnp.round(v, 0))
    straight.defjvp(lambda primals, tangents: (jnp.round(*primals), *tangents))
    assert float(jax.grad(differentiable(straight))(1.2)) == 1.0
