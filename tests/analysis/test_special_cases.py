"""Optimizers that include another one."""

import numpy as np
import pytest

from tests.analysis.synthetic_results import repeated, searched
from tune_hpc.analysis.special_cases import special_cases
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.findings import findings


class TestSpecialCases:
    def results(self, losses, num_seeds=5, deviation=0.001, **values):
        space = {"optimizer": {"choice": list(losses)}, **{name: {"choice": [value]} for name, value in values.items()}}
        rows = [{"optimizer": optimizer, "loss": loss, **values} for optimizer, loss in losses.items()]
        return searched(space, repeated(rows, deviation, num_seeds))

    def verdicts(self, *arguments, **options):
        df = special_cases(self.results(*arguments, **options))
        return dict(zip(zip(df["general"], df["special"], strict=True), df["verdict"], strict=True))

    def test_better_and_equal_general_optimizers_are_as_expected(self):
        found = self.verdicts({"adam": 0.1, "momentum": 0.3, "gradient_descent": 0.3, "rmsprop": 0.5})
        assert found == dict.fromkeys(
            [("momentum", "gradient_descent"), ("adam", "momentum"), ("adam", "rmsprop")], "as expected"
        )

    def test_tie_with_a_wide_interval_is_inconclusive(self):
        df = special_cases(self.results({"momentum": 0.3, "gradient_descent": 0.3}, deviation=0.1))
        assert df["verdict"].tolist() == ["inconclusive"]
        assert df["margin"].tolist() == pytest.approx([0.05 * 0.3], abs=0.01)
        assert df.loc[0, "high"] > df.loc[0, "margin"]

    def test_upper_end_decides_on_the_margin(self):
        results = self.results({"momentum": 0.3, "gradient_descent": 0.3}, deviation=0.01)
        high = special_cases(results).loc[0, "high"]
        assert special_cases(results, margin=high * 0.99).loc[0, "verdict"] == "inconclusive"
        assert special_cases(results, margin=high * 1.01).loc[0, "verdict"] == "as expected"

    def test_accuracy_is_better_if_higher_and_has_an_absolute_margin(self):
        results = self.results({"momentum": 0.95, "gradient_descent": 0.90})
        trials = results.trials.rename(columns={"loss": "test_accuracy"})
        experiment = results.experiment | {"metric": "test_accuracy", "mode": "max"}
        df = special_cases(type(results)(experiment, trials, results.history))
        assert df.loc[0, ["margin", "verdict"]].tolist() == [0.005, "as expected"]
        trials["optimizer"] = trials["optimizer"].map({"momentum": "gradient_descent", "gradient_descent": "momentum"})
        df = special_cases(type(results)(experiment, trials, results.history))
        assert df.loc[0, "verdict"] == "loses: its space does not include the special case"

    def test_worse_general_optimizer_loses(self):
        results = self.results({"adam": 0.5, "momentum": 0.3})
        row = special_cases(results).iloc[0]
        assert row["verdict"] == "loses: its space does not include the special case"
        assert row["expected"] == "no worse"
        assert row["difference"] == pytest.approx(0.2, abs=0.02)
        assert 0 < row["low"] < row["difference"] < row["high"]
        (sentence,) = [one for one in findings(results) if "loses" in one]
        assert sentence == "adam loses to its special case momentum: its space does not include the special case."

    def test_worse_optimizer_whose_space_includes_the_special_case_had_too_small_a_budget(self):
        rows = [{"optimizer": "adam", "epsilon": epsilon, "loss": 0.5} for epsilon in (1e-8, 1.0)]
        rows.append({"optimizer": "momentum", "epsilon": None, "loss": 0.3})
        space = {"optimizer": {"choice": ["adam", "momentum"]}, "epsilon": {"choice": [1e-8, 1.0]}}
        results = searched(space, repeated(rows, 0.001))
        assert special_cases(results)["verdict"].tolist() == ["loses: its space or budget is too small"]
        (sentence,) = [one for one in findings(results) if "loses" in one]
        assert sentence == "adam loses to its special case momentum: its space or budget is too small."

    def test_difference_is_general_less_special(self):
        row = special_cases(self.results({"adam": 0.3, "momentum": 0.5})).iloc[0]
        assert row["low"] < row["difference"] < row["high"] < 0

    def test_proximal_optimizer_without_penalties_must_be_equal(self):
        losses = {"proximal_adagrad": 0.3, "adagrad": 0.3, "proximal_gradient_descent": 0.1, "gradient_descent": 0.5}
        df = special_cases(self.results(losses))
        assert df["general"].tolist() == ["proximal_gradient_descent", "proximal_adagrad"]
        assert df["expected"].tolist() == ["equal", "equal"]
        assert df["verdict"].tolist() == ["differs: should be equal", "as expected"]

    def test_equality_needs_both_ends_within_the_margin(self):
        results = self.results({"proximal_adagrad": 0.3, "adagrad": 0.3}, deviation=0.001)
        low, high = special_cases(results).loc[0, ["low", "high"]]
        for factor, verdict in ((0.99, "inconclusive"), (1.01, "as expected")):
            margin = factor * max(-low, high)
            assert special_cases(results, margin=margin).loc[0, "verdict"] == verdict
        for losses in ({"proximal_adagrad": 0.31, "adagrad": 0.3}, {"proximal_adagrad": 0.3, "adagrad": 0.31}):
            different = special_cases(self.results(losses), margin=0.001)
            assert different["verdict"].tolist() == ["differs: should be equal"]

    def test_tie_is_no_evidence_of_equality(self):
        found = self.verdicts({"proximal_adagrad": 0.3, "adagrad": 0.3}, deviation=0.1)
        assert found == {("proximal_adagrad", "adagrad"): "inconclusive"}

    def test_proximal_optimizer_with_penalties_must_be_no_worse(self):
        df = special_cases(self.results({"proximal_adagrad": 0.1, "adagrad": 0.3}, l1=0.01))
        assert df.loc[0, ["expected", "verdict"]].tolist() == ["no worse", "as expected"]

    def test_single_seed_is_conclusive_for_identical_values_only(self):
        losses = {"adam": 0.1, "momentum": 0.3, "proximal_adagrad": 0.3, "adagrad": 0.3 + 1e-9}
        found = self.verdicts(losses, num_seeds=1, deviation=0.0)
        assert found == {("adam", "momentum"): "inconclusive", ("proximal_adagrad", "adagrad"): "as expected"}

    def test_unfinished_optimizer_is_inconclusive(self):
        results = self.results({"adam": 0.1, "momentum": 0.3})
        results.trials.loc[results.trials["optimizer"] == "adam", ["status", "loss"]] = ["diverged", np.nan]
        row = special_cases(results).iloc[0]
        assert row["verdict"] == "inconclusive"
        assert list(row.index) == ["general", "special", "expected", "difference", "low", "high", "margin", "verdict"]
        assert row[["difference", "low", "high", "margin"]].isna().all()

    def test_another_parameter_is_accepted_and_missing_pairs_are_rejected(self):
        results = searched({"rule": {"choice": ["adam", "momentum"]}}, repeated(
            [{"rule": "adam", "loss": 0.1}, {"rule": "momentum", "loss": 0.3}]))  # fmt: skip
        assert special_cases(results, "rule")["verdict"].tolist() == ["as expected"]
        with pytest.raises(UnknownNameError, match=r"no parameter 'optimizer' in made.up; there are rule"):
            special_cases(results)
        alone = self.results({"adam": 0.1, "ftrl": 0.2})
        with pytest.raises(UnknownNameError, match=r"has a special case among the others: adam, ftrl"):
            special_cases(alone)
