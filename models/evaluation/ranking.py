"""How well the lists serve the users: Recall, NDCG, hit ratio and precision of held-out items.

With `rel_r(u) = 1` where position r of user u's list `top_K(u)` (unseen items, score descending, then item id
ascending) holds one of the test items `test_u`:

    recall@K    = sum_{r<=K} rel_r / |test_u|
    precision@K = sum_{r<=K} rel_r / K
    hr_test@K   = 1[rel_r = 1 for some r <= K]
    ndcg@K      = DCG@K / IDCG@K,   DCG@K = sum_{r<=K} rel_r / log2(r + 1)
    IDCG@K      = sum_{r<=min(K, |test_u|)} 1 / log2(r + 1)

Every function here gives one number a user; `models.evaluation.evaluate` averages them over the users with
test items.

**Differs from the paper:** NDCG follows Järvelin and Kekäläinen (ACM TOIS 2002) in its usual binary form.
RevAdv's released code (RecSys 2020) cuts the list at min(K, |test_u|) before it sums the gain; that is
another number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def relevance(scores: Float[Array, "B I"], test: Bool[Array, "B I"], k: int) -> Bool[Array, "B K"]:
    """Which of the first k positions hold a test item.

    Args:
        scores: to rank by, -inf at the seen items; ties go to the lower item id.
        test: mask of the test items.
        k: list length, 1 <= k <= I.

    Returns:
        (B, k) mask. A position past the user's last unseen item is empty and False, also for a test item that
        was seen.

    Example:
        >>> relevance(jnp.array([[1.0, 1.0, 3.0]]), jnp.array([[False, True, True]]), 2).tolist()
        [[True, False]]
    """
    values, items = jax.lax.top_k(scores, k)  # equal scores: lower index first
    return jnp.take_along_axis(test, items, axis=1) & (values > -jnp.inf)


def recall(relevant: Bool[Array, "*U K"], count: Int[Array, "*U"], k: int) -> Float[Array, "*U"]:
    """`|top_K(u) ∩ test_u| / |test_u|` of each user.

    Args:
        relevant: which positions hold a test item (`relevance`).
        count: |test_u|.
        k: list length, 1 <= k <= K.

    Returns:
        Values in [0, 1]; NaN where the user has no test item.

    Example:
        >>> recall(jnp.array([[True, False, True]]), jnp.array([4]), 2).tolist()
        [0.25]
    """
    return _share(_hits(relevant, k), count)


def precision(relevant: Bool[Array, "*U K"], count: Int[Array, "*U"], k: int) -> Float[Array, "*U"]:
    """`|top_K(u) ∩ test_u| / K` of each user; the divisor is K even where fewer than K items are unseen.

    Arguments and result as in `recall` (NaN where the user has no test item, so that all four are means over
    the same users).

    Example:
        >>> precision(jnp.array([[True, False, True]]), jnp.array([4]), 2).tolist()
        [0.5]
    """
    return jnp.where(count > 0, _hits(relevant, k) / k, jnp.nan)


def hr_test(relevant: Bool[Array, "*U K"], count: Int[Array, "*U"], k: int) -> Float[Array, "*U"]:
    """`1[top_K(u) ∩ test_u ≠ ∅]` of each user: with one test item, whether it is in the list.

    Arguments and result as in `recall`, which it equals where every user has one test item (leave-one-out).

    Example:
        >>> hr_test(jnp.array([[False, False, True]]), jnp.array([1]), 3).tolist()
        [1.0]
    """
    return jnp.where(count > 0, jnp.any(relevant[..., :k], axis=-1).astype(float), jnp.nan)


def ndcg(relevant: Bool[Array, "*U K"], count: Int[Array, "*U"], k: int) -> Float[Array, "*U"]:
    """`DCG@K / IDCG@K` of each user, where the ideal list has `min(K, |test_u|)` hits.

    Arguments and result as in `recall`.

    Example: one of two test items, at position 1: 1 / (1 + 1/log2(3)).
        >>> ndcg(jnp.array([[True, False, False]]), jnp.array([2]), 3).round(4).tolist()
        [0.6131...]
    """
    discount = 1.0 / jnp.log2(jnp.arange(2, k + 2, dtype=float))
    ideal = jnp.cumsum(discount)[jnp.clip(count, 1, k) - 1]
    return jnp.where(count > 0, jnp.sum(relevant[..., :k] * discount, axis=-1) / ideal, jnp.nan)


def _hits(relevant: Bool[Array, "*U K"], k: int) -> Float[Array, "*U"]:
    return jnp.sum(relevant[..., :k], axis=-1).astype(float)


def _share(hits: Float[Array, "*U"], count: Int[Array, "*U"]) -> Float[Array, "*U"]:
    return jnp.where(count > 0, hits / jnp.maximum(count, 1), jnp.nan)
