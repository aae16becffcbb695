"""Attention on the slots that a user's history shares with an item, in work that follows their number.

    l_je = v_k . tanh(W1_k q_i + W2_k q_j + W3_k e)          slot (j, e) of type k, without e for type 0
    a_je = exp(l_je) / (sum of exp(l) over the slots of type k)^smoothing

The logits know nothing of the user. So pairs of user and item are read slot by slot where they are few, as in a step of
training; and for all users at once from the sums of `exp(l)` between any two items.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from models.data import slots
from models.data.relations import Relations
from models.data.slots import Index

CELLS = 1 << 22  # exponentials of pairs x types x items held at once: 16 MiB in float32
CHUNK = 1 << 14  # slots at a time
LARGEST = 80.0  # logits are cut here: in float32 their exponentials neither overflow nor vanish


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Catalog:
    """What is known of the items, whoever clicked them.

    Attributes:
        relations: their attributes.
        index: all items, as the history of one owner.
        smoothing: exponent of the sum in the attention on slots, static.
    """

    relations: Relations
    index: Index
    smoothing: float = field(metadata={"static": True})


class Table(NamedTuple):
    """The three terms of a logit, looked up by type and item or by value, and the vector that weighs their tanh."""

    target: Float[Array, "K+1 I A"]
    other: Float[Array, "K+1 I A"]
    shared: Float[Array, "V+1 A"]
    out: Float[Array, "K+1 A"]


def table(params: Any, relations: Relations) -> Table:
    """`W1_k q_i`, `W2_k q_j`, `W3_k e` (0 for no value) and `v_k`."""
    cuts = relations.offsets
    parts = [params["value"][a:b] @ W for a, b, W in zip(cuts[:-1], cuts[1:], params["shared"], strict=True)]
    none = jnp.zeros((1, params["shared"].shape[-1]), params["shared"].dtype)
    of_items = lambda W: jnp.einsum("id,kda->kia", params["item"], W)
    return Table(
        of_items(params["target"]),
        of_items(params["other"]),
        jnp.concatenate([*parts, none]),
        params["slot_out"],
    )


def exponentials(
    known: Table,
    histories: Index,
    catalog: Catalog,
    owner: Int[Array, " N"],
    item: Int[Array, " N"],
    without: Int[Array, " N"],
) -> Float[Array, "N K+1 I"]:
    """`exp(l)` of the slots of pairs, summed over the values that two items share; exactly 0 where there is no slot.

    The stretches of all pairs make one line, which is walked in chunks; those behind its end are skipped.
    """
    N, types, I = owner.shape[0], known.out.shape[0], catalog.relations.items
    found = slots.ranges(histories, owner, item, catalog.relations)
    kinds, values, length = (rows.ravel() for rows in (found.type, found.value, found.length))
    ends = jnp.cumsum(length, dtype=jnp.int32)
    shift = found.begin.ravel() - (ends - length)
    longest = N * histories.span
    width = min(CHUNK, longest)

    def more(total, first):
        place = first + jnp.arange(width)
        row = jnp.minimum(jnp.searchsorted(ends, place, side="right"), ends.shape[0] - 1)
        pair, k = row // found.type.shape[1], kinds[row]
        j = histories.item[jnp.minimum(place + shift[row], histories.item.shape[0] - 1)]
        inner = known.target[k, item[pair]] + known.other[k, j] + known.shared[values[row]]
        logit = jnp.clip(jnp.sum(known.out[k] * jnp.tanh(inner), 1), -LARGEST, LARGEST)
        real = (place < ends[-1]) & (j != item[pair]) & (j != without[pair])
        return total.at[pair, k, j].add(jnp.where(real, jnp.exp(logit), 0))

    firsts = jnp.arange(0, longest, width, dtype=jnp.int32)
    total = _walk(more, jnp.zeros((N, types, I), known.out.dtype), firsts, ends[-1])
    alone = ~jnp.any(total[:, 1:] > 0, axis=1)  # the last stretch, of type 0, held the whole history
    return total.at[:, 0].multiply(alone.astype(total.dtype))


def _walk(more: Callable, total: Array, firsts: Int[Array, " C"], end: Int[Array, ""]) -> Array:
    """`total = more(total, first)` for every chunk that begins before `end`, where `firsts` says each begins.

    Skipping costs a little, more so in the derivative, so chunks come in groups that are skipped together.
    """

    @jax.checkpoint
    def chunk(total, first):
        return lax.cond(first < end, more, lambda total, first: total, total, first), None

    @jax.checkpoint
    def group(total, firsts):
        walked = lambda total: lax.scan(chunk, total, firsts)[0]
        return lax.cond(firsts[0] < end, walked, lambda total: total, total), None

    size = math.isqrt(firsts.shape[0])
    beyond = jnp.iinfo(firsts.dtype).max
    padded = jnp.pad(firsts, (0, -firsts.shape[0] % size), constant_values=beyond)
    return lax.scan(group, total, padded.reshape(-1, size))[0]


def smoothed(sums: Float[Array, "*B"], smoothing: float) -> Float[Array, "*B"]:
    """`sums^-smoothing`, 0 where there is nothing."""
    return jnp.where(sums > 0, jnp.where(sums > 0, sums, 1) ** -smoothing, 0)


def attended(
    params: Any,
    histories: Index,
    catalog: Catalog,
    users: Int[Array, " N"],
    items: Int[Array, " N"],
    *,
    alpha: Float[Array, "N K+1"] | None = None,
    without: Int[Array, " N"] | None = None,
) -> Float[Array, "N K+1 D"] | Float[Array, "N D"]:
    """What pairs read in the users' histories: `sum over the slots (j, e) of type k of a_je q_j`.

    The users' own vectors are not read: derivatives of a score in `p_u` alone need no slot a second time.

    Args:
        params: `item` (I, D), `value` (V, D), `target`, `other` (K+1, D, A), `shared` (K, D, A), `slot_out` (K+1, A).
        histories, catalog: the users' items by value, and what is known of all items.
        users, items: (N,) the pairs.
        alpha: (N, K+1) weights that sum the types, which costs less; None: each type apart.
        without: (N,) an item that the history is read without, as if it had not been clicked; None: none.
    """
    known = table(params, catalog.relations)
    size, blocks = in_blocks(users.shape[0], known)

    def block(users, items, without, alpha):
        mass = exponentials(known, histories, catalog, users, items, without)
        weight = smoothed(jnp.sum(mass, 2), catalog.smoothing)
        if alpha is None:
            return (weight[..., None] * mass) @ params["item"]
        return jnp.sum((alpha * weight)[..., None] * mass, 1) @ params["item"]

    def split(rows):
        padding = [(0, blocks * size - rows.shape[0]), *[(0, 0)] * (rows.ndim - 1)]
        return jnp.pad(rows, padding).reshape(blocks, size, *rows.shape[1:])

    block = jax.checkpoint(block) if blocks > 4 else block  # what a few leave behind fits in memory
    each = (users, items, jnp.full_like(items, -1) if without is None else without, alpha)
    done = lax.map(lambda rows: block(*rows), jax.tree.map(split, each))
    return done.reshape(-1, *done.shape[2:])[: users.shape[0]]


def in_blocks(count: int, known: Table) -> tuple[int, int]:
    """Pairs at a time, and how many times."""
    types, items, _ = known.other.shape
    blocks = -(-count // max(1, CELLS // (types * items)))
    return -(-count // blocks), blocks
