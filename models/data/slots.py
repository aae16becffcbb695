"""Which items of a history share which values with an item: the slots that relational models attend to.

A slot of (owner, item i) is an item j of the owner's history with a value that i has too. The history is indexed by
owner and value, so the slots of a pair are a few stretches of the index, one for each value of i, and nothing has to be
compared. A last stretch holds the whole history, for the items that share nothing. All of it is integer work that runs
under `jit` and `vmap`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Key

from models.data import sample
from models.data.interactions import Interactions
from models.data.relations import Relations
from models.data.sample import Lists


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Index:
    """Items of owners by the values they have; a pytree. Made by `index`.

    Attributes:
        key: (N,) `owner (V + 1) + value`, ascending; the value V stands for any item.
        item: (N,) ascending where the keys are the same.
        span: the most slots that a pair can have, its owner's whole history included; static.
    """

    key: Int[Array, " N"]
    item: Int[Array, " N"]
    span: int = field(metadata={"static": True})


def index(history: Lists, relations: Relations, most: int | None = None) -> Index:
    """The index of lists of items: each item once for each of its values, and once more.

    Args:
        history: the distinct items of each owner.
        relations: their attributes, not traced.
        most: items that an owner has at most; None: all there are.

    Raises:
        ValueError: more owners x values than 32 bits can number.

    >>> movies = Relations.from_table({0: {"genre": ["war"]}, 1: {"genre": ["war", "drama"]}}, 3)
    >>> one = index(Lists(jnp.array([0, 1, 2]), jnp.array([0, 3])), movies)
    >>> one.key[:6].tolist(), one.item[:6].tolist()  # war, war, drama, any, any, any
    ([0, 0, 1, 2, 2, 2], [0, 1, 1, 0, 1, 2])
    """
    owners, stride = history.start.shape[0] - 1, relations.values + 1
    if owners * stride >= 2**31:
        raise ValueError(
            f"{owners} users x {stride} values of relations do not fit in 32 bits; leave out values that one item has"
        )
    owner, real = owner_of(history)
    value = _wide(relations.value, history.item, stride - 1)
    there = _wide(relations.mask, history.item, True) & real[:, None]
    key = jnp.where(there, owner[:, None] * stride + value, owners * stride).astype(jnp.int32)
    items = jnp.broadcast_to(history.item[:, None], key.shape)
    span = longest(relations, relations.items if most is None else min(most, relations.items))
    key, items = lax.sort((key.ravel(), items.ravel()), num_keys=2)
    return Index(key, items, span)


def owner_of(history: Lists) -> tuple[Int[Array, " E"], Bool[Array, " E"]]:
    """Whose each item of the lists is, and False where it is padding."""
    places = jnp.arange(history.item.shape[0])
    owner = jnp.searchsorted(history.start, places, side="right") - 1
    return jnp.minimum(owner, history.start.shape[0] - 2).astype(jnp.int32), places < history.start[-1]


def everything(items: int) -> Lists:
    """One owner who has every item.

    >>> everything(3).start.tolist()
    [0, 3]
    """
    return Lists(jnp.arange(items, dtype=jnp.int32), jnp.array([0, items], jnp.int32))


class Ranges(NamedTuple):
    """For each pair and each value of its item (the last: any), what it is and where the index has its stretch."""

    value: Int[Array, "N S+1"]
    type: Int[Array, "N S+1"]
    begin: Int[Array, "N S+1"]
    length: Int[Array, "N S+1"]


def ranges(known: Index, owner: Int[Array, " N"], item: Int[Array, " N"], relations: Relations) -> Ranges:
    """The stretches of pairs of owner and item. The item itself is in each of its own, if the owner has it."""
    value, type_ = _wide(relations.value, item, relations.values), _wide(relations.type, item, 0)
    key = owner[:, None] * (relations.values + 1) + value
    begin, end = (jnp.searchsorted(known.key, key, side=side).astype(jnp.int32) for side in ("left", "right"))
    return Ranges(value, type_, begin, jnp.where(_wide(relations.mask, item, True), end - begin, 0))


def _wide(rows: Array, item: Int[Array, " N"], last: int | bool) -> Array:
    """The rows of the items with one more column."""
    return jnp.concatenate([rows[item], jnp.full((item.shape[0], 1), last, rows.dtype)], axis=1)


def longest(relations: Relations, history: int) -> int:
    """The most slots that a pair can have, the whole history included, which has at most `history` items (host only).

    >>> movies = Relations.from_table({0: {"genre": ["war"]}, 1: {"genre": ["war", "drama"]}}, 3)
    >>> longest(movies, 3)  # item 1: twice war, once drama, three items
    6
    """
    mask, value = np.asarray(relations.mask), np.asarray(relations.value)
    holders = np.bincount(value[mask], minlength=relations.values + 1)
    most = int(np.max(np.sum(np.where(mask, holders[value], 0), axis=1)))
    return min(most, history * value.shape[1]) + history


def latest(train: Interactions, most: int) -> Interactions:
    """The last `most` events of each user by time; without times the same random ones, whatever the padding.

    >>> events = Interactions.from_arrays([0, 0, 0, 1], [3, 1, 2, 0], time=[5, 9, 7, 1])
    >>> latest(events, 2).dense()[0].tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    a, b, c = (np.uint32(odd) for odd in (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35))  # a hash of user and item
    mixed = (train.user.astype(jnp.uint32) * a + train.item.astype(jnp.uint32)) * b
    mixed = (mixed ^ (mixed >> 15)) * c
    mixed ^= mixed >> 13
    time = jnp.zeros_like(train.user) if train.time is None else -train.time
    user = jnp.where(train.mask, train.user, train.users)
    places = jnp.arange(train.capacity)
    *_, order = lax.sort((user, time, mixed, places), num_keys=3)
    rank = jnp.zeros_like(places).at[order].set(places) - train.row_pointers()[train.user]
    return train.keep(rank < most)


class Triples(NamedTuple):
    """One of each type for each pair: a value of the item, who shares it, who does not, and whether there is one."""

    type: Int[Array, "B K"]
    value: Int[Array, "B K"]
    tail: Int[Array, "B K"]
    negative: Int[Array, "B K"]
    exists: Bool[Array, "B K"]


def triples(
    key: Key[Array, ""],
    known: Index,
    history: Lists,
    catalog: Index,
    relations: Relations,
    owner: Int[Array, " B"],
    item: Int[Array, " B"],
) -> Triples:
    """For each pair and type a slot, uniform over those of the type, and an item without its value.

    Args:
        key: consumed.
        known, history: the histories, indexed and as lists.
        catalog: the index of `everything`.
        relations: attributes of the items.
        owner, item: (B,) the pairs.

    Returns:
        (B, K) triples. A pair without a slot of a type, or whose value all items have, has none: `exists` is False.
    """
    near = ranges(known, owner, item, relations)
    own = sample.clicked(history, owner, item[:, None], relations.items)  # then it is in its own stretches
    kinds = jnp.broadcast_to(jnp.arange(1, relations.types + 1), (item.shape[0], relations.types))
    length = jnp.maximum(near.length - own, 0)[:, None] * (near.type[:, None] == kinds[..., None])
    ends = jnp.cumsum(length, axis=2)  # (B, K, S + 1)
    for_slot, for_negative = jax.random.split(key)
    rank = jax.random.randint(for_slot, kinds.shape, 0, jnp.maximum(ends[..., -1], 1))
    at = jnp.minimum(jnp.sum(ends <= rank[..., None], axis=2), ends.shape[2] - 1)
    before = jnp.take_along_axis(ends - length, at[..., None], axis=2)[..., 0]
    place = jnp.take_along_axis(near.begin, at, axis=1) + rank - before
    there = lambda place: known.item[jnp.minimum(place, known.item.shape[0] - 1)]
    tail = jnp.where(
        own & (there(place) >= item[:, None]), there(place + 1), there(place)
    )  # steps over the item
    value = jnp.minimum(jnp.take_along_axis(near.value, at, axis=1), relations.values - 1)
    start = jnp.searchsorted(catalog.key, jnp.arange(relations.values + 1)).astype(jnp.int32)
    holders = Lists(catalog.item, start)
    negative = sample.negatives(for_negative, holders, value.ravel(), 1, relations.items)
    exists = (ends[..., -1] > 0) & (jnp.diff(start)[value] < relations.items)
    return Triples(kinds, value, tail, negative.reshape(value.shape), exists)
