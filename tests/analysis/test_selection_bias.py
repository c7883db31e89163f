"""Selection bias of the test set, and optimizers compared with their special cases."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.synthetic_results import searched
from tune_hpc.analysis.intervals import mean_interval
from tune_hpc.analysis.selection_bias import selection_bias
from tune_hpc.errors import UnknownNameError

RATES = {"rate": {"choice": [0.1, 0.01]}}


BEST = {0.1: [0.90, 0.92, 0.91], 0.01: [0.80, 0.81, 0.82]}


class TestSelectionBias:
    def results(self, **settings):
        rows = [
            {"rate": rate, "seed": seed, "loss": 1 - best, "best_test_accuracy": best,
             "selected_test_accuracy": best - 0.01 * (1 + seed), "test_accuracy": best - 0.05}
            for rate, rows in BEST.items() for seed, best in enumerate(rows)
        ]  # fmt: skip
        return searched(RATES, rows, **settings)

    def test_table_has_means_intervals_and_the_bias_by_seed(self):
        df = selection_bias(self.results())
        assert df["rate"].tolist() == [0.1, 0.01, 0.1]
        assert df["is_chosen"].tolist() == [False, False, True]
        assert df["num_seeds"].tolist() == [3, 3, 3]
        found = mean_interval(BEST[0.1])
        assert df.loc[0, "best_test_accuracy"] == pytest.approx(0.91)
        assert df.loc[0, "best_test_accuracy_half"] == pytest.approx(found.half)
        assert df.loc[0, "test_accuracy"] == pytest.approx(0.86)
        # Variation that the seeds share does not widen the interval of the difference.
        assert df["selection_bias"].tolist() == pytest.approx([0.02] * 3)
        assert df.loc[0, "selection_bias_half"] == pytest.approx(mean_interval([0.01, 0.02, 0.03]).half)
        pd.testing.assert_series_equal(df.loc[2].drop("is_chosen"), df.loc[0].drop("is_chosen"), check_names=False)

    def test_chosen_configuration_is_the_best_by_the_experiments_metric(self):
        assert selection_bias(self.results(mode="max")).iloc[-1]["rate"] == 0.01

    def test_single_seed_has_no_interval(self):
        results = self.results()
        rows = results.trials[results.trials["seed"] == 0]
        df = selection_bias(results.with_trials(rows))
        assert df["selection_bias"].tolist() == pytest.approx([0.01] * 3)
        assert df["selection_bias_half"].isna().all()

    def test_search_without_seeds_has_a_bias(self):
        results = self.results()
        trials = results.trials[results.trials["seed"] == 0].assign(seed=np.nan)
        assert selection_bias(results.with_trials(trials))["selection_bias"].tolist() == pytest.approx([0.01] * 3)

    def test_diverged_configuration_has_missing_values_and_is_not_chosen(self):
        results = self.results()
        results.trials.loc[results.trials["rate"] == 0.1, ["status", "best_test_accuracy"]] = ["diverged", np.nan]
        df = selection_bias(results)
        assert df["num_seeds"].tolist() == [0, 3, 3]
        assert np.isnan(df["selection_bias"].iloc[0])
        assert df["rate"].iloc[-1] == 0.01

    def test_missing_validation_accuracy_is_an_error(self):
        results = self.results()
        without = results.trials.drop(columns="selected_test_accuracy")
        with pytest.raises(UnknownNameError, match=r"no selected_test_accuracy in the trials of made.up") as error:
            selection_bias(results.with_trials(without))
        assert "\n" not in str(error.value)
