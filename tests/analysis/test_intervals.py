"""Intervals, differences and corrections: against SciPy's own, and by simulation against a known truth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tune_hpc.analysis.intervals import (
    MIN_BOOTSTRAP_VALUES,
    accuracy_error,
    holm,
    mean_interval,
    paired_difference,
    welch_difference,
)

NUM_STUDIES = 2000


def covered(intervals, truth):
    """The part of intervals that hold the truth."""
    return float(np.mean([one.low <= truth <= one.high for one in intervals]))


@pytest.mark.parametrize("num_values", [2, 3, 5, 20])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_hold_the_truth_as_often_as_they_say(num_values, confidence):
    drawn = np.random.default_rng(0).normal(0.99, 0.001, (NUM_STUDIES, num_values))
    nominal = pytest.approx(confidence, abs=0.025)
    assert covered([mean_interval(own, confidence) for own in drawn], 0.99) == nominal


@pytest.mark.parametrize("distribution", ["uniform", "lognormal", "laplace"])
def test_they_nearly_do_where_values_are_not_normal(distribution):
    generator = np.random.default_rng(1)
    draw = {
        "uniform": lambda size: generator.uniform(-1, 1, size),
        "lognormal": lambda size: generator.lognormal(0, 0.5, size) - np.exp(0.125),
        "laplace": lambda size: generator.laplace(0, 1, size),
    }[distribution]
    assert 0.9 <= covered([mean_interval(own) for own in draw((NUM_STUDIES, 5))], 0) <= 0.99


def test_a_bootstrap_does_so_too_and_says_when_it_cannot():
    drawn = np.random.default_rng(2).normal(3, 1, (300, 30))
    assert 0.9 <= covered([mean_interval(own, method="bootstrap") for own in drawn], 3) <= 0.99
    assert mean_interval(drawn[0], method="bootstrap") == mean_interval(drawn[0], method="bootstrap")
    with pytest.raises(ValueError, match=f"a bootstrap needs at least {MIN_BOOTSTRAP_VALUES} values; got 5"):
        mean_interval(drawn[0, :5], method="bootstrap")
    with pytest.raises(ValueError, match="method must be student or bootstrap; got 'magic'"):
        mean_interval(drawn[0], method="magic")


@pytest.mark.parametrize("num_values", [2, 5, 20])
def test_one_more_run_lies_where_it_is_predicted(num_values):
    drawn = np.random.default_rng(3).normal(0, 1, (NUM_STUDIES, num_values + 1))
    predicted = [mean_interval(own[:-1]).prediction_interval(own.size - 1) for own in drawn]
    inside = [one.low <= own[-1] <= one.high for one, own in zip(predicted, drawn, strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)


@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize(("sizes", "deviations"), [((5, 5), (1, 1)), ((5, 5), (1, 3)), ((4, 12), (2, 1))])
def test_differences_hold_the_truth_and_find_one_where_there_is_none_as_seldom_as_they_say(
    sizes, deviations, is_paired
):
    generator = np.random.default_rng(4)
    told = []
    for _ in range(NUM_STUDIES):
        if is_paired:
            shared = generator.normal(0, 5, sizes[0])
            one, other = (shared + generator.normal(0, deviation, sizes[0]) for deviation in deviations)
            told.append(paired_difference(one, other))
        else:
            told.append(welch_difference(*map(lambda n, d: generator.normal(0, d, n), sizes, deviations)))
    assert 0.93 <= covered([one.interval for one in told], 0) <= 0.97
    assert np.mean([one.p < 0.05 for one in told]) == pytest.approx(0.05, abs=0.02)


def test_the_smallest_difference_is_seen_four_times_in_five():
    generator = np.random.default_rng(5)
    pairs = [(generator.normal(0, 1, 6), generator.normal(0, 1, 6)) for _ in range(NUM_STUDIES)]
    smallest = np.mean([welch_difference(*one).min_detectable for one in pairs])
    seen = np.mean([welch_difference(one + smallest, other).p < 0.05 for one, other in pairs])
    assert seen == pytest.approx(0.8, abs=0.06)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_differences_are_those_of_scipy(first, second):
    if np.std(first) < 1e-3 or np.std(second) < 1e-3:
        return
    told, expected = welch_difference(first, second), stats.ttest_ind(first, second, equal_var=False)
    interval = expected.confidence_interval()
    assert (told.p, told.interval.low, told.interval.high) == pytest.approx(
        (expected.pvalue, interval.low, interval.high), rel=1e-6, abs=1e-9
    )
    num = min(len(first), len(second))
    one, other = np.array(first[:num]), np.array(second[:num])
    if np.std(one - other) < 1e-3:
        return
    paired, expected = paired_difference(one, other), stats.ttest_rel(one, other)
    interval = expected.confidence_interval()
    assert (paired.p, paired.interval.low, paired.interval.high) == pytest.approx(
        (expected.pvalue, interval.low, interval.high), rel=1e-6, abs=1e-9
    )


def test_repeats_that_never_differ_are_none():
    same = mean_interval([0.9, 0.9, 0.9 + 1e-9])
    assert np.isnan([same.low, same.high]).all()
    for told in (welch_difference([1, 1], [2, 2]), paired_difference([1, 2, 3], [0, 1, 2])):
        assert np.isnan([told.p, told.interval.low, told.min_detectable]).all()
    # But that they are equal is known.
    assert paired_difference([1, 2, 3], [1, 2, 3 + 1e-7]).p == 1


def test_one_value_alone_tells_its_mean_and_no_more():
    interval = mean_interval([0.5])
    assert interval.mean == 0.5
    assert np.isnan([interval.low, interval.high, interval.half]).all()
    for told in (welch_difference([0.5], [0.25, 0.5]), paired_difference([0.75], [0.5])):
        assert told.interval.mean in (0.125, 0.25)
        assert np.isnan([told.p, told.min_detectable, told.interval.low]).all()


def test_no_values_and_no_pairs_are_refused():
    with pytest.raises(ValueError, match="no mean of no values"):
        mean_interval([])
    with pytest.raises(ValueError, match="pairs need as many values of both; got 2 and 3"):
        paired_difference([1, 2], [1, 2, 3])


class TestHolm:
    def test_an_example_by_hand(self):
        assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])

    @given(st.lists(st.floats(0, 1), max_size=20))
    def test_it_keeps_the_order_and_lowers_none(self, p_values):
        corrected = holm(p_values)
        assert (corrected >= np.asarray(p_values)).all()
        assert (corrected <= 1).all()
        order = np.argsort(p_values, kind="stable")
        assert (np.diff(corrected[order]) >= 0).all()

    def test_a_missing_one_counts_for_nothing(self):
        corrected = holm([0.01, np.nan, 0.04])
        assert corrected[[0, 2]].tolist() == pytest.approx([0.02, 0.04])
        assert np.isnan(corrected[1])


def test_the_error_that_images_alone_bring_along():
    assert accuracy_error(0.99, 10_000) == pytest.approx(0.000995, rel=1e-3)
    assert accuracy_error(1.0, 10_000) == 0
