"""Projections of the upper variable: what an outer step may leave behind.

A projection maps an array to the nearest (or the prescribed) feasible one, row by row along the last axis.
They are values: build one with a factory, call it, `jit` it, `vmap` it, hand it to `bilevel.descend`. Columns
and popularity may be traced, so that one compiled attack serves many target sets.

Budgets and thresholds follow RevAdv (Tang, Wen, Wang, RecSys 2020, Alg. 1) and RAPU-G (Zhang et al., KDD
2021, Alg. 2); the simplex follows Duchi, Shalev-Shwartz, Singer, Chandra (ICML 2008, Fig. 1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

Columns = Int[Array, " T"] | Bool[Array, " I"] | np.ndarray | list[int] | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Projection:
    """A map from an array to a feasible array of the same shape and dtype; callable.

    Arguments:
        name: the factory's name.
        config: the factory's arguments, for records and `repr`.
        apply: the map itself, `(..., I) -> (..., I)`.

    >>> threshold(0.2)
    threshold(rho=0.2, strict=True)
    """

    name: str
    config: Mapping[str, Any]
    apply: Callable[[Array], Array]

    def __call__(self, x: Float[Array, "*rows I"]) -> Float[Array, "*rows I"]:
        """Project `x`; raises `TypeError` unless it is a float array."""
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"{self.name}: expected a float array, got {x.dtype}; convert it, as by x.astype('float32')"
            )
        return self.apply(x)

    def __repr__(self) -> str:
        inside = ", ".join(
            f"{key}={_brief(value)}" for key, value in self.config.items() if value is not None
        )
        return f"{self.name}({inside})"


def chain(*projections: Projection) -> Projection:
    """Apply projections from left to right: `chain(f, g)(x) = g(f(x))`.

    The result of a chain lies in the *last* set; it lies in the intersection only if the later maps keep the
    earlier sets, and it is in general not the nearest point of the intersection.

    >>> chain(threshold(0.5), set_columns([2]))(jnp.array([0.6, 0.4, 0.0]))
    Array([1., 0., 1.], dtype=float32)
    """
    for item in projections:
        if not callable(item):
            raise TypeError(f"chain: expected projections (callables), got {item!r}")

    def apply(x: Array) -> Array:
        for item in projections:
            x = item(x)
        return x

    return Projection("chain", {str(n): item for n, item in enumerate(projections)}, apply)


def threshold(rho: float, *, strict: bool = True) -> Projection:
    """Binarize: `y = 1[x > rho]` (`strict`), else `1[x >= rho]`.

    Arguments:
        rho: the threshold; RevAdv uses 0.05 to 0.2.
        strict: `>` as RevAdv's released code, otherwise `>=` as its text. They differ only where `x == rho`
            in the dtype of `x`.

    There is no budget: the number of ones is whatever passes `rho`.

    Reference: Tang, Wen, Wang, RecSys 2020, Alg. 1. **Differs from the paper:** strict by default, as its code.

    >>> threshold(0.5, strict=False)(jnp.array([0.4, 0.5, 0.6]))
    Array([0., 1., 1.], dtype=float32)
    """
    _number("threshold", "rho", rho)

    def apply(x: Array) -> Array:
        limit = jnp.asarray(rho, x.dtype)
        return (x > limit if strict else x >= limit).astype(x.dtype)

    return Projection("threshold", {"rho": rho, "strict": strict}, apply)


def topk(
    budget: int,
    *,
    popularity: Float[Array, " I"] | None = None,
    beta: float = 1.0,
    forced: Columns | None = None,
    exclude: Columns | None = None,
) -> Projection:
    """Keep the best `budget` cells of each row, and the forced columns, as ones; the rest is zero.

    `y = 1[cell in top-B of x + beta c / max(c)]`: exactly B cells of a row are chosen among those neither forced
    nor excluded; among equal scores the lower index wins; NaN counts as the lowest score. Forced columns are
    then set to 1 and are not counted in the budget, so a row sums to `budget + |forced|`.

    Arguments:
        budget: B, clicks per row beside the forced ones; 0 <= B <= I - |forced or excluded|.
        popularity: (I,) item counts c >= 0, may be traced; RAPU's smoothing. None: no smoothing. All zero: no
            effect.
        beta: weight of the smoothing; 1 in RAPU. A large beta returns the B most popular items in every row.
        forced: columns that are always 1 (targets): int ids (T,), -1 is padding, or a bool mask (I,). May be
            traced.
        exclude: columns that are always 0, in the same form. A column both forced and excluded is forced.

    Raises `ValueError` for a bad budget, and for ids out of range where they are concrete; under a trace ids
    out of range are ignored, and a row with fewer than B allowed cells gets them all.

    Reference: Zhang et al., KDD 2021, Alg. 2. **Differs from the paper:** the top B of the non-targets,
    and then the targets; the printed top-(B+|T|) before the targets are set leaves B+|T| to B+2|T| clicks.

    >>> topk(1, forced=[3])(jnp.array([[0.1, 0.9, 0.9, 0.3]]))
    Array([[0., 1., 0., 1.]], dtype=float32)
    """
    if isinstance(budget, bool) or not isinstance(budget, int | np.integer) or budget < 0:
        raise ValueError(f"topk: budget must be an integer >= 0 (clicks per row), got {budget!r}")
    _number("topk", "beta", beta)
    if _concrete(popularity) and popularity is not None:
        counts = np.asarray(popularity)
        if not (np.isfinite(counts) & (counts >= 0)).all():
            raise ValueError("topk: popularity must be finite counts >= 0")

    def apply(x: Array) -> Array:
        items = x.shape[-1]
        always, never = _mask(forced, items, "forced"), _mask(exclude, items, "exclude")
        closed = always | never
        _check_budget(budget, closed, items)
        scores = x if popularity is None else x + beta * _relative(popularity, x)
        scores = jnp.where(scores == 0, 0, scores)  # -0.0 sorts below 0.0, but it is a tie
        # A closed cell must lose against every open one, whatever that holds: -inf is its alone.
        lowest = jnp.finfo(scores.dtype).min
        scores = jnp.maximum(jnp.where(jnp.isnan(scores), lowest, scores), lowest)
        best, index = lax.top_k(jnp.where(closed, -jnp.inf, scores), budget)
        chosen = (best > -jnp.inf).astype(x.dtype)
        ones = jnp.put_along_axis(jnp.zeros_like(x), index, chosen, axis=-1, inplace=False)
        return jnp.where(always, jnp.ones_like(x), ones)

    config = {
        "budget": int(budget),
        "popularity": popularity,
        "beta": beta if popularity is not None else None,
    }
    return Projection("topk", config | {"forced": forced, "exclude": exclude}, apply)


def set_columns(columns: Columns, value: float = 1.0) -> Projection:
    """Set columns to a value: `y[..., columns] = value`, the rest unchanged.

    After a threshold this is RevAdv's `click_targets`.

    Arguments:
        columns: as `forced` in `topk`.
        value: any number.

    >>> set_columns([0, -1])(jnp.array([0.0, 0.0, 0.5]))
    Array([1. , 0. , 0.5], dtype=float32)
    """

    def apply(x: Array) -> Array:
        return jnp.where(_mask(columns, x.shape[-1], "columns"), jnp.asarray(value, x.dtype), x)

    return Projection("set_columns", {"columns": columns, "value": value}, apply)


def box(low: float | Array = 0.0, high: float | Array = 1.0) -> Projection:
    """The nearest point with `low <= y <= high`: `y = min(max(x, low), high)`.

    Arguments:
        low, high: numbers or arrays that broadcast to `x`; may be infinite, may be traced.

    Raises `ValueError` where low > high.

    >>> box(0.0, 5.0)(jnp.array([-1.0, 2.0, 7.0]))
    Array([0., 2., 5.], dtype=float32)
    """
    if _concrete(low, high) and not np.all(np.asarray(low) <= np.asarray(high)):
        raise ValueError(f"box: expected low <= high everywhere, got low={_brief(low)}, high={_brief(high)}")

    def apply(x: Array) -> Array:
        return jnp.clip(x, jnp.asarray(low, x.dtype), jnp.asarray(high, x.dtype))

    return Projection("box", {"low": low, "high": high}, apply)


def simplex(radius: float = 1.0) -> Projection:
    """The nearest point of each row with `y >= 0` and `sum(y) = radius`, exactly, by sorting: O(I log I).

    With `u` the row sorted in descending order, `k = max{j : u_j > (sum_{i<=j} u_i - radius) / j}` and
    `theta = (sum_{i<=k} u_i - radius) / k`: `y = max(x - theta, 0)`.

    Arguments:
        radius: > 0. The rows must be finite.

    Reference: Duchi et al., ICML 2008, Fig. 1. **Differs from the paper:** the row's maximum is subtracted
    first (the projection does not change), which keeps the running sums small in float32.

    >>> simplex(1.0)(jnp.array([0.5, 0.5, -3.0]))
    Array([0.5, 0.5, 0. ], dtype=float32)
    """
    _positive("simplex", "radius", radius)

    def apply(x: Array) -> Array:
        x = x - x.max(axis=-1, keepdims=True)
        ordered = -jnp.sort(-x, axis=-1)
        theta = (jnp.cumsum(ordered, axis=-1) - radius) / jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)
        last = jnp.sum(ordered > theta, axis=-1, keepdims=True) - 1
        return jnp.maximum(x - jnp.take_along_axis(theta, last, axis=-1), 0)

    return Projection("simplex", {"radius": radius}, apply)


def l1_ball(radius: float = 1.0) -> Projection:
    """The nearest point of each row with `sum |y| <= radius`.

    `y = x` where x is inside, else `y = sign(x) * simplex(radius)(|x|)`.

    Arguments:
        radius: > 0. The rows must be finite.

    Reference: Duchi et al., ICML 2008, Fig. 2. **Differs from the paper:** nothing.

    >>> l1_ball(1.0)(jnp.array([3.0, -0.5]))
    Array([ 1., -0.], dtype=float32)
    """
    _positive("l1_ball", "radius", radius)
    onto = simplex(radius)

    def apply(x: Array) -> Array:
        size = jnp.abs(x)
        return jnp.where(size.sum(axis=-1, keepdims=True) <= radius, x, jnp.sign(x) * onto(size))

    return Projection("l1_ball", {"radius": radius}, apply)


def column_mask(columns: Columns | None, items: int, *, name: str = "columns") -> Bool[Array, " I"]:
    """The columns as a mask: `mask[i] = i in columns`.

    Arguments:
        columns: int ids (T,), -1 is padding; or a bool mask (I,); or None (nothing).
        items: I.
        name: what errors call the argument.

    Raises `ValueError` for a mask of another length or a concrete id outside [-1, I); traced ids outside are
    ignored.

    >>> column_mask([2, -1], 4)
    Array([False, False,  True, False], dtype=bool)
    """
    return jnp.asarray(_mask(columns, items, name))


def _mask(columns: Columns | None, items: int, name: str) -> np.ndarray | Array:
    """The mask, on the host (numpy) where the columns are concrete: then it can be counted inside a trace."""
    if columns is None:
        return np.zeros(items, bool)
    if not isinstance(columns, Tracer):
        columns = np.asarray(columns)
        columns = columns if columns.size else columns.astype(np.int32)
    if columns.dtype == bool:
        if columns.shape != (items,):
            raise ValueError(f"{name}: a mask has one entry per column, ({items},), got {columns.shape}")
        return columns
    if not jnp.issubdtype(columns.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integer ids or a bool mask, got {columns.dtype}")
    if columns.ndim != 1:
        raise ValueError(f"{name}: expected ids (T,) or a mask ({items},), got shape {columns.shape}")
    if isinstance(columns, np.ndarray):
        outside = columns[(columns < -1) | (columns >= items)]
        if outside.size:
            raise ValueError(
                f"{name}: ids must be in [0, {items}), or -1 (padding); got {outside[:5].tolist()}"
            )
    # Compared, not scattered: a scatter would wrap the padding -1 to the last column.
    return (columns[:, None] == np.arange(items)).any(axis=0)


def _relative(popularity: Any, x: Array) -> Array:
    counts = jnp.asarray(popularity, x.dtype)
    if counts.shape != x.shape[-1:]:
        raise ValueError(
            f"topk: popularity must be ({x.shape[-1]},), one count per column, got {counts.shape}"
        )
    top = counts.max()
    return jnp.where(top > 0, counts / jnp.where(top > 0, top, 1), 0)


def _check_budget(budget: int, closed: np.ndarray | Array, items: int) -> None:
    room = items - int(closed.sum()) if isinstance(closed, np.ndarray) else items
    if budget > room:
        raise ValueError(
            f"topk: budget {budget} does not fit, {room} of {items} columns are neither forced nor excluded"
        )


def _number(where: str, name: str, value: Any) -> None:
    if _concrete(value) and not np.isfinite(value):
        raise ValueError(f"{where}: {name} must be a finite number, got {value!r}")


def _positive(where: str, name: str, value: Any) -> None:
    if _concrete(value) and not (np.isfinite(value) and value > 0):
        raise ValueError(f"{where}: {name} must be a finite number > 0, got {value!r}")


def _concrete(*values: Any) -> bool:
    return not any(isinstance(value, Tracer) for value in values)


def _brief(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value) if not shape else f"{value.dtype}{list(shape)}"
