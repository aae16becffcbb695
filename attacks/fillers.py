"""Which items: the fillers of a fake user, chosen by a rule.

A profile has *selected* items, which the rule names, and *random* ones that make up the budget (Mobasher,
Burke, Bhaumik, Williams, "Toward Trustworthy Recommender Systems", ACM TOIT 2007, section 3). Rules rank items
by their clicks, by how often other items have them as a neighbor (Seminario and Wilson, RecSys 2014) or by how
much they are like the targets:

    cos(i, j) = sum_u r_ui r_uj / (|r_i| |r_j|),    r_ui the rating, or 1 for clicks
    indegree(j) = number of items i among whose k most similar items j is

Targets are never fillers.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from bilevel.project import column_mask, topk
from models import itemcf, sparse
from models.data import Interactions

CELLS = 1 << 22
"""Cells of one block of similarities: 16 MiB in float32; about six such arrays are alive at once."""


class Fillers(NamedTuple):
    """Items that fake users click beside the targets, as 0 and 1, and which of them the rule named."""

    clicked: Float[Array, "F I"]
    selected: Float[Array, "F I"]


def pick(
    key: Key[Array, ""],
    wish: Float[Array, "#F I"],
    targets: Int[Array, " T"],
    *,
    fakes: int,
    selected: int,
    budget: int,
    last: Bool[Array, " I"] | None = None,
) -> Fillers:
    """The `selected` non-targets of the highest `wish`, and random ones up to the budget.

    Args:
        key: decides which items are random.
        wish: scores of the items, the same for all fake users or of each; ties by id.
        targets: item ids, `(T,)`.
        fakes: F.
        selected: s, in `[0, budget]`.
        budget: B, in `[0, I - T]`.
        last: items that are random fillers only when all the others are taken.

    Returns:
        Rows of exactly B items, of which s are selected.

    >>> picked = pick(jax.random.key(0), jnp.array([[0.0, 3, 9, 1]]), jnp.array([2]), fakes=1, selected=1, budget=2)
    >>> picked.selected.tolist(), float(picked.clicked.sum())
    ([[0.0, 1.0, 0.0, 0.0]], 2.0)
    """
    items = wish.shape[-1]
    named = topk(selected, exclude=targets)(wish) if selected else jnp.zeros((1, items))
    named = jnp.broadcast_to(named, (fakes, items))
    if selected == budget:
        return Fillers(named, named)
    chance = jax.random.uniform(key, (fakes, items))
    if last is not None:
        chance = chance - last
    return Fillers(topk(budget, exclude=targets)(jnp.where(named > 0, 2.0, chance)), named)


# ------------------------------------------------------------------------------------------------ popularity


def popular_size(share: float, items: int, targets: int) -> int:
    """Number of items in the popular set: `share` of the `items - targets` others, at least one.

    >>> popular_size(0.1, 1682, 5)
    168
    """
    return max(1, round(share * (items - targets)))


def by_clicks(train: Interactions, targets: Int[Array, " T"]) -> Int[Array, " I-T"]:
    """The items that are not targets, most clicked first, ties by id.

    >>> by_clicks(Interactions.from_arrays([0, 1, 1], [2, 2, 0]), jnp.array([0])).tolist()
    [2, 1]
    """
    clicks = jnp.where(column_mask(targets, train.items), -1, train.popularity())
    return jnp.argsort(-clicks, stable=True)[: train.items - targets.shape[-1]].astype(jnp.int32)


def most_clicked(train: Interactions, targets: Int[Array, " T"], count: int) -> Int[Array, " C"]:
    """The `count` most clicked items that are no targets (at most all of them), by ascending id.

    >>> most_clicked(Interactions.from_arrays([0, 1, 1], [2, 2, 0], items=4), jnp.array([0]), 2).tolist()
    [1, 2]
    """
    clicks = jnp.where(column_mask(targets, train.items), -1, train.popularity())
    return jnp.sort(lax.top_k(clicks, min(count, train.items - targets.size))[1])


def share_of(share: float, count: int) -> int:
    """A share of a number, rounded down as in decimals: 0.29 * 100 is 28.999999999999996 in binary.

    >>> share_of(0.29, 100)
    29
    """
    return int(share * count + 1e-9)


def popular_set(train: Interactions, targets: Int[Array, " T"], share: float) -> Bool[Array, " I"]:
    """The most clicked `share` of the items that are not targets.

    >>> train = Interactions.from_arrays([0, 1, 1], [2, 2, 0])
    >>> popular_set(train, jnp.array([0]), 0.5).tolist()
    [False, False, True]
    """
    size = popular_size(share, train.items, targets.shape[-1])
    return jnp.zeros(train.items, bool).at[by_clicks(train, targets)[:size]].set(True)


# ------------------------------------------------------------------------------------------------ similarity


def ranked(score: Float[Array, "*rows I"], train: Interactions) -> Float[Array, "*rows I"]:
    """A score as a rank, I for the best item down to 1; ties by clicks, then by id.

    >>> ranked(jnp.array([0.0, 7.0, 0.0]), Interactions.from_arrays([0, 1, 1], [2, 2, 0])).tolist()
    [1.0, 3.0, 2.0]
    """
    clicks = jnp.broadcast_to(train.popularity(), score.shape)
    order = jnp.lexsort((-clicks, -score))
    places = jnp.broadcast_to(jnp.arange(train.items, 0.0, -1), score.shape)
    return jnp.put_along_axis(jnp.zeros(score.shape), order, places, axis=-1, inplace=False)


def alike(train: Interactions, targets: Int[Array, " T"]) -> Float[Array, "T I"]:
    """The cosine of every item with each target; 0 where either has no event.

    >>> train = Interactions.from_arrays([0, 0, 1, 1], [0, 1, 0, 2])
    >>> alike(train, jnp.array([1])).round(2).tolist()
    [[0.71, 1.0, 0.0]]
    """
    cells, value = _cells(train)
    length = jnp.sqrt(_squares(value, cells))
    both = _products(targets, value, cells).T
    over = length[targets][:, None] * length
    return jnp.where(over > 0, both / jnp.where(over > 0, over, 1), 0)


def indegree(train: Interactions, *, neighbors: int = 20, common: int = 5) -> Int[Array, " I"]:
    """How many items have an item among their `neighbors` most similar ones; works under `jit` and `vmap`.

    Item i points at the items j with at least `common` users in common and the largest cosine, ties by id.
    A block of items at a time: memory as `CELLS` says and `neighbors * I` ids. Time follows the squared numbers
    of clicks of the users (`models.itemcf`); with ratings also `E I`, for the products of the block with all
    items.

    Args:
        train: interactions; in a sequence repeats count once.
        neighbors: k, >= 1.
        common: users that two items must share, >= 1.

    Returns:
        Counts, `(I,)`.

    Reference:
        Seminario and Wilson, "Attacking Item-Based Recommender Systems with Power Items", RecSys 2014.

    **Differs from the paper:** similarities of pairs with few users in common are left out, not scaled down.

    >>> train = Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 2])
    >>> indegree(train, neighbors=1, common=1).tolist()  # 1 and 2 point at 0, which points at 1
    [2, 1, 0]
    """
    items = train.items
    cells, value = _cells(train)
    squares = _squares(value, cells)
    clicks = itemcf.sorted_by_weight(cells)
    keep = min(neighbors, items)
    widest = items if train.track != "explicit" else max(items, train.users)
    size = max(1, min(items, CELLS // widest))

    def nearest(first: Int[Array, ""]) -> Int[Array, "B K"]:
        block = first + jnp.arange(size)
        shared = itemcf.together(clicks, first, size)
        both = shared if train.track != "explicit" else _products(block, value, cells).T
        open_ = (shared >= common) & (block[:, None] != jnp.arange(items))
        # cos^2 without |r_i|, which is the same for all j: quotients of whole numbers, so that similarities which
        # are equal compare equal and the tie rule is exact.
        closeness = jnp.where(open_, both.astype(value.dtype) ** 2 / jnp.where(open_, squares, 1), -1)
        best, index = lax.top_k(closeness, keep)
        return jnp.where((best > 0) & (block < items)[:, None], index, items)

    pointed = lax.map(nearest, jnp.arange(0, items, size, dtype=jnp.int32))
    return jnp.zeros(items, jnp.int32).at[pointed.ravel()].add(1, mode="drop")


def _cells(train: Interactions) -> tuple[sparse.Observed, Float[Array, " E"]]:
    """The users' distinct items and, in the same slots, their ratings (1 for clicks); 0 in the padding."""
    cells = sparse.observed(train.user, train.item, train.mask, train.users, train.items)
    slots = cells.row.shape[0]
    if train.track == "explicit":  # no repeats and sorted already, so the slots are the events'
        return cells, jnp.pad(train.weight, (0, slots - train.capacity))
    return cells, (jnp.arange(slots) < cells.row_start[-1]).astype(train.weight.dtype)


def _squares(value: Float[Array, " E"], cells: sparse.Observed) -> Float[Array, " I"]:
    users = cells.row_start.shape[0] - 1
    return sparse.spread_back(value**2, jnp.ones((users, 1), value.dtype), cells)[:, 0]


def _products(
    block: Int[Array, " B"], value: Float[Array, " E"], cells: sparse.Observed
) -> Float[Array, "I B"]:
    """`sum_u r_uj r_ui` for every item j and the items i of a block (ids past the last: 0)."""
    items = cells.col_start.shape[0] - 1
    chosen = jnp.zeros((items, block.shape[0]), value.dtype)
    chosen = chosen.at[block, jnp.arange(block.shape[0])].set(1, mode="drop")
    return sparse.spread_back(value, sparse.spread(value, chosen, cells), cells)
