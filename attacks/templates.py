"""Templates: profiles cut from those of real users, as AUSH uses them (Lin et al., CIKM 2020).

A template is a real user with enough ratings. Some of them, drawn, are kept as *fillers*; the *selected* items, which
the targets' audience likes, are left to whoever writes the profile. Everything works under `jit` and `vmap`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from attacks.fillers import ranked
from bilevel.project import column_mask, topk
from models.data import Interactions

CHUNK = 64  # ratings of a user written at a time


class Batch(NamedTuple):
    """`N` templates.

    Attributes:
        fillers: their kept ratings, 0 elsewhere.
        own: their ratings of the selected items, 0: none.
        weight: 1, or 0 in the padding of the last batch.
    """

    fillers: Float[Array, "N I"]
    own: Float[Array, "N s"]
    weight: Float[Array, " N"]


def audience(train: Interactions, targets: Int[Array, " T"], count: int, *, liked: float) -> Int[Array, " s"]:
    """The `count` non-targets liked by most users who like a target; ties, and targets nobody likes, by popularity.

    Args:
        train, targets: as in `aush`.
        count: s.
        liked: an event of at least this weight is a like.

    >>> train = Interactions.from_arrays([0, 0, 1, 1, 2], [0, 1, 0, 2, 2], items=4)
    >>> audience(train, jnp.array([1]), 2, liked=0.0).tolist()  # user 0 likes target 1, and item 0
    [0, 2]
    """
    target = column_mask(targets, train.items)
    likes = train.mask & (train.weight >= liked)
    fans = jnp.zeros(train.users, bool).at[train.user].max(likes & target[train.item])
    score = jnp.zeros(train.items).at[train.item].add((likes & fans[train.user]).astype(float))
    return lax.top_k(jnp.where(target, 0, ranked(score, train)), count)[1].astype(jnp.int32)


def templates(
    key: Key[Array, ""],
    train: Interactions,
    target: Bool[Array, " I"],
    selected: Int[Array, " s"],
    kept: int,
) -> tuple[Int[Array, " U"], Int[Array, ""]]:
    """The users in a random order, those that can be templates first, and their number (>= 1).

    A template has `kept` ratings beside targets and selected items; if nobody has, those with most of them are.

    Args:
        key: decides the order.
        train: the interactions.
        target: the targets, as a mask.
        selected: ids of the selected items.
        kept: fillers of a profile, >= 0.

    >>> train = Interactions.from_arrays([0, 0, 1, 2, 2], [0, 1, 0, 0, 2])
    >>> order, count = templates(jax.random.key(0), train, jnp.array([True, False, False]), jnp.array([], int), 1)
    >>> sorted(order[:2].tolist()), int(count)
    ([0, 2], 2)
    """
    open_ = (train.mask & ~target.at[selected].set(True)[train.item]).astype(jnp.int32)
    held = jnp.zeros(train.users, jnp.int32).at[train.user].add(open_)
    fits = held >= jnp.minimum(kept, jnp.max(held))
    order = jnp.argsort(jnp.where(fits, jax.random.uniform(key, (train.users,)), 2.0))
    return order, jnp.sum(fits)


def cut(
    key: Key[Array, ""],
    train: Interactions,
    users: Int[Array, " N"],
    weight: Float[Array, " N"],
    target: Bool[Array, " I"],
    selected: Int[Array, " s"],
    kept: int,
) -> Batch:
    """The templates of `users`: `kept` of their ratings, drawn, as fillers, and their ratings of the selected items.

    Args:
        key: decides which ratings are kept.
        train: the interactions.
        users, weight: ids, and 1 or 0 for each: what `Batch.weight` says.
        target, selected, kept: as in `templates`. Who has fewer ratings keeps them all.

    >>> train = Interactions.from_arrays([0, 0, 0], [0, 1, 2], [5.0, 4.0, 3.0], items=4)
    >>> batch = cut(jax.random.key(0), train, jnp.array([0]), jnp.ones(1), jnp.arange(4) == 0, jnp.array([2]), 1)
    >>> batch.fillers.tolist(), batch.own.tolist()
    ([[0.0, 4.0, 0.0, 0.0]], [[3.0]])
    """
    real = rated(train, users)
    open_ = (real > 0) & ~target.at[selected].set(True)
    chance = jnp.where(open_, jax.random.uniform(key, real.shape), -1.0)
    fillers = jnp.where(open_ & (topk(kept)(chance) > 0), real, 0)
    return Batch(fillers, real[:, selected], weight.astype(real.dtype))


def rated(train: Interactions, users: Int[Array, " N"]) -> Float[Array, "N I"]:
    """The rows of some users; work follows the longest of them.

    >>> rated(Interactions.from_arrays([0, 1, 1], [2, 0, 1], [5.0, 4.0, 3.0]), jnp.array([1, 1])).tolist()
    [[4.0, 3.0, 0.0], [4.0, 3.0, 0.0]]
    """
    pointers = train.row_pointers()
    start, stop, rows = pointers[users], pointers[users + 1], jnp.arange(users.shape[0])[:, None]

    def write(chunk, found):
        slot = start[:, None] + chunk * CHUNK + jnp.arange(CHUNK)
        inside = slot < stop[:, None]
        slot = jnp.where(inside, slot, 0)
        return found.at[rows, jnp.where(inside, train.item[slot], train.items)].set(
            train.weight[slot], mode="drop"
        )

    chunks = (jnp.max(stop - start) + CHUNK - 1) // CHUNK
    return lax.fori_loop(0, chunks, write, jnp.zeros((users.shape[0], train.items), train.weight.dtype))
