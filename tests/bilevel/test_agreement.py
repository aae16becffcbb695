"""Two estimators compared."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevel


def at():
    outer = lambda p, x, data: jnp.sum(p**2)
    return {"outer": outer, "x": jnp.ones(3), "params0": jnp.zeros(3), "data": None, "key": jax.random.key(0)}


def test_against_the_closed_form():
    """p_L = x (1 - r^L) with r = 1/2: exact slope 1 - r^L, truncated 1 - r^tau; the ratio is the error."""
    inner = bilevel.gradient_descent(lambda p, x, data, ctx: jnp.sum((p - x) ** 2), optax.sgd(0.25), steps=4)
    found = bilevel.agreement(bilevel.truncated(inner, tau=1), bilevel.unrolled(inner), **at())
    np.testing.assert_allclose(found.relative_error, 1 - 0.5 / (1 - 0.5**4), rtol=1e-6)
    np.testing.assert_allclose(found.cosine, 1.0, rtol=1e-6)
    assert min(found.seconds) > 0
    assert min(found.bytes) >= 0
    assert found.codes == (0, 0)


def test_detached_has_no_direction_here():
    inner = bilevel.gradient_descent(lambda p, x, data, ctx: jnp.sum((p - x) ** 2), optax.sgd(0.25), steps=4)
    found = bilevel.agreement(bilevel.detached(inner), bilevel.unrolled(inner), **at())
    assert np.isnan(found.cosine)
    np.testing.assert_allclose(found.relative_error, 1.0)


def test_bad_input():
    inner = bilevel.gradient_descent(lambda p, x, data, ctx: jnp.sum((p - x) ** 2), optax.sgd(0.25), steps=4)
    with pytest.raises(ValueError, match="repeats=0"):
        bilevel.agreement(bilevel.one_step(inner), bilevel.unrolled(inner), repeats=0, **at())
