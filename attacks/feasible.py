"""The feasible set of click profiles: which rows a fake user may have, and the way back into it.

An attack that learns relaxed rows has to leave binary ones within its budget. Tang, Wen, Wang (RecSys 2020) click what
is above a threshold and bound nothing; Zhang et al. (RAPU, KDD 2021) click a fixed number of items. Both are offered,
and a budget, where there is one, always holds.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bilevel.project import column_mask, set_columns, topk
from bilevel.project import threshold as above

Kind = Literal["threshold", "topk"]
Project = Callable[[Float[Array, "F I"], Int[Array, " T"]], Float[Array, "F I"]]


def make_projection(
    kind: Kind, *, threshold: float | None = None, budget: int | None = None, click_targets: bool = False
) -> Project:
    """The projection of relaxed rows onto legal profiles, as a function `(rows, targets) -> binary rows`.

    `"threshold"`: `1[x > rho]`, of which the `budget` highest non-targets stay.
    `"topk"`: `1[x among the row's budget highest non-targets]`, always exactly that many.

    Args:
        kind: `"threshold"` or `"topk"`.
        threshold: rho, finite; default 0.05; for `"threshold"` only.
        budget: non-target clicks of a row, >= 0; `None` (no bound) for `"threshold"` only.
        click_targets: click every target. Otherwise `"threshold"` treats targets like any cell, and `"topk"` clicks a
            target where it is among the row's `budget + T` highest cells.

    Returns:
        A function of rows `(F, I)` and target ids `(T,)`.

    Raises:
        ValueError: unknown kind, a threshold that is not finite or has no use, a missing budget.

    Reference: Tang, Wen, Wang, RecSys 2020, Alg. 1 (threshold); Zhang et al., KDD 2021, Alg. 2 (top-k).

    **Differs from the paper:** RevAdv's text has `>=`, its code and ours `>`; it has no budget.

    >>> project = make_projection("threshold", threshold=0.2, budget=1)
    >>> project(jnp.array([[0.9, 0.1, 0.5, 0.3]]), jnp.array([0])).tolist()
    [[1.0, 0.0, 1.0, 0.0]]
    """
    if kind not in get_args(Kind):
        raise ValueError(f"projection is {kind!r}; expected 'threshold' or 'topk'")
    if kind == "topk":
        if budget is None:
            raise ValueError("projection 'topk' clicks a fixed number of items; give a budget")
        if threshold is not None:
            raise ValueError(f"threshold is {threshold}, but projection 'topk' has none; leave it out")
        clicked = _highest(budget)
    else:
        clicked = _above(_rho(threshold), budget)
    if not click_targets:
        return clicked
    return lambda rows, targets: set_columns(targets)(clicked(rows, targets))


def _rho(threshold: Any) -> float:
    if threshold is None:
        return 0.05
    if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real) or not math.isfinite(threshold):
        raise ValueError(f"threshold is {threshold!r}; expected a finite number")
    return float(threshold)


def _above(rho: float, budget: int | None) -> Project:
    def project(rows: Float[Array, "F I"], targets: Int[Array, " T"]) -> Float[Array, "F I"]:
        clicked = above(rho)(rows)
        if budget is None:
            return clicked
        capped = clicked * topk(budget, exclude=targets)(rows)
        return jnp.where(column_mask(targets, rows.shape[-1]), clicked, capped)

    return project


def _highest(budget: int) -> Project:
    def project(rows: Float[Array, "F I"], targets: Int[Array, " T"]) -> Float[Array, "F I"]:
        # Of the budget + T highest cells at most T are targets, so the budget highest non-targets are among them.
        items = rows.shape[-1]
        overall = topk(min(budget + targets.size, items))(rows)
        return jnp.where(column_mask(targets, items), overall, topk(budget, exclude=targets)(rows))

    return project


def feasible(
    key: Key[Array, ""],
    rows: Float[Array, "F I"],
    targets: Int[Array, " T"],
    *,
    budget: int | None,
    click_targets: bool,
) -> Float[Array, "F I"]:
    """Rows brought within the budget: of too many non-target clicks a random `budget` are kept.

    Args:
        key: decides which clicks stay.
        rows: binary rows, `(F, I)`.
        targets: ids of the targets, `(T,)`.
        budget: non-target clicks a row may have, >= 0; `None` keeps all.
        click_targets: click every target in every row; otherwise the rows' own target clicks stay as they are.

    Returns:
        Binary rows `(F, I)`.

    Reference:
        None: ours.

    **Differs from the paper:** RevAdv has no budget and projects only after its first step; an iterate that is
    scored may be returned, so here the first one is legal too.

    >>> rows = feasible(jax.random.key(0), jnp.ones((1, 6)), jnp.array([4]), budget=2, click_targets=True)
    >>> float(rows.sum()), float(rows[0, 4])
    (3.0, 1.0)
    """
    target = column_mask(targets, rows.shape[-1])
    kept = (rows > 0) & ~target
    if budget is not None:
        chance = jnp.where(kept, jax.random.uniform(key, rows.shape, rows.dtype), -1.0)
        kept &= topk(budget, exclude=targets)(chance) > 0
    on_target = (rows > 0) | click_targets
    return jnp.where(target, on_target, kept).astype(rows.dtype)
