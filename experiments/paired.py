"""Two methods compared seed by seed: the mean difference, its interval, and what it allows to say.

One rule for every page: Student's interval of the paired differences, and a verdict only where it leaves out 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

ENOUGH = 3
"""From how many seeds on there is an interval, and a verdict."""
ROUNDING = 1e-12
"""A mean of differences that is not further from 0 is 0."""


class Gap(NamedTuple):
    """A mean paired difference, its 95% interval (NaN below three seeds), and on how many seeds it rests."""

    mean: float
    low: float
    high: float
    seeds: int

    def text(self, digits: int = 3) -> str:
        """The difference and its interval, or of how many seeds it is."""
        if self.seeds < ENOUGH:
            return f"{self.mean:+,.{digits}f} ({self.seeds} seed{'s' * (self.seeds > 1)})"
        return f"{self.mean:+,.{digits}f} [{self.low:+,.{digits}f}, {self.high:+,.{digits}f}]"

    def __str__(self) -> str:
        return self.text()

    @property
    def verdict(self) -> str:
        """`above`, `below`, `undecided`, or `too few seeds`."""
        if self.seeds < ENOUGH:
            return "too few seeds"
        return "above" if self.low > ROUNDING else "below" if self.high < -ROUNDING else "undecided"

    @property
    def sign(self) -> int:
        """Of the mean: 1, -1, or 0 where there is no difference.

        >>> [Gap(mean, 0, 0, 3).sign for mean in (0.1, -0.1, 0.0, 1e-18)]
        [1, -1, 0, 0]
        """
        return 0 if abs(self.mean) <= ROUNDING else 1 if self.mean > 0 else -1

    @property
    def half(self) -> float:
        """Half the interval: with this spread, the smallest mean that so many seeds tell from 0."""
        return (self.high - self.low) / 2

    def said(self, digits: int = 3, *, order: bool = False) -> str:
        """The difference with its verdict; of an `order` that has the first method ahead, whether it holds.

        >>> print(Gap(0.2, 0.1, 0.3, 5).said(2), "|", Gap(-0.2, -0.3, -0.1, 5).said(2, order=True))
        +0.20 [+0.10, +0.30] above | -0.20 [-0.30, -0.10] is reversed
        >>> Gap(0.2, np.nan, np.nan, 1).said(order=True)
        '+0.200 (1 seed)'
        """
        if self.seeds < ENOUGH:
            return self.text(digits)
        words = {"above": "holds", "below": "is reversed"} if order else {}
        return f"{self.text(digits)} {words.get(self.verdict, self.verdict)}"


def gap(one: Mapping[int, float], other: Mapping[int, float]) -> Gap | None:
    """`one - other` over the seeds both have; None where they share none.

    The interval is Student's, `mean -+ t sd / sqrt(n)`: a bootstrap of three to five differences is far too narrow.

    >>> print(gap({0: 0.2, 1: 0.3, 2: 0.31}, {0: 0.1, 1: 0.2, 2: 0.2}))
    +0.103 [+0.089, +0.118]
    >>> print(gap({0: 0.2}, {0: 0.1, 1: 0.5}))
    +0.100 (1 seed)
    """
    shared = sorted(set(one) & set(other))
    if not shared:
        return None
    values = np.array([one[seed] - other[seed] for seed in shared])
    mean, n = float(values.mean()), len(values)
    if n < ENOUGH:
        return Gap(mean, np.nan, np.nan, n)
    from scipy import stats

    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Gap(mean, mean - half, mean + half, n)


def conclusion(gaps: Sequence[Gap | None]) -> str:
    """What is known of an order, from each method that should be ahead minus the one behind it; None: no seed.

    It holds where every difference is above 0 for sure, and does not where one is below. Between, it is undecided,
    or there are too few seeds of one of them.

    >>> up, flat, down = Gap(0.2, 0.1, 0.3, 3), Gap(0.0, -0.1, 0.1, 3), Gap(-0.2, -0.3, -0.1, 3)
    >>> [conclusion(each) for each in ([up, up], [up, flat], [None, up], [None, flat, down])]
    ['holds', 'undecided', 'too few seeds', 'does not hold']
    """
    found = ["too few seeds" if each is None else each.verdict for each in gaps or [None]]
    for verdict, what in (
        ("below", "does not hold"),
        ("too few seeds", "too few seeds"),
        ("undecided", "undecided"),
    ):
        if verdict in found:
            return what
    return "holds"
