"""The optimality condition `F(theta; x, data) = 0` of an inner problem, linearized at a point.

`F` is the gradient of the inner loss, or `theta - T(theta)` for a fixed point. Everything an implicit
derivative asks for is here: how far the point is from a solution, products with `J = dF/dtheta` and its
transpose, the solve, and the mixed product with `dF/dx`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel import trees
from bilevel.inner import Ctx, Inner, Structure
from bilevel.linear import Code, LinearResult, LinearSolver, cg, gmres
from bilevel.linear.solver import Proposal, verified
from bilevel.products import cross_product, hvp


class Problem(NamedTuple):
    """What is zero at a solution: the gradient of `loss`, else `theta - update(theta)`; `inner` lends its batches."""

    loss: Any
    update: Any
    structure: Structure
    inner: Inner | None

    @property
    def symmetric(self) -> bool:
        """Whether `J` is a Hessian."""
        return self.loss is not None

    def condition(self, params: Any, x: Any, data: Any, ctx: Ctx) -> Any:
        """`F(params; x, data)`, like `params`."""
        if self.symmetric:
            return jax.grad(self.loss)(params, x, data, ctx)
        return jax.tree.map(jnp.subtract, params, self.update(params, x, data, ctx))

    def choose(self, solver: LinearSolver | None, caller: str) -> LinearSolver | None:
        """The solver to use, checked against what the problem has; None stands for the structure's own `solve`.

        Raises:
          TypeError: not a `LinearSolver`.
          ValueError: it needs symmetry, blocks or batches that the problem does not have.
        """
        if solver is None:
            default = cg() if self.symmetric else gmres()
            return None if self.structure.solve is not None else default
        if not isinstance(solver, LinearSolver):
            raise TypeError(
                f"{caller}: expected a linear solver such as bilevel.cg(), got {type(solver).__name__}"
            )
        if not (self.symmetric or solver.any_matrix):
            raise ValueError(
                f"{caller}: {solver!r} needs a symmetric matrix, and a fixed_point loop has none; use gmres, "
                "normal_cg, neumann or dense, or give the loss that the loop minimizes as objective="
            )
        if "blocks" in solver.needs and self.structure.blocks is None:
            raise ValueError(
                f"{caller}: {solver!r} needs diagonal blocks; give structure=Structure(blocks=...). Where rows of a "
                "leaf do not interact, bilevel.diagonal_blocks makes them from Hessian products"
            )
        if "sampled" in solver.needs and (self.inner is None or self.inner.batches is None):
            raise ValueError(f"{caller}: {solver!r} needs an inner loop with batches=minibatches(...)")
        return solver


@dataclass(frozen=True, eq=False)
class Point:
    """The condition at one point; `key` is for what is random in a solver."""

    problem: Problem
    params: Any
    x: Any
    data: Any
    ctx: Ctx
    key: Any

    def condition(self, params: Any) -> Any:
        """`F(params)` with everything else held."""
        return self.problem.condition(params, self.x, self.data, self.ctx)

    def jacobian(self) -> Callable[[Any], Any]:
        """`v -> J v`, linearized once: the forward half of the product is the same in every iteration."""
        own = self.problem.structure.product
        if own is not None:
            return lambda v: own(self.params, self.x, self.data, self.ctx, v)[0]
        return jax.linearize(self.condition, self.params)[1]

    def transposed(self) -> Callable[[Any], Any]:
        """`v -> J' v`."""
        if self.problem.symmetric:
            return self.jacobian()
        pull = jax.vjp(self.condition, self.params)[1]
        return lambda v: pull(v)[0]

    def solve(
        self, solver: LinearSolver | None, b: Any, start: Any = None, *, forward: bool = False
    ) -> LinearResult:
        """`J' w = b`, or `J w = b` if `forward`."""
        structure, at = self.problem.structure, (self.params, self.x, self.data, self.ctx)
        matvec = self.jacobian() if forward else self.transposed()
        if solver is None:
            solver, start = _own(lambda v: structure.solve(*at, v)), None  # pyright: ignore[reportOptionalCall]
        blocks = structure.blocks(*at) if "blocks" in solver.needs and structure.blocks else None
        sampled = self.sampled if "sampled" in solver.needs else None
        options: dict[str, Any] = {"blocks": blocks, "sampled": sampled, "symmetric": self.problem.symmetric}
        return solver.solve(matvec, b, start=start, key=self.key, **options)

    def sampled(self, v: Any, key: Array) -> Any:
        """The Hessian product of the loss on a fresh minibatch."""
        assert self.problem.inner is not None  # checked by Problem.choose
        ctx = self.problem.inner.context(key, 0, self.ctx.aux)
        return hvp(self.problem.loss, self.params, v, self.x, self.data, ctx)

    def cross(self, w: Any, data: bool) -> tuple[Any, Any]:
        """`-(dF/dx)' w` and, if `data`, `-(dF/ddata)' w` (else None), like the inexact leaves."""
        problem, own = self.problem, self.problem.structure.product
        w = jax.tree.map(jnp.negative, w)
        if problem.symmetric and own is not None and not data:
            return trees.split(own(self.params, self.x, self.data, self.ctx, w)[1]).inexact, None
        if problem.symmetric:
            loss = lambda p, pair, held: problem.loss(
                p, pair[0], held if pair[1] is None else pair[1], self.ctx
            )
            pair = (self.x, self.data if data else None)
            return cross_product(loss, self.params, pair, w, self.data)
        halves = trees.split((self.x, self.data if data else None))

        def condition(inexact):
            x, varied = trees.join(inexact, halves.rest)
            return problem.condition(self.params, x, varied if data else self.data, self.ctx)

        return jax.vjp(condition, halves.inexact)[1](w)[0]

    def judge(self, linear: LinearResult, tolerance: float, params0: Any) -> LinearResult:
        """`linear`, with the code `NOT_STATIONARY` where the solve was fine but the point is not a solution."""
        size = jnp.maximum(trees.norm(self.params), trees.norm(params0))
        away = ~(distance_to_stationarity(self.condition, self.params, size) <= tolerance)
        unfit = (linear.code == Code.OK) & away
        return linear._replace(code=jnp.where(unfit, jnp.int32(Code.NOT_STATIONARY), linear.code))


def distance_to_stationarity(
    stationarity: Callable[[Any], Any], params: Any, size: Float[Array, ""] | float | None = None
) -> Float[Array, ""]:
    """A lower bound of the Newton step that is left, relative to the size of the parameters; costs two gradients.

    With `g = F(params)` and its Jacobian `J`: `(|g| / c) / size`, where `c = |g' J g| / g' g` is the
    curvature along `g`. By Jensen's inequality `|g| / c <= |J^-1 g|` for positive definite `J`. It has no
    unit.

    Args:
      stationarity: `params -> F(params)`, zero at a solution.
      params: where to ask.
      size: what to compare with; None: the norm of `params`.

    Returns:
      A scalar: 0 at a solution, infinite where `g` is not 0 and there is no curvature along it.

    **Differs from the paper:** no paper; the rule is ours. On a toy WRMF problem it was 0.15 after 100 steps,
    0.013 after 500 and 2e-4 after 2000, where the Newton step was about 0.6 after 500 and 0.065 after 2000.

    >>> float(distance_to_stationarity(lambda p: 3.0 * (p - 1.0), jnp.array([2.0])))
    0.5
    """
    g, along = jax.linearize(stationarity, params)
    norm = trees.norm(g)
    unit = jax.tree.map(lambda leaf: leaf / jnp.where(norm > 0, norm, 1).astype(leaf.dtype), g)
    curvature = jnp.abs(trees.dot(unit, along(unit)))
    size = jnp.asarray(trees.norm(params) if size is None else size, norm.dtype)
    step = norm / jnp.where(curvature > 0, curvature, 1) / jnp.maximum(size, jnp.finfo(norm.dtype).tiny)
    return jnp.where(norm == 0, 0, jnp.where(curvature > 0, step, jnp.inf))


def _own(inverse: Callable[[Any], Any]) -> LinearSolver:
    """A structure's own solve as a linear solver: trusted no more than the others, so its residual is verified."""
    run = verified(lambda system: Proposal(inverse(system.b), 1), damping=0.0, rtol=1e-4, definite=True)
    return LinearSolver("structure", {}, run, any_matrix=True)
