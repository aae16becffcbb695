"""Statistics over repetitions against SciPy and against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from models.evaluation import bootstrap, holm, paired_bootstrap, paired_t, summarize


def test_summary_by_hand():
    summary = summarize([1.0, 2.0, 3.0, 6.0])
    assert (summary.n, summary.mean, summary.median) == (4, 3.0, 2.5)
    assert summary.sd == pytest.approx(np.sqrt(14 / 3))
    assert 1.0 <= summary.low < 3.0 < summary.high <= 6.0


def test_summary_of_one_repetition_claims_no_spread():
    summary = summarize([0.5])
    assert (summary.mean, summary.median) == (0.5, 0.5)
    assert all(np.isnan(v) for v in (summary.sd, summary.low, summary.high))


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_bootstrap_equals_scipys_percentile_interval(rng, statistic):
    values = rng.normal(size=25)
    mine = bootstrap(values, statistic=statistic, resamples=40_000)
    other = scipy.stats.bootstrap(
        (values,),
        getattr(np, statistic),
        n_resamples=40_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert mine.estimate == pytest.approx(getattr(np, statistic)(values))
    np.testing.assert_allclose([mine.low, mine.high], other, atol=0.02 if statistic == "mean" else 0.06)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says(rng):
    drawn = (bootstrap(rng.normal(size=40), resamples=300, level=0.9) for _ in range(400))
    assert 0.82 < np.mean([interval.low <= 0 <= interval.high for interval in drawn]) < 0.95


def test_bootstrap_is_reproducible_and_pairs_stay_together(rng):
    noise = rng.normal(size=12) * 10
    tight = paired_bootstrap(noise + 1.0, noise)
    assert tight == paired_bootstrap(noise + 1.0, noise)
    np.testing.assert_allclose(tight, 1.0, atol=1e-9)
    loose = bootstrap(noise + 1.0)
    assert loose.high - loose.low > 1.0
    assert bootstrap(noise, seed=1) != bootstrap(noise, seed=2)


def test_paired_t_equals_scipy(rng):
    for _ in range(50):
        n = rng.integers(2, 30)
        a, b = rng.normal(size=n), rng.normal(size=n) * 2 + 0.5
        mine, other = paired_t(a, b), scipy.stats.ttest_rel(a, b)
        np.testing.assert_allclose([mine.t, mine.p], [other.statistic, other.pvalue], rtol=1e-10)
        assert mine.difference == pytest.approx(np.mean(a - b))
        assert mine.n == n


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_paired_t_of_equal_differences_is_undefined(shift):
    a = np.array([0.3, 0.6, 0.9])
    test = paired_t(a + shift, a)
    assert test.difference == pytest.approx(shift)
    assert np.isnan(test.t)
    assert np.isnan(test.p)


def test_holm_rejects_exactly_what_the_step_down_procedure_rejects(rng):
    for _ in range(200):
        p = rng.random(rng.integers(1, 9)) ** 3
        level, rejected = 0.05, np.zeros(p.size, bool)
        for step, i in enumerate(np.argsort(p)):
            if p[i] > level / (p.size - step):
                break
            rejected[i] = True
        np.testing.assert_array_equal(holm(p) <= level, rejected)
        assert np.all(holm(p) >= p)
        assert np.all(holm(p) <= 1)


def test_holm_keeps_undefined_tests_apart():
    np.testing.assert_allclose(holm([0.02, np.nan, 0.5]), [0.04, np.nan, 0.5])
    assert holm([]).size == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarize([]), "at least one number"),
        (lambda: summarize([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: summarize([1.0, np.nan]), "repetition 1 is nan"),
        (lambda: bootstrap([1.0, 2.0], statistic="mode"), "statistic='mode'"),
        (lambda: bootstrap([1.0, 2.0], level=95), "level=95"),
        (lambda: bootstrap([1.0, 2.0], resamples=0), "resamples=0"),
        (lambda: paired_t([1.0, 2.0], [1.0]), "a has 2 repetitions and b 1"),
        (lambda: paired_t([1.0], [2.0]), "at least 2 repetitions"),
        (lambda: paired_bootstrap([1.0], [1.0, 2.0]), "pairs need the same repetitions"),
        (lambda: holm([0.5, 1.5]), "p-value 1.5 is outside"),
        (lambda: holm([[0.5]]), "list of p-values"),
    ],
)
def test_malformed_calls_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
