"""ItemCF: items are alike if the same users clicked them, and users get what is like what they clicked.

As a victim of Tang, Wen, Wang, RecSys 2020 (RevAdv), after Sarwar, Karypis, Konstan, Riedl, WWW 2001:

    s_ij = |N_i and N_j| / |N_i or N_j|,  N_i the users who clicked i,  s_ii = 0;  the `neighbors` largest of each i
    score of j for u = sum of s_ij over the items i that u clicked
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

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


class Data(NamedTuple):
    """The clicks of the real users, and 1 or NaN."""

    cells: Cells
    sound: Float[Array, ""]


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

    **Differs from the paper:** an item without clicks is like nothing (0/0 in the code). A fake row counts as clicked
    where it is above 0: nothing here is differentiable in it.

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
    users, items = data.cells.shape
    fakes = (lax.stop_gradient(x) > 0).astype(data.sound.dtype)
    columns = cells.turned(data.cells)
    popular = cells.gather(jnp.ones((users, 1), data.sound.dtype), columns)[:, 0] + jnp.sum(fakes, 0)
    keep = min(neighbors, items)

    def nearest(block):
        chosen = jnp.zeros((items, block.shape[0]), fakes.dtype).at[block, jnp.arange(block.shape[0])].set(1)
        who = cells.gather(chosen, data.cells)
        both = cells.gather(who, columns).T + fakes.T[block] @ fakes
        either = popular[block][:, None] + popular - both
        alike = jnp.where(either > 0, both / jnp.where(either > 0, either, 1), 0)
        alike = alike.at[jnp.arange(block.shape[0]), block].set(0)
        return lax.top_k(alike, keep)

    size = max(1, min(items, CELLS // max(users, items)))
    blocks = jnp.minimum(jnp.arange(-(-items // size) * size, dtype=jnp.int32), items - 1).reshape(-1, size)
    value, item = (part.reshape(-1, keep)[:items] for part in lax.map(nearest, blocks))
    row = jnp.repeat(jnp.arange(items, dtype=jnp.int32), keep)
    col, value = item.ravel().astype(jnp.int32), value.ravel()
    pairs = sparse.observed(row, col, jnp.ones(row.shape, bool), items, items)
    strength = value[jnp.lexsort((col, row))]  # in the order of the pairs: by row, then column
    strength = jnp.pad(strength, (0, pairs.row.shape[0] - strength.shape[0]))
    return Alike(pairs, data.sound * strength, data.cells)


def score(alike: Alike, users: Int[Array, " B"]) -> Float[Array, "B I"]:
    """The similarities summed over the clicks of each user."""
    observed = alike.cells.observed
    assert observed is not None
    lists = sample.Lists(observed.col, observed.row_start)
    clicked = sample.marked(lists, users, alike.cells.shape[1]).astype(alike.value.dtype)
    return sparse.spread_back(alike.value, clicked.T, alike.pairs).T
