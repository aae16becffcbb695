"""The hypergradient with its diagnosis: what an estimator returned, and whether to believe it.

    value, grad = outer(theta_L(x), x, data),   d outer / d x + (d theta_L / d x)^T d outer / d theta

`value_and_hypergrad(outer, solve)` evaluates both with one forward pass and adds the norm of the inner
gradient at the returned point, the residual and the curvature of the linear solve where there is one, and a
result code that never says OK when it is not. What is carried from one outer step to the next (warm-started
parameters, a warm-started linear solve) is explicit state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel import trees
from bilevel.linear import Code
from bilevel.solve import Solve, Wants, check_closure


class Diagnosis(NamedTuple):
    """Whether to believe a hypergradient.

    Attributes:
      gradient_norm: norm of the inner gradient (for a fixed point: of `params - update(params)`) at the
        returned parameters.
      residual: relative residual of the linear solve; NaN where the estimator solves none.
      negative_curvature: smallest Rayleigh quotient seen by the linear solve (negative: indefinite); NaN if
        none.
      iterations: iterations of the linear solve; 0 if none.
      code: a `bilevel.Code`; `Code.OK` only where the estimate is what its name says.
    """

    gradient_norm: Float[Array, ""]
    residual: Float[Array, ""]
    negative_curvature: Float[Array, ""]
    iterations: Int[Array, ""]
    code: Int[Array, ""]


class Hypergrad(NamedTuple):
    """Outer value, hypergradient in `x` (None at integer leaves), trained parameters, diagnosis."""

    value: Float[Array, ""]
    grad: Any
    params: Any
    diagnosis: Diagnosis


class Warm(NamedTuple):
    """What one outer step leaves to the next: trained parameters, the last linear solution (None if none)."""

    params: Any
    linear: Any


@dataclass(frozen=True, eq=False, repr=False)
class ValueAndHypergrad:
    """Made by `value_and_hypergrad`. Call it, or carry a warm start through `init` and `update`."""

    outer: Callable[..., Any]
    solve: Solve
    warm_params: bool
    warm_linear: bool

    def __repr__(self) -> str:
        return f"value_and_hypergrad({self.solve!r})"

    def __call__(self, x: Any, params0: Any, data: Any, key: Array) -> Hypergrad:
        """Train from `params0`, then differentiate: no memory of earlier calls."""
        return self._estimate(x, params0, data, key, None)[0]

    def init(self, x: Any, params0: Any, data: Any) -> Warm:
        """The state before the first outer step: start at `params0`, and at 0 in the linear solve."""
        return Warm(params0, trees.zeros(params0) if self.warm_linear else None)

    def update(self, state: Warm, x: Any, params0: Any, data: Any, key: Array) -> tuple[Hypergrad, Warm]:
        """One outer step: the estimate, and the state for the next one.

        Starts from the carried parameters if `warm_params`, else from `params0`; a failed linear solve is not
        carried on.
        """
        start = state.params if self.warm_params else params0
        estimate, linear = self._estimate(x, start, data, key, state.linear if self.warm_linear else None)
        if self.warm_linear and linear is not None:
            usable = jnp.array([Code.OK, Code.NOT_STATIONARY, Code.NOT_CONVERGED], jnp.int32)
            good = trees.all_finite(linear.value) & jnp.any(linear.code == usable)
            linear = jax.tree.map(lambda new, old: jnp.where(good, new, old), linear.value, state.linear)
        else:
            linear = state.linear
        return estimate, Warm(estimate.params, linear)

    def _estimate(self, x, params0, data, key, start):
        inner, wants = self.solve.inner, Wants(x=True, params0=False, data=False)
        check_closure(inner, x, params0, data, key, self.solve.reads)
        params, saved = self.solve.run(x, params0, data, key, wants)
        halves = trees.split(x)
        outer = lambda params, inexact: self.outer(params, trees.join(inexact, halves.rest), data)
        value, (params_bar, direct) = jax.value_and_grad(outer, (0, 1))(params, halves.inexact)
        bars, linear = self.solve.pull(saved, x, params0, data, key, params_bar, wants, start)
        grad = trees.add(direct, trees.split(bars.x).inexact)
        slope = inner.stationarity(params, x, data, inner.final_context(key, saved[-1]))
        return Hypergrad(value, grad, params, _diagnose(value, grad, trees.norm(slope), linear)), linear


def value_and_hypergrad(
    outer: Callable[..., Array], solve: Solve, *, warm_params: bool = False, warm_linear: bool = False
) -> ValueAndHypergrad:
    """The outer loss, its hypergradient and a diagnosis, as `jax.value_and_grad` would give the first two.

    Args:
      outer: `outer(params, x, data) -> scalar`.
      solve: an estimator: `unrolled`, `truncated`, `one_step`, `implicit`, `detached`.
      warm_params: in `update`, start the inner loop where the last one ended.
      warm_linear: in `update`, start the linear solve of `implicit` from its last solution.

    Returns:
      a function `(x, params0, data, key) -> Hypergrad`, with `init` and `update` for warm starts.

    Raises:
      TypeError: `solve` is not an estimator, or `outer` is not callable.

    **Differs from the paper:** the diagnosis; no paper of the five reports whether its inner problem was
    solved.

    >>> import optax, bilevel
    >>> inner = bilevel.gradient_descent(lambda p, x, data, ctx: (p - x) ** 2, optax.sgd(0.25), steps=30)
    >>> hypergrad = value_and_hypergrad(lambda p, x, data: p**2, bilevel.unrolled(inner))
    >>> estimate = hypergrad(jnp.array(3.0), jnp.array(0.0), None, jax.random.key(0))
    >>> round(float(estimate.grad), 3), bilevel.Code(int(estimate.diagnosis.code)).name
    (6.0, 'OK')
    """
    if not isinstance(solve, Solve):
        raise TypeError(
            "value_and_hypergrad: solve must be an estimator such as bilevel.unrolled(inner), "
            f"got {type(solve).__name__}"
        )
    if not callable(outer):
        raise TypeError(
            f"value_and_hypergrad: outer must be a function (params, x, data) -> scalar, got {type(outer).__name__}"
        )
    return ValueAndHypergrad(outer, solve, warm_params, warm_linear)


def _diagnose(value, grad, gradient_norm, linear) -> Diagnosis:
    finite = jnp.isfinite(value) & trees.all_finite(grad)
    if linear is None:
        nan = jnp.full((), jnp.nan, gradient_norm.dtype)
        code, residual, curvature, iterations = jnp.int32(Code.OK), nan, nan, jnp.int32(0)
    else:
        code, residual, curvature, iterations = (
            linear.code,
            linear.residual,
            linear.negative_curvature,
            linear.iterations,
        )
    code = jnp.where(finite, code, jnp.int32(Code.NON_FINITE))
    return Diagnosis(gradient_norm, residual, curvature, jnp.asarray(iterations, jnp.int32), code)
