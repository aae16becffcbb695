"""Block solves: the block-Jacobi preconditioner, the block diagonal, and one user's own block.

Of a factor model's Hessian the `D x D` blocks of users and items are free (they are what alternating least
squares inverts), and restricting the system to the parameters of one user, or of one user and one item, is
what fast influence analysis does (Cheng, Shen, Huang, KDD 2019; Tran, Ghazimatin, Saha Roy, SIGIR 2021).
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bilevel.linear.direct import dense
from bilevel.linear.solver import (
    Code,
    LinearResult,
    LinearSolver,
    Proposal,
    System,
    check_number,
    verified,
    zero_level,
)


def block(
    where: Callable[[Any], Any] | None = None, *, damping: float = 0.0, solver: LinearSolver | None = None
) -> LinearSolver:
    """Solve only a block of the system and leave the rest of `w` at zero, or solve the block diagonal.

    With `R` the selection `where` (a linear map from `b`'s tree to some of its entries): `w = R' (R A R' +
    damping I)^-1 R b`. Without `where`: `w_r = (A_rr + damping I)^-1 b_r` for every row `r`, from `blocks`.

    Args:
      where: picks the block, such as `lambda p: (p["users"][u], p["items"][i])`; `u` and `i` may be traced.
        None: the block diagonal.
      damping: added to the diagonal, >= 0.
      solver: how the picked block is solved; None: `dense(damping=damping)`. Only with `where`.

    Returns:
      A `LinearSolver`. Residual, curvature and code are those of the block system, which is all this solver
      claims to solve: it is an approximation of the whole system, on purpose.

    Raises:
      ValueError: negative damping, `solver` without `where`, both `solver` and `damping`, or a `solver` that
        needs diagonal blocks or minibatches of its own.

    Reference: Cheng, Shen, Huang, KDD 2019, eq. 9. **Differs from the paper:** any block that `where` can
    pick, direct solve by default.

    >>> block(lambda v: v[1])(lambda v: jnp.array([[2.0, 1.0], [1.0, 4.0]]) @ v, jnp.array([2.0, 2.0])).value
    Array([0. , 0.5], dtype=float32)
    """
    check_number("block", "damping", damping, low=0)
    if solver is not None and (where is None or damping):
        raise ValueError(
            "block: solver= needs where=, and carries its own damping; give damping to one of them only"
        )
    if solver is not None and solver.needs:
        raise ValueError(
            f"block: {solver!r} needs the {' and '.join(sorted(solver.needs))} of the whole problem, which the picked "
            "part does not have; use cg, gmres, dense, neumann or lissa without them"
        )
    config = {"where": where, "damping": damping, "solver": solver}
    if where is None:
        return LinearSolver("block", config, _diagonal(damping), frozenset({"blocks"}))
    inner = solver or dense(damping=damping)

    def run(system: System) -> LinearResult:
        picked, shape = where(system.b), jax.eval_shape(lambda: system.b)
        spread = jax.linear_transpose(where, shape)

        def matvec(v):
            return where(system.matvec(spread(v)[0]))

        start = None if system.start is None else where(system.start)
        result = inner.solve(matvec, picked, start=start, key=system.key, symmetric=system.symmetric)
        return result._replace(value=spread(result.value)[0])

    return LinearSolver("block", config, run, any_matrix=inner.any_matrix)


def _diagonal(damping: float) -> Callable[[System], LinearResult]:
    def method(system: System) -> Proposal:
        values, vectors = _eigen(system.blocks, system.b, damping)
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(v)) for v in values]))
        tiny = zero_level(largest.dtype) * largest
        inverse = [jnp.where(jnp.abs(v) > tiny, 1 / v, 0) for v in values]
        shape = jax.tree.structure(system.b)
        value = jax.tree.unflatten(
            shape, [_apply(w, i, b) for w, i, b in zip(vectors, inverse, jax.tree.leaves(system.b))]
        )
        smallest = jnp.min(jnp.stack([jnp.min(v) for v in values]))
        return Proposal(value, 1, smallest, largest, Code.SINGULAR)

    # The eigenvalues above have the damping already; below it is part of the matrix.
    whole = verified(method, damping=damping, rtol=1e-5, definite=True)
    return lambda system: whole(
        system._replace(matvec=lambda v: multiply_blocks(system.blocks, v), start=None)
    )


def multiply_blocks(blocks: Any, v: Any) -> Any:
    """The product of a block-diagonal matrix, leaves `(..., D, D)`, with a pytree of leaves `(..., D)`."""
    return jax.tree.map(lambda leaf, block: jnp.einsum("...de,...e->...d", block, leaf), v, blocks)


def inverse_blocks(blocks: Any, like: Any, damping: float) -> Any:
    """Inverses of `blocks + damping I`, made positive definite: a preconditioner must be.

    Eigenvalues below a share `eps^(2/3)` of the block's largest are raised to it; a block without any
    curvature (a user without data and without a penalty) becomes the identity.
    """
    values, vectors = _eigen(blocks, like, damping)

    def one(value, vector):
        top = jnp.max(jnp.abs(value), axis=-1, keepdims=True)
        value = jnp.where(top > 0, jnp.maximum(value, zero_level(value.dtype) * top), 1)
        return jnp.einsum("...de,...e,...fe->...df", vector, 1 / value, vector)

    return jax.tree.unflatten(jax.tree.structure(like), [one(w, q) for w, q in zip(values, vectors)])


def _eigen(blocks: Any, like: Any, damping: float) -> tuple[list[Any], list[Any]]:
    leaves = jax.tree.leaves(like)
    given = jax.tree.structure(like).flatten_up_to(blocks)
    for leaf, matrix in zip(leaves, given):
        if leaf.ndim < 1 or jnp.shape(matrix) != (*leaf.shape, leaf.shape[-1]):
            raise ValueError(
                f"blocks: a leaf {leaf.shape} needs blocks {(*leaf.shape, *leaf.shape[-1:])}, got {jnp.shape(matrix)}"
            )
    shifted = [
        (matrix + damping * jnp.eye(leaf.shape[-1], dtype=leaf.dtype)).reshape(-1, *matrix.shape[-2:])
        for leaf, matrix in zip(leaves, given)
    ]
    pairs = _eigh_together(shifted)
    return (
        [values.reshape(leaf.shape) for leaf, (values, _) in zip(leaves, pairs)],
        [vectors.reshape((*leaf.shape, leaf.shape[-1])) for leaf, (_, vectors) in zip(leaves, pairs)],
    )


def _eigh_together(batches: list[Any]) -> list[tuple[Any, Any]]:
    """`eigh` of every batch `(n, D, D)`, one call for all of the same D, and one call after the other.

    On the CPU a batched LAPACK call waits on a thread of XLA's pool for work that it puts into the same pool: two
    of them at once hold both threads of a machine with two cores, forever.
    """
    pairs: list[tuple[Any, Any]] = [(None, None)] * len(batches)
    before = None
    for size in sorted({batch.shape[-1] for batch in batches}):
        mine = [n for n, batch in enumerate(batches) if batch.shape[-1] == size]
        stacked = jnp.concatenate([batches[n] for n in mine])
        if before is not None:
            stacked, _ = lax.optimization_barrier((stacked, before))
        values, vectors = before = jnp.linalg.eigh(stacked)
        cuts = list(itertools.accumulate(batches[n].shape[0] for n in mine))[:-1]
        for n, *pair in zip(mine, jnp.split(values, cuts), jnp.split(vectors, cuts)):
            pairs[n] = (pair[0], pair[1])
    return pairs


def _apply(vectors: Any, inverse: Any, b: Any) -> Any:
    return jnp.einsum("...de,...e,...fe,...f->...d", vectors, inverse, vectors, b)
