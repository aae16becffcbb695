"""Trees taken apart into what is differentiated and what rides along."""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel import trees


def test_split_and_join_are_inverse():
    tree = {"w": jnp.ones(2), "n": jnp.arange(3), "key": jax.random.key(0), "nested": (1.0, True, None)}
    halves = trees.split(tree)
    assert jax.tree.structure(trees.join(*halves)) == jax.tree.structure(tree)
    assert len(jax.tree.leaves(halves.inexact)) == 2
    assert len(jax.tree.leaves(halves.rest)) == 3


def test_norm_and_dot_and_finiteness():
    tree = {"w": jnp.array([3.0, 4.0]), "n": jnp.arange(3)}
    assert float(trees.norm(tree)) == 5.0
    assert float(trees.dot(tree["w"], tree["w"])) == 25.0
    assert float(trees.dot((), ())) == 0.0
    assert bool(trees.all_finite(tree))
    assert not bool(trees.all_finite({"w": jnp.array([np.inf])}))
    assert bool(trees.all_finite({"n": jnp.arange(2)}))


def test_norm_neither_underflows_nor_overflows():
    for size in (1e-24, 1.0, 1e24):
        np.testing.assert_allclose(trees.norm({"w": jnp.array([3.0, 4.0]) * size}) / size, 5.0, rtol=1e-6)
    assert float(trees.norm({"w": jnp.zeros(2)})) == 0.0
    assert float(trees.norm({"n": 3})) == 0.0
    assert np.isinf(trees.norm({"w": jnp.array([np.inf, 1.0])}))
