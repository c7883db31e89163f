"""Intervals of means: compared with SciPy, and simulated with known means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tune_hpc.analysis.intervals import accuracy_error, mean_interval

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


@given(SAMPLES)
def test_intervals_are_those_of_scipy(sample):
    if np.std(sample) < 1e-3:
        return
    for confidence in (0.8, 0.95):
        bounds = stats.t.interval(confidence, len(sample) - 1, np.mean(sample), stats.sem(sample))
        found = mean_interval(sample, confidence)
        assert (found.low, found.high) == pytest.approx(bounds, rel=1e-6, abs=1e-9)


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


def test_accuracy_error_is_binomial():
    assert accuracy_error(0.99, 10_000) == pytest.approx(0.000995, rel=1e-3)
    assert accuracy_error(1.0, 10_000) == 0
