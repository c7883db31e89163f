"""State of one search: experiment.json at its start and end, and the frames of its trials."""

from types import SimpleNamespace

import pytest
from ray import tune

from tune_hpc import Experiment, Space, load
from tune_hpc.errors import ConflictError, InvalidSpaceError
from tune_hpc.search.monitor import SearchMonitor
from tune_hpc.search.search_state import Search
from tune_hpc.search.searchers.searcher import trial_specs
from tune_hpc.search.stopping import StopCriteria
from tune_hpc.search.trial_spec import TrialGroup
from tune_hpc.storage.experiment_folder import FORMAT, ExperimentFolder
from tune_hpc.storage.process import this_process
from tune_hpc.storage.trial_file import TrialFileWriter

SPACE = Space({"x": tune.choice([0, 1, 2])}, keys={})
ORIGIN = {"version": "0.1.0"}


def experiment_of(space=SPACE, trainable="a:b", **fields):
    return Experiment("made", space, trainable, **{"metric": "loss", "mode": "min", "seeds": ()} | fields)


def search_in(path, **fields):
    """Return a new search of three trials whose folder has been claimed."""
    experiment, folder = experiment_of(), ExperimentFolder(path / "out")
    trials = trial_specs(experiment, experiment.configs())
    search = Search(experiment, folder, "a:b", trials, claim=lambda: folder.claim("made"), **fields)
    search.start(ORIGIN)
    return search


def run_trials(search, criteria, *statuses):
    """Record the ends of trials with these statuses, or their pauses, and finish the search."""
    monitor = SearchMonitor({"made": search.experiment}, {"made": search.folder}, criteria)
    for trial, status in zip(search.trials, statuses, strict=False):
        group = TrialGroup.single(trial)
        monitor.on_start(group)
        if status == "killed":
            continue
        row = trial.columns() | {"status": status, "loss": 0.5, "steps_run": 1, "attempt": search.folder.attempt}
        writer = TrialFileWriter({})
        writer.add(1, {"loss": 0.5})
        search.folder.write_trial(trial.trial_id, row, writer.history())
        line = {"trial_id": trial.trial_id, "value": 0.5, "status": status, "steps": 1}
        monitor.on_result(group, {"trials": [line], "last": True})
    return search.finish(monitor, criteria)


class TestStart:
    def test_description_has_the_state_of_a_new_search(self, tmp_path):
        search = search_in(tmp_path, position=2)
        written = search.folder.read()
        assert written == search.description
        expected = {
            "name": "made", "format": FORMAT, "position": 2, "config_keys": ["x"], "state": "running", "attempt": 1,
            "num_trials": 3, "process": this_process(), "provenance": ORIGIN,
        }  # fmt: skip
        assert {name: written[name] for name in expected} == expected
        assert (search.name, search.num_to_run, search.ended_before.total()) == ("made", 3, 0)

    def test_attempt_of_a_job_is_that_of_the_search(self, tmp_path):
        assert search_in(tmp_path, attempt=7).folder.read()["attempt"] == 7

    def test_resumed_search_keeps_its_position_keys_and_provenance(self, tmp_path):
        first = search_in(tmp_path, position=2)
        results = run_trials(first, StopCriteria(), "finished", "diverged")
        folder = ExperimentFolder(first.folder.path)
        folder.claim_attempt(1)
        folder.ray.mkdir()
        resumed = Search(first.experiment, folder, "a:b", first.trials[2:], before=results)
        assert resumed.ended_before == {"finished": 1, "diverged": 1}
        assert resumed.num_to_run == 1
        for number in (1, 2):
            resumed.start({"version": str(number)})
            resumed.before = load(folder.path)
        written = folder.read()
        assert (written["position"], written["config_keys"], written["attempt"]) == (2, ["x"], 2)
        assert written["provenance"]["version"] == ORIGIN["version"]
        assert written["provenance"]["continued"] == [{"version": "1"}, {"version": "2"}]
        assert (written["state"], written["process"]) == ("running", this_process())
        assert not folder.ray.exists()

    def test_keys_that_a_searcher_adds_are_written_once(self, tmp_path):
        searcher = SimpleNamespace(config_keys=["x", "y"], note_config_keys=None, write_initial_state=lambda: None)
        search = search_in(tmp_path, searcher=searcher)
        assert search.folder.read()["config_keys"] == ["x", "y"]
        searcher.note_config_keys(["y", "z"])
        assert search.folder.read()["config_keys"] == ["x", "y", "z"]


class TestFinish:
    def test_search_whose_trials_have_ended_is_finished(self, tmp_path):
        search = search_in(tmp_path)
        results = run_trials(search, StopCriteria(), "finished", "diverged", "stopped")
        written = results.experiment
        expected = {
            "state": "finished", "ended_by": None, "is_to_be_requeued": False, "is_terminated": False,
            "has_failed": False, "process": None, "num_lines": {},
        }  # fmt: skip
        assert {name: written[name] for name in expected} == expected
        assert written["provenance"].keys() == {*ORIGIN, "finished", "wall_s"}
        assert written["provenance"]["wall_s"] > 0
        assert results.counts() == {"finished": 1, "stopped": 1, "diverged": 1}
        assert len(results.history) == 3
        assert not search.folder.trials.exists()

    @pytest.mark.parametrize(
        ("signals", "state"),
        [
            ({}, "stopped"),
            ({"is_warned": True}, "interrupted"),
            ({"is_terminated": True}, "interrupted"),
            ({"has_failed": True}, "stopped"),
        ],
    )
    def test_search_with_remaining_trials_has_the_reason_of_its_end(self, tmp_path, signals, state):
        criteria = StopCriteria()
        criteria.reason = "the time budget of 3 s is spent"
        vars(criteria).update(signals)
        written = run_trials(search_in(tmp_path), criteria, "finished", "running").experiment
        assert (written["state"], written["ended_by"]) == (state, criteria.reason)
        flags = {
            "is_to_be_requeued": "is_warned", "is_terminated": "is_terminated", "has_failed": "has_failed",
        }  # fmt: skip
        assert {name: written[name] for name in flags} == {name: flag in signals for name, flag in flags.items()}

    def test_finished_search_has_no_reason_although_a_criterion_was_met(self, tmp_path):
        criteria = StopCriteria()
        criteria.reason, criteria.is_warned, criteria.is_terminated, criteria.has_failed = "late", True, True, True
        written = run_trials(search_in(tmp_path), criteria, "finished", "finished", "failed").experiment
        names = ("state", "ended_by", "is_to_be_requeued", "is_terminated", "has_failed")
        assert [written[name] for name in names] == ["finished", None, False, False, False]

    @pytest.mark.parametrize("statuses", [("finished", "finished"), ("finished", "finished", "running")])
    def test_search_with_a_paused_or_missing_trial_is_interrupted(self, tmp_path, statuses):
        search = search_in(tmp_path)
        results = run_trials(search, StopCriteria(), *statuses)
        assert (results.experiment["state"], results.experiment["ended_by"]) == ("interrupted", None)
        assert search.folder.trial_file("t00000").exists()

    def test_trial_that_left_no_file_is_running(self, tmp_path):
        results = run_trials(search_in(tmp_path), StopCriteria(), "finished", "killed", "running")
        trials = results.trials.set_index("trial_id")
        assert trials["status"].tolist() == ["finished", "running", "running"]
        assert trials.loc["t00001", ["x", "attempt"]].tolist() == [1, 1]
        # A paused trial has its results.
        assert trials["loss"].tolist()[::2] == [0.5, 0.5]

    def test_times_of_several_runs_add_up(self, tmp_path):
        search = search_in(tmp_path)
        search.description["provenance"]["wall_s"] = 100.0
        assert 100 < run_trials(search, StopCriteria(), "finished").experiment["provenance"]["wall_s"] < 110

    def test_superseded_search_writes_nothing(self, tmp_path):
        search = search_in(tmp_path)
        ExperimentFolder(search.folder.path).claim_attempt(1)
        monitor = SearchMonitor({"made": search.experiment}, {"made": search.folder}, StopCriteria())
        with pytest.raises(ConflictError, match=r"attempt 1 of .* was superseded"):
            search.finish(monitor, StopCriteria())
        assert not search.folder.trials_file.exists()


class TestProperties:
    def of(self, experiment, trainable="a:b"):
        return Search(experiment, ExperimentFolder("unused"), trainable)

    @pytest.mark.parametrize(
        ("scheduler", "is_monitored"),
        [("none", False), ("asha", False), ("pbt", False), ("asha_stopping", True), ("median", True)],
    )
    def test_metric_is_monitored_for_the_schedulers_of_ray_tune(self, scheduler, is_monitored):
        fields = {"searcher": "random", "num_samples": 4, "budget": 27, "scheduler": scheduler}
        monitored = self.of(experiment_of(Space({"x": tune.uniform(0, 1)}, keys={}), **fields)).monitored
        assert (monitored is not None and monitored.column == "loss") == is_monitored

    def test_largest_number_of_workers_is_that_of_the_built_in_trainable(self):
        space = Space({"steps": 5, "workers": tune.choice([1, 4, 2])})
        built_in = Experiment("made", space)
        assert self.of(built_in, built_in.trainable).max_workers == 4
        assert self.of(built_in).max_workers == 0
        without = Experiment("made", Space({"steps": 5}))
        assert self.of(without, without.trainable).max_workers == 0
        space = Space({"steps": 5, "workers": tune.randint(1, 10**6)})
        ranged = Experiment("made", space, searcher="random", num_samples=3)
        search = self.of(ranged, ranged.trainable)
        with pytest.raises(InvalidSpaceError, match="workers: at most 100000 values can be listed"):
            search.max_workers  # noqa: B018
