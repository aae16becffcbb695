"""The protocol every number of the project comes from: who is judged, on which lists, and what a tie means.

1. Real users only: the users of `train`, which is the clean training set, never the poisoned one.
2. The items of a user's training row are removed from the ranking first; what is left is ranked by score,
   descending.
3. Ties: the lower item id comes first (`ties="id"`). With `ties="worst"` a target comes after all items of
   its score, so that a model that scores everything alike gets HR 0 and not 1; `hr_worst` reports `hr_any` by
   that rule in every evaluation.
4. Target metrics are means over all users, or over those with test items (`users="with_test"`, RevAdv's
   rule); test metrics are means over the users with test items, always. A user who already has a target stays
   in the divisor and is counted.
5. Scores with a NaN have no ranking: the metrics are NaN.

The pass is blocked over users (`models.evaluation.blocks`), so memory follows block x items. Targets are
ranked by counting and only the test metrics need the lists themselves.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from models.data.interactions import Interactions
from models.evaluation import checks, exposure, ranking
from models.evaluation.blocks import Block, Scores, over_users

Users = Literal["all", "with_test"]
Ties = Literal["id", "worst"]


class PerUser(NamedTuple):
    """What the pass keeps of each user: every metric and any paired comparison is a function of it.

    `valid` (U,): the scores had no NaN. `target_rank` (U, T): position from 1 under the chosen tie rule, 0
    where the target was seen (or the user is not valid). `target_rank_worst`: the same, targets last among
    ties. `target_score` (U, T): the model's score, seen or not. `target_seen` (U, T). `relevant` (U, K): the
    list's position holds a test item. `test_count` (U,): |test_u|.
    """

    valid: Bool[Array, "U"]
    target_rank: Int[Array, "U T"] | None = None
    target_rank_worst: Int[Array, "U T"] | None = None
    target_score: Float[Array, "U T"] | None = None
    target_seen: Bool[Array, "U T"] | None = None
    relevant: Bool[Array, "U K"] | None = None
    test_count: Int[Array, "U"] | None = None


class Evaluation(NamedTuple):
    """Metrics at list length k; None where not asked for. A tuple `k` adds a last axis that follows it.

    Targets: `hr_any`, `hr_mean`, `hr_sum` (= |T| hr_mean), `hr_target` ((T,) HR of each target), `hr_worst`
    (`hr_any` with targets last among ties), `target_rank` (mean position over the pairs that have one),
    `seen_target_count` (users who already have at least one target). Test: `recall`, `ndcg`, `hr_test`,
    `precision`. `users` and `test_users`: the divisors.
    """

    hr_any: Float[Array, "*K"] | None = None
    hr_mean: Float[Array, "*K"] | None = None
    hr_sum: Float[Array, "*K"] | None = None
    hr_target: Float[Array, "T *K"] | None = None
    hr_worst: Float[Array, "*K"] | None = None
    target_rank: Float[Array, ""] | None = None
    seen_target_count: Int[Array, ""] | None = None
    recall: Float[Array, "*K"] | None = None
    ndcg: Float[Array, "*K"] | None = None
    hr_test: Float[Array, "*K"] | None = None
    precision: Float[Array, "*K"] | None = None
    users: Int[Array, ""] | None = None
    test_users: Int[Array, ""] | None = None
    per_user: PerUser | None = None


def evaluate(
    scores: Scores,
    train: Interactions,
    *,
    test: Interactions | None = None,
    targets: Int[ArrayLike, "T"] | None = None,
    k: int | tuple[int, ...] = 50,
    block: int = 1024,
    users: Users = "all",
    ties: Ties = "id",
    per_user: bool = False,
) -> Evaluation:
    """Judge a model: do the real users get what they like (test), and do they get the targets?

        hr_any@K  = mean_u 1[top_K(u) ∩ T ≠ ∅]
        hr_mean@K = mean_u |top_K(u) ∩ T| / |T|
        recall@K  = mean_u |top_K(u) ∩ test_u| / |test_u|

    A pure function: `jax.jit` it, `jax.vmap` it over target sets or over what `scores` closes over (models).
    `fitted.scores`, or any `jax.tree_util.Partial` of arrays, is compiled once for all parameters of a model; a
    lambda is compiled at every call.

    Args:
        scores: ids of real users (B,) -> scores (B, I), any float type, higher is better; written in
            `jax.numpy`.
        train: the clean training set, (U users, I items); its items are removed from each user's ranking.
        test: held-out events of the same users and items. An item that is in train too cannot be in the list:
            a miss.
        targets: (T,) distinct item ids in [0, I); may be traced (then an id out of range is clamped, as JAX
            does).
        k: list length, 1 <= k <= I; several lengths as a tuple cost one pass.
        block: most users scored at once; changes memory, not the numbers.
        users: "all", or "with_test": target metrics over the users with test items only.
        ties: "id" (lower id first) or "worst" (a target after all items of its score). Test metrics always
            use "id".
        per_user: also return the arrays behind the means.

    Returns:
        `Evaluation`.

    Raises:
        ValueError, TypeError: from the host, before tracing: what was given, what was expected.

    Reference: metrics of Tang, Wen, Wang, Revisiting Adversarially Learned Injection Attacks Against
    Recommender Systems, RecSys 2020; Wu et al., SIGIR 2021 (hr_mean).

    **Differs from the paper:** NDCG is the usual one (see `ranking`); the tie rule, which no paper states;
    the worst case beside it.

    Example: two users, four items, lists of one item: [2] and [0].
        >>> from models.data.interactions import Interactions
        >>> train = Interactions.from_arrays([0, 1], [1, 1], users=2, items=4)
        >>> table = jnp.array([[0.0, 9.0, 2.0, 1.0], [3.0, 9.0, 2.0, 1.0]])
        >>> result = evaluate(lambda users: table[users], train, targets=[2, 3], k=1)
        >>> float(result.hr_any), float(result.hr_mean), float(result.hr_sum)
        (0.5, 0.25, 0.5)
    """
    ks = checks.call(scores, train, test, targets, k, block, users, ties)
    if targets is not None:
        targets = jnp.asarray(targets, jnp.int32)
    choices = _Choices(ks, isinstance(k, tuple), block, users, ties, per_user)
    scores = _as_partial(scores)
    run = _run_compiled if isinstance(scores, jax.tree_util.Partial) else _run
    return run(scores, train, test, targets, choices)


def _as_partial(scores: Scores) -> Scores:
    """A method of a record of arrays, such as `fitted.scores`, as a `Partial`: `jit` can take that as an argument."""
    owner = getattr(scores, "__self__", None)
    if not inspect.ismethod(scores) or jax.tree_util.all_leaves([owner]):
        return scores
    if not all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(owner)):
        return scores
    return jax.tree_util.Partial(scores.__func__, owner)


class _Choices(NamedTuple):
    """The static half of a call: what is compiled once is compiled for these."""

    ks: tuple[int, ...]
    several: bool
    block: int
    users: Users
    ties: Ties
    per_user: bool


def _run(
    scores: Scores,
    train: Interactions,
    test: Interactions | None,
    targets: Int[Array, "T"] | None,
    choices: _Choices,
) -> Evaluation:
    """The pass over the users, then the means."""
    marks = () if test is None else (test,)
    read = functools.partial(_read, targets=targets, k=max(choices.ks), ties=choices.ties)
    kept = over_users(scores, train, read, marks=marks, block=choices.block)
    return _metrics(kept, [data.weight for data in (train, *marks)], choices)


@functools.partial(jax.jit, static_argnames="choices")
def _metrics(kept: PerUser, weights: list[Float[Array, "E"]], choices: _Choices) -> Evaluation:
    """Means over the users of what the pass kept."""
    # `Interactions` made in a trace say "too many events" by NaN weights: then no mask can be right.
    kept = kept._replace(valid=kept.valid & ~jnp.any(jnp.stack([jnp.any(jnp.isnan(w)) for w in weights])))
    judged = jnp.ones_like(kept.valid)
    if kept.test_count is not None and choices.users == "with_test":
        judged = kept.test_count > 0

    def at(metric: Callable[..., Array], *arrays: Any, over: Bool[Array, "U"] = judged) -> Array:
        means = [_mean(metric(*arrays, k), over, kept.valid) for k in choices.ks]
        return jnp.stack(means, axis=-1) if choices.several else means[0]

    result = Evaluation(users=jnp.sum(judged), per_user=kept if choices.per_user else None)
    if kept.target_rank is not None and kept.target_seen is not None:
        rank = kept.target_rank
        result = result._replace(
            hr_any=at(exposure.hr_any, rank),
            hr_mean=at(exposure.hr_mean, rank),
            hr_sum=at(exposure.hr_sum, rank),
            hr_target=at(exposure.in_list, rank),
            hr_worst=at(exposure.hr_any, kept.target_rank_worst),
            target_rank=_unless_invalid(exposure.average_rank(rank, judged), judged, kept.valid),
            seen_target_count=jnp.sum(jnp.any(kept.target_seen, axis=1) & judged),
        )
    if kept.test_count is not None:
        over = kept.test_count > 0
        names = ("recall", "ndcg", "hr_test", "precision")
        arrays = kept.relevant, kept.test_count
        means = {name: at(getattr(ranking, name), *arrays, over=over) for name in names}
        result = result._replace(**means, test_users=jnp.sum(over))
    return result


_run_compiled = jax.jit(_run, static_argnames="choices")


def _read(block: Block, *, targets: Int[Array, "T"] | None, k: int, ties: Ties) -> PerUser:
    """What is kept of a block of users."""
    valid = ~jnp.any(jnp.isnan(block.scores), axis=1)
    kept = PerUser(valid)
    if targets is not None:
        ranks = exposure.target_ranks(block.scores, targets)
        chosen = ranks.id if ties == "id" else ranks.worst
        kept = kept._replace(
            target_rank=jnp.where(valid[:, None], chosen, 0),
            target_rank_worst=jnp.where(valid[:, None], ranks.worst, 0),
            target_score=block.raw[:, targets],
            target_seen=block.seen[:, targets],
        )
    if block.marked:
        (test,) = block.marked
        relevant = ranking.relevance(block.scores, test, k)
        kept = kept._replace(relevant=relevant, test_count=jnp.sum(test, axis=1, dtype=jnp.int32))
    return kept


def _mean(values: Array, over: Bool[Array, "U"], valid: Bool[Array, "U"]) -> Array:
    """Mean over the users `over` (NaN if there are none), NaN if one of them has no ranking."""
    column = over.reshape(-1, *(1,) * (values.ndim - 1))
    total = jnp.sum(jnp.where(column, values, 0).astype(float), axis=0)
    return _unless_invalid(total / jnp.sum(over), over, valid)


def _unless_invalid(value: Array, over: Bool[Array, "U"], valid: Bool[Array, "U"]) -> Array:
    return jnp.where(jnp.any(over & ~valid), jnp.nan, value)
