"""Detectors of fake users: every one scores all users, the higher the more suspicious.

Unsupervised, and never told how many fakes there are or who they are:

    rdma        Burke, Mobasher, Williams, Bhaumik, KDD 2006: deviation from the items' means, weighted by rarity
    length-var  the same: squared distance of a profile's length from the mean
    deg-sim     Chirita, Nejdl, Zamfir, WIDM 2005: mean similarity to the nearest users
    mean-var, fmtd   Burke et al. 2006: of ratings; the extreme items of a profile against its fillers
    pca         Mehta, Nejdl, UMUAI 2009 (VarSelect): fake users have small loadings on the first components
    popularity  Jensen-Shannon divergence between the popularity of a user's clicks and everybody's
    duplicate   the largest Jaccard similarity to any other user
    lof, knn    Breunig et al., SIGMOD 2000: density and distance in an embedding of the users
    fap         Zhang, Tan, Zhang, Liu, Chua, Ma, IJCAI 2015: suspicion spread over the graph of clicks from seeds

`supervised` makes one out of the others' scores by logistic regression, and is tested on other attacks than it was
trained on. Host code on sparse matrices: cost follows the clicks, or the pairs of users where users are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from models.data import Interactions
from models.evaluation.detection import detection

Scores = Float[np.ndarray, " U"]
Detector = Callable[[Interactions], Scores]


def _matrix(train: Interactions) -> Any:
    """Users x items as a sparse matrix: ratings, or 1 where there is a click (repeats count once)."""
    found: Any = train.to_csr().astype(float)
    found.sum_duplicates()
    if train.track != "explicit":
        found.data[:] = 1.0
    return found


def _lengths(R: Any) -> np.ndarray:
    return np.diff(R.indptr).astype(float)


# ------------------------------------------------------------------------------------------- what a profile looks like


def rdma(train: Interactions, *, power: int = 1, mean: bool = True) -> Scores:
    """Rating deviation from mean agreement, `(1/n_u) sum_{i in I_u} |r_ui - mean_i| / c_i`.

    Args:
        train: interactions with the fake users among them.
        power: of the count `c_i`: 1 is RDMA, 2 WDMA.
        mean: divide by the length of the profile; False with `power=1` is WDA.

    Returns:
        (U,) scores; 0 for users without a click.

    Reference: Burke, Mobasher, Williams, Bhaumik, KDD 2006. **Differs from the paper:** for clicks `mean_i = c_i / U`,
    the share of users who clicked (Ratings: the mean rating).

    >>> train = Interactions.from_arrays([0, 0, 1, 2, 2], [0, 1, 0, 0, 2])
    >>> rdma(train).round(3).tolist()
    [0.333, 0.0, 0.333]
    """
    R = _matrix(train)
    count = np.maximum(np.bincount(R.indices, minlength=R.shape[1]), 1)
    level = count / R.shape[0] if train.track != "explicit" else np.asarray(R.sum(0)).ravel() / count
    terms = np.abs(R.data - level[R.indices]) / count[R.indices] ** float(power)
    total = np.bincount(_rows(R), terms, R.shape[0])
    return total / np.maximum(_lengths(R), 1) if mean else total


def _rows(R: Any) -> np.ndarray:
    """The user of each stored cell."""
    return np.repeat(np.arange(R.shape[0]), np.diff(R.indptr))


def length_var(train: Interactions) -> Scores:
    """`|n_u - mean n| / sum_k (n_k - mean n)^2`: profiles of unusual length.

    Reference: Burke et al., KDD 2006. **Differs from the paper:** nothing.

    >>> length_var(Interactions.from_arrays([0, 1, 2, 2, 2], [0, 0, 0, 1, 2])).round(2).tolist()
    [0.25, 0.25, 0.5]
    """
    away = _lengths(_matrix(train))
    away = away - away.mean()
    spread = np.sum(away**2)
    return np.abs(away) / (spread if spread > 0 else 1.0)


def mean_var(train: Interactions) -> Scores:
    """`-mean over the fillers of (r_ui - mean_i)^2`: the fillers of a made-up profile lie close to the items' means.

    The fillers are the items a user did not give its highest rating.

    Raises:
        ValueError: data that are no ratings.

    Reference: Burke et al., KDD 2006 (filler mean variance). **Differs from the paper:** its sign: there small values
    are suspicious. A user without fillers gets the lowest score there is, for there is nothing to hold against it.

    >>> ratings = Interactions.from_arrays([0, 0, 1, 1], [0, 1, 0, 1], [5.0, 3.0, 5.0, 1.0], track="explicit")
    >>> mean_var(ratings).tolist()
    [-1.0, -1.0]
    """
    R, filler = _explicit("mean_var", train)
    level = _item_means(R)
    terms = np.where(filler, (R.data - level[R.indices]) ** 2, 0.0)
    number = np.bincount(_rows(R), filler, R.shape[0])
    found = np.bincount(_rows(R), terms, R.shape[0]) / np.maximum(number, 1)
    return np.where(number > 0, -found, -found.max(initial=0.0))


def fmtd(train: Interactions) -> Scores:
    """Filler mean target difference, `|mean of the user's highest ratings - mean of its others|`.

    Raises:
        ValueError: data that are no ratings.

    Reference: Burke et al., KDD 2006. **Differs from the paper:** nothing; a user who gave one rating only has 0.

    >>> ratings = Interactions.from_arrays([0, 0, 0, 1], [0, 1, 2, 0], [5.0, 3.0, 1.0, 5.0], track="explicit")
    >>> fmtd(ratings).tolist()
    [3.0, 0.0]
    """
    R, filler = _explicit("fmtd", train)
    user, size = _rows(R), R.shape[0]
    mean = lambda which: (
        np.bincount(user, np.where(which, R.data, 0), size) / np.maximum(np.bincount(user, which, size), 1)
    )
    both = (np.bincount(user, filler, size) > 0) & (np.bincount(user, ~filler, size) > 0)
    return np.where(both, np.abs(mean(~filler) - mean(filler)), 0.0)


def _explicit(name: str, train: Interactions) -> tuple[Any, np.ndarray]:
    """Ratings, and which cells lie below the highest of their user."""
    if train.track != "explicit":
        raise ValueError(
            f"{name} reads ratings, but the data are of track {train.track!r}; use another detector"
        )
    R = _matrix(train)
    high = np.asarray(R.max(axis=1).todense()).ravel()
    return R, R.data < high[_rows(R)]


def _item_means(R: Any) -> np.ndarray:
    return np.asarray(R.sum(0)).ravel() / np.maximum(np.bincount(R.indices, minlength=R.shape[1]), 1)


def popularity(train: Interactions, *, bins: int = 10) -> Scores:
    """Jensen-Shannon divergence (in bits) between the popularity of a user's items and that of all clicks.

    Items are put into `bins` bins with about equally many clicks; a histogram is over a user's clicks.

    Args:
        train: interactions with the fake users among them.
        bins: number of bins, >= 2.

    Returns:
        (U,) scores in [0, 1]; 0 for users without a click.

    Reference: the view of RevAdv (RecSys 2020), Fig. 5b, as a detector. **Differs from the paper:** not in a paper.
    """
    from scipy.special import rel_entr

    if bins < 2:
        raise ValueError(f"popularity: bins={bins}; expected at least 2")
    R = _matrix(train)
    count = np.bincount(R.indices, minlength=R.shape[1])
    order = np.argsort(count, kind="stable")
    before = np.cumsum(count[order]) - count[order]
    place = np.empty(R.shape[1], int)
    place[order] = np.minimum((before * bins) // max(count.sum(), 1), bins - 1)
    own = np.zeros((R.shape[0], bins))
    np.add.at(own, (_rows(R), place[R.indices]), 1.0)
    everybody = own.sum(0) / max(own.sum(), 1)
    share = own / np.maximum(own.sum(1, keepdims=True), 1)
    middle = (share + everybody) / 2
    found = (rel_entr(share, middle) + rel_entr(np.broadcast_to(everybody, share.shape), middle)).sum(1)
    return np.where(own.sum(1) > 0, found / (2 * np.log(2)), 0.0)


# -------------------------------------------------------------------------------------------------- users side by side


def deg_sim(train: Interactions, *, neighbors: int = 25) -> Scores:
    """Mean similarity to the nearest users: cosine of clicks, Pearson correlation of ratings over all items.

    Args:
        train: interactions with the fake users among them.
        neighbors: how many, >= 1; fewer if there are fewer users.

    Returns:
        (U,) scores in [-1, 1].

    Reference: Chirita, Nejdl, Zamfir, WIDM 2005; Burke et al., KDD 2006. **Differs from the paper:** correlation over
    all items with 0 for a missing rating after centering on the user's mean, not over the items two users share.
    """
    R = _matrix(train)
    if train.track == "explicit":
        level = np.bincount(_rows(R), R.data, R.shape[0]) / np.maximum(_lengths(R), 1)
        R = R.copy()
        R.data = R.data - level[_rows(R)]
    return _nearest(_unit(R), min(neighbors, R.shape[0] - 1), neighbors)


def _unit(R: Any) -> Any:
    from scipy.sparse import diags

    norm = np.sqrt(np.asarray(R.multiply(R).sum(1)).ravel())
    return diags(1 / np.where(norm > 0, norm, 1.0)) @ R


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
    R = _matrix(train)
    R.data[:] = 1.0
    size, users = _lengths(R), R.shape[0]
    found = np.zeros(users)
    for first in range(0, users, block):
        rows = np.arange(first, min(first + block, users))
        shared = np.asarray((R[rows] @ R.T).todense())
        union = size[rows][:, None] + size[None] - shared
        near = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
        near[np.arange(rows.size), rows] = 0
        found[rows] = near.max(1)
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

    Reference: Mehta, Nejdl, UMUAI 2009. **Differs from the paper:** it removes as many users as there are fakes; here
    nobody is told.
    """
    from scipy.sparse import linalg

    R = _matrix(train)
    users, items = R.shape
    if not 1 <= components < min(users, items):
        raise ValueError(f"pca: components={components}; expected 1..{min(users, items) - 1}")
    mean = np.asarray(R.mean(1)).ravel()
    spread = np.sqrt(np.maximum(np.asarray(R.multiply(R).mean(1)).ravel() - mean**2, 0))
    scale = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0)
    forward = lambda v: scale * (R @ v.ravel() - mean * v.sum())
    backward = lambda v: R.T @ (scale * v.ravel()) - np.sum(mean * scale * v.ravel())
    operator: Any = linalg.LinearOperator
    left, _ = _singular(operator((users, items), matvec=forward, rmatvec=backward, dtype=float), components)
    return -np.sum(left**2, 1)


def _singular(Z: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first left singular vectors (U, count) and values, from a fixed start."""
    from scipy.sparse.linalg import svds

    left, values, _ = svds(Z, k=count, v0=np.random.default_rng(0).normal(size=min(Z.shape)))
    assert left is not None
    return left, values


def fap(train: Interactions, *, seeds: Bool[np.ndarray, " U"] | None = None, rounds: int = 20) -> Scores:
    """Fraudulent action propagation: suspicion walks from seed users to their items and back.

        p_item = mean over its users of p_user,    p_user = mean over its items of p_item, seeds held at 1

    Args:
        train: interactions with the fake users among them.
        seeds: users known to be fake, at least one; None: the five with the highest `duplicate`, so that nothing has
            to be known.
        rounds: steps of the walk, >= 1.

    Returns:
        (U,) scores in [0, 1].

    Reference: Zhang et al., IJCAI 2015. **Differs from the paper:** which is given seeds; unweighted transitions for
    clicks, ratings as weights for ratings.
    """
    from scipy.sparse import diags

    R = _matrix(train)
    alike = np.argsort(-duplicate(train), kind="stable")[:5] if seeds is None else []
    held = np.isin(np.arange(R.shape[0]), alike) if seeds is None else np.asarray(seeds, bool)
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


# -------------------------------------------------------------------------------------------------- where users lie


def lof(
    train: Interactions, *, embedding: Float[np.ndarray, "U D"] | None = None, neighbors: int = 20
) -> Scores:
    """Local outlier factor in an embedding of the users, 1 for one as densely surrounded as its neighbors.

    Args:
        train: interactions with the fake users among them.
        embedding: the users' vectors in the victim; None: the 16 first singular directions of the clicks.
        neighbors: >= 1.

    Reference: Breunig, Kriegel, Ng, Sander, SIGMOD 2000, by scikit-learn. **Differs from the paper:** nothing; fakes
    that lie close together are as dense as can be, so the score can also be low for them: look at both ends.
    """
    from sklearn.neighbors import LocalOutlierFactor

    points = _points(train, embedding)
    judge = LocalOutlierFactor(n_neighbors=min(neighbors, len(points) - 1)).fit(points)
    return -judge.negative_outlier_factor_


def knn(
    train: Interactions, *, embedding: Float[np.ndarray, "U D"] | None = None, neighbors: int = 20
) -> Scores:
    """`-mean distance to the nearest users` in an embedding: fakes made from one recipe lie close together.

    Args, raises: as `lof`. **Differs from the paper:** not in a paper; RevAdv's Fig. 5c and RAPU's Fig. 5 look there.
    """
    from sklearn.neighbors import NearestNeighbors

    points = _points(train, embedding)
    near = NearestNeighbors(n_neighbors=min(neighbors, len(points) - 1)).fit(points)
    return -near.kneighbors()[0].mean(1)


def _points(train: Interactions, embedding: np.ndarray | None) -> np.ndarray:
    if embedding is None:
        R = _matrix(train)
        left, values = _singular(_unit(R), min(16, min(R.shape) - 1))
        return left * values
    points = np.asarray(embedding, float)
    if points.ndim != 2 or points.shape[0] != train.users:
        raise ValueError(f"embedding of shape {points.shape}; expected ({train.users}, D), a row a user")
    return points


# ------------------------------------------------------------------------------------------------------------ by name

DETECTORS: Mapping[str, Detector] = {
    "rdma": rdma,
    "wdma": lambda train: rdma(train, power=2),
    "wda": lambda train: rdma(train, mean=False),
    "length-var": length_var,
    "deg-sim": deg_sim,
    "pca": pca,
    "popularity": popularity,
    "lof": lof,
    "knn": knn,
    "duplicate": duplicate,
    "fap": fap,
}
"""Detectors of clicks and ratings by name, with their defaults."""
OF_RATINGS: Mapping[str, Detector] = {"mean-var": mean_var, "fmtd": fmtd}
"""Detectors that read ratings only."""


def features(train: Interactions) -> Float[np.ndarray, "U N"]:
    """The scores of all detectors that can read the data, a column each, as ranks in [0, 1] among these users.

    >>> features(Interactions.from_dense(np.tri(8))).shape
    (8, 11)
    """
    from scipy.stats import rankdata

    chosen = {**DETECTORS, **(OF_RATINGS if train.track == "explicit" else {})}
    columns = [rankdata(detector(train)) for detector in chosen.values()]
    return (np.stack(columns, 1) - 1) / max(train.users - 1, 1)


def supervised(known: Sequence[tuple[Interactions, Bool[np.ndarray, " U"]]]) -> Detector:
    """A detector learned from data whose fakes are known: logistic regression on `features`.

    Test it on other attacks than those in `known`: on the same it only recognizes what it was shown.

    Args:
        known: data sets with fake users and which users those are; all clicks or all ratings.

    Returns:
        A detector like the others: log odds of being fake.

    Raises:
        ValueError: nothing known, or a mask of another length.

    Reference: classifiers on such features: Burke et al., KDD 2006. **Differs from the paper:** features are ranks, so
    that they carry over between data sets; classes are balanced.
    """
    from sklearn.linear_model import LogisticRegression

    if not known or any(np.shape(fake) != (train.users,) for train, fake in known):
        raise ValueError(
            "supervised: expected at least one (train, fake) with one truth value a user of train"
        )
    X = np.concatenate([features(train) for train, _ in known])
    y = np.concatenate([np.asarray(fake, bool) for _, fake in known])
    learned = LogisticRegression(class_weight="balanced", max_iter=1000).fit(X, y)
    return lambda train: learned.decision_function(features(train))


def judged(detector: Detector, train: Interactions, real: int) -> Any:
    """`models.evaluation.detection.detection` of a detector on data whose users from number `real` on are fake."""
    return detection(detector(train), np.arange(train.users) >= real)
