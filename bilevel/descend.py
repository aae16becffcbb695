"""The outer loop of a bilevel problem as a pair of pure functions: projected descent with momentum and
best-so-far.

RevAdv's Algorithm 1 (Tang, Wen, Wang, RecSys 2020), from the gradient on:

    g <- d L_adv / d x;  g[frozen] <- 0;  g <- g / max(||g_row||, 1e-12)          (rows: optional)
    keep x if its score is the best so far
    velocity <- momentum * velocity + g;  x <- Proj(x - eta * velocity)

`init` and `step` are to the outer problem what an optax optimizer is to the inner one; the state is a pytree,
so a `lax.scan`, a `vmap` over attackers and a snapshot in the middle of a run need nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree

from bilevel import trees

Project = Callable[[Any], Any]


class DescendState(NamedTuple):
    """What is carried from one outer step to the next.

    Arguments:
        x: the current iterate, the next one to be scored.
        opt: the optimizer's state (the velocity).
        step: number of iterates scored and left, t.
        best_x: the scored iterate with the best score, x0 before any.
        best_score: its score, -inf before any.
        best_step: its number, -1 before any.
        failed: whether a gradient or a step was not finite; then the state no longer moves and `step` says
            where.
    """

    x: PyTree
    opt: PyTree
    step: Int[Array, ""]
    best_x: PyTree
    best_score: Float[Array, ""]
    best_step: Int[Array, ""]
    failed: Bool[Array, ""]


@dataclass(frozen=True, eq=False)
class Descend:
    """Projected descent as a value: `init(x0)`, then `step(state, gradient, score)`; made by `descend`.

    Arguments:
        optimizer: any optax optimizer; its updates are added to x.
        normalize_rows: whether each row of the gradient (last axis) is divided by its norm.
        project: the projection after every step, or None.
    """

    optimizer: optax.GradientTransformation
    normalize_rows: bool
    project: Project | None

    def init(self, x0: PyTree) -> DescendState:
        """The state at iterate 0, which is `x0` as it is: make it feasible first, it may be the best one.

        `x` and `best_x` are arrays of their own, so that a jitted step may be given the state's memory
        (`donate_argnums`).
        """
        x = jax.tree.map(_strong_float, x0)
        if self.normalize_rows and any(leaf.ndim == 0 for leaf in jax.tree.leaves(x)):
            raise ValueError(
                "descend: normalize_rows needs leaves with rows, got a scalar; reshape it to (1,)"
            )
        zero = jnp.zeros((), jnp.int32)
        lowest = jnp.full((), -jnp.inf, jnp.result_type(float))  # a dtype: without, the scan's carry is weak
        best, never = jax.tree.map(jnp.copy, x), jnp.zeros((), bool)
        return DescendState(x, self.optimizer.init(x), zero, best, lowest, zero - 1, never)

    def step(
        self,
        state: DescendState,
        gradient: PyTree,
        score: Float[Array, ""] | float,
        *,
        project: Project | None = None,
        frozen: Any = None,
    ) -> DescendState:
        """Score the iterate in `state`, then move to the next one.

        Arguments:
            state: from `init` or the last step; `score` and `gradient` belong to `state.x`.
            gradient: of the loss to be minimized, like x.
            score: of `state.x`, higher is better; the best so far is replaced only by a strictly better one.
            project: replaces the projection given to `descend` (for one that depends on traced targets).
            frozen: bool, broadcastable to x (or a tree of such, like x): where the gradient is set to zero
                before the rows are normalized. The projection still acts there.

        Where the gradient or the unprojected next iterate is not finite, nothing moves any more and `failed` is
        set for good; the score of that iterate still counts (a backward pass can overflow where the training did
        not), unless it is NaN.
        """
        gradient = _conform(gradient, state.x)
        if frozen is not None:
            gradient = jax.tree.map(_freeze, _like(frozen, gradient), gradient)
        finite = trees.all_finite(gradient)
        if self.normalize_rows:
            gradient = jax.tree.map(normalize_rows, gradient)
        updates, opt = self.optimizer.update(gradient, state.opt, state.x)
        moved = jax.tree.map(lambda x, u: (x + u).astype(x.dtype), state.x, updates)
        failed = state.failed | ~finite | ~trees.all_finite(moved)
        project = project if project is not None else self.project
        x = moved if project is None else _conform(jax.tree.map(project, moved), state.x)

        score = jnp.asarray(score, state.best_score.dtype)
        better = score > state.best_score
        judged = state._replace(
            best_x=_where(better, state.x, state.best_x),
            best_score=jnp.where(better, score, state.best_score),
            best_step=jnp.where(better, state.step, state.best_step),
            failed=failed,
        )
        stopped = _where(state.failed, state, judged)
        return _where(failed, stopped, judged._replace(x=x, opt=opt, step=state.step + 1))


def descend(
    learning_rate: float | Float[Array, ""] | optax.Schedule | None = None,
    *,
    momentum: float = 0.0,
    optimizer: optax.GradientTransformation | None = None,
    normalize_rows: bool = False,
    project: Project | None = None,
) -> Descend:
    """Projected descent with classic momentum, or with any optax optimizer.

    `velocity <- momentum * velocity + g`, `x <- Proj(x - learning_rate * velocity)`; the iterates 0..T-1 are
    scored, the last update never is.

    Arguments:
        learning_rate: eta > 0, a number (may be traced) or an optax schedule; 1 in RevAdv.
        momentum: in [0, 1); 0.95 to 0.99 in RevAdv.
        optimizer: in place of `learning_rate` and `momentum`.
        normalize_rows: divide each row of the gradient (last axis) by `max(||row||_2, 1e-12)`.
        project: applied to every leaf of x after each step, for instance `bilevel.threshold(0.2)`; `step` can
            replace it.

    Raises `ValueError` for a bad rate or momentum, or where a rate and an optimizer are both given or missing.

    Reference: Tang, Wen, Wang, RecSys 2020, Alg. 1. **Differs from the paper:** the printed algorithm has neither
    momentum nor normalized rows, the released code has both; that code divides a vanishing row by zero, and
    starts the best score at 0, so that a run which never scores above 0 returns nothing: here -inf.

    >>> outer = descend(0.5, momentum=0.9)
    >>> state = outer.init(jnp.array([1.0, -2.0]))
    >>> for _ in range(2):
    ...     state = outer.step(state, gradient=state.x, score=-jnp.sum(state.x**2))
    >>> state.x, state.best_x, int(state.best_step)
    (Array([-0.2,  0.4], dtype=float32), Array([ 0.5, -1. ], dtype=float32), 1)
    """
    if optimizer is None:
        optimizer = _momentum(learning_rate, momentum)
    elif learning_rate is not None or momentum != 0:
        raise ValueError(
            "descend: learning_rate and momentum have no effect on a given optimizer; build them into it"
        )
    return Descend(optimizer, normalize_rows, project)


def _momentum(learning_rate: Any, momentum: float) -> optax.GradientTransformation:
    if learning_rate is None:
        raise ValueError("descend: give a learning_rate (and a momentum), or an optimizer")
    if not isinstance(momentum, Tracer) and not 0 <= momentum < 1:
        raise ValueError(f"descend: momentum must be in [0, 1), got {momentum!r}")
    rate: Any = learning_rate
    if not (callable(rate) or isinstance(rate, Tracer)) and not 0 < rate < math.inf:
        raise ValueError(f"descend: learning_rate must be a finite number > 0, got {rate!r}")
    return optax.sgd(learning_rate, momentum=momentum)


def normalize_rows(gradient: Float[Array, "*rows I"]) -> Float[Array, "*rows I"]:
    """Divide each row (last axis) by its norm: `g / max(||g||_2, 1e-12)`; a zero row stays zero.

    The norm is taken of `g / max|g|`, so that rows of tiny or huge numbers do not under- or overflow in
    float32.

    >>> normalize_rows(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([[0.6, 0.8], [0. , 0. ]], dtype=float32)
    """
    top = jnp.max(jnp.abs(gradient), axis=-1, keepdims=True)
    scaled = gradient / jnp.where(top > 0, top, 1)
    norm = top * jnp.linalg.norm(scaled, axis=-1, keepdims=True)
    return gradient / jnp.maximum(norm, 1e-12)


def _strong_float(leaf: Any) -> Array:
    """As a float array without weak type, which a scan's carry would change."""
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(f"descend: the upper variable must be floating, got a leaf of {leaf.dtype}")
    return jax.lax.convert_element_type(leaf, leaf.dtype)


def _conform(tree: PyTree, x: PyTree) -> PyTree:
    """`tree` in the dtypes of `x`; an error where structure or shapes differ (broadcasting would hide it)."""
    if jax.tree.structure(tree) != jax.tree.structure(x):
        raise ValueError(
            f"descend: expected a tree like x, {jax.tree.structure(x)}, got {jax.tree.structure(tree)}"
        )

    def leaf(value: Any, like: Array) -> Array:
        if jnp.shape(value) != like.shape:
            raise ValueError(f"descend: expected shape {like.shape} (that of x), got {jnp.shape(value)}")
        return jnp.asarray(value, like.dtype)

    return jax.tree.map(leaf, tree, x)


def _freeze(mask: Any, gradient: Array) -> Array:
    shape = jnp.shape(mask)
    fits = all(m in (1, g) for m, g in zip(shape[::-1], gradient.shape[::-1])) and len(shape) <= gradient.ndim
    if not fits:
        raise ValueError(f"descend: frozen must broadcast to {gradient.shape} (that of x), got {shape}")
    return jnp.where(mask, 0, gradient)


def _like(frozen: Any, gradient: PyTree) -> PyTree:
    """A mask for every leaf: the tree given, or one mask for all."""
    if jax.tree.structure(frozen) == jax.tree.structure(gradient):
        return frozen
    return jax.tree.map(lambda _: frozen, gradient)


def _where(condition: Array, yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
