"""The soft filter: what it leaves, and that an attacker can differentiate through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from defenses.filtering import likeness, soft_filter
from models.data import Interactions
from models.train import begin, fit
from models.wrmf import wrmf

KEY = jax.random.key(0)


def test_what_looks_alike_is_left_out():
    train = Interactions.from_dense(np.eye(6, 8))
    model = wrmf(factors=2, epochs=3)
    x = jnp.ones((3, 8))
    hard = soft_filter(model, likeness, cut=0.5, temperature=1e-3)
    none = fit(model, train, KEY, fakes_rows=jnp.zeros((3, 8)))
    left = fit(hard, train, KEY, fakes_rows=x)
    np.testing.assert_allclose(left.scores(jnp.arange(6)), none.scores(jnp.arange(6)), atol=1e-6)
    far = fit(soft_filter(model, likeness, cut=2.0, temperature=1e-3), train, KEY, fakes_rows=x)
    whole = fit(model, train, KEY, fakes_rows=x)
    np.testing.assert_allclose(far.scores(jnp.arange(6)), whole.scores(jnp.arange(6)), atol=1e-6)


@pytest.mark.slow
def test_the_hypergradient_goes_through_the_filter(x64):
    train = Interactions.from_dense(np.eye(6, 8))
    model = soft_filter(wrmf(factors=2, epochs=4, learning_rate=0.05), likeness, cut=0.5, temperature=0.3)
    x = 0.2 + 0.6 * jax.random.uniform(jax.random.key(1), (3, 8), jnp.float64)
    start = begin(model, train, KEY, x)
    data = start.data._replace(observed=jnp.ones((3, 8), bool))
    solve = bilevel.unrolled(start.inner)

    def outer(x):
        params = solve(x, start.params, data, start.key)
        return jnp.sum(model.scores(params, x, data, jnp.arange(6))[:, 3])

    way = jax.random.normal(jax.random.key(2), (3, 8), jnp.float64)
    step = 1e-5
    slope = (outer(x + step * way) - outer(x - step * way)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(jax.grad(outer)(x) * way), slope, rtol=1e-6)


def test_a_bad_temperature():
    with pytest.raises(ValueError, match="temperature"):
        soft_filter(wrmf(), likeness, cut=0.5, temperature=0.0)
