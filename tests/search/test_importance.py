"""Parameter importance on searches with a known answer."""

import numpy as np
import pandas as pd
import pytest
from ray import tune

import tune_hpc
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.importance import importance
from tune_hpc.search.space.conditional import when
from tune_hpc.search.space.space import Space

SPACE = Space({"x": tune.uniform(0, 1), "y": tune.uniform(0, 1), "z": tune.choice(["a", "b"]), "w": 7}, keys={})


def searched(space, loss, num_samples=60, mode="min"):
    """Return a random search whose losses are a function of the configuration."""
    generator = np.random.default_rng(0)
    configs = [space.sample(generator) for _ in range(num_samples)]
    experiment = Experiment("shape", space, "somewhere:train", "loss", mode, searcher="random", num_samples=60)
    rows = [
        config | {"trial_id": f"t{number:05d}", "status": "finished", "seed": 0, "loss": loss(config)}
        for number, config in enumerate(configs)
    ]
    description = experiment.to_json() | {"config_keys": [*space, "seed"]}
    return Results(description, pd.DataFrame(rows), pd.DataFrame({"trial_id": [], "step": []}))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_most_important_parameter_is_first(mode):
    df = importance(searched(SPACE, lambda config: (config["x"] - 0.3) ** 2 + config["y"] / 1000, mode=mode))
    assert list(df) == ["parameter", "importance", "low", "high", "resampled"]
    assert df["parameter"].iloc[0] == "x"
    assert set(df["parameter"]) == {"x", "y", "z"}
    assert df["importance"].iloc[0] > 0.5
    assert df["importance"].sum() == pytest.approx(1)
    assert df["importance"].is_monotonic_decreasing


def test_cases_have_the_names_of_the_study():
    space = Space(
        {
            "optimizer": tune.choice(["adam", "momentum"]),
            "rate": when(tune.uniform(0, 1), optimizer="adam") | tune.uniform(1, 2),
        },
        keys={},
    )
    df = importance(searched(space, lambda config: config["rate"], 100))
    assert set(df["parameter"]) == {"optimizer", "rate", "rate[optimizer=adam]"}


def test_result_is_deterministic():
    results = searched(SPACE, lambda config: config["x"])
    pd.testing.assert_frame_equal(importance(results), tune_hpc.importance(results))


def test_ten_configurations_are_enough():
    assert importance(searched(SPACE, lambda config: config["x"], 10))["importance"].sum() == pytest.approx(1)


def with_seeds(results, deviation, num_seeds=5):
    """Return results whose trials have several seeds, with normal noise on the losses."""
    generator = np.random.default_rng(1)
    parts = [
        results.trials.assign(
            seed=seed,
            trial_id=results.trials["trial_id"] + f"-{seed}",
            loss=results.trials["loss"] + generator.normal(0, deviation, len(results.trials)),
        )
        for seed in range(num_seeds)
    ]
    return results.with_trials(pd.concat(parts, ignore_index=True))


class TestIntervals:
    def test_interval_contains_the_importance_and_separates_parameters(self):
        df = importance(searched(SPACE, lambda config: config["x"], 80)).set_index("parameter")
        assert (df["low"] <= df["importance"]).all()
        assert (df["importance"] <= df["high"]).all()
        assert df.loc["x", "low"] > df.loc[["y", "z"], "high"].max()
        assert set(df["resampled"]) == {"configurations"}

    def test_few_configurations_have_wide_intervals(self):
        few, many = (
            importance(searched(SPACE, lambda config: config["x"], number)).set_index("parameter").loc["x"]
            for number in (12, 120)
        )
        assert few["high"] - few["low"] > 3 * (many["high"] - many["low"])

    def test_seeds_are_resampled_where_there_are_several(self):
        results = searched(SPACE, lambda config: config["x"], 30)
        alone = importance(results)
        equal = importance(with_seeds(results, 0.0))
        assert set(equal["resampled"]) == {"seeds"}
        # Seeds that agree leave nothing to resample.
        for name in ("importance", "low", "high"):
            assert equal[name].tolist() == pytest.approx(alone["importance"].tolist())
        noisy = importance(with_seeds(results, 0.5)).set_index("parameter").loc["x"]
        assert noisy["low"] < noisy["high"]

    def test_configurations_are_resampled_if_a_seed_is_missing(self):
        trials = with_seeds(searched(SPACE, lambda config: config["x"], 20), 0.0).trials
        results = searched(SPACE, lambda config: config["x"], 20).with_trials(trials[1:])
        assert set(importance(results)["resampled"]) == {"configurations"}

    def test_logarithm_of_the_metric_changes_nothing(self):
        plain = importance(searched(SPACE, lambda config: 0.1 + config["x"], 30))
        log = importance(searched(SPACE, lambda config: float(np.log(0.1 + config["x"])), 30))
        pd.testing.assert_frame_equal(plain, log)


class TestErrors:
    def check(self, results, message):
        with pytest.raises(UnknownNameError, match=message) as error:
            importance(results)
        assert "\n" not in str(error.value)

    def test_too_few_configurations(self):
        self.check(searched(SPACE, lambda config: config["x"], 9), "at least 10 finished configurations; shape has 9")

    def test_only_divergences(self):
        results = searched(SPACE, lambda config: config["x"])
        self.check(
            Results(results.experiment, results.trials.assign(status="diverged", loss=np.nan), results.history),
            "at least 10 finished configurations; shape has 0",
        )

    def test_no_trials(self):
        results = searched(SPACE, lambda config: config["x"])
        self.check(Results(results.experiment, results.trials[:0], results.history), "shape has no trials")

    def test_unknown_metric(self):
        results = searched(SPACE, lambda config: config["x"])
        without = results.trials.drop(columns="loss")
        self.check(Results(results.experiment, without, results.history), "no trial of shape reported loss")

    def test_constant_space(self):
        space = Space({"w": 7}, keys={})
        self.check(searched(space, lambda config: 1.0), "nothing varies in shape")

    def test_equal_values(self):
        self.check(searched(SPACE, lambda config: 1.0), "the values of loss in shape are too similar")
