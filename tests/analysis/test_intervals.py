"""Intervals of means: compared with SciPy, and simulated with known means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tune_hpc.analysis.intervals import (
    Interval,
    default_margin,
    mean_interval,
    non_inferiority,
    student_interval,
    t_interval,
    welch_interval,
)

NUM_STUDIES = 2000
SAMPLES = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def coverage(intervals, mean):
    """Return the fraction of the intervals that contain the true mean."""
    return float(np.mean([interval.low <= mean <= interval.high for interval in intervals]))


@pytest.mark.parametrize("distribution", ["uniform", "lognormal", "laplace"])
def test_intervals_have_about_nominal_coverage_without_normality(distribution):
    generator = np.random.default_rng(1)
    draw = {
        "uniform": lambda size: generator.uniform(-1, 1, size),
        "lognormal": lambda size: generator.lognormal(0, 0.5, size) - np.exp(0.125),
        "laplace": lambda size: generator.laplace(0, 1, size),
    }[distribution]
    assert 0.9 <= coverage([mean_interval(sample) for sample in draw((NUM_STUDIES, 5))], 0) <= 0.99


@given(SAMPLES)
def test_intervals_are_those_of_scipy(sample):
    if np.std(sample) < 1e-3:
        return
    for confidence in (0.8, 0.95):
        bounds = stats.t.interval(confidence, len(sample) - 1, np.mean(sample), stats.sem(sample))
        found = mean_interval(sample, confidence)
        assert (found.low, found.high) == pytest.approx(bounds, rel=1e-6, abs=1e-9)


@given(SAMPLES, SAMPLES)
def test_intervals_of_a_difference_are_those_of_scipy(first, second):
    if min(np.std(first), np.std(second)) < 1e-3:
        return
    for confidence in (0.8, 0.95):
        expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(confidence)
        found = welch_interval(first, second, confidence)
        assert found.mean == pytest.approx(np.mean(first) - np.mean(second))
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-9)
    assert welch_interval(first, second) == welch_interval(first, second, 0.95)


@pytest.mark.parametrize(("first", "second"), [([1.0], [2.0, 3.0]), ([2.0, 3.0], [4.0]), ([1.0, 1.0], [3.0, 3.0])])
def test_difference_has_no_interval_without_two_spreads(first, second):
    found = welch_interval(first, second)
    assert found.mean == np.mean(first) - np.mean(second)
    assert np.isnan([found.low, found.high]).all()


def test_spread_of_either_sample_gives_the_difference_an_interval():
    # The second sample has no variance: degrees and error are those of the first.
    found, expected = welch_interval([1.0, 3.0], [5.0, 5.0]), mean_interval([-4.0, -2.0])
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_spread_below_the_rounding_tolerance_is_unknown():
    # The standard error of the difference, 1e-6 of the second mean, is the tolerance.
    for spread, is_unknown in ((0.9e-6, True), (1.1e-6, False)):
        sample = [100 - 100 * spread, 100 + 100 * spread]
        assert np.isnan(welch_interval([0.0, 0.0], sample).low) == is_unknown
        assert np.isnan(student_interval(100.0, 100 * spread, 3).low) == is_unknown


def test_interval_from_a_deviation_is_that_of_the_values():
    # Quantile 4.302653 of Student's t with two degrees of freedom.
    interval = student_interval(5.0, 2.0, 3)
    half = 4.302653 * 2 / 3**0.5
    assert (interval.low, interval.high) == pytest.approx((5 - half, 5 + half), abs=1e-5)
    assert student_interval(0.0, 1.0, 2).half == pytest.approx(12.7062 / 2**0.5, rel=1e-5)


def test_interval_of_many_degrees_is_that_of_the_normal_distribution():
    interval = t_interval(1.0, 0.5, 1e9, 0.9)
    bounds = (interval.mean, interval.low, interval.high)
    assert bounds == pytest.approx((1, 1 - 0.5 * 1.644854, 1 + 0.5 * 1.644854), abs=1e-5)
    assert t_interval(1.0, 0.5, 9) == t_interval(1.0, 0.5, 9, 0.95)


def test_half_of_an_interval_is_half_its_width():
    assert Interval(2.0, 1.0, 5.0).half == 2.0


@pytest.mark.parametrize(
    ("metric", "reference", "margin"),
    [("best_test_accuracy", 0.5, 0.005), ("test_loss", 0.4, 0.02), ("loss", -0.4, 0.02), ("train_s", 60.0, 3.0)],
)
def test_margin_is_absolute_for_an_accuracy_and_relative_otherwise(metric, reference, margin):
    assert default_margin(metric, reference) == pytest.approx(margin)


def test_identical_repeats_have_no_interval():
    same = mean_interval([0.9, 0.9, 0.9 + 1e-9])
    assert np.isnan([same.low, same.high]).all()


def test_single_value_has_a_mean_only():
    interval = mean_interval([0.5])
    assert interval.mean == 0.5
    assert np.isnan([interval.low, interval.high, interval.half]).all()


def test_missing_values_are_rejected():
    with pytest.raises(ValueError, match="a mean needs at least one value; got none"):
        mean_interval([])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.05, 0.2, True),
        (-0.05, -0.01, True),
        (-0.5, 0.3, None),
        (-0.5, -0.2, False),
        (np.nan, np.nan, None),
        (-0.1, 0.2, None),
        (-0.1, 0.0, None),
    ],
)
def test_non_inferiority_needs_the_lower_end_above_the_margin(low, high, expected):
    assert non_inferiority(low, high, 0.1) is expected


def test_contender_that_is_worse_by_the_margin_is_rarely_no_worse():
    leads = np.random.default_rng(2).normal(-0.1, 0.2, (NUM_STUDIES, 4))
    found = [non_inferiority(one.low, one.high, 0.1) for one in map(mean_interval, leads)]
    assert 0.01 <= np.mean([one is True for one in found]) <= 0.04


def test_interval_of_a_difference_scales_with_the_values():
    first, second = np.array([1.0, 2.0, 4.0]), np.array([3.0, 3.5])
    found, scaled = welch_interval(first, second), welch_interval(1e150 * first, 1e150 * second)
    assert (scaled.low, scaled.high) == pytest.approx((1e150 * found.low, 1e150 * found.high))
