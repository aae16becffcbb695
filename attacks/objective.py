"""What the attacker wants the trained recommender to do, as a loss over the scores of the real users.

    promotion      - sum_u mean_t log softmax(S_u)_t                      Tang, Wen, Wang, RecSys 2020 (RevAdv), eq. 3
    ranking          sum_u sum_t sum_{v in top_K(u)} g(s_uv - s_ut)       Zhang et al., KDD 2021 (RAPU), Alg. 2
    demotion         the same with the opposite sign
    availability     sum_u mean_{i clicked by u} log softmax(S_u)_i       ours: what a user likes leaves its list

Each is minimized. Users are scored a block at a time, again in the backward pass: memory is `block` x items.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from attacks.threat import Goal
from models.data import Interactions, sample
from models.evaluation import Scores
from models.evaluation.blocks import mask_seen

CELLS = 1 << 24
"""Score cells held at once when no block is asked for: 64 MiB in float32, and the same again in the backward pass."""

Wish = Literal["cross_entropy", "wmw"]
Objective = Callable[[Scores, Interactions, Int[Array, " T"]], Float[Array, ""]]


def make_objective(
    goal: Goal,
    wish: Wish = "cross_entropy",
    *,
    k: int = 50,
    width: float = 0.1,
    mask: bool = True,
    block: int | None = None,
) -> Objective:
    """The loss of a goal, as a function `(scores, train, targets) -> scalar`.

    Args:
        goal: `"promote"`, `"demote"` or `"availability"`.
        wish: `"cross_entropy"` (RevAdv) or `"wmw"` (RAPU); availability has the first only.
        k, width, mask: of `"wmw"`, see `ranking`.
        block: users scored at once, >= 1; None: as many as fit in `CELLS` score cells.

    Returns:
        The loss: of `"promote"` `promotion` or `ranking`, of `"demote"` its negative, of `"availability"`
        `sum_u mean_{i clicked by u} log softmax(S_u)_i`, without targets.

    Raises:
        ValueError: unknown goal or wish, or a pair of them that has no formula.

    Reference: Tang, Wen, Wang (RevAdv), RecSys 2020, eq. 3; Zhang et al. (RAPU), KDD 2021, section 3.

    **Differs from the paper:** both promote; demotion and availability are ours.

    >>> loss = make_objective("demote")
    >>> train = Interactions.from_arrays([0, 1], [0, 1], items=4)
    >>> float(loss(lambda users: jnp.zeros((2, 4)), train, jnp.array([3])))
    -2.772588...
    """
    if goal not in get_args(Goal):
        raise ValueError(f"goal is {goal!r}; expected one of {', '.join(map(repr, get_args(Goal)))}")
    if wish not in get_args(Wish):
        raise ValueError(f"objective is {wish!r}; expected one of {', '.join(map(repr, get_args(Wish)))}")
    if goal == "availability":
        if wish == "wmw":
            raise ValueError(
                "goal 'availability' has no targets to rank; its objective is 'cross_entropy' of what users clicked"
            )
        return functools.partial(_availability, block=block)
    sign = 1 if goal == "promote" else -1
    if wish == "wmw":
        return functools.partial(ranking, k=k, width=width, mask=mask, sign=sign, block=block)
    return functools.partial(_signed_promotion, sign=sign, block=block)


def promotion(
    scores: Scores, users: int, targets: Int[Array, " T"], *, block: int | None = None
) -> Float[Array, ""]:
    """Cross-entropy of the targets in the score rows of all real users.

    `L_adv = - sum_u mean_t log softmax(S_u)_t`, summed over the `U` real users. It masks nothing: a target a user has
    already clicked counts as any other.

    Args:
        scores: maps user ids `(B,)` to their scores `(B, I)`; differentiable in whatever it closes over.
        users: number of real users `U`, >= 1.
        targets: ids of the promoted items, `(T,)`, each in `[0, I)`.
        block: users scored at once, >= 1; `None` takes as many as fit in `CELLS` score cells. The value does
            not depend on it. Memory is `block * I`: blocks are recomputed in the backward pass.

    Returns:
        The loss, a scalar >= 0.

    Raises:
        ValueError: `users` or `block` is below 1.

    Reference:
        RevAdv (RecSys 2020) eq. 3.

    **Differs from the paper:** eq. 3 has one target; the mean over several is that of its released code.

    >>> table = jnp.zeros((3, 4))
    >>> float(promotion(lambda ids: table[ids], 3, jnp.array([1, 2])))  # three users times log 4
    4.158883...
    """
    return over_blocks(lambda ids: _cross_entropy(scores(ids), targets), scores, users, block)


def ranking(
    scores: Scores,
    train: Interactions,
    targets: Int[Array, " T"],
    *,
    k: int = 50,
    width: float = 0.1,
    mask: bool = True,
    sign: int = 1,
    block: int | None = None,
) -> Float[Array, ""]:
    """Wilcoxon-Mann-Whitney loss: how far the targets are below what each real user is shown now.

    `L = sum_u sum_t sum_{v in top_K(u)} g(sign (s_uv - s_ut))`, `g(x) = 1 / (1 + exp(-x / b))`, lists held constant.
    As `g(x) + g(-x) = 1`, this is `- sum g(s_ut - s_uv)` up to a constant.

    Args:
        scores: as in `promotion`.
        train: what the real users clicked; its items are in no list, if `mask`.
        targets: ids, `(T,)`.
        k: K, list length, >= 1; at most I.
        width: b > 0. Where a target is much more than b below a list, there is no gradient: `g' ~ exp(-|x|/b) / b`.
        mask: leave out of the lists what a user has clicked.
        sign: 1 to promote, -1 to demote.
        block: as in `promotion`.

    Raises:
        ValueError: a number outside its range.

    Reference: Zhang et al. (RAPU), KDD 2021, section 3.2 and Alg. 2.

    **Differs from the paper:** its code does not mask (`mask=False`). A target that is in the list is compared with
    itself too, a constant 1/2.

    >>> train = Interactions.from_arrays([0], [0], items=3)
    >>> float(ranking(lambda users: jnp.array([[9.0, 2.0, 1.0]]), train, jnp.array([2]), k=1, width=1.0))
    0.731058...
    """
    if not (isinstance(k, int) and k >= 1):
        raise ValueError(f"k is {k!r}; expected a list length >= 1")
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width is {width!r}; expected a finite number > 0")
    lists, length = sample.lists(train), min(k, train.items)

    def below(ids: Int[Array, " B"]) -> Float[Array, " B"]:
        raw = scores(ids)
        ranked = jax.lax.stop_gradient(raw)
        if mask:
            ranked = mask_seen(ranked, sample.marked(lists, ids, train.items))
        best, shown = jax.lax.top_k(ranked, length)
        gap = jnp.take_along_axis(raw, shown, 1)[:, :, None] - raw[:, None, targets]
        lost = jax.nn.sigmoid(sign * gap / width) * (best > -jnp.inf)[:, :, None]
        return jnp.sum(lost, (1, 2))

    return over_blocks(below, scores, train.users, block)


def _signed_promotion(scores, train: Interactions, targets, *, sign: int, block: int | None):
    return sign * promotion(scores, train.users, targets, block=block)


def _availability(scores, train: Interactions, targets, *, block: int | None) -> Float[Array, ""]:
    """`sum_u mean_{i in N(u)} log softmax(S_u)_i`; users without a click have no part in it."""
    lists = sample.lists(train)

    def liked(ids: Int[Array, " B"]) -> Float[Array, " B"]:
        own = sample.marked(lists, ids, train.items)
        share = jax.nn.log_softmax(scores(ids), axis=-1)
        return jnp.sum(jnp.where(own, share, 0), 1) / jnp.maximum(jnp.sum(own, 1), 1)

    return over_blocks(liked, scores, train.users, block)


def _cross_entropy(rows: Float[Array, "B I"], targets: Int[Array, " T"]) -> Float[Array, " B"]:
    """Per user: log-sum-exp of its scores minus the mean score of the targets."""
    return jax.nn.logsumexp(rows, axis=-1) - jnp.mean(rows[:, targets], axis=-1)


def over_blocks(
    per_user: Callable[[Int[Array, " B"]], Float[Array, " B"]],
    scores: Scores,
    users: int,
    block: int | None,
) -> Float[Array, ""]:
    """The sum of `per_user(ids)` over all real users, one block after the other, recomputed when differentiated.

    Args:
        per_user: ids `(B,)` to one number each.
        scores: what `per_user` reads, for the width and the precision of a row.
        users: U >= 1.
        block: users at a time, >= 1; None: as many as fit in `CELLS` cells.

    Raises:
        ValueError: `users` or `block` is below 1.

    >>> float(over_blocks(lambda ids: ids * 1.0, lambda ids: jnp.zeros((ids.shape[0], 2)), users=4, block=3))
    6.0
    """
    if users < 1:
        raise ValueError(f"users is {users}; the promotion loss needs at least one real user")
    if block is not None and block < 1:
        raise ValueError(f"block is {block}; expected at least one user a block, or None")
    row = jax.eval_shape(scores, jax.ShapeDtypeStruct((1,), jnp.int32))
    if block is None:
        block = max(1, CELLS // row.shape[-1])
    if block >= users:
        return jnp.sum(per_user(jnp.arange(users, dtype=jnp.int32)))
    starts = jnp.arange(0, users, block, dtype=jnp.int32)

    @jax.checkpoint
    def add(total, start):
        ids = start + jnp.arange(block, dtype=jnp.int32)
        # The last block is filled up with the last user, whose copies are then not counted.
        losses = per_user(jnp.minimum(ids, users - 1))
        return total + jnp.sum(jnp.where(ids < users, losses, 0)), None

    return jax.lax.scan(add, jnp.zeros((), row.dtype), starts)[0]
