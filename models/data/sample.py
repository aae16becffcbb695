"""Items a user did not click, drawn on the device: the negatives of pairwise and pointwise training.

The draw is exact, without rejection. With the user's items in ascending order `c_0 < c_1 < ...`, the number of other
items below `c_k` is `c_k - k`; the r-th other item is `r + k` for the first k with `c_k - k > r`, found by bisection.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int, Key

from models.data.interactions import Interactions

CHUNK = 64  # items of a user marked at a time


class Lists(NamedTuple):
    """Each user's distinct items in ascending order: those of user u are `item[start[u] : start[u + 1]]`."""

    item: Int[Array, " E"]
    start: Int[Array, " U+1"]


def lists(train: Interactions) -> Lists:
    """The items of each user, from a record of any track; works under `jit` and `vmap`.

    >>> lists(Interactions.from_arrays([0, 0, 1], [2, 0, 1])).item.tolist()
    [0, 2, 1]
    """
    if train.track != "sequence":
        return Lists(train.item, train.row_pointers())  # sorted by (user, item) and free of repeats
    user = jnp.where(train.mask, train.user, train.users)
    user, item = lax.sort((user, train.item), num_keys=2)
    again = jnp.concatenate([jnp.zeros(1, bool), (user[1:] == user[:-1]) & (item[1:] == item[:-1])])
    user, item = lax.sort((jnp.where(again, train.users, user), item), num_keys=2)
    start = jnp.searchsorted(user, jnp.arange(train.users + 1)).astype(jnp.int32)
    return Lists(item, start)


def _bisect(lists: Lists, users: Int[Array, "B"], items: int, above) -> Int[Array, "B N"]:
    """The number k of a user's items before the first for which `above(c_k, k)` holds."""
    low, count = lists.start[users][:, None], jnp.diff(lists.start)[users][:, None]
    shape = jax.eval_shape(above, low, low).shape
    left, right = jnp.zeros(shape, jnp.int32), jnp.broadcast_to(count, shape)

    def halve(_, span):
        left, right = span
        middle = (left + right) // 2
        found = above(lists.item[jnp.minimum(low + middle, lists.item.shape[0] - 1)], middle)
        open_ = left < right
        return jnp.where(open_ & ~found, middle + 1, left), jnp.where(open_ & found, middle, right)

    return lax.fori_loop(0, items.bit_length() + 1, halve, (left, right))[0]


def clicked(
    lists: Lists, users: Int[Array, "B"], candidates: Int[Array, "B N"], items: int
) -> Bool[Array, "B N"]:
    """Whether each candidate (B, N) is one of its user's items.

    >>> known = lists(Interactions.from_arrays([0, 0], [2, 0], items=4))
    >>> clicked(known, jnp.array([0]), jnp.array([[0, 1, 2, 3]]), 4).tolist()
    [[True, False, True, False]]
    """
    k = _bisect(lists, users, items, lambda c, k: c >= candidates)
    at = lists.start[users][:, None] + k
    inside = at < lists.start[users + 1][:, None]
    return inside & (lists.item[jnp.minimum(at, lists.item.shape[0] - 1)] == candidates)


def marked(lists: Lists, users: Int[Array, "B"], items: int) -> Bool[Array, "B I"]:
    """Which items each user has; work follows the longest of their lists. Users may repeat.

    >>> marked(lists(Interactions.from_arrays([0, 1, 1], [2, 0, 1])), jnp.array([1, 1]), 3).tolist()
    [[True, True, False], [True, True, False]]
    """
    start, stop = lists.start[users], lists.start[users + 1]
    rows = jnp.arange(users.shape[0])[:, None]

    def mark(k, found):
        slot = start[:, None] + k * CHUNK + jnp.arange(CHUNK)
        inside = slot < stop[:, None]
        item = jnp.where(inside, lists.item[jnp.where(inside, slot, 0)], items)  # out of range: dropped
        return found.at[rows, item].set(True, mode="drop")

    chunks = (jnp.max(stop - start, initial=0) + CHUNK - 1) // CHUNK
    return lax.fori_loop(0, chunks, mark, jnp.zeros((users.shape[0], items), bool))


def negatives(
    key: Key[Array, ""], lists: Lists, users: Int[Array, "B"], count: int, items: int
) -> Int[Array, "B N"]:
    """`count` items for each user, uniform over those it did not click, with replacement.

    Args:
        key: consumed.
        lists: of the training data.
        users: (B,) ids of real users.
        count: N, items drawn for each.
        items: I.

    Returns:
        (B, N) item ids. A user who clicked every item has no other: it gets its last one.

    >>> known = lists(Interactions.from_arrays([0, 0], [2, 0], items=4))
    >>> sorted(set(negatives(jax.random.key(0), known, jnp.zeros(50, int), 1, 4).ravel().tolist()))
    [1, 3]
    """
    free = items - jnp.diff(lists.start)[users]
    rank = jax.random.randint(key, (users.shape[0], count), 0, jnp.maximum(free, 1)[:, None])
    k = _bisect(lists, users, items, lambda c, k: c - k > rank)
    return jnp.minimum(rank + k, items - 1)
