"""What a filter looks for, as a function that an attacker can differentiate: the soft side of four detectors.

    s(x_f), higher is more suspicious, of relaxed fake rows beside the users the attacker knows

At hard rows they are the scores of `defenses.neighbors` and `defenses.profiles`, but for what the fake users themselves
change of the statistics (bins, directions), which is left out. `known` is handed to `defenses.filtering.soft_filter` as
the surrogate of an adaptive attack: a defense is only believed against an attacker who knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from defenses.matrix import lengths, matrix
from defenses.neighbors import directions, duplicate, knn, pca, standard_directions
from defenses.profiles import bins_of, popularity
from models import sparse
from models.data import Interactions
from models.recommender import one_of

Score = Callable[[Float[Array, "F I"], Any], Float[Array, " F"]]
TINY = 1e-12


class Suspicion(NamedTuple):
    """What `soft_filter` takes: `score(x, data) -> (F,)`, the `cut` and the `temperature` in its unit."""

    score: Score
    cut: float
    temperature: float


def known(name: str, train: Interactions, level: float = 0.05) -> Suspicion:
    """The soft side of a detector, from the users an attacker knows; clicks only.

    Args:
        name: "duplicate", "popularity", "pca" or "knn", as in `defenses.detectors.DETECTORS`.
        train: the attacker's view of the real users.
        level: the share of users that the filter takes; the cut is that quantile of the known users' scores, a tenth
            of their standard deviation the temperature.

    Raises:
        ValueError: another detector, or ratings.

    **Differs from the paper:** not in a paper.

    >>> found = known("duplicate", Interactions.from_dense(np.tri(6)))
    >>> found.score(jnp.ones((1, 6)), None).tolist()
    [1.0]
    """
    one_of("known", "name", name, tuple(SOFT))
    if train.track == "explicit":
        raise ValueError(f"known: {name} is soft for clicks only, but the data are ratings")
    detector, soft = SOFT[name]
    scores = detector(train)
    return Suspicion(
        soft(train), float(np.quantile(scores, 1 - level)), max(0.1 * float(np.std(scores)), TINY)
    )


def alike(train: Interactions) -> Score:
    """`duplicate`: the largest `<x, y> / (|x| + |y| - <x, y>)` to a real user or another fake one.

    >>> alike(Interactions.from_dense(np.eye(3)))(jnp.array([[1.0, 1.0, 0.0]])).tolist()
    [0.5]
    """
    cells = sparse.observed(train.user, train.item, train.mask, train.users, train.items)
    ones = jnp.ones(cells.row.shape)
    size = jnp.asarray(lengths(matrix(train)), float)

    def score(x: Array, data: Any = None) -> Array:
        own = jnp.sum(x, 1)
        share = lambda shared, other: shared / jnp.maximum(own[:, None] + other - shared, TINY)
        real = share(sparse.spread(ones.astype(x.dtype), x.T, cells).T, size)
        near = share(x @ x.T, own)
        near = jnp.where(jnp.eye(x.shape[0], dtype=bool), 0.0, near)
        return jnp.maximum(jnp.max(real, 1), jnp.max(near, 1, initial=0.0))

    return score


def unpopular(train: Interactions, bins: int = 10) -> Score:
    """`popularity`: Jensen-Shannon divergence (in bits) of a row's popularity from that of all known clicks.

    >>> unpopular(Interactions.from_dense(np.eye(4)), bins=2)(jnp.ones((1, 4))).round(3).tolist()
    [0.0]
    """
    place, everybody = bins_of(matrix(train), bins)
    one_hot = jnp.asarray(np.eye(bins)[place])
    everybody = jnp.asarray(everybody)

    def score(x: Array, data: Any = None) -> Array:
        own = x @ one_hot.astype(x.dtype)
        share = own / jnp.maximum(jnp.sum(own, 1, keepdims=True), TINY)
        middle = jnp.maximum((share + everybody) / 2, TINY)  # 0 where a bin has no click at all
        entropy = lambda p: jnp.where(p > TINY, p * jnp.log(jnp.maximum(p, TINY) / middle), 0.0)
        return jnp.sum(entropy(share) + entropy(jnp.broadcast_to(everybody, share.shape)), 1) / (
            2 * np.log(2)
        )

    return score


def odd(train: Interactions, components: int = 3) -> Score:
    """`pca`: minus the squared loadings of the standardized row on the first directions of the known users.

    >>> odd(Interactions.from_dense(np.tri(6)), components=2)(jnp.eye(2, 6)).shape
    (2,)
    """
    _, values, right = standard_directions(train, components)
    turn = jnp.asarray(right / values)

    def score(x: Array, data: Any = None) -> Array:
        away = x - jnp.mean(x, 1, keepdims=True)
        row = away / jnp.sqrt(jnp.mean(away**2, 1, keepdims=True) + TINY)
        return -jnp.sum((row @ turn.astype(x.dtype)) ** 2, 1)

    return score


def crowded(train: Interactions, neighbors: int = 20) -> Score:
    """`knn`: minus the mean distance to the nearest real and fake users, in the plane of the first directions.

    >>> crowded(Interactions.from_dense(np.tri(6)), neighbors=1)(jnp.ones((2, 6))).round(3).tolist()  # two equal ones
    [-0.0, -0.0]
    """
    left, values, right = directions(train)
    points, turn = jnp.asarray(left * values), jnp.asarray(right)

    def score(x: Array, data: Any = None) -> Array:
        mine = x / jnp.sqrt(jnp.sum(x**2, 1, keepdims=True) + TINY) @ turn.astype(x.dtype)
        every = jnp.concatenate([points.astype(x.dtype), mine])
        apart = jnp.sum((mine[:, None] - every) ** 2, 2)
        itself = jnp.arange(every.shape[0]) == points.shape[0] + jnp.arange(x.shape[0])[:, None]
        apart = jnp.sqrt(jnp.where(itself, jnp.inf, apart) + TINY)
        count = min(neighbors, every.shape[0] - 1)
        return jnp.mean(jax.lax.top_k(-apart, count)[0], 1)

    return score


SOFT: dict[str, tuple[Callable[[Interactions], np.ndarray], Callable[[Interactions], Score]]] = {
    "duplicate": (duplicate, alike),
    "popularity": (popularity, unpopular),
    "pca": (pca, odd),
    "knn": (knn, crowded),
}
"""By name: the detector, and its soft side."""
