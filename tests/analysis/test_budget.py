"""Budget curves, compared with an enumeration of all draws, and times to a target on synthetic curves."""

import itertools

import numpy as np
import pandas as pd
import pytest

from tests.analysis.synthetic_results import searched
from tune_hpc.analysis.budget import budget_curve, time_to_target
from tune_hpc.errors import UnknownNameError

SPACE = {"x": {"uniform": [0.0, 1.0]}}


def rows(losses, **more):
    """Return one row per loss; NaN is a divergence."""
    return [
        {"x": number / 100, "loss": loss, "status": "diverged" if np.isnan(loss) else "finished"}
        | {name: values[number] for name, values in more.items()}
        for number, loss in enumerate(losses)
    ]


class TestBudgetCurve:
    LOSSES = (0.5, 0.2, np.nan, 0.9, 0.4, np.nan, 0.7)
    SCORES = (5.0, 1.0, np.nan, 9.0, 8.0, np.nan, 2.0)

    @pytest.mark.parametrize("metric", ["loss", "score"])
    @pytest.mark.parametrize("budget", [1, 2, 3, 5, 7])
    def test_curve_equals_an_enumeration_of_all_draws(self, metric, budget):
        losses, metrics = np.array(self.LOSSES), np.array(self.LOSSES if metric == "loss" else self.SCORES)
        found, best = [], 0
        draws = [list(draw) for draw in itertools.combinations(range(7), budget)]
        for draw in draws:
            if not np.isnan(losses[draw]).all():
                selected = draw[int(np.nanargmin(losses[draw]))]
                found.append(metrics[selected])
                best += selected == 1
        row = budget_curve(searched(SPACE, rows(self.LOSSES, score=self.SCORES)), [budget], metric).iloc[0]
        assert row["mean"] == pytest.approx(np.mean(found))
        assert row["low"] == np.quantile(found, 0.05, method="inverted_cdf")
        assert row["high"] == np.quantile(found, 0.95, method="inverted_cdf")
        assert row["prob_best"] == pytest.approx(best / len(draws))
        assert row["prob_all_diverged"] == pytest.approx(1 - len(found) / len(draws))

    def test_larger_budgets_are_better_and_the_full_budget_finds_the_best(self):
        losses = np.random.default_rng(0).uniform(size=60)
        df = budget_curve(searched(SPACE, rows(losses)), range(1, 100))
        assert df["num_configurations"].tolist() == list(range(1, 61))
        assert (df["mean"].diff().dropna() < 0).all()
        assert (df["low"] <= df["high"]).all()
        assert df.iloc[-1][["mean", "low", "high", "prob_best"]].tolist() == [losses.min()] * 3 + [pytest.approx(1)]

    def test_probabilities_are_exact_for_many_configurations(self):
        losses = np.random.default_rng(0).permutation(20_000) / 20_000
        df = budget_curve(searched(SPACE, rows(losses)), [1, 100, 10_000])
        assert df["prob_best"].tolist() == pytest.approx([1 / 20_000, 1 / 200, 1 / 2])
        assert df["mean"].iloc[1] == pytest.approx(1 / 101, rel=0.01)
        assert df["prob_all_diverged"].tolist() == pytest.approx([0, 0, 0], abs=1e-9)

    def test_maximization_keeps_the_highest_value(self):
        df = budget_curve(searched(SPACE, rows([0.1, 0.5, 0.9]), mode="max"), [1, 3])
        assert df["mean"].tolist() == pytest.approx([0.5, 0.9])

    def test_configurations_within_the_interval_of_the_best_count_as_best(self):
        losses = {0.1: [0.20, 0.22], 0.2: [0.21, 0.23], 0.3: [0.9, 0.91]}
        rows_of_search = [
            {"x": x, "seed": seed, "loss": loss} for x, both in losses.items() for seed, loss in enumerate(both)
        ]
        assert budget_curve(searched(SPACE, rows_of_search), [1])["prob_best"].iloc[0] == pytest.approx(2 / 3)

    def test_failed_and_running_configurations_are_not_drawn(self):
        rows_of_search = rows([0.5, 0.2])
        more = [{"x": 0.7, "status": "failed", "loss": np.nan}, {"x": 0.8, "status": "running", "loss": np.nan}]
        pd.testing.assert_frame_equal(
            budget_curve(searched(SPACE, rows_of_search), range(1, 5)),
            budget_curve(searched(SPACE, rows_of_search + more), range(1, 5)),
        )

    @pytest.mark.parametrize("searcher", ["tpe", "gp"])
    def test_adaptive_searcher_has_a_single_order(self, searcher):
        df = budget_curve(searched(SPACE, rows([np.nan, 0.5, 0.7, 0.2]), searcher=searcher), [1, 2, 3, 4, 5])
        assert df["num_configurations"].tolist() == [1, 2, 3, 4]
        assert df["mean"].tolist() == pytest.approx([np.nan, 0.5, 0.5, 0.2], nan_ok=True)
        assert df[["low", "high"]].isna().all(axis=None)
        assert df["prob_best"].tolist() == [0, 0, 0, 1]
        assert df["prob_all_diverged"].tolist() == [1, 0, 0, 0]

    def test_population_based_training_is_rejected(self):
        with pytest.raises(UnknownNameError, match=r"made.up uses PBT, whose members copy one another"):
            budget_curve(searched(SPACE, rows([0.5, 0.2]), scheduler="pbt"))

    def test_budgets_above_the_search_are_omitted(self):
        assert budget_curve(searched(SPACE, rows([0.5])), [0, 2, 50]).empty
        assert len(budget_curve(searched(SPACE, rows([0.5])))) == 1


#: By configuration and seed: status, seconds in steps, and losses at steps 0, 10, 20, 30.
TRIALS = {
    (0.1, 0): ("finished", 30.0, [3.0, 2.0, 1.0, 0.5]),
    (0.1, 1): ("finished", 60.0, [3.0, 1.0, 2.0, 0.5]),
    (0.1, 2): ("finished", 30.0, [3.0, 2.0, 2.0, 2.0]),
    (0.2, 0): ("finished", 30.0, [3.0, 2.0, 2.0, 1.0]),
    (0.2, 1): ("diverged", 10.0, [3.0, 9.0]),
    (0.2, 2): ("stopped", 10.0, [3.0, 2.0]),
    (0.3, 0): ("finished", 30.0, [3.0, np.nan, 0.9, 1.5]),
    (0.3, 1): ("failed", 10.0, [3.0, 2.0]),
    (0.3, 2): ("diverged", 30.0, [3.0, 2.0, 0.5, np.inf]),
    (0.4, 0): ("running", 10.0, [3.0, 2.0]),
}


class TestTimeToTarget:
    def results(self, trials=TRIALS, **settings):
        rows_of_search = [
            {"x": x, "seed": seed, "status": status, "train_s": seconds, "steps_run": 10 * (len(losses) - 1)}
            for (x, seed), (status, seconds, losses) in trials.items()
        ]
        histories = [
            pd.DataFrame({"trial_id": f"t{number:05d}", "step": 10 * np.arange(len(losses)), "loss": losses})
            for number, (_, _, losses) in enumerate(trials.values())
        ]
        return searched(SPACE, rows_of_search, pd.concat(histories, ignore_index=True), **settings)

    def test_result_is_the_median_over_seeds_with_misses_infinitely_late(self):
        df = time_to_target(self.results(), 1.0)
        assert list(df) == ["x", "num_seeds", "num_reached", "num_missed", "reached_step", "reached_s"]
        assert df["x"].tolist() == [0.3, 0.1, 0.2, 0.4]
        assert df["num_seeds"].tolist() == [2, 3, 3, 0]
        assert df["num_reached"].tolist() == [2, 2, 1, 0]
        assert df["num_missed"].tolist() == [0, 1, 2, 0]
        assert df["reached_step"].tolist() == pytest.approx([20, 20, np.inf, np.nan], nan_ok=True)
        # The seconds are proportional to the steps.
        assert df["reached_s"].tolist() == pytest.approx([20, 20, np.inf, np.nan], nan_ok=True)

    def test_unreachable_target_is_missed_by_all(self):
        df = time_to_target(self.results(), -1.0)
        assert df["num_reached"].sum() == 0
        assert np.isinf(df["reached_step"].dropna()).all()

    def test_target_reached_at_the_start_takes_no_steps(self):
        df = time_to_target(self.results(), 5.0)
        assert (df["reached_step"] == 0).all()
        assert (df["reached_s"] == 0).all()

    def test_maximization_reaches_a_target_from_below(self):
        assert (time_to_target(self.results(mode="max"), 3.0)["reached_step"] == 0).all()

    def test_best_value_so_far_reaches_a_target_with_the_metric(self):
        results = self.results()
        history = results.history.rename(columns={"loss": "accuracy"})
        settings = {**results.experiment, "metric": "best_accuracy", "mode": "max"}
        df = time_to_target(type(results)(settings, results.trials, history), 3.0)
        assert (df["reached_step"] == 0).all()

    def test_trials_with_equal_configuration_and_seed_are_one_repeat(self):
        results = self.results()
        again = results.history.assign(trial_id=results.history["trial_id"] + "b")
        twice = pd.concat([results.trials, results.trials.assign(trial_id=results.trials["trial_id"] + "b")])
        both = type(results)(results.experiment, twice, pd.concat([results.history, again]))
        pd.testing.assert_frame_equal(time_to_target(both, 1.0), time_to_target(results, 1.0))

    def test_steps_are_reported_without_durations(self):
        results = self.results()
        df = time_to_target(results.with_trials(results.trials.drop(columns="train_s")), 1.0)
        assert df["reached_step"].iloc[0] == 20
        assert np.isnan(df["reached_s"].iloc[0])
