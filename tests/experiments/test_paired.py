"""Paired comparisons over seeds."""

import math

import pytest
from scipy import stats

from experiments.paired import compare, gap


def test_the_interval_is_that_of_the_paired_t_test():
    one, other = {0: 0.3, 1: 0.5, 2: 0.45, 3: 0.6}, {0: 0.1, 1: 0.35, 2: 0.3, 3: 0.3, 4: 9.0}
    found = gap(one, other)
    assert found is not None
    expected = stats.ttest_rel([one[k] for k in range(4)], [other[k] for k in range(4)]).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.verdict == "above"
    reverse = gap(other, one)
    assert reverse is not None
    assert reverse.verdict == "below"


def test_below_three_seeds_there_is_a_difference_and_no_verdict():
    assert gap({0: 1.0}, {1: 1.0}) is None
    found = gap({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.0})
    assert found is not None
    assert math.isnan(found.low)
    assert (str(found), found.verdict) == ("+0.750 (2 seeds)", "too few seeds")


def test_a_verdict_of_the_test_needs_five_seeds():
    wide = {seed: (-1.0) ** seed for seed in range(6)}
    assert compare(wide, dict.fromkeys(range(6), 0.0)) == "+0.000 (6 seeds, p 1.0000), undecided"
    assert compare({0: 1.0}, {0: 0.0}) is None
