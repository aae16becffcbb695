"""Paired comparisons over seeds."""

import math

import pytest
from scipy import stats

from experiments.paired import conclusion, gap


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
    assert (found.sign, reverse.sign) == (1, -1)
    assert found.half == pytest.approx((expected.high - expected.low) / 2)
    assert found.said(order=True).endswith("] holds")
    assert reverse.said(order=True).endswith("] is reversed")
    assert [conclusion(each) for each in ([found], [found, reverse], [found, None], [])] == [
        "holds",
        "does not hold",
        "too few seeds",
        "too few seeds",
    ]


def test_below_three_seeds_there_is_a_difference_and_no_verdict():
    assert gap({0: 1.0}, {1: 1.0}) is None
    found = gap({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.0})
    assert found is not None
    assert math.isnan(found.low)
    assert (str(found), found.verdict) == ("+0.750 (2 seeds)", "too few seeds")
    assert found.said(order=True) == "+0.750 (2 seeds)"


def test_no_difference_has_no_sign_whatever_the_rounding():
    tenths = gap({0: 0.1, 1: 0.2, 2: 0.0}, {0: 0.0, 1: 0.0, 2: 0.3})
    assert tenths is not None
    assert tenths.mean != 0  # but 1e-17
    assert (tenths.sign, tenths.verdict, tenths.said(order=True)[-9:]) == (0, "undecided", "undecided")
    same = gap(dict.fromkeys(range(3), 0.1), dict.fromkeys(range(3), 0.1))
    assert same is not None
    assert (same.sign, same.half, same.verdict) == (0, 0, "undecided")
