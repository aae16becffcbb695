"""The soft filter: what it leaves, and that an attacker can differentiate through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevel
from defenses import filtering
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


def test_what_is_far_beyond_the_cut_still_has_a_derivative():
    """Of a row whose logistic weight and its derivative are 0 in float32, by its score alone; nearer ones are exact."""
    score = lambda x, data: x[:, 0]
    train = Interactions.from_dense(np.eye(6, 2))
    model = soft_filter(wrmf(factors=2, epochs=1), score, cut=0.0, temperature=1e-2)
    start = begin(model, train, KEY, jnp.ones((1, 2)))

    def outer(x):
        return model.loss(start.params, x, start.data, start.inner.final_context(start.key))

    far = jax.grad(outer)(jnp.array([[2.0, 1.0]]))  # z = -200
    assert float(far[0, 0]) != 0
    assert float(far[0, 1]) == 0  # what the row clicks does not matter while it is left out
    exact = lambda z: jax.nn.sigmoid(z) * (1 - jax.nn.sigmoid(z))
    for z, expected in ((-3.0, exact(-3.0)), (2.0, exact(2.0)), (-200.0, 1 / 202**2)):
        np.testing.assert_allclose(jax.grad(filtering._passes)(z), expected, rtol=1e-6)


def test_a_bad_temperature():
    with pytest.raises(ValueError, match="temperature"):
        soft_filter(wrmf(), likeness, cut=0.5, temperature=0.0)
