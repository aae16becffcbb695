"""Two methods compared seed by seed: the mean difference, its interval, and what it allows to say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from models.evaluation import paired_t


class Gap(NamedTuple):
    """A mean paired difference, its 95% interval (NaN below three seeds), and on how many seeds it rests."""

    mean: float
    low: float
    high: float
    seeds: int

    def text(self, digits: int = 3) -> str:
        """The difference and its interval, or of how many seeds it is."""
        if self.seeds < 3:
            return f"{self.mean:+,.{digits}f} ({self.seeds} seed{'s' * (self.seeds > 1)})"
        return f"{self.mean:+,.{digits}f} [{self.low:+,.{digits}f}, {self.high:+,.{digits}f}]"

    def __str__(self) -> str:
        return self.text()

    @property
    def verdict(self) -> str:
        """`above`, `below`, `undecided`, or `too few seeds`."""
        if self.seeds < 3:
            return "too few seeds"
        return "above" if self.low > 0 else "below" if self.high < 0 else "undecided"


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
    if n < 3:
        return Gap(mean, np.nan, np.nan, n)
    from scipy import stats

    half = float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Gap(mean, mean - half, mean + half, n)


def compare(one: Mapping[int, float], other: Mapping[int, float]) -> str | None:
    """The mean paired difference with a paired t-test; a verdict only from five seeds on. None below two.

    With fewer seeds a bootstrap interval is the range of the differences and covers far less than it says.

    >>> compare({0: 0.2, 1: 0.3}, {0: 0.1, 1: 0.2})
    '+0.100 (2 seeds)'
    >>> compare({k: 0.3 + k / 100 for k in range(5)}, {k: 0.1 + k / 90 for k in range(5)})[-16:]
    'p 0.0000), holds'
    """
    shared = sorted(set(one) & set(other))
    if len(shared) < 2:
        return None
    values = [np.array([each[seed] for seed in shared]) for each in (one, other)]
    mean = float(np.mean(values[0] - values[1]))
    if len(shared) < 5 or np.ptp(values[0] - values[1]) == 0:
        return f"{mean:+.3f} ({len(shared)} seeds)"
    p = paired_t(*values).p
    verdict = "undecided" if p > 0.05 else "holds" if mean > 0 else "is reversed"
    return f"{mean:+.3f} ({len(shared)} seeds, p {p:.4f}), {verdict}"
