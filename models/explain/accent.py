"""ACCENT's search for a counterfactual set, and the simpler searches it is compared with.

Tran, Ghazimatin, Saha Roy, *Counterfactual explanations for neural recommenders*, SIGIR 2021, algorithm 1 (code:
hieptk/accent). With `drop[i, z]` the predicted drop of the score of item i when interaction z is removed:

    gap_i = s_rec - s_i,     gi_z = drop[rec, z] - drop[i, z],
    take z by decreasing gi_z >= 0 until gap_i - sum gi < 0,       over all i: the smallest set, then the lowest gap

`evict` also asks it of an item at any rank and any list length (H-CARS needs that), `walk` is the loop that all of FIA,
pure FIA and the two attention baselines are. Everything is for one user and runs under `jit` and `vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int


class Found(NamedTuple):
    """Which of the M interactions are removed, whether that suffices, and the row of the item that passes; -1: none."""

    removed: Bool[Array, " M"]
    found: Bool[Array, ""]
    replacement: Int[Array, ""]


def evict(
    scores: Float[Array, " R"],
    drop: Float[Array, "R M"],
    real: Bool[Array, " M"],
    target: Int[Array, ""] | int = 0,
    *,
    k: int = 1,
) -> Found:
    """The fewest interactions without which an item of the top k is predicted to leave it.

    Rows are the items of ranks 1..R. For each item i outside the top k, interactions are taken by decreasing
    `drop[target] - drop[i]`, as long as it is >= 0, until i is above the target and so are k items in all.

    Args:
        scores: (R,) descending.
        drop: (R, M) predicted drop of each score when an interaction is removed; additive.
        real: (M,) False for padding.
        target: row of the item that is explained, may be traced. One outside the top k has no explanation.
        k: length of the list it is to leave, 1 <= k < R. `target=0, k=1` is ACCENT with a list of R.

    Returns:
        `Found`: of all i the smallest set, then the lowest remaining gap, then the best rank.

    Raises:
        ValueError: `k` outside 1..R-1.

    Reference: Tran, Ghazimatin, Saha Roy, SIGIR 2021, algorithm 1. **Differs from the paper:** which explains the best
    item only. A prefix is accepted when k of the R items are above the target, which for `k=1` is the paper's.

    >>> drop = jnp.array([[0.5, 0.3, 0.0], [0.0, 0.4, 0.0], [-0.5, 0.0, 0.0]])
    >>> found = evict(jnp.array([2.0, 1.6, 1.2]), drop, jnp.ones(3, bool))
    >>> found.removed.tolist(), int(found.replacement)  # 2.0 - 0.5 < 1.6, and also 1.2 + 0.5 > 2.0 - 0.5
    ([True, False, False], 2)
    """
    R, M = drop.shape
    if not 1 <= k < R:
        raise ValueError(
            f"evict: k={k} with {R} items; expected 1..{R - 1}, so that an item outside can take the place"
        )

    def by(candidate: Array) -> tuple[Array, Array, Array, Array]:
        gain = jnp.where(real, drop[target] - drop[candidate], -jnp.inf)
        order = jnp.argsort(-gain, stable=True)
        kept = jnp.where(real, drop, 0)[:, order]
        predicted = scores[:, None] - jnp.cumsum(kept, axis=1)
        gap = predicted[target] - predicted[candidate]
        above = jnp.sum(predicted > predicted[target], axis=0)
        good = (gain[order] >= 0) & (gap < 0) & (above >= k)
        size = jnp.argmax(good)
        removed = jnp.zeros(M, bool).at[order].set(jnp.arange(M) <= size)
        return removed, jnp.any(good), size, gap[size]

    removed, reached, size, gap = jax.vmap(by)(jnp.arange(k, R))
    size, gap = jnp.where(reached, size, M), jnp.where(reached, gap, jnp.inf)
    best = jnp.lexsort((gap, size))[0]
    found = reached[best] & (jnp.asarray(target) < k)
    return Found(removed[best] & found, found, jnp.where(found, best + k, -1))


def walk(
    order: Int[Array, " M"],
    rescored: Callable[[Bool[Array, " M"]], Float[Array, " R"]],
    real: Bool[Array, " M"],
    *,
    only_reducing: bool,
) -> Found:
    """Remove interactions in a given order until the best item is no longer the best.

    Args:
        order: (M,) interactions, the one to remove first in front.
        rescored: `removed (M,) -> scores (R,)` as predicted without these; row 0 is the item that is explained.
        real: (M,) False for padding, which is stepped over.
        only_reducing: put an interaction back whose removal does not narrow the gap to the best other item.

    Returns:
        `Found`; nothing is removed where the end is reached in vain.

    Reference: Tran, Ghazimatin, Saha Roy, SIGIR 2021, section 4 and released code: FIA and pure FIA (ordered by the
    influence on the recommended item), attention and pure attention (by attention weight); the pure ones with
    `only_reducing=False`. **Differs from the paper:** nothing.

    >>> drop = jnp.array([[0.5, 0.6], [0.0, 0.7]])
    >>> rescored = lambda removed: jnp.array([2.0, 1.6]) - drop @ removed
    >>> walk(jnp.array([1, 0]), rescored, jnp.ones(2, bool), only_reducing=False).removed.tolist()
    [True, True]
    >>> walk(jnp.array([1, 0]), rescored, jnp.ones(2, bool), only_reducing=True).removed.tolist()
    [True, False]
    """

    def gap_of(scores: Array) -> tuple[Array, Array]:
        best = jnp.argmax(scores[1:]) + 1
        return scores[0] - scores[best], best

    def step(carry, z):
        removed, gap, best, done = carry
        more = removed.at[z].set(True)
        new_gap, new_best = gap_of(rescored(more))
        take = real[z] & ~done
        if only_reducing:
            take &= new_gap < gap
        gap, best = jnp.where(take, new_gap, gap), jnp.where(take, new_best, best)
        return (jnp.where(take, more, removed), gap, best, done | (take & (gap < 0))), None

    none = jnp.zeros(real.shape, bool)
    start = (none, *gap_of(rescored(none)), jnp.array(False))
    (removed, _, best, done), _ = lax.scan(step, start, order)
    return Found(removed & done, done, jnp.where(done, best, -1))
