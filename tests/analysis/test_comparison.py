"""Which value is better: on made-up trials of which the truth is known."""

import numpy as np
import pandas as pd
import pytest

from tune_hpc.analysis.comparison import BETTER, INCONCLUSIVE, TIE
from tune_hpc.analysis.frames import trials_frame
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

SPACE = {"optimizer": {"choice": []}, "learning_rate": {"choice": []}}


def made(truth, *, seeds=5, deviation=0.01, shared=0.0, rates=(0.1,), generator=None, metric="test_accuracy", **asked):
    """Return trials of optimizers whose true accuracy is known; ``shared`` of the deviation is the seed's own."""
    generator = generator or np.random.default_rng(0)
    luck = generator.normal(0, shared, seeds)
    rows = [
        {
            "experiment": "made.up", "trial_id": f"t{number:05d}", "status": "finished", "optimizer": optimizer,
            "learning_rate": rate, "seed": seed,
            metric: value - abs(np.log10(rate / 0.1)) / 10 + luck[seed] + generator.normal(0, deviation),
        }
        for number, (optimizer, value, rate, seed) in enumerate(
            (optimizer, value, rate, seed)
            for optimizer, value in truth.items() for rate in rates for seed in range(seeds)
        )
    ]  # fmt: skip
    keys = ["optimizer", "learning_rate", "seed"]
    experiment = {"name": "made.up", "metric": metric, "mode": "max", "config_keys": keys, "space": SPACE} | asked
    return Results(experiment, trials_frame(rows, keys), pd.DataFrame({"trial_id": [], "step": []}))


def changed(results, where, **columns):
    trials = results.trials.copy()
    for name, value in columns.items():
        trials.loc[where, name] = value
    return Results(results.experiment, trials, results.history)


class TestVerdicts:
    def test_at_no_difference_there_are_ties_and_a_winner_as_seldom_as_it_says(self):
        generator = np.random.default_rng(1)
        wrong = 0
        for _ in range(200):
            ranking = made(dict.fromkeys("abcd", 0.9), generator=generator).compare("optimizer")
            wrong += (ranking.pairs["verdict"] == BETTER).any()
        # Of all six pairs together, in one study of twenty.
        assert wrong / 200 <= 0.09

    def test_a_large_difference_has_the_right_winner(self):
        generator = np.random.default_rng(2)
        for _ in range(50):
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

    def test_whoever_nobody_beats_for_sure_is_tied_for_the_best_and_comes_first(self):
        generator = np.random.default_rng(4)
        results = made({"a": 0.95, "b": 0.95, "c": 0.948, "d": 0.947}, deviation=0.0002, generator=generator)
        # One that varies more than the others cannot be told from the best, though its mean is lower.
        is_d = results.trials["optimizer"] == "d"
        wide = changed(results, is_d, test_accuracy=[0.93, 0.96, 0.94, 0.955, 0.95])
        values = wide.compare("optimizer").values
        assert set(values["optimizer"][:3]) == {"a", "b", "d"}
        assert list(values["rank"]) == [1, 1, 1, 3]
        assert values["is_tied_for_best"].tolist() == [True, True, True, False]

    def test_what_seeds_share_does_not_hide_a_difference(self):
        truth = {"a": 0.90, "b": 0.91}
        results = made(truth, deviation=0.001, shared=0.05)
        ranking = results.compare("optimizer")
        assert ranking.pairs.loc[0, ["first", "verdict", "num_pairs"]].tolist() == ["b", BETTER, 5]
        # Other seeds share nothing: the same trials tell nothing then.
        apart = changed(results, results.trials["optimizer"] == "b", seed=[10, 11, 12, 13, 14])
        assert apart.compare("optimizer").pairs.loc[0, ["verdict", "num_pairs"]].tolist() == [TIE, 0]

    def test_less_of_a_loss_is_better(self):
        results = made({"a": 0.9, "b": 0.2}, metric="test_loss", mode="min")
        assert results.compare("optimizer").values["optimizer"].tolist() == ["b", "a"]
        assert made({"a": 0.9, "b": 0.2}, metric="x", mode="min").compare("optimizer").lower_is_better

    def test_intervals_of_all_pairs_hold_together(self):
        generator = np.random.default_rng(3)
        held = 0
        for _ in range(200):
            pairs = made({"a": 0.9, "b": 0.91, "c": 0.92}, generator=generator).compare("optimizer").pairs
            truth = {"a": 0.9, "b": 0.91, "c": 0.92}
            difference = pairs["first"].map(truth) - pairs["second"].map(truth)
            held += ((pairs["low"] <= difference) & (difference <= pairs["high"])).all()
        assert 0.91 <= held / 200 <= 1


class TestConfigurations:
    def test_each_value_stands_with_its_best_configuration(self):
        results = made({"a": 0.9, "b": 0.8}, rates=(0.001, 0.1, 10), deviation=0.001)
        values = results.compare("optimizer").values
        assert list(values["learning_rate"]) == [0.1, 0.1]
        assert list(values["num_configurations"]) == [3, 3]
        assert list(values["num_seeds"]) == [5, 5]

    def test_one_of_which_a_seed_diverged_is_not_chosen(self):
        results = made({"a": 0.9, "b": 0.8}, rates=(0.01, 0.1), deviation=0.001)
        first = results.trials.index[(results.trials["optimizer"] == "a") & (results.trials["learning_rate"] == 0.1)][0]
        ranking = changed(results, first, status="diverged", test_accuracy=np.nan).compare("optimizer")
        a = ranking.values.set_index("optimizer").loc["a"]
        assert (a["learning_rate"], a["num_diverged"]) == (0.01, 1)

    def test_they_may_be_chosen_by_another_metric_than_is_compared(self):
        results = made({"a": 0.9, "b": 0.8}, rates=(0.1, 1.0))
        trials = results.trials.assign(score=results.trials["learning_rate"])
        results = Results({**results.experiment, "metric": "score"}, trials, results.history)
        values = results.compare("optimizer", "test_accuracy").values
        assert list(values["learning_rate"]) == [1.0, 1.0]

    def test_a_condition_narrows_the_trials(self):
        results = made({"a": 0.9, "b": 0.8}, rates=(0.1, 1.0))
        values = results.compare("optimizer", where={"learning_rate": 1.0}).values
        assert list(values["learning_rate"]) == [1.0, 1.0]
        assert list(values["num_configurations"]) == [1, 1]

    def test_a_parameter_that_some_configurations_lack(self):
        results = made({"a": 0.9, "b": 0.8}, rates=(0.1, 1.0))
        results = changed(results, results.trials["optimizer"] == "b", learning_rate=np.nan)
        values = results.compare("learning_rate").values
        assert values["learning_rate"].tolist()[:2] == [0.1, 1.0] or values["learning_rate"].isna().any()
        assert len(values) == 3

    def test_a_configuration_that_ran_twice_with_a_seed_is_one_repeat(self):
        results = made({"a": 0.9, "b": 0.8})
        twice = Results(results.experiment, pd.concat([results.trials, results.trials]), results.history)
        values = twice.compare("optimizer").values
        pd.testing.assert_frame_equal(values, results.compare("optimizer").values)


class TestLittle:
    def test_one_seed_cannot_tell(self):
        ranking = made({"a": 0.9, "b": 0.8, "c": 0.7}, seeds=1).compare("optimizer")
        assert list(ranking.values["optimizer"]) == ["a", "b", "c"]
        assert ranking.values["rank"].isna().all()
        assert not ranking.values["is_tied_for_best"].any()
        assert set(ranking.pairs["verdict"]) == {INCONCLUSIVE}
        assert "inconclusive with one seed each" in str(ranking)

    def test_seeds_that_change_nothing_cannot_tell(self):
        ranking = made({"a": 0.9, "b": 0.8, "c": 0.8}, deviation=0).compare("optimizer")
        assert ranking.values["low"].isna().all()
        assert dict(zip(ranking.pairs["second"], ranking.pairs["verdict"], strict=True))["b"] == INCONCLUSIVE
        assert ranking.pairs.loc[ranking.pairs["first"] != "a", "verdict"].tolist() == [TIE]
        assert "has the best test accuracy" in str(ranking)

    def test_differences_that_are_the_same_by_chance_are_held_as_wholes(self):
        results = made({"a": 0.9, "b": 0.5}, seeds=3)
        by_rounding = changed(results, slice(None), test_accuracy=[0.97, 0.98, 0.99, 0.47, 0.48, 0.49])
        pair = by_rounding.compare("optimizer").pairs.iloc[0]
        assert (pair["first"], pair["verdict"], pair["num_pairs"]) == ("a", BETTER, 0)

    def test_one_value(self):
        ranking = made({"a": 0.9}).compare("optimizer")
        assert len(ranking.pairs) == 0
        assert str(ranking).startswith("Only optimizer a has a value: test accuracy 0.9")

    def test_no_value_at_all(self):
        results = made({"a": 0.9, "b": 0.8})
        ranking = changed(results, slice(None), status="diverged", test_accuracy=np.nan).compare("optimizer")
        assert ranking.values.empty
        assert ranking.pairs.empty
        assert str(ranking) == "No value of optimizer has a test accuracy."
        assert list(ranking.values) == list(results.compare("optimizer").values)[:1] + [
            name for name in results.compare("optimizer").values if name not in ("optimizer", "learning_rate")
        ]

    def test_a_range_that_was_sampled_has_too_many_values(self):
        results = made({"a": 0.9}, rates=np.logspace(-4, 0, 101), seeds=1)
        with pytest.raises(UnknownNameError, match="learning_rate has 101 values in made"):
            results.compare("learning_rate")

    @pytest.mark.parametrize(
        ("parameter", "options", "told"),
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
    def test_what_is_not_there_is_told_in_one_line(self, parameter, options, told):
        with pytest.raises(UnknownNameError, match=told) as error:
            made({"a": 0.9, "b": 0.8}).compare(parameter, **options)
        assert "\n" not in str(error.value)


class TestSentences:
    def test_a_clear_winner(self):
        said = made({"a": 0.9, "b": 0.95, "c": 0.8}, deviation=0.001).compare("optimizer").sentences()
        assert said[0].startswith("b is significantly the best optimizer: test accuracy 0.9")
        assert "95 % interval" in said[0]
        assert said[1].startswith("a and c are significantly worse than one of the best: a is 0.0")

    def test_ties_and_what_the_seeds_could_tell(self):
        ranking = made({"a": 0.95, "b": 0.95, "c": 0.5}, rates=(0.1, 1), deviation=0.001).compare("optimizer")
        said = ranking.sentences()
        assert said[0].startswith("a and b tie for the best optimizer: a has test accuracy 0.95")
        assert said[1].startswith("c is significantly worse than one of the best: c is 0.4")
        assert said[2].startswith("Differences below about 0.00") and said[2].endswith(
            " are not detectable with these seeds."
        )
        assert said[3].startswith(
            "Each value is represented by the best of up to 2 configurations, selected on the same seeds"
        )
        assert ranking._repr_html_().count("<p>") == 4
        assert "<table" in ranking._repr_html_()
