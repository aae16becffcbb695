"""ItemCF: items are alike if the same users clicked them, and users get what is like what they clicked.

As a victim of Tang, Wen, Wang, RecSys 2020 (RevAdv), after Sarwar, Karypis, Konstan, Riedl, WWW 2001:

    s_ij = |N_i and N_j| / |N_i or N_j|,  N_i the users who clicked i,  s_ii = 0;  the `neighbors` largest of each i
    score of j for u = sum of s_ij over the items i that u clicked

|N_i and N_j| is counted user by user: one with d clicks adds 1 to d^2 cells or, where d^2 is a good part of all cells,
joins a product of dense rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from models import cells, sparse
from models.cells import Cells
from models.data import sample
from models.data.interactions import Interactions
from models.recommender import Recommender, clicks_only, counts, sound, untrained

CELLS = 1 << 23
"""Similarities held at once: 32 MiB in float32."""
HEAVY = 16
"""A user who clicked more than one in so many items is multiplied, not counted: where both cost about the same."""
TILE, TILES = 32, 512  # clicks of a user that are counted together, and how many such stretches at a time
ROWS = 256  # users multiplied at a time


class Data(NamedTuple):
    """The clicks of the real users, and 1 or NaN."""

    cells: Cells
    sound: Float[Array, ""]


class Clicks(NamedTuple):
    """What is counted: the clicks, heavy users first and how many there are, and the stretches before each event.

    A light user with d clicks has ceil(d / TILE) stretches at each of its events, which are in the order of the items.
    """

    cells: sparse.Observed
    users: Int[Array, " U"]
    heavy: Int[Array, ""]
    stretches: Int[Array, " E+1"]


class Alike(NamedTuple):
    """Nearest items as sparse pairs (row: clicked, column: recommended) of strength `value`, and the clicks."""

    pairs: sparse.Observed
    value: Float[Array, " E"]
    cells: Cells


def itemcf(*, neighbors: int = 50) -> Recommender:
    """Item-based collaborative filtering as a `Recommender`; nothing is learned.

    Args:
        neighbors: similar items kept of each item, >= 1 (all of them if there are fewer).

    Raises:
        ValueError: a number outside its range.

    Reference: RevAdv (RecSys 2020), section 4.1, and its released code.

    **Differs from the paper:** an item without clicks is like nothing (0/0 in the code). A relaxed fake row clicks as
    much as its values say, `|N_i and N_j| = sum_u x_ui x_uj`, so that scores are differentiable in it, while which
    neighbors are kept stays as it is.

    >>> data = Interactions.from_arrays([0, 0, 1, 1, 2], [0, 1, 0, 1, 2])
    >>> model = itemcf()
    >>> model.scores({}, jnp.zeros((0, 3)), model.prepare(data), jnp.array([0])).tolist()  # 0 and 1: the same users
    [[1.0, 1.0, 0.0]]
    """
    config = dict(locals())
    counts("itemcf", neighbors=neighbors)
    return untrained("itemcf", config, prepare, partial(embed, neighbors=neighbors), score)


def prepare(train: Interactions) -> Data:
    """The clicks with users as rows; works under `jit` and `vmap`."""
    return Data(cells.build(clicks_only("itemcf", train), form="observed"), sound(train))


def embed(params: Any, x: Float[Array, "F I"], data: Data, *, neighbors: int) -> Alike:
    """The nearest items of each item, a block of items at a time: memory does not follow the square of the items."""
    observed, items = data.cells.observed, data.cells.shape[1]
    assert observed is not None
    clicks = sorted_by_weight(observed)
    popular = jnp.diff(observed.col_start).astype(x.dtype) + jnp.sum(x, 0)
    keep = min(neighbors, items)
    size = max(1, min(items, CELLS // items))

    @jax.checkpoint  # a gradient in x counts again: all similarities would be I^2 numbers
    def nearest(first):
        block = jnp.minimum(first + jnp.arange(size), items - 1)
        both = together(clicks, first, size).astype(x.dtype) + x.T[block] @ x
        either = popular[block][:, None] + popular - both
        alike = jnp.where(either > 0, both / jnp.where(either > 0, either, 1), 0)
        alike = alike.at[jnp.arange(size), block].set(0)
        return lax.top_k(alike, keep)

    firsts = jnp.arange(0, items, size, dtype=jnp.int32)
    value, item = (part.reshape(-1, keep)[:items] for part in lax.map(nearest, firsts))
    row = jnp.repeat(jnp.arange(items, dtype=jnp.int32), keep)
    col, value = item.ravel().astype(jnp.int32), value.ravel()
    pairs = sparse.observed(row, col, jnp.ones(row.shape, bool), items, items)
    strength = value[jnp.lexsort((col, row))]  # in the order of the pairs: by row, then column
    strength = jnp.pad(strength, (0, pairs.row.shape[0] - strength.shape[0]))
    return Alike(pairs, data.sound * strength, data.cells)


def sorted_by_weight(cells: sparse.Observed) -> Clicks:
    """Who is multiplied, and the stretches of the others."""
    degree, items = jnp.diff(cells.row_start), cells.col_start.shape[0] - 1
    heavy = degree * HEAVY > items
    real = jnp.arange(cells.row.shape[0]) < cells.row_start[-1]
    of_user = jnp.where(heavy, 0, -(-degree // TILE))
    stretches = jnp.cumsum(jnp.where(real, of_user[cells.row_of_order], 0), dtype=jnp.int32)
    return Clicks(cells, jnp.argsort(-degree), jnp.sum(heavy), jnp.pad(stretches, (1, 0)))


def together(clicks: Clicks, first: Int[Array, ""], size: int) -> Int[Array, "N I"]:
    """How many users clicked both, for the items `first` to `first + size - 1` and every item; 0 past the last item."""
    cells, items = clicks.cells, clicks.cells.col_start.shape[0] - 1
    last = cells.row.shape[0] - 1
    bounds = jnp.minimum(jnp.array([first, first + size]), items)
    begin, end = clicks.stretches[cells.col_start[bounds]]

    def count(n, total):
        place = begin + n * TILES + jnp.arange(TILES)
        event = jnp.minimum(jnp.searchsorted(clicks.stretches, place, side="right") - 1, last)
        user, own = cells.row_of_order[event], cells.col[cells.order[event]] - first
        slot = cells.row_start[user] + (place - clicks.stretches[event]) * TILE
        slot = slot[:, None] + jnp.arange(TILE)
        inside = (place < end)[:, None] & (slot < cells.row_start[user + 1][:, None])
        cell = own[:, None] * items + cells.col[jnp.minimum(slot, last)]
        return total.at[jnp.where(inside, cell, size * items)].add(1, mode="drop")

    def multiply(n, total):
        rank = n * ROWS + jnp.arange(ROWS)
        users = clicks.users[jnp.minimum(rank, clicks.users.shape[0] - 1)]
        rows = sample.marked(sample.Lists(cells.col, cells.row_start), users, items)
        rows = (rows & (rank < clicks.heavy)[:, None]).astype(jnp.float32)  # exact: counts are below 2^24
        own = lax.dynamic_slice_in_dim(jnp.pad(rows, ((0, 0), (0, size))), first, size, axis=1)
        return total + (own.T @ rows).astype(total.dtype)

    counted = lax.fori_loop(0, -((begin - end) // TILES), count, jnp.zeros(size * items, jnp.int32))
    chunks = -(-clicks.heavy // ROWS)
    return lax.fori_loop(0, chunks, multiply, counted.reshape(size, items))


def score(alike: Alike, users: Int[Array, " B"]) -> Float[Array, "B I"]:
    """The similarities summed over the clicks of each user."""
    observed = alike.cells.observed
    assert observed is not None
    lists = sample.Lists(observed.col, observed.row_start)
    clicked = sample.marked(lists, users, alike.cells.shape[1]).astype(alike.value.dtype)
    return sparse.spread_back(alike.value, clicked.T, alike.pairs).T
