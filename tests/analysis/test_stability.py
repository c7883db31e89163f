"""Frequencies of selection and rank correlations at rungs, of made-up and of stored searches."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.analysis.synthetic_results import repeated, searched
from tune_hpc import load, selection_frequencies
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.findings import findings
from tune_hpc.report.tables import report_tables, to_markdown

SPACE = {"x": {"choice": [1, 2, 3]}}


class TestSelectionFrequencies:
    def test_clear_winner_is_always_selected(self):
        df = selection_frequencies(searched(SPACE, repeated([{"x": x, "loss": float(x)} for x in (1, 2, 3)])))
        assert df[["x", "frequency"]].to_numpy().tolist() == [[1, 1.0]]

    def test_frequencies_are_those_of_all_resamples(self):
        # 2 is the best unless the first of three seeds is drawn at least twice, 7 of 27 resamples.
        losses = {1: [0.0, 1.0, 1.0], 2: [1.0, 0.4, 0.4]}
        rows = [{"x": x, "seed": seed, "loss": loss} for x in losses for seed, loss in enumerate(losses[x])]
        df = selection_frequencies(searched(SPACE, rows))
        assert df["x"].tolist() == [2, 1]
        assert df["frequency"].tolist() == pytest.approx([20 / 27, 7 / 27], abs=0.03)

    def test_seeds_without_an_effect_are_rejected(self):
        results = searched(SPACE, repeated([{"x": x, "loss": float(x)} for x in (1, 2)], deviation=0.0))
        with pytest.raises(UnknownNameError, match="need seeds with an effect"):
            selection_frequencies(results)

    def test_configuration_with_a_failed_seed_is_not_selected(self):
        results = searched(SPACE, repeated([{"x": x, "loss": float(x)} for x in (1, 2)]))
        results.trials.loc[0, ["status", "loss"]] = ["failed", np.nan]
        assert selection_frequencies(results)["x"].tolist() == [2]

    def test_single_seed_is_rejected(self):
        with pytest.raises(UnknownNameError, match=r"need two seeds of each configuration; made.up has fewer"):
            selection_frequencies(searched(SPACE, [{"x": 1, "loss": 1.0}, {"x": 2, "loss": 2.0}]))


def crossing(num_configurations=9, num_steps=27):
    """Return a search whose curves cross: the best after the last step is the worst one before half of the steps."""
    rows = [{"x": x, "loss": float(-x)} for x in range(num_configurations)]
    history = pd.DataFrame(
        [
            {"trial_id": f"t{x:05d}", "step": step, "loss": float(x if step < num_steps / 2 else -x)}
            for x in range(num_configurations)
            for step in range(1, num_steps + 1)
        ]
    )
    return searched({"x": {"choice": list(range(num_configurations))}}, rows, history)


class TestRungCorrelation:
    @pytest.mark.parametrize(
        ("name", "steps", "tau", "keeps_best"),
        [
            ("docs/results/exercise2.softmax.shuffled", [20, 60, 170], [0.72, 0.84, 0.91], [False, False, True]),
            ("tests/data/reduced/exercise2.cnn", [100, 200], [0.85, 0.91], [True, True]),
        ],
    )
    def test_stored_searches_have_the_values_of_a_hand_computation(self, name, steps, tau, keeps_best):
        df = load(name).rung_correlation()
        assert df["step"].tolist() == steps
        assert df["kendall_tau"].tolist() == pytest.approx(tau, abs=0.006)
        assert df["keeps_best"].tolist() == keeps_best

    def test_trials_with_other_steps_count_by_their_latest_value(self):
        results = crossing(num_configurations=9)
        history = results.history
        # The best configuration is measured at the first step and the last one only.
        best = history.groupby("trial_id")["loss"].last().idxmin()
        is_between = history["step"].between(2, history["step"].max() - 1)
        history = history[(history["trial_id"] != best) | ~is_between]
        df = replace(results, history=history).rung_correlation()
        assert df["kendall_tau"].notna().all()
        assert df["best_rank"].tolist() == [9, 9, 9]

    def test_crossing_curves_lose_the_best(self):
        df = crossing().rung_correlation()
        assert df["step"].tolist() == [1, 3, 9]
        assert df["kendall_tau"].tolist() == [-1, -1, -1]
        assert df["best_rank"].tolist() == [9, 9, 9]
        assert not df["keeps_best"].any()

    def test_configuration_that_did_not_run_all_steps_does_not_count(self):
        results = crossing()
        history = results.history
        short = results.history[(history["trial_id"] != "t00008") | (history["step"] < 20)]
        df = type(results)(results.experiment, results.trials, short).rung_correlation()
        assert df["num_configurations"].tolist() == [8, 8, 8]

    def test_report_warns_of_a_rung_that_loses_the_best(self):
        (sentence,) = [one for one in findings(crossing()) if "asha" in one]
        assert sentence == (
            "The scheduler asha would have stopped the best configuration: its rank is 9 at step 1, 9 at step 3, "
            "9 at step 9, and a rung keeps 3 of 9."
        )

    def test_report_does_not_warn_of_a_search_with_a_scheduler(self):
        results = crossing()
        results = type(results)({**results.experiment, "scheduler": "asha"}, results.trials, results.history)
        assert not [one for one in findings(results) if "asha" in one]

    def test_too_few_configurations_are_rejected(self):
        with pytest.raises(UnknownNameError, match=r"needs 3 configurations .*; made.up has 2 and 27"):
            crossing(2).rung_correlation()


class TestTables:
    """Standard tables of a report."""

    def frames(self, results):
        return {title: df for title, _, df in report_tables(results)}

    def test_search_with_seeds_has_the_frequencies_of_its_best_configurations(self):
        rows = repeated([{"x": x, "loss": loss} for x, loss in ((1, 0.3), (2, 0.3), (3, 0.9))], deviation=0.1)
        df = self.frames(searched(SPACE, rows))["Best configuration over resampled seeds"]
        assert df["x"].isin([1, 2]).all()
        assert df["frequency"].sum() == pytest.approx(1)
        assert "0." in to_markdown(df)

    def test_search_without_seeds_has_no_frequencies(self):
        assert "Best configuration over resampled seeds" not in self.frames(crossing())

    def test_rungs_are_listed_without_a_scheduler_and_with_nine_configurations(self):
        title, results = "Ranking at the rungs of asha", crossing()
        assert self.frames(results)[title]["keeps_best"].tolist() == [False] * 3
        assert title not in self.frames(crossing(8))
        assert title not in self.frames(
            type(results)({**results.experiment, "scheduler": "asha"}, results.trials, results.history)
        )
