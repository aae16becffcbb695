"""Pytrees in which only the floating leaves are differentiated; integer leaves and keys ride along.

`split` takes a tree apart into its differentiable leaves and the rest, with `None` in the holes, so that each
half keeps the structure of the whole; `join` puts the halves together again.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Halves(NamedTuple):
    """The halves of a tree: `inexact` leaves (differentiated) and `rest`, each `None` where the other has a leaf."""

    inexact: Any
    rest: Any


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf carries a derivative: floating or complex, not an integer, a boolean or a typed key.

    >>> is_inexact(1.0), is_inexact(jnp.arange(3)), is_inexact(jax.random.key(0))
    (True, False, False)
    """
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def split(tree: Any) -> Halves:
    """Split `tree` into its inexact leaves and the rest.

    >>> split({"a": 1.0, "n": 2})
    Halves(inexact={'a': 1.0, 'n': None}, rest={'a': None, 'n': 2})
    """
    inexact = jax.tree.map(lambda leaf: leaf if is_inexact(leaf) else None, tree)
    rest = jax.tree.map(lambda leaf: None if is_inexact(leaf) else leaf, tree)
    return Halves(inexact, rest)


def join(inexact: Any, rest: Any) -> Any:
    """Undo `split`.

    >>> join({"a": 1.0, "n": None}, {"a": None, "n": 2})
    {'a': 1.0, 'n': 2}
    """
    return jax.tree.map(lambda a, b: b if a is None else a, inexact, rest, is_leaf=lambda leaf: leaf is None)


def zeros(tree: Any) -> Any:
    """Zeros of the shapes of `tree` (holes stay holes)."""
    return jax.tree.map(jnp.zeros_like, tree)


def add(left: Any, right: Any) -> Any:
    """Leafwise sum of two trees of one structure."""
    return jax.tree.map(jnp.add, left, right)


def dot(left: Any, right: Any) -> jax.Array:
    """Inner product of two trees of one structure, a scalar."""
    full = jax.lax.Precision.HIGHEST  # accelerators round products of float32 otherwise
    parts = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.vdot(a, b, precision=full), left, right))
    return functools.reduce(jnp.add, parts) if parts else jnp.zeros(())


def norm(tree: Any) -> jax.Array:
    """Euclidean norm over all inexact leaves, a scalar.

    >>> float(norm({"a": jnp.array([3.0]), "b": jnp.array([4.0]), "n": 7}))
    5.0
    """
    leaves = [leaf for leaf in jax.tree.leaves(split(tree).inexact) if jnp.size(leaf)]
    if not leaves:
        return jnp.zeros(())
    # Squares of float32 underflow below 1e-19 and overflow above 1e19: a saturated softmax gives such gradients.
    top = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(jax.lax.stop_gradient(leaf))) for leaf in leaves])
    top = jnp.where((top > 0) & jnp.isfinite(top), top, 1)
    scaled = [leaf / top.astype(jnp.result_type(leaf)) for leaf in leaves]
    return top * jnp.sqrt(dot(scaled, scaled))


def all_finite(tree: Any) -> jax.Array:
    """Whether every inexact entry is finite, a boolean scalar."""
    flags = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(split(tree).inexact)]
    return jnp.all(jnp.stack(flags)) if flags else jnp.array(True)
