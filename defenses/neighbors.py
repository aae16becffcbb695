"""Detectors that hold users against each other: who is like whom, and where they lie.

    deg-sim     Chirita, Nejdl, Zamfir, WIDM 2005: mean similarity to the nearest users
    duplicate   the largest Jaccard similarity to any other user
    pca         Mehta, Nejdl, UMUAI 2009 (VarSelect): fake users have small loadings on the first components
    fap         Zhang, Tan, Zhang, Liu, Chua, Ma, IJCAI 2015: suspicion spread over the graph of clicks from seeds
    lof, knn    Breunig et al., SIGMOD 2000: density and distance in an embedding of the users

Scores are higher for more suspicious users. Pairs of users are compared a block at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from defenses.matrix import lengths, matrix, rows, unit
from defenses.profiles import Scores
from models.data import Interactions


def deg_sim(train: Interactions, *, neighbors: int = 25) -> Scores:
    """Mean similarity to the nearest users: cosine of clicks, Pearson correlation of ratings over all items.

    Args:
        train: interactions with the fake users among them.
        neighbors: how many, >= 1; fewer if there are fewer users.

    Returns:
        (U,) scores in [-1, 1].

    Raises:
        ValueError: `neighbors` below 1.

    Reference: Chirita, Nejdl, Zamfir, WIDM 2005; Burke et al., KDD 2006. **Differs from the paper:** correlation over
    all items with 0 for a missing rating after centering on the user's mean, not over the items two users share.

    >>> deg_sim(Interactions.from_arrays([0, 0, 1, 1, 2], [0, 1, 0, 1, 2]), neighbors=1).round(3).tolist()
    [1.0, 1.0, 0.0]
    """
    R = matrix(train)
    if train.track == "explicit":
        user = rows(R)
        level = np.bincount(user, R.data, R.shape[0]) / np.maximum(lengths(R), 1)
        R = R.copy()
        R.data = R.data - level[user]
    return _nearest(unit(R), min(neighbors, R.shape[0] - 1), neighbors)


def _nearest(unit: Any, count: int, asked: int, block: int = 1024) -> np.ndarray:
    """Mean of the `count` largest products with other rows, a block of rows at a time."""
    if asked < 1:
        raise ValueError(f"deg_sim: neighbors={asked}; expected at least 1")
    users = unit.shape[0]
    found = np.zeros(users)
    for first in range(0, users if count else 0, block):
        near = np.asarray((unit[first : first + block] @ unit.T).todense())
        near[np.arange(near.shape[0]), np.arange(first, first + near.shape[0])] = -np.inf
        found[first : first + block] = np.partition(near, -count, axis=1)[:, -count:].mean(1)
    return found


def duplicate(train: Interactions, *, block: int = 1024) -> Scores:
    """The largest Jaccard similarity `|A and B| / |A or B|` of a user's items to any other user's.

    Returns:
        (U,) scores in [0, 1]: 1 for a profile that is there twice, 0 for a user without a click.

    Reference: catches RAPU-R's equal profiles. **Differs from the paper:** not in a paper.

    >>> duplicate(Interactions.from_arrays([0, 0, 1, 1, 2], [0, 1, 0, 1, 0])).tolist()
    [1.0, 1.0, 0.5]
    """
    R = matrix(train)
    R.data[:] = 1.0
    size, users = lengths(R), R.shape[0]
    found = np.zeros(users)
    for first in range(0, users, block):
        some = np.arange(first, min(first + block, users))
        shared = np.asarray((R[some] @ R.T).todense())
        union = size[some][:, None] + size[None] - shared
        near = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        near[np.arange(some.size), some] = 0
        found[some] = near.max(1)
    return found


def pca(train: Interactions, *, components: int = 3) -> Scores:
    """VarSelect: `-sum over the first components of u_k(user)^2` of the users' covariance.

    Each user's row, missing cells 0, is made to have mean 0 and variance 1; the eigenvectors of the covariance between
    users are the left singular vectors of that matrix. Fake users vary together with few others.

    Args:
        train: interactions with the fake users among them.
        components: K >= 1, fewer than users and items.

    Returns:
        (U,) scores, at most 0. A user whose row is constant has no variance: the lowest suspicion would be wrong, so
        its loading of 0 is kept (the highest score).

    Raises:
        ValueError: as many components as users or items, or none.

    Reference: Mehta, Nejdl, UMUAI 2009. **Differs from the paper:** it removes as many users as there are fakes; here
    nobody is told.

    >>> train = Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 2, 3])
    >>> pca(train, components=1).round(3).tolist()  # they vary together, two one way and one the other
    [-0.333, -0.333, -0.333]
    """
    return -np.sum(standard_directions(train, components)[0] ** 2, 1)


def standard_directions(
    train: Interactions, components: int
) -> tuple[Float[np.ndarray, "U K"], Float[np.ndarray, " K"], Float[np.ndarray, "I K"]]:
    """The first singular triplets of the users' rows made to have mean 0 and variance 1 (constant ones are 0).

    Raises:
        ValueError: as many components as users or items, or none.
    """
    from scipy.sparse import linalg

    R = matrix(train)
    users, items = R.shape
    if not 1 <= components < min(users, items):
        raise ValueError(f"pca: components={components}; expected 1..{min(users, items) - 1}")
    mean = np.asarray(R.mean(1)).ravel()
    spread = np.sqrt(np.maximum(np.asarray(R.multiply(R).mean(1)).ravel() - mean**2, 0))
    scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0)
    forward = lambda v: scale * (R @ v.ravel() - mean * v.sum())
    backward = lambda v: R.T @ (scale * v.ravel()) - np.sum(mean * scale * v.ravel())
    if not scale.any():  # nobody tells two items apart
        return np.zeros((users, 0)), np.zeros(0), np.zeros((items, 0))
    operator: Any = linalg.LinearOperator
    left, values = _singular(
        operator((users, items), matvec=forward, rmatvec=backward, dtype=float), components
    )
    return left, values, np.stack([backward(column) for column in left.T], 1) / values


def _singular(Z: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first left singular vectors (U, K) and values from a fixed start, K <= count: as many as there are."""
    from scipy.sparse.linalg import svds

    left, values, _ = svds(Z, k=count, v0=np.random.default_rng(0).normal(size=min(Z.shape)))
    assert left is not None
    there = values > 1e-9 * values.max(initial=0)  # of a matrix of lower rank the rest is rounding
    return left[:, there], values[there]


def fap(train: Interactions, *, seeds: Bool[np.ndarray, " U"] | None = None, rounds: int = 20) -> Scores:
    """Fraudulent action propagation: suspicion walks from seed users to their items and back.

        p_item = mean over its users of p_user,    p_user = mean over its items of p_item, seeds held at 1

    Args:
        train: interactions with the fake users among them.
        seeds: users known to be fake, at least one; None: the five with the highest `duplicate` and whoever is level
            with the fifth, so that nothing has to be known.
        rounds: steps of the walk, >= 1.

    Returns:
        (U,) scores in [0, 1].

    Raises:
        ValueError: no seed, a mask of another length, or no round.

    Reference: Zhang et al., IJCAI 2015. **Differs from the paper:** which is given seeds; unweighted transitions for
    clicks, ratings as weights for ratings.

    >>> train = Interactions.from_arrays([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 2, 3])
    >>> fap(train, seeds=np.array([True, False, False])).round(3).tolist()
    [1.0, 1.0, 0.0]
    """
    from scipy.sparse import diags

    R = matrix(train)
    if seeds is None:
        alike = duplicate(train)
        held = alike >= np.sort(alike)[-min(5, alike.size)]
    else:
        held = np.asarray(seeds, bool)
    if held.shape != (R.shape[0],) or not held.any() or rounds < 1:
        raise ValueError(
            f"fap: {held.sum()} seeds of shape {held.shape}, rounds={rounds}; expected some of ({R.shape[0]},), and "
            "rounds >= 1"
        )
    over = lambda total: diags(1 / np.where(total > 0, total, 1.0))
    to_item = over(np.asarray(R.sum(0)).ravel()) @ R.T
    to_user = over(np.asarray(R.sum(1)).ravel()) @ R
    score = held.astype(float)
    for _ in range(rounds):
        score = np.where(held, 1.0, to_user @ (to_item @ score))
    return score


def lof(
    train: Interactions, *, embedding: Float[np.ndarray, "U D"] | None = None, neighbors: int = 20
) -> Scores:
    """Local outlier factor in an embedding of the users, 1 for one as densely surrounded as its neighbors.

    Args:
        train: interactions with the fake users among them.
        embedding: the users' vectors in a victim trained on `train`, such as `embedding["user"]` of what
            `models.train.fit` returns for one with factors; None: the 16 first singular directions of the clicks.
        neighbors: >= 1.

    Returns:
        (U,) scores, > 0.

    Raises:
        ValueError: an embedding that has not one row a user.

    Reference: Breunig, Kriegel, Ng, Sander, SIGMOD 2000, by scikit-learn. **Differs from the paper:** nothing; fakes
    that lie close together are as dense as can be, so the score can also be low for them: look at both ends.

    >>> clicks = Interactions.from_dense(np.eye(6))
    >>> lof(clicks, embedding=np.array([[0.0], [1], [2], [3], [4], [9]]), neighbors=2).round(1).tolist()
    [1.2, 1.2, 0.7, 1.2, 1.2, 3.7]
    """
    from sklearn.neighbors import LocalOutlierFactor

    points = _points(train, embedding)
    judge = LocalOutlierFactor(n_neighbors=min(neighbors, len(points) - 1)).fit(points)
    return -judge.negative_outlier_factor_


def knn(
    train: Interactions, *, embedding: Float[np.ndarray, "U D"] | None = None, neighbors: int = 20
) -> Scores:
    """`-mean distance to the nearest users` in an embedding: fakes made from one recipe lie close together.

    Args, raises: as `lof`. Returns (U,) scores, at most 0. **Differs from the paper:** not in a paper; RevAdv's Fig. 5c
    and RAPU's Fig. 5 look there.

    >>> clicks = Interactions.from_dense(np.eye(3))
    >>> knn(clicks, embedding=np.array([[0.0], [1.0], [5.0]]), neighbors=1).tolist()
    [-1.0, -1.0, -4.0]
    """
    from sklearn.neighbors import NearestNeighbors

    points = _points(train, embedding)
    near = NearestNeighbors(n_neighbors=min(neighbors, len(points) - 1)).fit(points)
    return -near.kneighbors()[0].mean(1)


def _points(train: Interactions, embedding: np.ndarray | None) -> np.ndarray:
    if embedding is None:
        left, values, _ = directions(train)
        return left * values
    points = np.asarray(embedding, float)
    if points.ndim != 2 or points.shape[0] != train.users:
        raise ValueError(f"embedding of shape {points.shape}; expected ({train.users}, D), a row a user")
    return points


def directions(
    train: Interactions, count: int = 16
) -> tuple[Float[np.ndarray, "U K"], Float[np.ndarray, " K"], Float[np.ndarray, "I K"]]:
    """The first singular triplets of the users' rows made to have length 1: `left * values` is where they lie."""
    R = unit(matrix(train))
    left, values = _singular(R, min(count, min(R.shape) - 1))
    return left, values, R.T @ left / values
