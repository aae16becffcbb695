"""Krylov methods through lineax: conjugate gradients, GMRES, and conjugate gradients on the normal equations.

Hestenes, Stiefel, 1952; Saad, Schultz, 1986; Craig, 1955. lineax (Rader, Lyons, Kidger, 2023) runs them; `cg`
and `normal_cg` with the solver of `tracked.py`, which reports the curvature along its search directions. The
directions of CG see only what the right-hand side excites; a short Lanczos probe with a random part in its
start looks at the rest of the spectrum.
"""

from collections.abc import Callable
from functools import partial
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
    rtol: float = 1e-4,
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
        solver = TrackedCG(max_steps, rtol=rtol / 2)
        proposal = _search(solver, system.matvec, system.b, system.start, inverse)
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
    rtol: float = 1e-4,
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

    >>> gmres()(lambda v: jnp.array([-1.0, 4.0]) * v, jnp.array([2.0, 2.0])).value.round(3)
    Array([-2. ,  0.5], dtype=float32)
    """
    _check("gmres", rtol, max_steps, damping, preconditioner)
    check_count("gmres", "restart", restart)
    cycles = -(-max_steps // restart)

    def method(system: System) -> Proposal:
        # lineax counts a first, empty cycle.
        solver = lx.GMRES(rtol=0.0, atol=rtol / 2, norm=trees.norm, max_steps=cycles + 1, restart=restart)
        proposal = _cycle(solver, system, _inverse(preconditioner, system, damping))
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


def normal_cg(*, rtol: float = 1e-4, max_steps: int = 400, damping: float = 0.0) -> LinearSolver:
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

    >>> normal_cg()(lambda v: jnp.array([-1.0, 4.0]) * v, jnp.array([2.0, 2.0])).value.round(3)
    Array([-2. ,  0.5], dtype=float32)
    """
    _check("normal_cg", rtol, max_steps, damping, None)

    def method(system: System) -> Proposal:
        transposed = system.matvec
        if not system.symmetric:
            pull = jax.linear_transpose(system.matvec, system.b)
            transposed = lambda v: pull(v)[0]
        # In w rather than y, a start would need the inverse of A': what it leaves over is solved for instead.
        solver = TrackedCG(max_steps, atol=rtol / 2)
        found = _search(solver, lambda v: system.matvec(transposed(v)), _left(system), None, None)
        value = transposed(found.value)
        value = value if system.start is None else trees.add(system.start, value)
        return Proposal(value, found.iterations, doubt=found.doubt)

    config = {"rtol": rtol, "max_steps": max_steps, "damping": damping}
    return LinearSolver(
        "normal_cg", config, verified(method, damping=damping, rtol=rtol, definite=False), any_matrix=True
    )


def _search(solver: TrackedCG, matvec: Callable, b: Any, start: Any, inverse: Any) -> Proposal:
    solution = _solve(solver, matvec, b, start, inverse)
    stats = solution.stats
    seen = (stats["smallest"], stats["largest"], _doubt(solution), _as(b, stats["rest"]))
    return Proposal(_as(b, solution.value), stats["num_steps"], *seen)


def _cycle(solver: lx.GMRES, system: System, inverse: Any) -> Proposal:
    """GMRES by lineax on `c A M u = b - A start`, `w = start + c M u`, with the preconditioner `M` on the right.

    On the right, because lineax watches the preconditioned residual. It also wants the last *update* to be small,
    entry by entry; with a large `c` the updates are small from the start and the residual of the system decides.
    """
    after = (lambda v: v) if inverse is None else partial(multiply_blocks, inverse)
    size = trees.norm(system.matvec(after(system.b)))
    dimension = sum(leaf.size for leaf in jax.tree.leaves(system.b))
    factor = dimension / jnp.sqrt(jnp.finfo(size.dtype).eps) / jnp.where(size > 0, size, 1)
    solution = _solve(solver, lambda v: scale(system.matvec(after(v)), factor), _left(system), None, None)
    value = scale(after(_as(system.b, solution.value)), factor)
    value = value if system.start is None else trees.add(system.start, value)
    return Proposal(value, solution.stats["num_steps"], doubt=_doubt(solution))


def _left(system: System) -> Any:
    """What the start leaves over, `b - A start`."""
    if system.start is None:
        return system.b
    return jax.tree.map(jnp.subtract, system.b, system.matvec(system.start))


def _solve(
    solver: lx.AbstractLinearSolver, matvec: Callable, b: Any, start: Any, inverse: Any
) -> lx.Solution:
    """Through the door of lineax, which wants one dtype for all leaves."""
    dtype = jnp.result_type(*jax.tree.leaves(b))
    up = lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
    down = partial(_as, b)
    like, positive = jax.eval_shape(lambda: up(b)), lx.positive_semidefinite_tag
    wrap = lambda f: lx.FunctionLinearOperator(lambda v: up(f(down(v))), like, positive)
    options: dict[str, Any] = {} if start is None else {"y0": up(start)}
    if inverse is not None:
        options["preconditioner"] = wrap(partial(multiply_blocks, inverse))
    return lx.linear_solve(wrap(matvec), up(b), solver, options=options, throw=False)


def _as(like: Any, tree: Any) -> Any:
    return jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), tree, like)


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
