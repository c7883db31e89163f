"""Intervals, differences and corrections: compared with SciPy, and simulated with known means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tune_hpc.analysis.intervals import accuracy_error, holm, mean_interval, paired_difference, welch_difference

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


@pytest.mark.parametrize("num_values", [2, 5, 20])
def test_prediction_intervals_have_nominal_coverage(num_values):
    samples = np.random.default_rng(3).normal(0, 1, (NUM_STUDIES, num_values + 1))
    predicted = [mean_interval(sample[:-1]).prediction_interval(num_values) for sample in samples]
    is_inside = [one.low <= sample[-1] <= one.high for one, sample in zip(predicted, samples, strict=True)]
    assert np.mean(is_inside) == pytest.approx(0.95, abs=0.025)


def test_min_detectable_difference_is_detected_in_four_of_five_studies():
    generator = np.random.default_rng(5)
    pairs = [(generator.normal(0, 1, 6), generator.normal(0, 1, 6)) for _ in range(NUM_STUDIES)]
    difference = np.mean([welch_difference(*pair).min_detectable for pair in pairs])
    is_detected = [welch_difference(first + difference, second).p < 0.05 for first, second in pairs]
    assert np.mean(is_detected) == pytest.approx(0.8, abs=0.06)


def check_equals_scipy(found, expected):
    interval = expected.confidence_interval()
    assert (found.p, found.interval.low, found.interval.high) == pytest.approx(
        (expected.pvalue, interval.low, interval.high), rel=1e-6, abs=1e-9
    )


@given(SAMPLES, SAMPLES)
def test_intervals_and_differences_are_those_of_scipy(first, second):
    if np.std(first) < 1e-3 or np.std(second) < 1e-3:
        return
    for confidence in (0.8, 0.95):
        bounds = stats.t.interval(confidence, len(first) - 1, np.mean(first), stats.sem(first))
        found = mean_interval(first, confidence)
        assert (found.low, found.high) == pytest.approx(bounds, rel=1e-6, abs=1e-9)
    check_equals_scipy(welch_difference(first, second), stats.ttest_ind(first, second, equal_var=False))
    num_pairs = min(len(first), len(second))
    a, b = np.array(first[:num_pairs]), np.array(second[:num_pairs])
    if np.std(a - b) >= 1e-3:
        check_equals_scipy(paired_difference(a, b), stats.ttest_rel(a, b))


def test_identical_repeats_have_no_interval():
    same = mean_interval([0.9, 0.9, 0.9 + 1e-9])
    assert np.isnan([same.low, same.high]).all()
    for found in (welch_difference([1, 1], [2, 2]), paired_difference([1, 2, 3], [0, 1, 2])):
        assert np.isnan([found.p, found.interval.low, found.min_detectable]).all()
    # Equal pairs are known to be equal.
    assert paired_difference([1, 2, 3], [1, 2, 3 + 1e-7]).p == 1


def test_single_value_has_a_mean_only():
    interval = mean_interval([0.5])
    assert interval.mean == 0.5
    assert np.isnan([interval.low, interval.high, interval.half]).all()
    for found in (welch_difference([0.5], [0.25, 0.5]), paired_difference([0.75], [0.5])):
        assert found.interval.mean in (0.125, 0.25)
        assert np.isnan([found.p, found.min_detectable, found.interval.low]).all()


def test_missing_values_and_incomplete_pairs_are_rejected():
    with pytest.raises(ValueError, match="a mean needs at least one value; got none"):
        mean_interval([])
    with pytest.raises(ValueError, match="pairs need as many values of both; got 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])


class TestHolm:
    def test_known_example(self):
        assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])

    @given(st.lists(st.floats(0, 1), max_size=20))
    def test_correction_preserves_the_order_and_lowers_no_p_value(self, p_values):
        corrected = holm(p_values)
        assert (corrected >= np.asarray(p_values)).all()
        assert (corrected <= 1).all()
        assert (np.diff(corrected[np.argsort(p_values, kind="stable")]) >= 0).all()

    def test_missing_p_value_is_ignored(self):
        corrected = holm([0.01, np.nan, 0.04])
        assert corrected[[0, 2]].tolist() == pytest.approx([0.02, 0.04])
        assert np.isnan(corrected[1])


def test_accuracy_error_is_binomial():
    assert accuracy_error(0.99, 10_000) == pytest.approx(0.000995, rel=1e-3)
    assert accuracy_error(1.0, 10_000) == 0
