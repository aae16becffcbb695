"""Conjugate gradients as a lineax solver that remembers what it saw: the curvature along every search direction.

Hestenes, Stiefel, J. Res. Nat. Bur. Standards 1952. With search directions P, `P' A P` is diagonal, and by
Sylvester's law its signs are those of `A` on the space that was searched. So one negative `p' A p` proves `A`
indefinite, and costs nothing: the number is there already. lineax's own `CG` (0.1) does not return it; it
also stops with NaN where a Rayleigh quotient is below `200 eps n`, an absolute number that exceeds 1 in
float32 at n = 1e5, and wants small updates entry by entry next to a small residual. Here the residual alone
decides.
"""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax

from bilevel import trees

_PHASES = 3


class TrackedCG(lx.AbstractLinearSolver):
    """Preconditioned conjugate gradients; `stats` adds the curvature met and the recomputed `rest = b - A y`.

    `smallest` is the smallest Rayleigh quotient of a direction, `largest` the largest `|A p| / |p|`.

    Stops where `|A y - b| <= max(rtol |b|, atol)` holds for the *recomputed* residual: where rounding let the recursion
    drift, it starts again from the point reached, at most twice. Returns the iterate of the smallest
    residual, so that a diverging solve stays harmless.

    Options: `y0`, `preconditioner` (positive definite), as `lineax.CG`.
    """

    max_steps: int
    rtol: float = 0.0
    atol: float = 0.0

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> lx.AbstractLinearOperator:
        """Part of lineax's protocol: nothing is prepared."""
        del options
        return operator

    def compute(self, state: lx.AbstractLinearOperator, vector: Any, options: dict[str, Any]):
        """Part of lineax's protocol: `(solution, result, stats)`."""
        inverse = options["preconditioner"].mv if "preconditioner" in options else lambda r: r
        limit = jnp.maximum(self.rtol * trees.norm(vector), self.atol)

        def residual(y):
            return jax.tree.map(jnp.subtract, vector, state.mv(y))

        def searching(carry):
            _, r, phase, steps, *_, alive = carry
            return (trees.norm(r) > limit) & (phase < _PHASES) & (steps < self.max_steps) & alive

        def search(carry):
            y, r, phase, steps, smallest, largest, _ = carry
            found, steps, smallest, largest, alive = self._search(
                state.mv, inverse, limit, y, r, steps, smallest, largest
            )
            left = residual(found)
            better = trees.norm(left) < trees.norm(r)
            y, r = jax.tree.map(lambda new, old: jnp.where(better, new, old), (found, left), (y, r))
            return y, r, phase + 1, steps, smallest, largest, alive & better

        infinite = jnp.full_like(limit, jnp.inf)
        start = options.get("y0")
        begin = (trees.zeros(vector), vector) if start is None else (start, residual(start))
        carry = (*begin, 0, 0, infinite, jnp.zeros_like(limit), jnp.array(True))
        y, r, _, steps, smallest, largest, alive = lax.while_loop(searching, search, carry)
        stopped = lx.RESULTS.where(alive, lx.RESULTS.max_steps_reached, lx.RESULTS.breakdown)
        result = lx.RESULTS.where(trees.norm(r) <= limit, lx.RESULTS.successful, stopped)
        stats = {"num_steps": steps, "max_steps": self.max_steps, "smallest": smallest, "largest": largest}
        return y, result, {**stats, "rest": r}

    def _search(self, matvec, inverse, limit, y, r, steps, smallest, largest):
        """One run of the recursion from `y` with residual `r`."""

        def going(carry):
            _, r, _, gamma, steps, *_, alive = carry
            return (trees.norm(r) > limit) & (gamma > 0) & (steps < self.max_steps) & alive

        def step(carry):
            y, r, p, gamma, steps, smallest, largest, best, best_size, _ = carry
            image = matvec(p)
            curvature, square = trees.dot(p, image), trees.dot(p, p)
            alive = jnp.isfinite(curvature) & (curvature != 0) & (square > 0)
            alpha = jnp.where(alive, gamma / jnp.where(alive, curvature, 1), 0)
            y, r = _plus(y, alpha, p), _plus(r, -alpha, image)
            size = trees.norm(r)
            best = jax.tree.map(lambda old, new: jnp.where(size < best_size, new, old), best, y)
            z = inverse(r)
            new_gamma = trees.dot(r, z)
            p = _plus(z, new_gamma / gamma, p)
            quotient = jnp.where(square > 0, curvature / jnp.where(square > 0, square, 1), jnp.inf)
            top = jnp.where(square > 0, trees.norm(image) / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
            seen = (jnp.fmin(smallest, quotient), jnp.fmax(largest, top))
            return y, r, p, new_gamma, steps + 1, *seen, best, jnp.fmin(size, best_size), alive

        z = inverse(r)
        carry = (y, r, z, trees.dot(r, z), steps, smallest, largest, y, trees.norm(r), jnp.array(True))
        *_, steps, smallest, largest, best, _, alive = lax.while_loop(going, step, carry)
        return best, steps, smallest, largest, alive

    def transpose(self, state: lx.AbstractLinearOperator, options: dict[str, Any]):
        """Part of lineax's protocol: the operator is symmetric."""
        return state, options

    def conj(self, state: lx.AbstractLinearOperator, options: dict[str, Any]):
        """Part of lineax's protocol: the operator is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """Part of lineax's protocol."""
        return True


def _plus(y: Any, alpha: Any, p: Any) -> Any:
    return jax.tree.map(lambda a, d: a + jnp.asarray(alpha, a.dtype) * d, y, p)
