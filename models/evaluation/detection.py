"""How well scores of suspicion tell fake users from real ones, whatever the detector.

ROC area, average precision, precision at the true number of fakes, and recall at a share of false positives: the usual
numbers of the literature on shilling detection (Mehta, Nejdl, UMUAI 2009; Zhang et al., IJCAI 2015). Which users are
fake is told here and only here: no detector may see it. Host code.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Bool, Float


class Detection(NamedTuple):
    """What `detection` finds; every number lies in [0, 1].

    Attributes:
        auc: probability that a fake user scores above a real one, ties half; 0.5 is chance.
        average_precision: area under precision over recall; the share of fakes is chance.
        precision_at_count: share of fakes among the n highest scores, n being the number of fakes.
        recall_at_1, recall_at_5: share of fakes above the score that at most 1% or 5% of the real users reach.
    """

    auc: float
    average_precision: float
    precision_at_count: float
    recall_at_1: float
    recall_at_5: float


def detection(scores: Float[ArrayLike, " U"], fake: Bool[ArrayLike, " U"]) -> Detection:
    """Judge scores of suspicion, the higher the more suspicious.

    Users with equal scores are told apart by chance: precision at the count is what that gives on average.

    Args:
        scores: one finite number a user.
        fake: which users are fake; at least one is and one is not.

    Raises:
        ValueError: other shapes, scores that are not finite, only one kind of user.

    Reference: scikit-learn computes area and average precision.

    **Differs from the paper:** not an algorithm of a paper.

    >>> detection([0.1, 0.2, 0.9, 0.3], [False, False, True, True])
    Detection(auc=1.0, average_precision=1.0, precision_at_count=1.0, recall_at_1=1.0, recall_at_5=1.0)
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    values, truth = np.asarray(scores, float), np.asarray(fake, bool)
    if values.shape != truth.shape or values.ndim != 1:
        raise ValueError(f"scores of shape {values.shape} for {truth.shape} users; expected one score a user")
    if not np.isfinite(values).all():
        raise ValueError(
            f"{np.sum(~np.isfinite(values))} scores are not finite; a detector has to score every user"
        )
    if truth.all() or not truth.any():
        raise ValueError(f"{truth.sum()} of {truth.size} users are fake; expected some of both kinds")
    return Detection(
        float(roc_auc_score(truth, values)),
        float(average_precision_score(truth, values)),
        _precision(values, truth),
        _recall(values, truth, 0.01),
        _recall(values, truth, 0.05),
    )


def _precision(values: np.ndarray, truth: np.ndarray) -> float:
    """Of the highest n; those with the last score share the places that are left."""
    n = int(truth.sum())
    last = np.sort(values)[::-1][n - 1]
    above, level = values > last, values == last
    places = n - above.sum()
    return float((truth[above].sum() + places * truth[level].mean()) / n)


def _recall(values: np.ndarray, truth: np.ndarray, allowed: float) -> float:
    """Share of fakes above a threshold that at most `allowed` of the real users pass."""
    real = np.sort(values[~truth])[::-1]
    most = int(np.floor(allowed * real.size))
    return float(np.mean(values[truth] > real[most]))
