"""Solves that form a matrix: all of it (`dense`, the oracle), or a random low-rank part of it (`nystrom`).

Hataya, Yamada, AISTATS 2023 (Nystrom approximation for implicit differentiation); Frangella, Tropp, Udell,
SIMAX 2023 (the stable form).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from bilevel.linear.solver import (
    Code,
    LinearSolver,
    Proposal,
    System,
    check_count,
    check_number,
    verified,
    zero_level,
)


def dense(*, damping: float = 0.0, rtol: float = 1e-5, max_size: int = 8192) -> LinearSolver:
    """Form the `n x n` matrix by `n` products and solve it; says exactly whether it is indefinite or singular.

    Eigenvalues (singular values, if unsymmetric) below `eps^(2/3)` of the largest count as zero and are left
    out, so a consistent singular system gets its least-norm solution; an inconsistent one gets the code
    `SINGULAR`.

    Args:
      damping: added to the diagonal, >= 0.
      rtol: accepted relative residual.
      max_size: refuse systems with more unknowns; memory is `n^2`, time `n^3`.

    Returns:
      A `LinearSolver`; `iterations` is 1.

    Raises:
      ValueError: a setting out of range; when solving, more than `max_size` unknowns.

    **Differs from the paper:** no paper; nothing.

    >>> dense()(lambda v: jnp.array([1.0, 4.0]) * v, jnp.array([2.0, 2.0])).value
    Array([2. , 0.5], dtype=float32)
    """
    check_number("dense", "damping", damping, low=0)
    check_number("dense", "rtol", rtol, low=0, strict=True)
    check_count("dense", "max_size", max_size)

    def method(system: System) -> Proposal:
        flat, matvec, unravel = _flatten(system)
        if flat.size > max_size:
            raise ValueError(
                f"dense: {flat.size} unknowns, at most max_size={max_size} are formed; use cg or raise max_size"
            )
        matrix = jax.vmap(matvec)(jnp.eye(flat.size, dtype=flat.dtype)).T
        if not system.symmetric:
            left, values, right = jnp.linalg.svd(matrix)
            inverse = _inverse(values)
            return Proposal(unravel(right.T @ (inverse * (left.T @ flat))), 1, doubt=Code.SINGULAR)
        values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
        solution = vectors @ (_inverse(values) * (vectors.T @ flat))
        return Proposal(unravel(solution), 1, values[0], values[-1], Code.SINGULAR)

    config = {"damping": damping, "rtol": rtol, "max_size": max_size}
    run = verified(_corrected(method), damping=damping, rtol=rtol, definite=True)
    return LinearSolver("dense", config, run, any_matrix=True)


def nystrom(rank: int, *, damping: float, rtol: float = 1e-2) -> LinearSolver:
    """A randomized rank-`rank` approximation of `A`, inverted with damping: `w = (U S U' + damping I)^-1 b`.

    With `Omega` orthonormal (n, rank) and `Y = A Omega`: `A ~ Y (Omega' Y)^+ Y' = U S U'`, and
    `w = U (S + damping)^-1 U' b + (b - U U' b) / damping`. Exact at full rank. `A` must be positive
    semidefinite.

    Args:
      rank: products to spend, and vectors to keep; at most the dimension is used.
      damping: > 0; the part of `b` outside the approximation is divided by it.
      rtol: accepted relative residual of `(A + damping I) w = b`. The approximation is good where damping is
        above the `rank`-th eigenvalue; where it is not, the code says `NOT_CONVERGED`.

    Returns:
      A `LinearSolver`; `iterations` is the number of products. A start is used by correcting it: `w = start +
      M (b - A start)`.

    Raises:
      ValueError: a setting out of range.

    Reference: Hataya, Yamada, AISTATS 2023, eqs 6-8. **Differs from the paper:** a Gaussian sketch rather
    than random columns, and the eigenvalue form of Woodbury's identity (Frangella, Tropp, Udell, SIMAX 2023,
    alg. 2.1), which stays accurate in float32.

    >>> nystrom(2, damping=1.0)(lambda v: jnp.array([1.0, 3.0]) * v, jnp.array([2.0, 2.0])).value
    Array([1. , 0.5], dtype=float32)
    """
    check_count("nystrom", "rank", rank)
    check_number("nystrom", "damping", damping, low=0, strict=True)
    check_number("nystrom", "rtol", rtol, low=0, strict=True)

    def method(system: System) -> Proposal:
        flat, matvec, unravel = _flatten(system)
        width = min(rank, flat.size)
        key = jax.random.key(0) if system.key is None else system.key
        sketch = jnp.linalg.qr(jax.random.normal(key, (flat.size, width), flat.dtype))[0]
        image = jax.vmap(matvec, 1, 1)(sketch) - damping * sketch  # the products come with the damping
        values, vectors = jnp.linalg.eigh(_symmetric(sketch.T @ image))
        largest = jnp.max(jnp.abs(values))
        kept = values > 8 * jnp.finfo(flat.dtype).eps * largest
        half = (image @ vectors) * jnp.where(kept, jax.lax.rsqrt(jnp.where(kept, values, 1)), 0)
        basis, singular, _ = jnp.linalg.svd(half, full_matrices=False)
        inside = basis.T @ flat
        # At full rank nothing is outside but rounding, which dividing by the damping would blow up.
        outside = flat - basis @ inside if width < flat.size else jnp.zeros_like(flat)
        solution = basis @ (inside / (singular**2 + damping)) + outside / damping
        # The Rayleigh quotients are those of A itself: the sketch needs it semidefinite, damping or not.
        return Proposal(unravel(solution), width, values[0], largest)

    config = {"rank": rank, "damping": damping, "rtol": rtol}
    return LinearSolver(
        "nystrom", config, verified(_corrected(method), damping=damping, rtol=rtol, definite=True)
    )


def _corrected(method):
    """Give a method without memory a warm start: solve for what the start leaves over."""

    def with_start(system: System) -> Proposal:
        if system.start is None:
            return method(system)
        rest = jax.tree.map(jnp.subtract, system.b, system.matvec(system.start))
        found = method(system._replace(b=rest, start=None))
        return found._replace(value=jax.tree.map(jnp.add, system.start, found.value))

    return with_start


def _flatten(system: System) -> tuple[Any, Any, Any]:
    flat, unravel = ravel_pytree(system.b)
    return flat, lambda v: ravel_pytree(system.matvec(unravel(v)))[0], unravel


def _inverse(values: Any) -> Any:
    tiny = zero_level(values.dtype) * jnp.max(jnp.abs(values))
    return jnp.where(jnp.abs(values) > tiny, 1 / values, 0)


def _symmetric(matrix: Any) -> Any:
    return (matrix + matrix.T) / 2
