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
from jax import lax
from jaxtyping import Array, Float

from bilevel import trees
from bilevel.inner import Ctx, Inner, Structure
from bilevel.linear import Code, LinearResult, LinearSolver, cg, gmres
from bilevel.linear.solver import Proposal, verified
from bilevel.products import cross_product, hvp


class Problem(NamedTuple):
    """What is zero at a solution: the gradient of `loss`, else the loop's own condition; `inner` lends its batches."""

    loss: Any
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
        assert self.inner is not None  # without a loss there is a loop
        return self.inner.stationarity(params, x, data, ctx)

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
    """The condition at one point; `key` is for random solvers, `size` the norm the parameters began with."""

    problem: Problem
    params: Any
    x: Any
    data: Any
    ctx: Ctx
    key: Any
    size: Any = 0.0

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
        return solver.solve(self.moving(matvec), b, start=start, key=self.key, flat=self.flat(), **options)

    def moving(self, matvec: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The same product, with a derivative in all that it reads, though it be 0.

        Of a product without one (a quadratic loss) JAX's solve makes none where its right-hand side has
        none either, and fails where it should pass on 0.
        """
        read = map(jnp.asarray, jax.tree.leaves(trees.split((self.params, self.x, self.data)).inexact))
        moves = sum((jnp.ravel(leaf)[0].real for leaf in read if leaf.size), start=jnp.zeros(()))
        one = jnp.where(False, moves, 1)
        return lambda v: jax.tree.map(lambda leaf: leaf * one.astype(leaf.dtype), matvec(v))

    def flat(self) -> Array:
        """Curvature that may be zero at the solution: `|g| / |theta|`.

        Along a symmetry of the loss (`theta -> R theta`: factors may be rotated) the curvature is 0 at a
        solution and at most about `|g| / |theta|` near it, of either sign, because `H K theta = K g` for a
        generator `K`.
        """
        size = jnp.maximum(trees.norm(self.params), self.size)  # a solution may lie at 0
        return trees.norm(self.condition(self.params)) / jnp.maximum(size, jnp.finfo(size.dtype).tiny)

    def sampled(self, v: Any, key: Array) -> Any:
        """The Hessian product of the loss on a fresh minibatch, at the step where the point is judged."""
        assert self.problem.inner is not None  # checked by Problem.choose
        ctx = self.problem.inner.context(key, 0, self.ctx.aux)._replace(step=self.ctx.step)
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
        """`linear`, with the code `NOT_STATIONARY` where nothing else is wrong (or only what follows from it)."""
        size = jnp.maximum(trees.norm(self.params), trees.norm(params0))
        symmetric = self.problem.symmetric
        distance = distance_to_stationarity(self.condition, self.params, size, symmetric=symmetric)
        solvable = (linear.code == Code.OK) | (linear.code == Code.SINGULAR)
        unfit = solvable & ~(distance <= tolerance)
        return linear._replace(code=jnp.where(unfit, jnp.int32(Code.NOT_STATIONARY), linear.code))


def distance_to_stationarity(
    stationarity: Callable[[Any], Any],
    params: Any,
    size: Float[Array, ""] | float | None = None,
    *,
    steps: int = 20,
    symmetric: bool = True,
) -> Float[Array, ""]:
    """The Newton step that is left, from below and relative to the size of the parameters; it has no unit.

    With `g = F(params)` and its Jacobian `J`, the Newton step is `J^-1 g`. Symmetric `J`: `steps` iterations
    of conjugate gradients, whose iterates grow towards it (Steihaug, SINUM 1983, theorem 2.1). Unsymmetric `J
    = I - T'`: what `steps` more linearized sweeps `d <- g + T' d` would move, and after them all others at
    the rate of the last two (an estimate, not a bound).

    Args:
      stationarity: `params -> F(params)`, zero at a solution.
      params: where to ask.
      size: what to compare with; None: the norm of `params`.
      steps: products to spend, one Hessian product each.
      symmetric: whether `J` is a Hessian.

    Returns:
      A scalar: 0 at a solution, infinite where the loss curves down along the search or `F` is not finite.

    **Differs from the paper:** no paper; the rule is ours. On a toy WRMF problem (1000 x 300, D = 16, Adam)
    it is 0.3 to 1.1 after 100 steps, 0.3 after 500 and 0.006 after 2000, in agreement with the full Newton
    step.

    >>> float(distance_to_stationarity(lambda p: 3.0 * (p - 1.0), jnp.array([2.0])))
    0.5
    """
    g, along = jax.linearize(stationarity, params)
    norm = trees.norm(g)
    size = jnp.maximum(
        jnp.asarray(trees.norm(params) if size is None else size, norm.dtype), jnp.finfo(norm.dtype).tiny
    )
    if symmetric:  # in units of |g| and |params|: squares of large or small numbers overflow or underflow
        over = lambda tree, by: jax.tree.map(lambda leaf: (leaf / by).astype(leaf.dtype), tree)
        safe = jnp.where(norm > 0, norm, 1)
        left = _newton_by_cg(lambda p: over(along(p), safe / size), over(g, safe), steps)
    else:
        left = _newton_by_sweeps(along, g, steps) / size
    return jnp.where(norm == 0, 0, jnp.where(jnp.isfinite(norm), left, jnp.inf))


def _newton_by_sweeps(product: Callable[[Any], Any], g: Any, steps: int) -> Array:
    """The norm of `sum_{i <= steps} T'^i g`, and of its geometric tail as the last two terms extrapolate it."""

    def sweep(_, carry):
        d, term, _ = carry
        new = jax.tree.map(jnp.subtract, term, product(term))
        return trees.add(d, new), new, trees.norm(term)

    d, term, before = lax.fori_loop(0, steps, sweep, (g, g, trees.norm(g)))
    last = trees.norm(term)
    ratio = jnp.where(before > 0, last / jnp.where(before > 0, before, 1), 0)
    tail = last * ratio / jnp.where(ratio < 1, 1 - ratio, 1)
    return jnp.where(ratio < 1, trees.norm(d) + tail, jnp.inf)


def _newton_by_cg(product: Callable[[Any], Any], g: Any, steps: int) -> Array:
    """The norm of the CG iterate for `J d = g`, `|g| = 1`, infinite where `J` is negative or infinite on the way.

    After the first step, directions in which the curvature is below 1, here that of |g| / |params|, end the search
    without a verdict: near a solution they are symmetries (see `Point.flat`), in which a step changes nothing.
    """
    gamma = trees.dot(g, g)

    def going(carry):
        k, *_, left, halted = carry
        return (k < steps) & (left > 1e-12 * gamma) & ~halted

    def step(carry):
        k, d, r, p, left, _ = carry
        image = product(p)
        curvature, square = trees.dot(p, image), trees.dot(p, p)
        level = jnp.where(k == 0, 0, square)
        halted = ~((curvature > level) & jnp.isfinite(curvature))
        down = halted & (~((curvature >= -level) & jnp.isfinite(curvature)) | (k == 0))
        alpha = jnp.where(halted, jnp.where(down, jnp.inf, 0), left / jnp.where(halted, 1, curvature))
        d = jax.tree.map(lambda a, b: jnp.where(alpha == 0, a, a + alpha.astype(a.dtype) * b), d, p)
        r = jax.tree.map(lambda a, b: a - jnp.where(halted, 0, alpha).astype(a.dtype) * b, r, image)
        now = trees.dot(r, r)
        p = jax.tree.map(lambda a, b: a + (now / left).astype(a.dtype) * b, r, p)
        return k + 1, d, r, p, now, halted

    carry = (0, trees.zeros(g), g, g, gamma, jnp.array(False))
    found = trees.norm(lax.while_loop(going, step, carry)[1])
    return jnp.where(jnp.isnan(found), jnp.inf, found)


def _own(inverse: Callable[[Any], Any]) -> LinearSolver:
    """A structure's own solve as a linear solver: trusted no more than the others, so its residual is verified."""
    run = verified(lambda system: Proposal(inverse(system.b), 1), damping=0.0, rtol=1e-4, definite=True)
    return LinearSolver("structure", {}, run, any_matrix=True)
