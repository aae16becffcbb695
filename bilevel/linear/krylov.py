"""Krylov methods through lineax: conjugate gradients, GMRES, and conjugate gradients on the normal equations.

Hestenes, Stiefel, 1952; Saad, Schultz, 1986; Craig, 1955. lineax (Rader, Lyons, Kidger, 2023) runs them; `cg`
and `normal_cg` with the solver of `tracked.py`, which reports the curvature along its search directions. The
directions of CG see only what the right-hand side excites; a short Lanczos probe with a random part in its
start looks at the rest of the spectrum.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import lineax as lx

from bilevel import trees
from bilevel.linear.blocks import inverse_blocks, multiply_blocks
from bilevel.linear.solver import (
    Code,
    LinearSolver,
    Proposal,
    System,
    check_count,
    check_number,
    verified,
)
from bilevel.linear.spectrum import scale, spectrum
from bilevel.linear.tracked import TrackedCG

Preconditioner = Literal["block_jacobi"] | None


def cg(
    *,
    rtol: float = 1e-5,
    max_steps: int = 200,
    damping: float = 0.0,
    preconditioner: Preconditioner = None,
    probe: int = 20,
) -> LinearSolver:
    """Conjugate gradients for `(A + damping I) w = b`, `A` symmetric positive (semi)definite.

    Fine on singular matrices as long as `b` lies in their range (matrix factorization: the outer loss sees
    only `P Q'`): from a zero start it gives the least-norm solution. Negative curvature gives the code
    `INDEFINITE`, whatever the residual.

    Args:
      rtol: accepted relative residual, verified on the result. In float32 about `1e-6` times the condition
        number is the floor.
      max_steps: iterations, one product each.
      damping: added to the diagonal, >= 0.
      preconditioner: "block_jacobi" divides by the diagonal blocks (damping included); the solve then needs
        `blocks`.
      probe: products spent on a Lanczos probe with a random start; 0 leaves the curvature along the search
        directions, which misses negative curvature that `b` does not excite.

    Returns:
      A `LinearSolver`; `iterations` are CG steps.

    Raises:
      ValueError: a setting out of range.

    Reference: Hestenes, Stiefel, J. Res. Nat. Bur. Standards 1952. **Differs from the paper:** run by lineax;
    the probe is ours.

    >>> cg(rtol=1e-6)(lambda v: jnp.array([1.0, 4.0]) * v, jnp.array([2.0, 2.0])).value.round(3)
    Array([2. , 0.5], dtype=float32)
    """
    _check("cg", rtol, max_steps, damping, preconditioner)
    check_count("cg", "probe", probe, low=0)

    def method(system: System) -> Proposal:
        inverse = _inverse(preconditioner, system, damping)
        proposal = _search(system.matvec, system.b, system.start, inverse, rtol, max_steps)
        if probe == 0:
            return proposal
        ends = spectrum(system.matvec, system.b, steps=probe, key=system.key, start=system.b)
        smallest, largest = (
            jnp.fmin(proposal.smallest, ends.smallest),
            jnp.fmax(proposal.largest, ends.largest),
        )
        return proposal._replace(smallest=smallest, largest=largest)

    config = {
        "rtol": rtol,
        "max_steps": max_steps,
        "damping": damping,
        "preconditioner": preconditioner,
        "probe": probe,
    }
    return LinearSolver(
        "cg", config, verified(method, damping=damping, rtol=rtol, definite=True), _needs(preconditioner)
    )


def gmres(
    *,
    rtol: float = 1e-5,
    max_steps: int = 200,
    restart: int = 20,
    damping: float = 0.0,
    preconditioner: Preconditioner = None,
) -> LinearSolver:
    """Restarted GMRES for `(A + damping I) w = b`, any square `A`: fixed-point loops, indefinite Hessians.

    It needs no definiteness, so negative curvature is reported where seen but is not an error; the code is
    `OK` where the residual is met.

    Args:
      rtol, damping, preconditioner: as in `cg`.
      max_steps: products, rounded up to whole cycles.
      restart: products per cycle; memory is `restart` vectors.

    Returns:
      A `LinearSolver`; `iterations` are products.

    Raises:
      ValueError: a setting out of range.

    Reference: Saad, Schultz, SIAM J. Sci. Stat. Comput. 1986. **Differs from the paper:** run by lineax (QR
    of the Hessenberg matrix).

    >>> gmres(rtol=1e-5)(lambda v: jnp.array([-1.0, 4.0]) * v, jnp.array([2.0, 2.0])).value.round(3)
    Array([-2. ,  0.5], dtype=float32)
    """
    _check("gmres", rtol, max_steps, damping, preconditioner)
    check_count("gmres", "restart", restart)
    cycles = -(-max_steps // restart)

    def method(system: System) -> Proposal:
        # lineax counts a first, empty cycle.
        solver = lx.GMRES(
            rtol=rtol / 2, atol=rtol / 2, norm=trees.norm, max_steps=cycles + 1, restart=restart
        )
        inverse = _inverse(preconditioner, system, damping)
        proposal = _cycle(solver, system, inverse)
        return proposal._replace(iterations=restart * jnp.maximum(proposal.iterations - 1, 0))

    config = {
        "rtol": rtol,
        "max_steps": max_steps,
        "restart": restart,
        "damping": damping,
        "preconditioner": preconditioner,
    }
    run = verified(method, damping=damping, rtol=rtol, definite=False)
    return LinearSolver("gmres", config, run, _needs(preconditioner), any_matrix=True)


def normal_cg(*, rtol: float = 1e-5, max_steps: int = 400, damping: float = 0.0) -> LinearSolver:
    """Conjugate gradients on the normal equations, `A A' y = b`, `w = A' y`, any square `A` (damping included).

    Robust where GMRES stagnates and cheap in memory, but the condition number is squared. Of all solutions of
    a consistent singular system it gives the one of least norm.

    Args:
      rtol, damping: as in `cg`.
      max_steps: iterations, two products each.

    Returns:
      A `LinearSolver`; `iterations` are CG steps.

    Raises:
      ValueError: a setting out of range.

    Reference: Craig, J. Math. Phys. 1955; Saad, Iterative Methods, section 8.3. **Differs from the paper:**
    `A A'` rather than `A' A`, so that the residual that is watched is that of the system itself; run by
    lineax.

    >>> normal_cg(rtol=1e-5)(lambda v: jnp.array([-1.0, 4.0]) * v, jnp.array([2.0, 2.0])).value.round(3)
    Array([-2. ,  0.5], dtype=float32)
    """
    _check("normal_cg", rtol, max_steps, damping, None)

    def method(system: System) -> Proposal:
        transposed = system.matvec
        if not system.symmetric:
            pull = jax.linear_transpose(system.matvec, system.b)
            transposed = lambda v: pull(v)[0]
        start, b = system.start, system.b
        rest = b if start is None else jax.tree.map(jnp.subtract, b, system.matvec(start))
        # What is left over may be much smaller than b, and rtol is relative to b.
        share = trees.norm(rest) / jnp.where(trees.norm(b) > 0, trees.norm(b), 1)
        limit = rtol / jnp.where(share > 0, share, 1)
        found = _search(lambda v: system.matvec(transposed(v)), rest, None, None, limit, max_steps)
        value = transposed(found.value)
        value = value if start is None else trees.add(start, value)
        return Proposal(value, found.iterations, doubt=found.doubt)

    config = {"rtol": rtol, "max_steps": max_steps, "damping": damping}
    return LinearSolver(
        "normal_cg", config, verified(method, damping=damping, rtol=rtol, definite=False), any_matrix=True
    )


def _search(matvec: Callable, b: Any, start: Any, inverse: Any, rtol: Any, max_steps: int) -> Proposal:
    """Conjugate gradients to half of `rtol`, so that rounding does not fail the check that follows."""
    solution = _solve(TrackedCG(rtol / 2, max_steps), matvec, b, start, inverse)
    stats = solution.stats
    return Proposal(solution.value, stats["num_steps"], stats["smallest"], stats["largest"], _doubt(solution))


def _cycle(solver: lx.GMRES, system: System, inverse: Any) -> Proposal:
    """GMRES by lineax on `c A y = b`, `w = c y`.

    lineax wants the last *update* below `atol + rtol |y|`, entry by entry, next to a small residual. With a
    large `c` the updates are small from the start and the residual alone decides.
    """
    size = trees.norm(system.image)
    dimension = sum(leaf.size for leaf in jax.tree.leaves(system.b))
    factor = dimension / jnp.sqrt(jnp.finfo(size.dtype).eps) / jnp.where(size > 0, size, 1)
    start = None if system.start is None else scale(system.start, 1 / factor)
    solution = _solve(solver, lambda v: scale(system.matvec(v), factor), system.b, start, inverse)
    return Proposal(scale(solution.value, factor), solution.stats["num_steps"], doubt=_doubt(solution))


def _solve(
    solver: lx.AbstractLinearSolver, matvec: Callable, b: Any, start: Any, inverse: Any
) -> lx.Solution:
    like = jax.eval_shape(lambda: b)
    positive = lx.positive_semidefinite_tag
    options: dict[str, Any] = {} if start is None else {"y0": start}
    if inverse is not None:
        options["preconditioner"] = lx.FunctionLinearOperator(
            lambda v: multiply_blocks(inverse, v), like, positive
        )
    return lx.linear_solve(
        lx.FunctionLinearOperator(matvec, like, positive), b, solver, options=options, throw=False
    )


def _doubt(solution: lx.Solution) -> Any:
    """What lineax's result means where the residual is not met; where it is met, `OK` was verified."""
    broken = (solution.result == lx.RESULTS.singular) | (solution.result == lx.RESULTS.breakdown)
    return jnp.where(broken, Code.SINGULAR, Code.NOT_CONVERGED)


def _inverse(preconditioner: Preconditioner, system: System, damping: float) -> Any:
    return None if preconditioner is None else inverse_blocks(system.blocks, system.b, damping)


def _needs(preconditioner: Preconditioner) -> frozenset[str]:
    return frozenset() if preconditioner is None else frozenset({"blocks"})


def _check(name: str, rtol: Any, max_steps: Any, damping: Any, preconditioner: Any) -> None:
    check_number(name, "rtol", rtol, low=0, strict=True)
    check_number(name, "damping", damping, low=0)
    check_count(name, "max_steps", max_steps)
    if preconditioner not in (None, "block_jacobi"):
        raise ValueError(f"{name}: preconditioner={preconditioner!r}: expected None or 'block_jacobi'")
