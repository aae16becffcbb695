"""The hypergradient by the implicit function theorem, at the point where the inner loop ended.

If `F(theta, x) = 0` defines `theta(x)`, with `F` the gradient of the inner loss (or `theta - T(theta)` for a
fixed point), then with `J = dF/dtheta`

    d theta / d x = -J^-1 dF/dx,      so a cotangent v of theta gives      J' w = v,   x_bar = -(dF/dx)' w:

one linear solve and one mixed product, whatever the length of the loop. It differentiates the *solution*, not
the loop. Where training stopped early the two are different quantities and the number is not to be believed,
so the distance to stationarity is estimated, the solve is verified, and the code says what is wrong.
`influence` is the same at a point that is given, where nothing is trained.

References: Larsen, Hansen, Svarer, Ohlsson, NNSP 1996; Pedregosa, ICML 2016; Koh, Liang, ICML 2017 (influence
functions); Lorraine, Vicol, Duvenaud, AISTATS 2020; Blondel et al., NeurIPS 2022 (any optimality condition).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel import trees
from bilevel.inner import Ctx, Inner, Structure
from bilevel.linear import LinearResult, LinearSolver
from bilevel.linear.solver import check_number
from bilevel.solve import Cotangents, Solve, Wants, is_zero
from bilevel.stationary import Point, Problem
from bilevel.unroll import run_to


def implicit(
    inner: Inner,
    linear_solver: LinearSolver | None = None,
    *,
    objective: Callable[..., Array] | None = None,
    structure: Structure | None = None,
    tolerance: float = 1e-2,
) -> Solve:
    """Differentiate the solution of the inner problem; memory and time of the derivative do not grow with `L`.

    Works under `jit` and `vmap`, in reverse and in forward mode, and to any order. Nothing flows to
    `params0`: a solution does not remember where training began. `jax.grad` returns the number alone,
    `value_and_hypergrad` returns it with its diagnosis.

    Args:
      inner: the loop. Of `gradient_descent` the loss is taken to be stationary where it ends: weight decay
        inside the optimizer (adamw) moves that point, so put it into the loss, or give `objective`.
      linear_solver: how `J' w = v` is solved. None: the structure's own `solve` if it has one, else `cg()`,
        or `gmres()` for a `fixed_point` loop, whose `J = I - dT/dtheta` is not symmetric.
      objective: `(params, x, data, ctx) -> scalar` that is stationary where the loop ends, instead of the
        loop's own condition. For alternating least squares, the loss it minimizes: the system becomes
        symmetric.
      structure: product, blocks or solve of the Hessian of `objective`; None: the loop's own (none for
        `objective`).
      tolerance: largest Newton step left, relative to the size of the parameters, that counts as converged, as
        `bilevel.distance_to_stationarity` estimates it (from below).

    Returns:
      A `Solve`. Its `pull` returns the `LinearResult`, with the code `NOT_STATIONARY` where only that is
      wrong.

    Raises:
      TypeError: `inner` is not an `Inner`, or `linear_solver` not a `LinearSolver`.
      ValueError: a solver that needs symmetry, blocks or batches that the loop does not have; a structure
        for a loop without a loss; a loop whose steps follow no gradient (adversarial training); a bad tolerance.

    Reference: Pedregosa, ICML 2016, eq. 1; Blondel et al., NeurIPS 2022, eq. 2. **Differs from the paper:**
    the stationarity check, the verified residual, the curvature. With `lissa(minibatch=True)` the products
    come from the loop's batches, whose loss must be an unbiased estimate of the full one (a mean over rows,
    not a sum).

    >>> import optax, bilevel
    >>> inner = bilevel.gradient_descent(lambda p, x, data, ctx: (p - x**2) ** 2, optax.sgd(0.25), steps=40)
    >>> solve = implicit(inner)
    >>> float(jax.grad(lambda x: solve(x, jnp.array(0.0), None, jax.random.key(0)))(3.0))
    6.0
    """
    if not isinstance(inner, Inner):
        raise TypeError(
            f"implicit: expected an Inner such as bilevel.gradient_descent(...), got {type(inner).__name__}"
        )
    check_number("implicit", "tolerance", tolerance, low=0, strict=True)
    if structure is not None and objective is None and inner.loss is None:
        raise ValueError(
            "implicit: structure describes the Hessian of a loss, and a fixed_point loop has none; give the loss it "
            "minimizes as objective="
        )
    if objective is None and not inner.structure.gradient:
        raise ValueError(
            f"implicit: the steps of {inner!r} follow a field that is the gradient of no loss (adversarial training "
            "holds its change constant), so that no stationary point defines the solution; differentiate the loop "
            "itself with bilevel.unrolled, truncated or partial, or give the loss it minimizes as objective="
        )
    if structure is None:
        structure = inner.structure if objective is None else Structure()
    problem = Problem(objective or inner.loss, structure, inner)
    solver = problem.choose(linear_solver, "implicit")

    def run(x, params0, data, key, wants: Wants):
        state = run_to(inner, inner.init(params0, x, data, key), x, data, key, 0, inner.steps)
        return state.params, (state.params, trees.norm(params0), state.aux)

    def at(saved, x, data, key):
        params, size, aux = saved
        ctx = inner.final_context(key, aux)
        return Point(problem, params, x, data, ctx, jax.random.fold_in(ctx.key, 1), size)

    def pull(saved, x, params0, data, key, params_bar, wants: Wants, start=None):
        point = at(saved, x, data, key)
        linear = point.judge(point.solve(solver, params_bar, start), tolerance, params0)
        x_bar, data_bar = point.cross(linear.value, wants.data)
        return Cotangents(x_bar, None, data_bar), linear

    label = f"implicit({inner!r}, {'its own solve' if solver is None else repr(solver)})"
    reads = (
        (lambda x, params0, data, key: objective(params0, x, data, inner.final_context(key)),)
        if objective
        else ()
    )
    return Solve(inner, label, run, pull, plain=_plain(run, at, solver), reads=reads)


class Influence(NamedTuple):
    """`effect`: derivative of the scalar in the inexact leaves of `x`; `linear`: the solve behind it."""

    effect: Any
    linear: LinearResult


def influence(
    loss: Callable[..., Array],
    scalar: Callable[..., Array],
    params: Any,
    x: Any,
    data: Any = None,
    *,
    solver: LinearSolver | None = None,
    structure: Structure | None = None,
    ctx: Ctx | None = None,
    tolerance: float = 1e-2,
) -> Influence:
    """How a scalar of the trained parameters answers to the weight, or the content, of each training example.

        effect = d scalar / dx  -  (d2 loss / dtheta dx)' H^-1 d scalar / dtheta

    With `x` the examples' weights in the loss, `effect[z]` is the change of the scalar per unit of weight
    added to example `z`; removing an example of weight 1 changes it by about `-effect[z]`. This is `implicit`
    at a point that is given.

    Args:
      loss: `(params, x, data, ctx) -> scalar`, the training loss with `x` in it.
      scalar: `(params, x, data) -> scalar` whose change is asked for (a score, a gap of two scores, a test
        loss).
      params: parameters at which the loss is stationary in `params`.
      x: weights or contents at which to differentiate, any pytree.
      data: whatever else loss and scalar read.
      solver: how `H w = v` is solved; None: as in `implicit`. `block(where)` restricts the parameters that
        may move (fast influence analysis: one user's own).
      structure: product, blocks or solve of the Hessian of `loss`.
      ctx: context given to the loss; None: step 0, a fixed key, the full batch.
      tolerance: as in `implicit`.

    Returns:
      `Influence(effect, linear)`.

    Raises:
      TypeError, ValueError: as `implicit`.

    Reference: Koh, Liang, ICML 2017, eqs 2 and 5; Tran, Ghazimatin, Saha Roy, SIGIR 2021. **Differs from the
    paper:** sign and scale: the papers ask for removal and divide by n; ours is the derivative in `x`, and a
    mean loss carries its own 1/n. The scalar may read `x` itself.

    >>> loss = lambda p, w, y, ctx: 0.5 * jnp.sum(w * (y - p) ** 2)  # p is the weighted mean of y
    >>> y, w = jnp.array([1.0, 2.0, 6.0]), jnp.ones(3)
    >>> [round(float(e), 3) for e in influence(loss, lambda p, w, y: p, jnp.array(3.0), w, y).effect]
    [-0.667, -0.333, 1.0]
    """
    check_number("influence", "tolerance", tolerance, low=0, strict=True)
    if structure is not None and not structure.gradient:
        raise ValueError(
            "influence: the structure says that the loss has a derivative rule that is not its derivative "
            "(gradient=False), so that no stationary point defines the parameters; give the loss that they minimize"
        )
    ctx = Ctx(jax.random.key(0), jnp.asarray(0)) if ctx is None else ctx
    problem = Problem(loss, structure or Structure(), None)
    solver = problem.choose(solver, "influence")
    halves = trees.split(x)

    def outer(params, inexact):
        return scalar(params, trees.join(inexact, halves.rest), data)

    params_bar, direct = jax.grad(outer, (0, 1))(params, halves.inexact)
    point = Point(problem, params, x, data, ctx, jax.random.fold_in(ctx.key, 1))
    linear = point.judge(point.solve(solver, params_bar), tolerance, params)
    return Influence(trees.add(direct, point.cross(linear.value, False)[0]), linear)


def _plain(run, at, solver):
    """The solution as a function of `x` and `data` with its own derivative, `J params_dot = -(F moved by x and data)`.

    Reverse mode is the transpose of that rule. The rule calls the function itself, so higher derivatives are
    implicit too.
    """

    @jax.custom_jvp
    def solution(varied, held):
        rest, params0, key = held
        x, data = trees.join(varied, rest)
        return run(x, params0, data, key, Wants(False, False, False))[1]

    def rule(primals, tangents):
        varied, (rest, _, key) = primals
        saved = solution(*primals)
        params, still = saved[0], jax.tree.map(_no_tangent, saved[1:])
        moving = [not is_zero(leaf) for leaf in _leaves(tangents[0])]
        if not any(moving):
            return saved, (trees.zeros(params), *still)
        leaves, shape = jax.tree.flatten(varied)
        picked = [leaf for leaf, moves in zip(leaves, moving) if moves]

        def condition(picked):  # differentiated only in what moves: data may be large and is usually held
            left = iter(picked)
            inexact = shape.unflatten([next(left) if moves else leaf for leaf, moves in zip(leaves, moving)])
            return at(saved, *trees.join(inexact, rest), key).condition(params)

        dots = [leaf for leaf, moves in zip(_leaves(tangents[0]), moving) if moves]
        pushed = jax.jvp(condition, (picked,), (dots,))[1]
        # A leaf that nothing moves (real users of a factor model, whose rows see no fake click) is a constant 0, which
        # JAX's transposed solve does not take: every leaf is made linear in what moves.
        nothing = sum(0 * jnp.sum(leaf) for leaf in dots)
        pushed = jax.tree.map(lambda leaf: leaf + jnp.asarray(nothing, leaf.dtype), pushed)
        point = at(saved, *trees.join(varied, rest), key)
        dot = point.solve(solver, jax.tree.map(jnp.negative, pushed), forward=True).value
        return saved, (dot, *still)

    solution.defjvp(rule, symbolic_zeros=True)

    def plain(x, params0, data, key):
        halves = trees.split((x, data))
        return solution(halves.inexact, (halves.rest, params0, key))[0]

    return plain


def _leaves(tangents: Any) -> list[Any]:
    return jax.tree.leaves(tangents, is_leaf=is_zero)


def _no_tangent(leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if trees.is_inexact(leaf) else np.zeros(jnp.shape(leaf), jax.dtypes.float0)
