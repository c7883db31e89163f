"""Optuna studies of searches: trials, curves, and no repetition."""

import dataclasses
import math
from datetime import UTC, datetime

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import tune

from tests.results_fixtures import make_folder
from tests.search.test_optuna_study import OPTIMIZERS
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.export.exporter import export_search
from tune_hpc.export.optuna import curve, to_optuna
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.space.space import Space
from tune_hpc.storage.trial_file import summarise


class TestToOptuna:
    @pytest.fixture
    def results(self):
        """Two optimizers, two seeds each; one configuration diverged, one is still running."""
        experiment = Experiment("optimizers", OPTIMIZERS, metric="valid_loss", mode="min", seeds=(0, 1),
                                searcher="random", num_samples=4)  # fmt: skip
        outcomes = {
            ("adam", 1e-3, None): [("finished", 0.5, 100), ("finished", 0.7, 100)],
            ("momentum", 0.1, 0.9): [("finished", 0.4, 100), ("stopped", 0.6, 30)],
            ("momentum", 0.9, 0.6): [("diverged", None, 3), ("finished", 0.2, 100)],
            ("adam", 1e-2, None): [("finished", 0.5, 100), ("running", None, None)],
        }
        rows = [
            {"trial_id": f"t{number}{seed}", "optimizer": optimizer, "learning_rate": rate, "momentum": momentum,
             "steps": 100, "seed": seed, "status": status, "valid_loss": loss, "steps_run": steps}
            for number, ((optimizer, rate, momentum), seeds) in enumerate(outcomes.items())
            for seed, (status, loss, steps) in enumerate(seeds)
        ]  # fmt: skip
        return Results(experiment.to_json(), pd.DataFrame(rows), pd.DataFrame())

    def test_configuration_is_a_trial_with_the_mean_over_seeds(self, results):
        study = to_optuna(results)
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
        assert [trial.value for trial in study.trials] == [pytest.approx(0.6), pytest.approx(0.5), math.inf]
        assert study.trials[0].params == {"optimizer": "adam", "learning_rate[optimizer=adam]": 1e-3}
        assert study.trials[1].params == {"optimizer": "momentum", "learning_rate": 0.1, "momentum": 0.9}
        assert study.trials[1].intermediate_values == {30: pytest.approx(0.5)}
        assert study.best_trial.number == 0

    def test_storage_has_the_study_under_the_name_of_the_experiment(self, results, tmp_path):
        storage = f"sqlite:///{tmp_path / 'studies.db'}"
        to_optuna(results, storage)
        stored = optuna.load_study(study_name="optimizers", storage=storage)
        assert [trial.state.name for trial in stored.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
        assert stored.best_value == pytest.approx(0.6)

    def test_results_without_the_metric_are_rejected(self, results):
        with pytest.raises(UnknownNameError, match="no trial of optimizers reported valid_loss"):
            to_optuna(dataclasses.replace(results, trials=results.trials.drop(columns="valid_loss")))

    def test_trial_has_names_and_mean_curve_of_its_seeds(self, results):
        history = pd.DataFrame(
            {
                "trial_id": ["t00"] * 3 + ["t01"] * 2 + ["t10"] * 2 + ["t11"] * 2,
                "step": [25, 50, 100, 50, 100, 10, 40, 10, 40],
                "valid_loss": [3.0, 2.0, 1.0, 4.0, 3.0, 7.0, 6.0, 5.0, 4.0],
            }
        )
        study = to_optuna(dataclasses.replace(results, history=history))
        assert study.trials[0].intermediate_values == {50: 3.0, 100: 2.0}
        # The last value is the one that samplers use.
        assert study.trials[1].intermediate_values == {10: 6.0, 30: pytest.approx(0.5)}
        assert study.trials[0].user_attrs == {"trial_ids": ["t00", "t01"], "statuses": ["finished", "finished"]}


class TestOptunaExporter:
    EXPERIMENT = Experiment(
        "shape", Space({"x": tune.choice([1, 2]), "y": tune.uniform(0, 1)}, keys={}), "somewhere:train",
        metric="loss", mode="min", seeds=(0, 1), searcher="random", num_samples=4,
    )  # fmt: skip

    @pytest.fixture
    def folder(self, tmp_path):
        experiment = self.EXPERIMENT.to_json() | {"config_keys": ["x", "y", "seed"], "state": "stopped"}
        return make_folder(tmp_path / "run", experiment)

    def write(self, folder, number, loss, status="finished", x=1, y=0.5):
        history = pd.DataFrame({"step": range(1, 1001), "loss": [loss + 1000 - step for step in range(1, 1001)]})
        row = {"trial_id": f"t{number:05d}", "status": status, "x": x, "y": y, "seed": number % 2, "steps_run": 1000}
        row |= {"train_s": 60.0, "error": "no" if status == "failed" else None}
        folder.write_trial(row["trial_id"], row | summarise(history), history)

    def study(self, folder, name="shape"):
        return optuna.load_study(
            study_name=name, storage=JournalStorage(JournalFileBackend(str(folder.optuna_journal)))
        )

    def test_configuration_is_added_once_when_all_seeds_have_ended(self, folder):
        self.write(folder, 0, 1.0)
        self.write(folder, 1, 3.0, status="running")
        assert export_search(folder.path, "optuna")[0].num_trials == 0
        self.write(folder, 1, 3.0)
        self.write(folder, 2, 5.0, status="failed")
        self.write(folder, 3, 5.0)
        assert [export_search(folder.path, "optuna")[0].num_trials for _ in range(2)] == [4, 0]
        done, failed = self.study(folder).trials
        assert (done.value, done.state.name, done.params) == (2.0, "COMPLETE", {"x": 1, "y": 0.5})
        assert done.user_attrs["trial_ids"] == ["t00000", "t00001"]
        assert done.duration.total_seconds() == pytest.approx(60)
        assert (failed.state.name, failed.user_attrs["errors"]) == ("FAIL", ["no"])
        steps = list(done.intermediate_values)
        assert len(steps) == 101
        assert done.intermediate_values[1000] == 2.0

    def test_trials_have_their_own_times(self, folder):
        for number, minute in enumerate((3, 5)):
            self.write(folder, number, 1.0)
            folder.update_status(f"t{number:05d}", {"ended_at": f"2026-01-01T12:{minute:02d}:00.000+00:00"})
        export_search(folder.path, "optuna")
        (trial,) = self.study(folder).trials
        assert trial.datetime_complete.astimezone(UTC) == datetime(2026, 1, 1, 12, 5, tzinfo=UTC)
        assert trial.duration.total_seconds() == pytest.approx(60)

    def test_equal_configurations_stay_two(self, folder):
        for number in (0, 2, 1, 3):
            self.write(folder, number, float(number))
        export_search(folder.path, "optuna")
        assert [trial.user_attrs["trial_ids"] for trial in self.study(folder).trials] == [
            ["t00000", "t00001"], ["t00002", "t00003"],
        ]  # fmt: skip
        assert [trial.value for trial in self.study(folder).trials] == [0.5, 2.5]

    def test_diverged_configuration_is_infeasible(self, folder):
        self.write(folder, 0, 1.0, status="diverged")
        self.write(folder, 1, 1.0)
        export_search(folder.path, "optuna")
        (trial,) = self.study(folder).trials
        assert trial.value == math.inf
        assert trial.constraints == {"diverged": 1.0}

    def test_searches_of_one_name_are_separate_studies(self, folder):
        self.write(folder, 0, 1.0)
        self.write(folder, 1, 1.0)
        uri = folder.optuna_journal
        for started in ("2020", "2021", "2021"):
            folder.write(folder.read() | {"provenance": {"started": started}})
            export_search(folder.path, "optuna", where=uri)
        assert [len(self.study(folder, name).trials) for name in ("shape", "shape-2")] == [1, 1]


def test_best_metric_has_the_curve_of_its_running_best():
    history = pd.DataFrame({"step": [1, 2, 3, 4], "valid_accuracy": [0.5, 0.7, 0.6, float("inf")]})
    assert curve(history, "best_valid_accuracy", "max") == {1: 0.5, 2: 0.7, 3: 0.7}
    assert curve(history, "valid_accuracy", "max") == {1: 0.5, 2: 0.7, 3: 0.6}
    assert curve(history, "steps_run", "max") == {}
