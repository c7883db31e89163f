"""Comparisons and interactions of synthetic trials with known true values."""

import numpy as np
import pandas as pd
import pytest

from tests.analysis.synthetic_results import searched
from tune_hpc.analysis.comparison import BETTER, INCONCLUSIVE, TIE
from tune_hpc.analysis.formatting import format_metric
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

SPACE = {"optimizer": {"choice": []}, "learning_rate": {"choice": []}}


def made(
    truth, *, seeds=5, deviation=0.01, shared=0.0, rates=(0.1,), generator=None, metric="test_accuracy", **settings
):
    """Return trials of optimizers with known accuracies; ``shared`` is the deviation that a seed has in all of them."""
    generator = generator or np.random.default_rng(0)
    luck = generator.normal(0, shared, seeds)
    rows = [
        {"optimizer": optimizer, "learning_rate": rate, "seed": seed,
         metric: value - abs(np.log10(rate / 0.1)) / 10 + luck[seed] + generator.normal(0, deviation)}
        for optimizer, value in truth.items() for rate in rates for seed in range(seeds)
    ]  # fmt: skip
    return searched(SPACE, rows, **{"metric": metric, "mode": "max"} | settings)


def changed(results, where, **columns):
    trials = results.trials.copy()
    for name, value in columns.items():
        trials.loc[where, name] = value
    return results.with_trials(trials)


@pytest.mark.parametrize("scale", [1e-250, 1e155, 1e300])
def test_scale_of_the_metric_changes_no_verdict(scale):
    plain = made({"a": 0.9, "b": 0.95, "c": 0.949}, deviation=0.01)
    scaled = changed(plain, slice(None), test_accuracy=plain.trials["test_accuracy"] * scale)
    expected, found = (results.compare("optimizer") for results in (plain, scaled))
    lengths = ["mean", "deviation", "low", "high", "lead_low", "lead_high"]
    pd.testing.assert_frame_equal(found.values.drop(columns=lengths), expected.values.drop(columns=lengths))
    np.testing.assert_allclose(found.values[lengths] / scale, expected.values[lengths], rtol=1e-6, atol=1e-9)
    assert found.pairs["verdict"].tolist() == expected.pairs["verdict"].tolist()
    np.testing.assert_allclose(found.pairs["low"] / scale, expected.pairs["low"], rtol=1e-6, atol=1e-9)
    assert found.model.deviation / scale == pytest.approx(expected.model.deviation)


class TestVerdicts:
    def test_large_differences_are_ranked_correctly(self):
        generator = np.random.default_rng(2)
        for _ in range(15):
            ranking = made({"a": 0.9, "b": 0.95, "c": 0.8}, generator=generator).compare("optimizer")
            assert list(ranking.values["optimizer"]) == ["b", "a", "c"]
            assert list(ranking.values["rank"]) == [1, 2, 3]
            assert ranking.values["is_tied_for_best"].tolist() == [False, False, False]
            assert (ranking.pairs["verdict"] == BETTER).all()

    def test_ties_share_a_rank(self):
        ranking = made({"a": 0.95, "b": 0.95, "c": 0.5, "d": 0.5}, deviation=0.001).compare("optimizer")
        assert sorted(ranking.values["optimizer"][:2]) == ["a", "b"]
        assert list(ranking.values["rank"]) == [1, 1, 3, 3]
        assert ranking.values["is_tied_for_best"].tolist() == [True, True, False, False]
        verdicts = {
            frozenset((row["first"], row["second"])): row["verdict"] for row in ranking.pairs.to_dict("records")
        }
        assert verdicts[frozenset("ab")] == verdicts[frozenset("cd")] == TIE
        assert list(verdicts.values()).count(BETTER) == 4

    def test_value_with_an_outlying_deviation_keeps_it(self):
        generator = np.random.default_rng(4)
        results = made({"a": 0.95, "b": 0.95, "c": 0.948, "d": 0.947}, deviation=0.0002, generator=generator)
        is_d = results.trials["optimizer"] == "d"
        ranking = changed(results, is_d, test_accuracy=[0.93, 0.96, 0.94, 0.955, 0.95]).compare("optimizer")
        # It ties with the best despite its lower mean, and the others differ by their small deviation.
        assert set(ranking.values["optimizer"][:3]) == {"a", "b", "d"}
        assert list(ranking.values["rank"]) == [1, 1, 1, 3]
        assert ranking.values["is_tied_for_best"].tolist() == [True, True, True, False]
        assert ranking.model.deviation < 0.0004

    def test_values_that_may_be_best_are_those_of_hsu(self):
        values = made({"a": 0.95, "b": 0.95, "c": 0.5}, deviation=0.001).compare("optimizer").values
        values = values.set_index("optimizer")
        assert values["may_be_best"].tolist() == [True, True, False]
        assert values.loc["c", "lead_high"] == 0
        assert values.loc["c", "lead_low"] == pytest.approx(-0.45, abs=0.005)
        assert (values.loc[["a", "b"], "lead_low"] < 0).all()

    def test_failed_seed_is_a_missing_cell(self):
        results = made({"a": 0.90, "b": 0.91, "c": 0.92}, deviation=0.0005, shared=0.05)
        first = results.trials.index[results.trials["optimizer"] == "c"][0]
        ranking = changed(results, first, status="failed", test_accuracy=np.nan).compare("optimizer")
        assert ranking.values.set_index("optimizer")["num_seeds"].to_dict() == {"a": 5, "b": 5, "c": 4}
        assert ranking.model.degrees == 7
        # The difference is adjusted for the missing seed, whose deviation is larger than the difference.
        pair = ranking.pairs.set_index(["first", "second"]).loc["c", "b"]
        assert (pair["verdict"], pair["num_pairs"]) == (BETTER, 4)
        assert pair["difference"] == pytest.approx(0.01, abs=0.002)

    def test_pairing_removes_the_variation_that_seeds_share(self):
        truth = {"a": 0.90, "b": 0.91}
        results = made(truth, deviation=0.001, shared=0.05)
        ranking = results.compare("optimizer")
        assert ranking.pairs.loc[0, ["first", "verdict", "num_pairs"]].tolist() == ["b", BETTER, 5]
        # Without common seeds the same values are unpaired and tie.
        apart = changed(results, results.trials["optimizer"] == "b", seed=[10, 11, 12, 13, 14])
        assert apart.compare("optimizer").pairs.loc[0, ["verdict", "num_pairs"]].tolist() == [TIE, 0]

    def test_lower_losses_are_better(self):
        results = made({"a": 0.9, "b": 0.2}, metric="test_loss", mode="min")
        assert results.compare("optimizer").values["optimizer"].tolist() == ["b", "a"]
        assert made({"a": 0.9, "b": 0.2}, metric="x", mode="min").compare("optimizer").lower_is_better


class TestConfigurations:
    def test_each_value_is_represented_by_its_best_configuration(self):
        results = made({"a": 0.9, "b": 0.8}, rates=(0.001, 0.1, 10), deviation=0.001)
        values = results.compare("optimizer").values
        assert list(values["learning_rate"]) == [0.1, 0.1]
        assert list(values["num_configurations"]) == [3, 3]
        assert list(values["num_seeds"]) == [5, 5]

    def test_configuration_with_a_failed_seed_is_selected_only_without_another(self):
        results = made({"a": 0.9, "b": 0.95}, rates=(0.1, 0.01), seeds=3)
        # The only seed of the better configuration that did not fail was lucky.
        where = (results.trials["optimizer"] == "a") & (results.trials["learning_rate"] == 0.1)
        results.trials.loc[where & (results.trials["seed"] == 0), "test_accuracy"] = 0.99
        failed = changed(results, where & (results.trials["seed"] > 0), status="failed", test_accuracy=np.nan)
        values = failed.compare("optimizer").values
        found = values[["optimizer", "learning_rate", "num_seeds"]].to_numpy().tolist()
        assert found == [["b", 0.1, 3], ["a", 0.01, 3]]
        alone = failed.with_trials(failed.trials[failed.trials["learning_rate"] == 0.1])
        assert alone.compare("optimizer").values["num_seeds"].tolist() == [1, 3]

    def test_configuration_with_a_diverged_seed_is_not_selected(self):
        results = made({"a": 0.9, "b": 0.8}, rates=(0.01, 0.1), deviation=0.001)
        first = results.trials.index[(results.trials["optimizer"] == "a") & (results.trials["learning_rate"] == 0.1)][0]
        ranking = changed(results, first, status="diverged", test_accuracy=np.nan).compare("optimizer")
        a = ranking.values.set_index("optimizer").loc["a"]
        assert (a["learning_rate"], a["num_diverged"]) == (0.01, 1)

    def test_experiments_metric_selects_and_another_is_compared(self):
        results = made({"a": 0.9, "b": 0.8}, rates=(0.1, 1.0))
        trials = results.trials.assign(score=results.trials["learning_rate"])
        results = Results({**results.experiment, "metric": "score"}, trials, results.history)
        values = results.compare("optimizer", "test_accuracy").values
        assert list(values["learning_rate"]) == [1.0, 1.0]

    def test_condition_selects_the_trials(self):
        results = made({"a": 0.9, "b": 0.8}, rates=(0.1, 1.0))
        values = results.compare("optimizer", where={"learning_rate": 1.0}).values
        assert list(values["learning_rate"]) == [1.0, 1.0]
        assert list(values["num_configurations"]) == [1, 1]

    def test_missing_parameter_value_is_a_value(self):
        results = made({"a": 0.9, "b": 0.8}, rates=(0.1, 1.0))
        results = changed(results, results.trials["optimizer"] == "b", learning_rate=np.nan)
        values = results.compare("learning_rate").values
        assert values["learning_rate"].tolist()[:2] == [0.1, 1.0] or values["learning_rate"].isna().any()
        assert len(values) == 3

    def test_trials_with_equal_configuration_and_seed_are_one_repeat(self):
        results = made({"a": 0.9, "b": 0.8})
        twice = Results(results.experiment, pd.concat([results.trials, results.trials]), results.history)
        values = twice.compare("optimizer").values
        pd.testing.assert_frame_equal(values, results.compare("optimizer").values)


class TestFewTrials:
    def test_single_seed_is_inconclusive(self):
        ranking = made({"a": 0.9, "b": 0.8, "c": 0.7}, seeds=1).compare("optimizer")
        assert list(ranking.values["optimizer"]) == ["a", "b", "c"]
        assert ranking.values["rank"].isna().all()
        assert not ranking.values["is_tied_for_best"].any()
        assert set(ranking.pairs["verdict"]) == {INCONCLUSIVE}
        assert "inconclusive with one seed each" in str(ranking)

    def test_identical_repeats_are_inconclusive(self):
        ranking = made({"a": 0.9, "b": 0.8, "c": 0.8}, deviation=0).compare("optimizer")
        assert ranking.values["low"].isna().all()
        assert dict(zip(ranking.pairs["second"], ranking.pairs["verdict"], strict=True))["b"] == INCONCLUSIVE
        assert ranking.pairs.loc[ranking.pairs["first"] != "a", "verdict"].tolist() == [TIE]
        assert "has the best test accuracy" in str(ranking)

    def test_identical_differences_are_compared_unpaired(self):
        results = made({"a": 0.9, "b": 0.5}, seeds=3)
        by_rounding = changed(results, slice(None), test_accuracy=[0.97, 0.98, 0.99, 0.47, 0.48, 0.49])
        pair = by_rounding.compare("optimizer").pairs.iloc[0]
        assert (pair["first"], pair["verdict"], pair["num_pairs"]) == ("a", BETTER, 0)

    def test_single_value_has_no_pairs(self):
        ranking = made({"a": 0.9}).compare("optimizer")
        assert len(ranking.pairs) == 0
        assert str(ranking).startswith("Only optimizer a has a value: test accuracy 0.9")

    def test_missing_values_give_an_empty_comparison(self):
        results = made({"a": 0.9, "b": 0.8})
        ranking = changed(results, slice(None), status="diverged", test_accuracy=np.nan).compare("optimizer")
        assert ranking.values.empty
        assert ranking.pairs.empty
        assert str(ranking) == "No value of optimizer has a test accuracy."
        assert list(ranking.values) == list(results.compare("optimizer").values)[:1] + [
            name for name in results.compare("optimizer").values if name not in ("optimizer", "learning_rate")
        ]

    def test_too_many_values_are_rejected(self):
        results = made({"a": 0.9}, rates=np.logspace(-4, 0, 101), seeds=1)
        with pytest.raises(UnknownNameError, match="learning_rate has 101 values in made"):
            results.compare("learning_rate")

    @pytest.mark.parametrize(
        ("parameter", "options", "message"),
        [
            ("optimiser", {}, "no parameter 'optimiser' in made.up; there are optimizer, learning_rate"),
            ("seed", {}, "no parameter 'seed' in made.up"),
            (
                "optimizer",
                {"metric": "loss"},
                "no numeric column 'loss' in the trials of made.up .*; there are learning_rate",
            ),
            ("optimizer", {"where": {"learning_rate": 7}}, "no trial of made.up has learning_rate=7"),
        ],
    )
    def test_unknown_names_are_one_line_errors(self, parameter, options, message):
        with pytest.raises(UnknownNameError, match=message) as error:
            made({"a": 0.9, "b": 0.8}).compare(parameter, **options)
        assert "\n" not in str(error.value)


class TestSentences:
    def test_single_seeds_and_identical_ones_are_named(self):
        results = made({"a": 0.9, "b": 0.8, "c": 0.7}, deviation=0.001)
        is_repeat = results.trials["seed"] > 0
        single = results.with_trials(results.trials[~is_repeat]).compare("optimizer").sentences()
        assert single == ["optimizer a has the best test accuracy 0.9004; inconclusive with one seed each."]
        same = made({"a": 0.9, "b": 0.8, "c": 0.7}, deviation=0).compare("optimizer").sentences()
        reason = "inconclusive, because the seeds give identical values"
        assert same == [f"optimizer a has the best test accuracy 0.9000; {reason}."]
        constant = changed(results, results.trials["optimizer"] != "a", test_accuracy=0.5)
        mixed = constant.with_trials(constant.trials[~is_repeat | (constant.trials["optimizer"] == "c")])
        reason = "inconclusive where there is one seed, or seeds give identical values"
        assert mixed.compare("optimizer").sentences()[0].endswith(f"; {reason}.")

    def test_tie_of_all_values_has_two_sentences(self):
        truth = dict.fromkeys("abc", 0.95)
        sentences = made(truth, deviation=0.001).compare("optimizer").sentences()
        assert len(sentences) == 2
        assert sentences[0].startswith("a, c and b tie for the best optimizer at 95 %: a has test accuracy 0.95")
        assert sentences[1].startswith("With these seeds a difference below about 0.00")

    def test_distance_of_the_nearest_worse_value_has_its_interval(self):
        comparison = made({"a": 0.9, "b": 0.95, "c": 0.8}, deviation=0.001).compare("optimizer")
        pair = comparison.pairs.set_index(["first", "second"]).loc["b", "a"]
        difference, low, high = (f"{pair[name]:.4f}" for name in ("difference", "low", "high"))
        assert comparison.sentences()[1] == (
            f"a and c are worse at 95 %: a is {difference} away from b ({low} to {high})."
        )
        losses = made({"a": 0.9, "b": 0.5}, deviation=0.001, metric="test_loss", mode="min").compare("optimizer")
        (row,) = losses.pairs.to_dict("records")
        difference, low, high = (format_metric(-row[name], "test_loss") for name in ("difference", "high", "low"))
        assert losses.sentences()[1] == f"a is worse at 95 %: a is {difference} away from b ({low} to {high})."

    @pytest.mark.parametrize(
        ("accuracy", "rank", "second"),
        [
            (0.940, 1, "With these seeds a difference below about 0.0450 is detected with a probability below 80 %."),
            (
                0.930,
                1,
                "Only a and b may be better than all others at 95 % (Hsu's multiple comparisons with the best).",
            ),
            (0.920, 3, "c is worse at 95 %: c is 0.0400 away from a (0.0044 to 0.0756)."),
        ],
    )
    def test_value_is_excluded_by_hsu_before_it_is_worse_in_all_pairs(self, accuracy, rank, second):
        luck = np.array([-0.01, 0.0, 0.01])
        values = {"a": 0.96 + luck, "b": 0.96 + luck[[1, 2, 0]], "c": accuracy + luck[[2, 0, 1]]}
        rows = [
            {"optimizer": name, "learning_rate": 0.1, "seed": seed, "test_accuracy": value}
            for name, seeds in values.items()
            for seed, value in enumerate(seeds)
        ]
        comparison = searched(SPACE, rows, metric="test_accuracy", mode="max").compare("optimizer")
        assert comparison.values["rank"].tolist() == [1, 1, rank]
        first, *others = comparison.sentences()
        names = "a, b and c" if rank == 1 else "a and b"
        assert first == (
            f"{names} tie for the best optimizer at 95 %: a has test accuracy 0.9600 (95 % interval 0.9352 to 0.9848, "
            "3 seeds)."
        )
        assert others[0] == second
        assert others[-1].startswith("With these seeds a difference below about 0.0450")

    def test_clear_winner_is_significant(self):
        sentences = made({"a": 0.9, "b": 0.95, "c": 0.8}, deviation=0.001).compare("optimizer").sentences()
        assert sentences[0].startswith("b is the best optimizer at 95 %: test accuracy 0.9")
        assert "95 % interval" in sentences[0]
        assert sentences[1].startswith("a and c are worse at 95 %: a is 0.0")

    def test_ties_are_reported_with_the_detectable_difference(self):
        ranking = made({"a": 0.95, "b": 0.95, "c": 0.5}, rates=(0.1, 1), deviation=0.001).compare("optimizer")
        sentences = ranking.sentences()
        assert sentences[0].startswith("a and b tie for the best optimizer at 95 %: a has test accuracy 0.95")
        assert sentences[1].startswith("c is worse at 95 %: c is 0.4")
        assert sentences[2].startswith("With these seeds a difference below about 0.00")
        assert sentences[2].endswith(" is detected with a probability below 80 %.")
        assert sentences[3].startswith(
            "Each value is represented by the best of up to 2 configurations, selected on the same seeds"
        )
        assert ranking._repr_html_().count("<p>") == 4
        assert "<table" in ranking._repr_html_()
