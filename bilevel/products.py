"""Products with second derivatives, matrix-free: Hessian, cross derivative, Gauss-Newton, diagonal blocks.

Each costs a small multiple of a gradient and never forms a matrix. The Hessian product is forward over
reverse (Pearlmutter, Neural Computation 1994): one `jvp` of the gradient. Taking the gradient in `(params,
x)` at once, that same `jvp` also gives the mixed product `d/dx <grad_params loss, v>`, which is all an
adjoint needs. The Gauss-Newton product is that of Schraudolph (Neural Computation 2002). Only inexact leaves
are differentiated; in the results the others are `None`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bilevel import trees


def hvp(loss: Callable[..., Any], params: Any, v: Any, *args: Any) -> Any:
    """Hessian-vector product `H v`, with `H = d2 loss / d params2`.

    Args:
      loss: `loss(params, *args) -> scalar`, twice differentiable in `params`.
      params: pytree; integer leaves ride along.
      v: direction, shaped as the inexact leaves of `params` (`None` or anything where `params` is not
        inexact).
      *args: passed on to the loss (`x, data, ctx` for a loss of the engine), not differentiated.

    Returns:
      `H v`, a pytree like the inexact leaves of `params`.

    Reference: Pearlmutter, Neural Computation 1994. **Differs from the paper:** nothing.

    >>> hvp(lambda p, c: c * p[0] ** 2 * p[1], jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0]), 2.0)
    Array([12.,  4.], dtype=float32)
    """
    inexact, rest = trees.split(params)
    gradient = jax.grad(lambda p: loss(trees.join(p, rest), *args))
    return jax.jvp(gradient, (inexact,), (_direction(v, params),))[1]


def hessian_and_cross(loss: Callable[..., Any], params: Any, x: Any, v: Any, *args: Any) -> tuple[Any, Any]:
    """`(H v, M v)`: the Hessian product and the mixed product `d/dx <grad_params loss, v>`, from one `jvp`.

    Args:
      loss: `loss(params, x, *args) -> scalar`.
      params, x: pytrees; only their inexact leaves are differentiated. For the derivative in `data` too, make
        `x` a pair.
      v: direction, like `params`.
      *args: passed on to the loss.

    Returns:
      Pytrees like the inexact leaves of `params` and of `x`. Under `jit` the half that is not used costs
      nothing.

    Reference: Pearlmutter, Neural Computation 1994. **Differs from the paper:** both products at once.

    >>> loss = lambda p, x: jnp.sum(x * p**2)
    >>> both = hessian_and_cross(loss, jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]), jnp.ones(2))
    >>> [b.tolist() for b in both]
    [[6.0, 8.0], [2.0, 4.0]]
    """
    held, varied = trees.split(params), trees.split(x)

    def whole(p, y):
        return loss(trees.join(p, held.rest), trees.join(y, varied.rest), *args)

    gradients = jax.grad(whole, (0, 1))
    _, products = jax.jvp(lambda p: gradients(p, varied.inexact), (held.inexact,), (_direction(v, params),))
    return products


def cross_product(loss: Callable[..., Any], params: Any, x: Any, v: Any, *args: Any) -> Any:
    """The mixed product `d/dx <grad_params loss(params, x), v>`; arguments as in `hessian_and_cross`.

    Returns:
      A pytree like the inexact leaves of `x`.

    Reference and **Differs from the paper:** as `hessian_and_cross`.

    >>> cross_product(lambda p, x: jnp.sum(x * p**2), jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]), jnp.ones(2))
    Array([2., 4.], dtype=float32)
    """
    return hessian_and_cross(loss, params, x, v, *args)[1]


def gauss_newton_product(
    model: Callable[[Any], Any], outer: Callable[[Any], Any], params: Any, v: Any
) -> Any:
    """Gauss-Newton product `J' B J v`, with `J` the model's Jacobian and `B` the Hessian of `outer`.

    It is the Hessian of `outer(model(params))` without the curvature of the model: positive semidefinite
    whenever `outer` is convex, and equal to the Hessian where the model is linear or `outer` is stationary.

    Args:
      model: `model(params) -> outputs`, any pytree (residuals, scores).
      outer: `outer(outputs) -> scalar`.
      params: pytree; integer leaves ride along.
      v: direction, like `params`.

    Returns:
      A pytree like the inexact leaves of `params`.

    Reference: Schraudolph, Neural Computation 2002, eq. 5. **Differs from the paper:** nothing.

    >>> gauss_newton_product(lambda p: p**2, lambda r: 0.5 * jnp.sum(r**2), jnp.array([1.0, 2.0]), jnp.ones(2))
    Array([ 4., 16.], dtype=float32)
    """
    inexact, rest = trees.split(params)

    def forward(p):
        return model(trees.join(p, rest))

    outputs, back = jax.vjp(forward, inexact)
    moved = jax.jvp(forward, (inexact,), (_direction(v, params),))[1]
    return back(hvp(outer, outputs, moved))[0]


def diagonal_blocks(product: Callable[[Any], Any], like: Any) -> Any:
    """Diagonal blocks of a matrix whose rows within a leaf do not interact: a leaf `(n, D)` gives `(n, D, D)`.

    Exact where the matrix is block diagonal within every leaf, as the Hessian of matrix factorization is
    (users meet items, never users). Row `r` of block column `d` is then read off the product with the `d`-th
    unit vector repeated in all rows, `D` products a leaf. Where rows of a leaf do interact, the result is the
    sum over a row of blocks and must not be used.

    Args:
      product: `v -> H v` on pytrees like `like`.
      like: pytree of float leaves `(..., D)`, for its shapes.

    Returns:
      A pytree like `like` with leaves `(..., D, D)`, symmetric if the matrix is.

    **Differs from the paper:** no paper; nothing.

    >>> diagonal_blocks(lambda v: 3.0 * v, jnp.zeros((2, 2))).tolist()
    [[[3.0, 0.0], [0.0, 3.0]], [[3.0, 0.0], [0.0, 3.0]]]
    """
    leaves, shape = jax.tree.flatten(like)

    def blocks_of(position: int):
        leaf = leaves[position]

        def column(unit):
            probe = [jnp.zeros_like(other) for other in leaves]
            probe[position] = jnp.broadcast_to(unit, leaf.shape)
            return jax.tree.leaves(product(jax.tree.unflatten(shape, probe)))[position]

        columns = jax.lax.map(column, jnp.eye(leaf.shape[-1], dtype=leaf.dtype))
        return jnp.moveaxis(columns, 0, -1)

    return jax.tree.unflatten(shape, [blocks_of(position) for position in range(len(leaves))])


def _direction(v: Any, params: Any) -> Any:
    """`v` restricted to the inexact leaves of `params`, in their dtypes: a tangent must match its primal."""
    inexact = trees.split(params).inexact
    return jax.tree.map(lambda p, t: jnp.asarray(t, jnp.result_type(p)), inexact, v)
