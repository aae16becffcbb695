"""One pass over the real users in blocks: memory follows block x items and never users x items.

A metric needs each user's whole row of scores for a moment and a few numbers of it afterwards. So
`over_users` walks the users in consecutive blocks of equal size (`lax.map`, the last block padded), asks the
model for the block's scores, removes the items of the training rows and hands the result to `read`, which
says what is kept. The training rows stay sparse: the events of a block are a contiguous stretch of the event
list, because `Interactions` are sorted by user, and only that stretch is scattered.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from models.data.interactions import Interactions

Scores = Callable[[Int[Array, "B"]], Float[Array, "B I"]]

CHUNK = 8192  # events scattered at a time; a block with fewer costs one chunk


class Block(NamedTuple):
    """What `read` sees of one block of users.

    `users` (B,) are ids, `raw` (B, I) the model's scores, `scores` (B, I) the same with -inf exactly at the
    items of the training row, `seen` (B, I) marks those items and `marked` holds one (B, I) mask for each
    data set given as `marks` (for instance test).
    """

    users: Int[Array, "B"]
    raw: Float[Array, "B I"]
    scores: Float[Array, "B I"]
    seen: Bool[Array, "B I"]
    marked: tuple[Bool[Array, "B I"], ...]


class _Events(NamedTuple):
    user: Int[Array, "E"]  # never decreasing; past the last block where the event is padding
    item: Int[Array, "E"]  # I (out of range, so dropped by the scatter) where the event is padding
    start: Int[Array, "N"]  # where the events of each block begin, and where the last block ends


def over_users(
    scores: Scores,
    train: Interactions,
    read: Callable[[Block], Any],
    *,
    marks: tuple[Interactions, ...] = (),
    block: int = 1024,
) -> Any:
    """Apply `read` to every block of users and return its arrays for all users.

    Args:
        scores: user ids (B,) -> scores (B, I), any float type; traced, so written in `jax.numpy`. -inf is
            allowed.
        train: what the real users have seen, sorted by user; its `users` are evaluated, its items are masked.
        read: `Block` -> pytree of arrays whose first axis is the block's users.
        marks: further data sets of the same users and items, handed to `read` as masks.
        block: most users in a block; the blocks are made equal, so at most one user a block is padding.

    Returns:
        The pytree of `read` with leaves (U, ...).

    **Differs from the paper:** nothing; this is how the sums of the metrics are computed, not what they are.

    Example:
        >>> from models.data.interactions import Interactions
        >>> train = Interactions.from_arrays([0, 2], [1, 0], users=3, items=2)
        >>> table = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> over_users(lambda users: table[users], train, lambda b: b.scores.max(axis=1), block=2).tolist()
        [1.0, 4.0, 6.0]
    """
    count = max(1, -(-train.users // block))
    size = max(1, -(-train.users // count))
    events = tuple(_events(data, count, size, CHUNK) for data in (train, *marks))

    def one(index: Int[Array, ""]) -> Any:
        # A padded row repeats the last user, so that `scores` only ever sees valid ids; it is cut off below.
        users = jnp.minimum(index * size + jnp.arange(size, dtype=jnp.int32), max(train.users - 1, 0))
        raw = scores(users)
        seen, *marked = (_members(e, index, (size, train.items), CHUNK) for e in events)
        return read(Block(users, raw, mask_seen(raw, seen), seen, tuple(marked)))

    kept = jax.lax.map(one, jnp.arange(count, dtype=jnp.int32))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: train.users], kept)


def mask_seen(scores: Float[Array, "B I"], seen: Bool[Array, "B I"]) -> Float[Array, "B I"]:
    """Scores to rank by: -inf at the seen items and nowhere else.

    A model may itself say -inf for an item it cannot score. Such an item is last of the unseen ones (the
    lowest finite score) and stays apart from a seen item, which is in no ranking. -0.0 becomes 0.0, because
    `lax.top_k` would rank it below. NaN stays NaN.

    Example:
        >>> mask_seen(jnp.array([[3.0, -jnp.inf]]), jnp.array([[True, False]])).tolist()
        [[-inf, -3.4028234663852886e+38]]
    """
    lowest = jnp.finfo(scores.dtype).min
    ranked = jnp.where(scores == 0, jnp.zeros((), scores.dtype), jnp.maximum(scores, lowest))
    return jnp.where(seen, jnp.asarray(-jnp.inf, scores.dtype), ranked)


@functools.partial(jax.jit, static_argnames=("count", "size", "chunk"))
def _events(data: Interactions, count: int, size: int, chunk: int) -> _Events:
    """The event list ready for `_members`: padding (always last) out of range, a chunk of slack for the slices."""
    past = count * size
    user = jnp.pad(jnp.where(data.mask, data.user, past), (0, chunk), constant_values=past)
    item = jnp.pad(jnp.where(data.mask, data.item, data.items), (0, chunk), constant_values=data.items)
    start = jnp.searchsorted(user, jnp.arange(count + 1, dtype=user.dtype) * size)
    return _Events(user, item, start.astype(jnp.int32))


def _members(
    events: _Events, index: Int[Array, ""], shape: tuple[int, int], chunk: int
) -> Bool[Array, "B I"]:
    """Mask (B, I) of the events of block `index`, scattered a chunk at a time from where the block begins."""
    begin, end = events.start[index], events.start[index + 1]

    def scatter(turn: Int[Array, ""], mask: Bool[Array, "B I"]) -> Bool[Array, "B I"]:
        at = begin + turn * chunk
        row = jax.lax.dynamic_slice_in_dim(events.user, at, chunk) - index * shape[0]
        item = jax.lax.dynamic_slice_in_dim(events.item, at, chunk)
        return mask.at[row, item].set(True, mode="drop")  # the next block's events are out of range: dropped

    return jax.lax.fori_loop(0, (end - begin + chunk - 1) // chunk, scatter, jnp.zeros(shape, bool))
