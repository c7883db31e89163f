"""Repeated searches of two methods, on made-up searches with known values."""

import numpy as np
import pytest
from scipy import stats

from tests.analysis.synthetic_results import searched
from tune_hpc import compare_searches
from tune_hpc.errors import UnknownNameError


def searches(means, num_seeds=5, **settings):
    """Return a search for each mean: its best configuration has this mean over the seeds, another one is worse."""
    spread = np.linspace(-0.01, 0.01, num_seeds)
    return [
        searched(
            {"x": {"choice": [1, 2]}},
            [
                {"x": x, "seed": seed, "loss": mean + x - 1 + noise, "test_accuracy": 1 - mean}
                for x in (1, 2)
                for seed, noise in enumerate(spread)
            ],
            **settings,
        )
        for mean in means
    ]


class TestCompareSearches:
    def test_unit_is_the_search_not_the_seed(self):
        means = [0.30, 0.32, 0.28], [0.40, 0.41, 0.42]
        expected = stats.ttest_ind(*means, equal_var=False).confidence_interval(0.95)
        for num_seeds in (2, 20):
            row = compare_searches(*(searches(one, num_seeds) for one in means)).iloc[0]
            assert row[["num_first", "num_second"]].tolist() == [3, 3]
            assert row[["first", "second", "difference"]].tolist() == pytest.approx([0.30, 0.41, -0.11])
            assert row[["low", "high"]].tolist() == pytest.approx([expected.low, expected.high])
            assert row["margin"] == pytest.approx(0.05 * 0.41)
            assert row["verdict"] == "no worse"

    @pytest.mark.parametrize(
        ("first", "second", "verdict"),
        [
            ([0.40, 0.41, 0.42], [0.30, 0.32, 0.28], "worse"),
            ([0.30, 0.32, 0.28], [0.30, 0.31, 0.29], "inconclusive"),
            ([0.300, 0.301, 0.302], [0.301, 0.300, 0.302], "no worse"),
            ([0.30], [0.40], "inconclusive"),
        ],
    )
    def test_verdict_needs_an_interval_on_one_side(self, first, second, verdict):
        assert compare_searches(searches(first), searches(second))["verdict"].tolist() == [verdict]

    def test_higher_is_better_for_an_accuracy(self):
        better, worse = searches([0.10, 0.11, 0.12]), searches([0.30, 0.31, 0.32])
        assert compare_searches(better, worse, "test_accuracy").loc[0, ["margin", "verdict"]].tolist() == [
            0.005, "no worse",
        ]  # fmt: skip
        assert compare_searches(worse, better, "test_accuracy").loc[0, "verdict"] == "worse"

    def test_margin_is_an_argument(self):
        means = searches([0.30, 0.32, 0.28]), searches([0.30, 0.31, 0.29])
        assert compare_searches(*means, margin=0.1)["verdict"].tolist() == ["no worse"]

    def test_bad_searches_are_rejected(self):
        with pytest.raises(UnknownNameError, match="name at least one search"):
            compare_searches(searches([0.3]), [])
        others = searches([0.3], metric="test_accuracy", mode="max")
        with pytest.raises(UnknownNameError, match="rank their trials by different metrics"):
            compare_searches(searches([0.3]), others)
        with pytest.raises(UnknownNameError, match="no numeric column 'speed'"):
            compare_searches(searches([0.3]), searches([0.4]), "speed")
