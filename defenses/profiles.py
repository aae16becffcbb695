"""Detectors that look at one profile: which items, which ratings, how many.

    rdma        Burke, Mobasher, Williams, Bhaumik, KDD 2006: deviation from the items' means, weighted by rarity
    length-var  the same: distance of a profile's length from the mean, over the sum of squares
    mean-var, fmtd   the same, of ratings: the extreme items of a profile against its fillers
    popularity  Jensen-Shannon divergence between the popularity of a user's clicks and everybody's

Scores are higher for more suspicious users. Cost follows the clicks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from defenses.matrix import lengths, matrix, rows
from models.data import Interactions

Scores = Float[np.ndarray, " U"]


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
    R = matrix(train)
    count = np.maximum(np.bincount(R.indices, minlength=R.shape[1]), 1)
    level = count / R.shape[0] if train.track != "explicit" else np.asarray(R.sum(0)).ravel() / count
    terms = np.abs(R.data - level[R.indices]) / count[R.indices] ** float(power)
    total = np.bincount(rows(R), terms, R.shape[0])
    return total / np.maximum(lengths(R), 1) if mean else total


def length_var(train: Interactions) -> Scores:
    """`|n_u - mean n| / sum_k (n_k - mean n)^2`: profiles of unusual length.

    Reference: Burke et al., KDD 2006. **Differs from the paper:** nothing.

    >>> length_var(Interactions.from_arrays([0, 1, 2, 2, 2], [0, 0, 0, 1, 2])).round(2).tolist()
    [0.25, 0.25, 0.5]
    """
    away = lengths(matrix(train))
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
    number = np.bincount(rows(R), filler, R.shape[0])
    found = np.bincount(rows(R), terms, R.shape[0]) / np.maximum(number, 1)
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
    user, size = rows(R), R.shape[0]
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
    R = matrix(train)
    high = np.asarray(R.max(axis=1).todense()).ravel()
    return R, R.data < high[rows(R)]


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

    >>> popularity(Interactions.from_arrays([0, 0, 1, 1, 2], [0, 1, 0, 1, 2]), bins=2).round(2).tolist()
    [0.01, 0.01, 0.24]
    """
    from scipy.special import rel_entr

    if bins < 2:
        raise ValueError(f"popularity: bins={bins}; expected at least 2")
    R = matrix(train)
    place, everybody = bins_of(R, bins)
    own = np.zeros((R.shape[0], bins))
    np.add.at(own, (rows(R), place[R.indices]), 1.0)
    share = own / np.maximum(own.sum(1, keepdims=True), 1)
    middle = (share + everybody) / 2
    found = (rel_entr(share, middle) + rel_entr(np.broadcast_to(everybody, share.shape), middle)).sum(1)
    return np.where(own.sum(1) > 0, found / (2 * np.log(2)), 0.0)


def bins_of(R: Any, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The bin of every item, rare ones first, so that each holds about equally many clicks, and its share of them."""
    count = np.bincount(R.indices, minlength=R.shape[1])
    order = np.argsort(count, kind="stable")
    before = np.cumsum(count[order]) - count[order]
    place = np.empty(R.shape[1], int)
    place[order] = np.minimum((before * bins) // max(count.sum(), 1), bins - 1)
    return place, np.bincount(place, count, bins) / max(count.sum(), 1)
