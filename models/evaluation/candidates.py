"""RecNum: how often targets are shown when each user's list is the best of a few candidates.

Song et al. (PoisonRec), ICDE 2020, eq. 1: every user is offered `count` random original items and all targets, and sees
the `k` with the highest scores;

    RecNum = sum over users u of |L_u and T|

The candidates are an argument, drawn once with a key: two attacks that are compared offer the same ones.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from models.data.interactions import Interactions
from models.evaluation.blocks import Block, Scores, over_users


class Candidates(NamedTuple):
    """`item` (U, C): original items offered to each user; `offered` (U, C): False where a user has fewer than C."""

    item: Int[Array, "U C"]
    offered: Bool[Array, "U C"]


class RecNum(NamedTuple):
    """`total`: the sum over users; `per_target` (T,): users who see each; `ceiling`: the most it could be."""

    total: Int[Array, ""]
    per_target: Int[Array, " T"]
    ceiling: int


def draw_candidates(
    key: Key[Array, ""],
    train: Interactions,
    targets: Int[Array, " T"],
    *,
    count: int = 92,
    block: int = 256,
) -> Candidates:
    """Original items for each user, uniform without replacement among those it has not clicked and that are no targets.

    Args:
        key: consumed; each user draws with its own part of it.
        train: the clean training data.
        targets: (T,) item ids.
        count: items offered besides the targets, 1 to I - T.
        block: users drawn for at a time.

    Raises:
        ValueError: `count` outside its range.

    Reference: Song et al., ICDE 2020, section IV-A.

    **Differs from the paper:** it redraws "each time"; drawing once lets attacks be compared on the same lists (call it
    again with another key for new ones). Whether a clicked item may be offered is not said: here it is not.

    >>> data = Interactions.from_arrays([0, 0, 1], [0, 1, 2], items=6)
    >>> found = draw_candidates(jax.random.key(0), data, jnp.array([5]), count=3)
    >>> sorted(found.item[0].tolist()), found.offered[0].tolist()
    ([2, 3, 4], [True, True, True])
    """
    if not 1 <= count <= train.items - targets.shape[0]:
        raise ValueError(
            f"count={count}; expected 1..{train.items - targets.shape[0]}, {train.items} items less "
            f"{targets.shape[0]} targets"
        )
    return _draw(key, train, targets, count, block)


@functools.partial(jax.jit, static_argnames=("count", "block"))
def _draw(key: Array, train: Interactions, targets: Array, count: int, block: int) -> Candidates:
    def read(found: Block) -> Candidates:
        keys = jax.vmap(lambda user: jax.random.fold_in(key, user))(found.users)
        order = jax.vmap(lambda own: jax.random.uniform(own, (train.items,)))(keys)
        order = jnp.where(found.seen, -1.0, order).at[:, targets].set(-1.0)
        best, item = jax.lax.top_k(order, count)
        return Candidates(item.astype(jnp.int32), best >= 0)

    nothing = lambda users: jnp.zeros((users.shape[0], train.items))
    return over_users(nothing, train, read, block=block)


def recnum(
    scores: Scores,
    train: Interactions,
    targets: Int[Array, " T"],
    candidates: Candidates,
    *,
    k: int = 10,
    ties: Literal["id", "worst"] = "id",
    block: int = 1024,
) -> RecNum:
    """RecNum of a model's scores.

    A pure function: `jit` it, `vmap` it over what `scores` closes over.

    Args:
        scores: ids of real users (B,) -> scores (B, I), as for `evaluate`.
        train: the clean training data; a target that a user has clicked is not shown to it.
        targets: (T,) item ids.
        candidates: from `draw_candidates` for the same data.
        k: list length, >= 1; 10 in the paper.
        ties: "id": of equal scores the lower id comes first; "worst": a target comes after every original item of its
            score.
        block: users scored at a time.

    Returns:
        `RecNum`. A user whose scores hold a NaN sees no target.

    Raises:
        ValueError: `k` below 1, an unknown tie rule, candidates of other users.

    Reference: Song et al., ICDE 2020, eq. 1. **Differs from the paper:** nothing but the draw, see `draw_candidates`.

    >>> data = Interactions.from_arrays([0, 1], [0, 1], items=6)
    >>> offered = draw_candidates(jax.random.key(0), data, jnp.array([5]), count=4)
    >>> recnum(lambda users: jnp.broadcast_to(jnp.arange(6.0), (2, 6)), data, jnp.array([5]), offered, k=1)
    RecNum(total=Array(2, dtype=int32), per_target=Array([2], dtype=int32), ceiling=2)
    """
    if k < 1:
        raise ValueError(f"k={k}; expected at least 1")
    if ties not in ("id", "worst"):
        raise ValueError(f"ties={ties!r}; expected 'id' or 'worst'")
    if candidates.item.shape[0] != train.users:
        raise ValueError(f"candidates of {candidates.item.shape[0]} users, but the data have {train.users}")

    def read(found: Block) -> Bool[Array, "B T"]:
        item, offered = candidates.item[found.users], candidates.offered[found.users]
        other = jnp.take_along_axis(found.raw, item, axis=1)
        sane = ~jnp.any(jnp.isnan(found.raw), axis=1, keepdims=True)
        own, seen = found.raw[:, targets], found.seen[:, targets]
        return sane & among_best(own, other, targets, item, offered, seen, k=k, ties=ties)

    shown = over_users(scores, train, read, block=block)
    per_target = jnp.sum(shown, 0, dtype=jnp.int32)
    return RecNum(jnp.sum(per_target), per_target, min(k, targets.shape[0]) * train.users)


def among_best(
    own: Float[Array, "B T"],
    other: Float[Array, "B C"],
    targets: Int[Array, " T"],
    item: Int[Array, "B C"],
    offered: Bool[Array, "B C"],
    seen: Bool[Array, "B T"],
    *,
    k: int,
    ties: Literal["id", "worst"] = "id",
) -> Bool[Array, "B T"]:
    """Which targets are among the `k` best of what each user is offered, from the scores of these items alone.

    Args:
        own, other: scores of the targets and of the candidates.
        targets: (T,) item ids.
        item, offered: the users' rows of `Candidates`.
        seen: targets that a user has clicked: they are not shown and take no place.
        k, ties: as in `recnum`.

    >>> one = lambda *values: jnp.array([values])
    >>> among_best(one(2.0), one(3.0, 1.0), jnp.array([5]), one(0, 1), one(True, True), one(False), k=1).tolist()
    [[False]]
    """
    other = jnp.where(offered, other, -jnp.inf)
    above = _above(own, targets[None], other, item, ties == "worst") & offered[:, None]
    among = _above(own, targets[None], own, jnp.broadcast_to(targets, own.shape), False)
    among &= ~seen[:, None]
    place = jnp.sum(above, 2) + jnp.sum(among, 2)
    sane = ~jnp.any(jnp.isnan(own), axis=1) & ~jnp.any(jnp.isnan(other), axis=1)
    return (place < k) & ~seen & sane[:, None]


def _above(
    score: Float[Array, "B T"],
    target: Int[Array, "1 T"],
    other: Float[Array, "B C"],
    item: Int[Array, "B C"],
    ties_above: bool,
) -> Bool[Array, "B T C"]:
    """Whether each other item comes before each target."""
    higher = other[:, None] > score[..., None]
    equal = other[:, None] == score[..., None]
    first = item[:, None] < target[..., None]
    return higher | (equal & (first | ties_above))
