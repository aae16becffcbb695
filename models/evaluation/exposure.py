"""Whether an attack works: how often, and how high, the target items reach the real users.

With T the target items and `rank(u, t)` the position of t among u's unseen items (1 is the top):

    hr_any@K    = mean_u 1[some t in T has rank(u, t) <= K]           RevAdv (RecSys 2020), RAPU (KDD 2021)
    hr_mean@K   = mean_u |{t : rank(u, t) <= K}| / |T|                APT (SIGIR 2021), its released code
    hr_sum@K    = sum_t mean_u 1[rank(u, t) <= K] = |T| hr_mean@K     H-CARS, eq. 1
    rank_shift  = mean_t rank_after(u, t) - rank_before(u, t)         APT, Fig. 1; below 0 is promotion
    RI          = 1 - (HR_defense - HR_origin) / (HR_attack - HR_origin)                                   APT

`hr_any >= hr_mean`, and they differ by up to a factor |T|: papers use the same words for both, so say which.
A target that is in a user's training row cannot be shown to that user: it has no rank (0 here), is never a
hit and stays in the divisor.

**Differs from the paper:** APT's code multiplies the scores of seen items by -99,998 for the target's HR,
which puts a seen item with a negative score first; here seen items are removed (-inf), as in its test HR. RI
is NaN, not infinite, where the attack changed nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

GROUP = 8  # targets counted in one sweep over the scores


class TargetRanks(NamedTuple):
    """Position (from 1) of each target among the unseen items; 0 where it has none, because it was seen.

    `id`: of equal scores the lower item id comes first. `worst`: the target comes after all items of its
    score.
    """

    id: Int[Array, "B T"]
    worst: Int[Array, "B T"]


def target_ranks(scores: Float[Array, "B I"], targets: Int[Array, "T"]) -> TargetRanks:
    """Positions of the targets by counting the items ahead of them: no sort, one sweep for eight targets.

        rank_id(u, t)    = 1 + #{i : s_ui > s_ut  or  s_ui = s_ut and i < t}
        rank_worst(u, t) = #{i : s_ui >= s_ut}

    Args:
        scores: to rank by, -inf exactly at the seen items.
        targets: item ids; may be traced.

    Returns:
        Both positions, (B, T) int32.

    Example: three items of one score.
        >>> ranks = target_ranks(jnp.zeros((1, 3)), jnp.array([1]))
        >>> ranks.id.tolist(), ranks.worst.tolist()
        ([[2]], [[3]])
    """
    groups = [_count_ahead(scores, targets[at : at + GROUP]) for at in range(0, targets.shape[0], GROUP)]
    ahead, level = (jnp.concatenate(columns, axis=1) for columns in zip(*groups, strict=True))
    unseen = scores[:, targets] > -jnp.inf
    return TargetRanks(jnp.where(unseen, ahead + 1, 0), jnp.where(unseen, level, 0))


def _count_ahead(
    scores: Float[Array, "B I"], targets: Int[Array, "T"]
) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Items ahead by the id rule, and items at or above the target's score."""
    items = jnp.arange(scores.shape[1], dtype=targets.dtype)
    counted = []
    for target in targets:
        own = scores[:, target][:, None]
        counted.append((scores > own) | ((scores == own) & (items < target)))
        counted.append(scores >= own)
    # One reduction with many results reads the scores once, and XLA's CPU backend vectorizes it (not so a sum for
    # each target: 150 ms against 12 ms for 1,012 x 14,007 scores and 5 targets on 2 cores).
    sums = jax.lax.reduce(
        tuple(c.astype(jnp.int32) for c in counted),
        (jnp.int32(0),) * len(counted),
        lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True)),
        (1,),
    )
    return jnp.stack(sums[::2], axis=1), jnp.stack(sums[1::2], axis=1)


def in_list(rank: Int[Array, "*U T"], k: int) -> Bool[Array, "*U T"]:
    """`1[t ∈ top_K(u)]` for each user and target; a target without a rank (0) is not in the list.

    Example:
        >>> in_list(jnp.array([[0, 1, 3]]), 2).tolist()
        [[False, True, False]]
    """
    return (rank >= 1) & (rank <= k)


def hr_any(rank: Int[Array, "*U T"], k: int) -> Float[Array, "*U"]:
    """`1[top_K(u) ∩ T ≠ ∅]` of each user.

    Args:
        rank: position of each target from 1; 0 where it has none.
        k: list length.

    Example:
        >>> hr_any(jnp.array([[1, 2], [3, 4]]), 2).tolist()
        [1.0, 0.0]
    """
    return jnp.any(in_list(rank, k), axis=-1).astype(float)


def hr_mean(rank: Int[Array, "*U T"], k: int) -> Float[Array, "*U"]:
    """`|top_K(u) ∩ T| / |T|` of each user; arguments as in `hr_any`.

    Example:
        >>> hr_mean(jnp.array([[1, 2], [2, 4]]), 2).tolist()
        [1.0, 0.5]
    """
    return hr_sum(rank, k) / rank.shape[-1]


def hr_sum(rank: Int[Array, "*U T"], k: int) -> Float[Array, "*U"]:
    """`|top_K(u) ∩ T|` of each user; arguments as in `hr_any`.

    Example:
        >>> hr_sum(jnp.array([[1, 2], [2, 4]]), 2).tolist()
        [2.0, 1.0]
    """
    return jnp.sum(in_list(rank, k), axis=-1).astype(float)


def average_rank(rank: Int[Array, "U T"], users: Bool[Array, "U"] | None = None) -> Float[Array, ""]:
    """Mean position over the (user, target) pairs that have one; NaN when none has.

    Args:
        rank: position of each target from 1; 0 where it has none.
        users: mask of the users to average over; default all.

    Example:
        >>> float(average_rank(jnp.array([[1, 0], [4, 4]])))
        3.0
    """
    ranked = rank > 0 if users is None else (rank > 0) & users[:, None]
    count = jnp.sum(ranked)
    # Summed as floats: positions add up past int32 at 150,000 pairs of a 14,007-item catalog.
    return jnp.where(count > 0, jnp.sum(jnp.where(ranked, rank, 0).astype(float)) / count, jnp.nan)


def rank_shift(before: Int[Array, "U T"], after: Int[Array, "U T"]) -> Float[Array, "U"]:
    """Mean over a user's targets of `rank_after - rank_before`; negative where the attack promoted them.

    Args:
        before, after: positions from 1 for the same users and targets; pairs without a rank in either are
            left out.

    Returns:
        One number a user; NaN where no target has a rank in both.

    Example:
        >>> rank_shift(jnp.array([[10, 4], [0, 0]]), jnp.array([[2, 2], [0, 0]])).tolist()
        [-5.0, nan]
    """
    both = (before > 0) & (after > 0)
    count = jnp.sum(both, axis=-1)
    total = jnp.sum(jnp.where(both, after - before, 0), axis=-1).astype(float)
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def prediction_shift(
    before: Float[Array, "U T"], after: Float[Array, "U T"], pairs: Bool[Array, "U T"] | None = None
) -> Float[Array, ""]:
    """Mean over users and targets of `score_after - score_before`; in the units of the scores.

    Args:
        before, after: scores of the targets for the same users.
        pairs: mask of the pairs to average over (for instance the unseen ones); default all.

    Reference: O'Mahony, Hurley, Silvestre, Promoting recommendations: an attack on collaborative filtering,
    DEXA 2002.

    **Differs from the paper:** nothing when `pairs` leaves out the ratings the users gave.

    Example:
        >>> float(prediction_shift(jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 4.0]])))
        1.5
    """
    return jnp.mean(after - before, where=pairs)


class Improvement(NamedTuple):
    """RI of each cell (NaN where undefined), its mean over the defined cells, and how many are undefined."""

    value: Float[Array, "*C"]
    mean: Float[Array, ""]
    undefined: Int[Array, ""]


def robustness_improvement(defense: ArrayLike, attack: ArrayLike, origin: ArrayLike) -> Improvement:
    """The share of an attack's effect that a defense undoes.

        RI = 1 - (HR_defense - HR_origin) / (HR_attack - HR_origin)

    1: the hit ratio is back at the clean one (origin); 0: the defense did nothing; above 1: below the clean
    one.

    Args:
        defense, attack, origin: hit ratios of the defended, the attacked and the clean model; broadcast
            together.

    Returns:
        `Improvement`. Where attack equals origin RI is undefined: NaN, left out of the mean and counted,
        never infinite.

    Reference: Wu et al., Fight Fire with Fire: Towards Robust Recommender Systems via Adversarial Poisoning
    Training, SIGIR 2021.

    **Differs from the paper:** the rule for attack = origin, which the paper does not state.

    Example:
        >>> ri = robustness_improvement([0.25, 0.4], [0.5, 0.4], [0.25, 0.4])
        >>> ri.value.tolist(), float(ri.mean), int(ri.undefined)
        ([1.0, nan], 1.0, 1)
    """
    defense, attack, origin = (jnp.asarray(v, float) for v in (defense, attack, origin))
    effect = attack - origin
    value = 1.0 - (defense - origin) / jnp.where(effect == 0, jnp.nan, effect)
    defined = jnp.broadcast_to(
        effect != 0, value.shape
    )  # a NaN among the arguments is defined: it must reach the mean
    return Improvement(value, jnp.mean(value, where=defined), jnp.sum(~defined))
