"""Statistics over repetitions (seeds): summary, bootstrap intervals, the paired t-test, Holm's correction.

Attacks on one data set are compared seed by seed: the same seed gives every attack the same targets, split
and starting point, so that what is tested is the difference within a pair, whose spread is smaller than that
of the values. These functions take host arrays (NumPy, lists, JAX), one value a repetition, and compute in
float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float

Statistic = Literal["mean", "median"]
_STATISTICS: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "median": np.median}


class Interval(NamedTuple):
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


class Summary(NamedTuple):
    """n values: mean, standard deviation (n - 1; NaN for one value), median and the interval of the mean."""

    n: int
    mean: float
    sd: float
    median: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """Mean of the differences a - b, t with n - 1 degrees of freedom, two-sided p."""

    difference: float
    t: float
    p: float
    n: int


def summarize(
    values: Float[ArrayLike, "R"], *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Summary:
    """Mean, standard deviation, median and a bootstrap interval of the mean of values over repetitions.

    Args:
        values: (R,) one a repetition; finite.
        level, resamples, seed: as in `bootstrap`.

    Example:
        >>> summary = summarize([1.0, 2.0, 3.0, 6.0])
        >>> summary.mean, round(summary.sd, 3), summary.median
        (3.0, 2.160, 2.5)
    """
    sample = _sample("values", values)
    sd = float(np.std(sample, ddof=1)) if sample.size > 1 else float("nan")
    interval = bootstrap(sample, level=level, resamples=resamples, seed=seed)
    return Summary(sample.size, interval.estimate, sd, float(np.median(sample)), interval.low, interval.high)


def bootstrap(
    values: Float[ArrayLike, "R"],
    *,
    statistic: Statistic = "mean",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean or median of values over repetitions.

    Args:
        values: (R,) one a repetition; finite.
        statistic: "mean" or "median".
        level: coverage in (0, 1).
        resamples: draws of R values with replacement.
        seed: of the draws; the same arguments give the same interval.

    Returns:
        `Interval`; its ends are NaN for one value, which has no spread to resample. With few repetitions it
        is too narrow (at R = 5 the ends of a 95% interval are near those of an 85% one): quote R beside it.

    Reference: Efron, Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13.

    **Differs from the paper:** nothing.

    Example:
        >>> interval = bootstrap([1.0, 2.0, 3.0, 4.0])
        >>> interval.low < 2.5 < interval.high
        True
    """
    sample = _sample("values", values)
    if statistic not in _STATISTICS:
        raise ValueError(f"statistic={statistic!r}: expected 'mean' or 'median'")
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: expected a number between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples={resamples!r}: expected a whole number >= 1")
    compute = _STATISTICS[statistic]
    estimate = float(compute(sample))
    if sample.size == 1:
        return Interval(estimate, float("nan"), float("nan"))
    drawn = np.random.default_rng(seed).integers(sample.size, size=(resamples, sample.size))
    tail = (1 - level) / 2
    low, high = np.quantile(compute(sample[drawn], axis=1), [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def paired_bootstrap(
    a: Float[ArrayLike, "R"],
    b: Float[ArrayLike, "R"],
    *,
    statistic: Statistic = "mean",
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of the mean or median of `a - b`, resampling pairs.

    Args:
        a, b: (R,) values of the same repetitions in the same order.
        statistic, level, resamples, seed: as in `bootstrap`.

    Example: a is always 0.1 above b, whatever the seed does to both.
        >>> paired_bootstrap([0.3, 0.6, 0.9], [0.2, 0.5, 0.8]).low
        0.1
    """
    first, second = _pairs(a, b)
    return bootstrap(first - second, statistic=statistic, level=level, resamples=resamples, seed=seed)


def paired_t(a: Float[ArrayLike, "R"], b: Float[ArrayLike, "R"]) -> PairedTest:
    """Two-sided paired t-test of the hypothesis that `a - b` has mean 0.

        t = mean(d) / (sd(d) / sqrt(R)),  d = a - b,  R - 1 degrees of freedom

    Args:
        a, b: (R,) values of the same repetitions in the same order, R >= 2.

    Returns:
        `PairedTest`. Where all differences are equal (to rounding) the test is undefined: t and p are NaN,
        never infinite.

    Example:
        >>> test = paired_t([3.0, 5.0, 4.0], [1.0, 2.0, 3.0])
        >>> round(test.t, 4), round(test.p, 4)
        (3.4641, 0.0742)
    """
    first, second = _pairs(a, b)
    if first.size < 2:
        raise ValueError(f"a paired t-test needs at least 2 repetitions; got {first.size}")
    difference = first - second
    mean, sd = float(np.mean(difference)), float(np.std(difference, ddof=1))
    scale = max(np.max(np.abs(first)), np.max(np.abs(second)))
    if sd <= 8 * np.finfo(float).eps * scale:  # what rounding leaves of differences that are equal
        return PairedTest(mean, float("nan"), float("nan"), first.size)
    from scipy import stats

    t = mean / (sd / np.sqrt(first.size))
    return PairedTest(mean, float(t), float(2 * stats.t.sf(abs(t), first.size - 1)), first.size)


def holm(p: Float[ArrayLike, "M"]) -> Float[np.ndarray, "M"]:
    """Holm's step-down correction: p-values that hold together for M comparisons.

        adjusted_(i) = max_{j <= i} min(1, (M - j + 1) p_(j)),  p_(1) <= ... <= p_(M)

    Args:
        p: (M,) p-values in [0, 1]; NaN (an undefined test) stays NaN and is not counted among the M.

    Returns:
        Adjusted p-values in the order given; compare them with the level itself.

    Reference: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of
    Statistics 1979.

    **Differs from the paper:** nothing; stated as adjusted p-values.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.atleast_1d(np.asarray(p, float))
    if values.ndim != 1:
        raise ValueError(f"p must be a list of p-values; got shape {values.shape}")
    bad = values[(values < 0) | (values > 1)]
    if bad.size:
        raise ValueError(f"p-value {bad[0]} is outside [0, 1]")
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    steps = values[order] * np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def _sample(name: str, values: Float[ArrayLike, "R"]) -> Float[np.ndarray, "R"]:
    sample = np.asarray(values, float)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(
            f"{name} must be a list of at least one number, one a repetition; got shape {sample.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(sample))
    if bad.size:
        raise ValueError(f"{name} of repetition {bad[0]} is {sample[bad[0]]}; expected a finite number")
    return sample


def _pairs(a: Float[ArrayLike, "R"], b: Float[ArrayLike, "R"]) -> tuple[np.ndarray, np.ndarray]:
    first, second = _sample("a", a), _sample("b", b)
    if first.size != second.size:
        raise ValueError(
            f"a has {first.size} repetitions and b {second.size}; pairs need the same repetitions in both"
        )
    return first, second
