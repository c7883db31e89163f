"""Early stop of searches: stop requests, criteria, saved states, and resumption without repeated steps."""

import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher

from tests.search.trainables import counts, lingers
from tune_hpc import Experiment, Space, resume, run, run_all, when
from tune_hpc.search import stopping
from tune_hpc.search.group_queue import GroupQueue
from tune_hpc.search.monitor import SearchMonitor
from tune_hpc.search.ray_runner import RaySearcherAdapter
from tune_hpc.search.searchers.optuna_searcher import OptunaSearcher
from tune_hpc.search.stopping import (
    TRIAL_POLL_INTERVAL_S,
    GracefulStop,
    StopCriteria,
    StopRequest,
    StopRequested,
)
from tune_hpc.search.trial_checkpoint import TrialCheckpoint
from tune_hpc.search.trial_runner import TrialRunner
from tune_hpc.search.trial_spec import RankedMetric, TrialContext, TrialGroup, TrialOutcome, TrialSpec
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter

QUIET = {"show_progress": False}


def claimed_folder(path):
    folder = ExperimentFolder(path)
    folder.path.mkdir()
    folder.claim_attempt(0)
    return folder


@pytest.fixture
def folder(tmp_path):
    return claimed_folder(tmp_path / "out")


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 50.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(stopping.time, "monotonic", clock.monotonic)
    return clock


class TestStopRequest:
    def test_trial_polls_at_most_five_times_a_second(self, folder, clock):
        request = StopRequest(folder)
        assert not request.is_made
        folder.write_control(stop=True)
        clock.now += 0.9 * TRIAL_POLL_INTERVAL_S
        assert not request.is_made
        clock.now += 0.2 * TRIAL_POLL_INTERVAL_S
        assert request.is_made

    def test_request_is_not_withdrawn_by_the_next_search(self, folder, clock):
        folder.write_control(stop=True)
        request = StopRequest(folder)
        assert request.is_made
        folder.write_control()
        clock.now += 10
        assert request.is_made
        assert not StopRequest(folder).is_made

    def test_folder_without_the_file_requests_nothing(self, tmp_path):
        assert not StopRequest(ExperimentFolder(tmp_path)).is_made

    @pytest.mark.parametrize("error", [PermissionError("no"), OSError(116, "stale"), OSError(5, "io")])
    def test_storage_that_does_not_answer_has_no_effect(self, folder, clock, monkeypatch, error):
        def fail(*arguments, **options):
            raise error

        request, criteria = StopRequest(folder), StopCriteria(stop_file=folder.path / "1.stop")
        criteria._polled_at = 0.0
        for method in ("is_file", "read_text", "read_bytes"):
            monkeypatch.setattr(Path, method, fail)
        assert not request.is_made
        assert not criteria.is_met()
        monkeypatch.undo()
        folder.write_control(stop=True)
        assert StopRequest(folder).is_made

    def test_trial_of_a_superseded_attempt_stops_and_saves_nothing(self, folder):
        ExperimentFolder(folder.path).claim_attempt(1)
        request = StopRequest(folder)
        assert request.is_made
        assert request.is_superseded
        checkpoint = TrialCheckpoint(folder.checkpoint("t00000"), [TrialFileWriter({})], 0.0, StopRequest(folder))
        with pytest.raises(StopRequested):
            checkpoint.save(1, lambda: {"step": 1})
        assert not folder.checkpoint("t00000").exists()

    def test_next_state_is_saved_regardless_of_the_interval(self, folder):
        path = folder.checkpoint("t00000")
        writer = TrialFileWriter({})
        checkpoint = TrialCheckpoint(path, [writer], 3600, StopRequest(folder))
        checkpoint.save(1, lambda: {"step": 1})
        assert not path.exists()
        assert not checkpoint.has_stopped
        folder.write_control(stop=True)
        writer.add(2, {"loss": 0.5})
        checkpoint = TrialCheckpoint(path, [writer], 3600, StopRequest(folder))
        with pytest.raises(StopRequested):
            checkpoint.save(2, lambda: {"step": 2})
        assert checkpoint.has_stopped
        assert TrialCheckpoint(path, [TrialFileWriter({})], 3600).load() == {"step": 2}

    def test_handlers_of_exception_do_not_catch_it(self):
        assert not issubclass(StopRequested, Exception)


class TestGracefulStop:
    class Monitor:
        """Stands for the monitor of the run."""

        any_running = True
        num_shown = 0

        def show(self):
            self.num_shown += 1

    @pytest.fixture
    def folders(self, tmp_path):
        return [claimed_folder(tmp_path / name) for name in "ab"]

    @pytest.fixture
    def criteria(self):
        return StopCriteria()

    @pytest.fixture
    def stop(self, criteria, folders, caplog):
        caplog.set_level(logging.INFO)
        return GracefulStop(criteria, self.Monitor(), folders)

    def test_search_without_a_reason_continues(self, stop, folders):
        assert not stop.is_due()
        assert not any(StopRequest(folder).is_made for folder in folders)
        # A search of long trials reports nothing for minutes, but shows that it runs.
        assert stop.monitor.num_shown == 1

    def test_trials_of_all_experiments_have_time_to_stop(self, stop, criteria, folders, clock, caplog):
        criteria._interrupt(signal.SIGINT, None)
        for _ in range(10):
            assert not stop.is_due()
            clock.now += 2.9
        assert all(StopRequest(folder).is_made for folder in folders)
        assert [record.message for record in caplog.records] == [
            "stopping: running trials save their states within 30 s; press Ctrl-C again to stop at once"
        ]
        stop.monitor.any_running = False
        assert stop.is_due()

    def test_slow_trials_are_killed(self, stop, criteria, clock, caplog):
        criteria._warn(signal.SIGUSR1, None)
        assert not stop.is_due()
        clock.now += stopping.WAIT_S
        assert stop.is_due()
        assert caplog.records[0].message == (
            "the batch system's time is nearly over (SIGUSR1): running trials save their states within 30 s; "
            "press Ctrl-C to stop at once"
        )

    def test_unwritable_folder_does_not_affect_other_requests(self, stop, criteria, folders, caplog):
        folders[0].control.unlink()
        folders[0].control.mkdir()
        criteria._interrupt(signal.SIGINT, None)
        assert not stop.is_due()
        assert StopRequest(folders[1]).is_made
        assert "control cannot be written: Is a directory; choose another folder, or make room" in caplog.messages[0]

    def test_search_without_running_trials_stops_at_once(self, stop, criteria, caplog):
        criteria._warn(signal.SIGUSR1, None)
        stop.monitor.any_running = False
        assert stop.is_due()
        assert not caplog.records

    @pytest.mark.parametrize("first", ["_interrupt", "_warn"])
    def test_interrupt_during_the_stop_forces_it(self, stop, criteria, first):
        before = signal.getsignal(signal.SIGINT)
        with criteria.restoring_signal_handlers():
            criteria.install_signal_handlers()
            getattr(criteria, first)(0, None)
            assert not stop.is_due()
            criteria._interrupt(signal.SIGINT, None)
            assert stop.is_due()
            assert criteria.is_warned == (first == "_warn")
            assert signal.getsignal(signal.SIGINT) == before
        assert signal.getsignal(signal.SIGINT) == before

    def test_warning_after_an_interrupt_has_no_effect(self, criteria):
        criteria._interrupt(signal.SIGINT, None)
        criteria._warn(signal.SIGUSR1, None)
        criteria._warn(signal.SIGUSR1, None)
        assert (criteria.reason, criteria.is_warned, criteria.force_stop) == ("interrupted", False, False)

    def test_signal_handlers_are_restored(self, criteria):
        numbers = (signal.SIGINT, signal.SIGUSR1)
        before = [signal.getsignal(number) for number in numbers]
        with criteria.restoring_signal_handlers():
            criteria.install_signal_handlers()
            assert not set(before) & {signal.getsignal(number) for number in numbers}
        assert [signal.getsignal(number) for number in numbers] == before


class TestSearcher:
    class Recorder:
        """Records the outcomes that it receives."""

        def __init__(self):
            self.experiment = Experiment("e", Space({"x": 1}, keys={}), lingers, metric="loss", mode="min", seeds=())
            self.outcomes = []

        def on_trial_complete(self, *outcome):
            self.outcomes.append(outcome)

    def test_stopped_search_suggests_nothing_and_omits_trials_that_did_not_start(self):
        trials = tuple(TrialSpec("e", f"t{number}", {}) for number in range(3))
        recorder = self.Recorder()
        group = TrialGroup("b", trials)
        queue = GroupQueue([group, TrialGroup("t9", trials[:1])], [recorder], lambda trials: [], {}, 1)
        criteria = StopCriteria()
        adapter = RaySearcherAdapter(queue, criteria)
        assert adapter.suggest("ray") == {"group": group}
        criteria.reason = "interrupted"
        assert adapter.suggest("other") == Searcher.FINISHED
        lines = [
            {"trial_id": "t0", "status": "finished", "value": 0.5, "steps": 9},
            {"trial_id": "t1", "status": "running", "value": 0.7, "steps": 4},
        ]
        adapter.on_trial_complete("ray", {"trials": lines, "last": True, "done": True, "step": 4, "value": 0.7})
        assert recorder.outcomes == [
            ("t0", TrialOutcome("finished", 0.5, 9)),
            ("t1", TrialOutcome("running", 0.7, 4)),
        ]

    def test_adaptive_searcher_waits_for_a_paused_trial(self, folder):
        space = Space({"x": tune.uniform(0, 1)}, keys={})
        search = Experiment(
            "e", space, lingers, metric="loss", mode="min", seeds=(), searcher="tpe", num_samples=2
        )  # fmt: skip
        searcher = OptunaSearcher(search, folder)
        (trial,) = searcher.suggest()
        for status, state in (("running", TrialState.RUNNING), ("finished", TrialState.COMPLETE)):
            searcher.on_trial_complete(trial.trial_id, TrialOutcome(status, 0.7, 4))
            assert [one.state for one in searcher.study.trials] == [state]


class TestGroup:
    """Files of a stopped group, without Ray."""

    @pytest.fixture
    def results(self, monkeypatch):
        results = []
        monkeypatch.setattr(stopping, "TRIAL_POLL_INTERVAL_S", 0.0)
        return results

    def run(self, folder, results, trainable, number=1, monitored=None, **config):
        trials = tuple(
            TrialSpec("e", f"t{x}", {"x": x, "folder": str(folder.path), **config}) for x in range(number)
        )  # fmt: skip
        context = TrialContext(
            "e", str(folder.path), trainable, "loss", RankedMetric("loss", "min"), 1, 3600.0, monitored
        )
        runner = TrialRunner(context, results.append, {}, lambda images: images, num_threads=1)
        runner.run(TrialGroup("t0", trials, is_sequential=number > 1))

    def statuses(self, folder):
        return {name: folder.read_row(name)["status"] for name in folder.trial_ids()}

    @pytest.mark.parametrize("monitored", [None, RankedMetric("loss", "min")])
    def test_group_after_the_stop_does_not_start(self, folder, results, monitored):
        folder.write_control(stop=True)
        self.run(folder, results, lingers, monitored=monitored)
        assert results[-1]["trials"] == []
        assert results[-1]["last"]
        assert ({"step", "progress", "value"} <= set(results[-1])) == (monitored is not None)
        assert self.statuses(folder) == {}

    def test_sequential_group_saves_one_state_and_starts_no_further_trial(self, folder, results):
        def stops(config, report, checkpoint):
            report(1, {"loss": 1.0})
            if config["x"] == 1:
                ExperimentFolder(config["folder"], 1).write_control(stop=True)
            checkpoint.save(1, lambda: {"step": 1})
            report(2, {"loss": 0.5})

        self.run(folder, results, stops, 3)
        assert self.statuses(folder) == {"t0": "finished", "t1": "running"}
        assert [(line["trial_id"], line["status"], line["steps"]) for line in results[-1]["trials"]] == [
            ("t0", "finished", 2),
            ("t1", "running", 1),
        ]
        assert [path.name for path in folder.trials.glob("*.checkpoint")] == ["t1.checkpoint"]

    @pytest.mark.parametrize("end", ["returns", "raises"])
    def test_trainable_that_catches_everything_is_stopped(self, folder, results, end):
        def swallows(config, report, checkpoint):
            report(1, {"loss": 1.0})
            ExperimentFolder(config["folder"], 1).write_control(stop=True)
            try:
                checkpoint.save(1, lambda: {"step": 1})
            except BaseException:  # noqa: BLE001 - as a careless user would
                if config["end"] == "raises":
                    raise ValueError("it failed to save") from None

        self.run(folder, results, swallows, end=end)
        assert self.statuses(folder) == {"t0": "running"}
        assert folder.checkpoint("t0").exists()

    def test_trial_without_a_state_runs_to_its_end(self, folder, results):
        def short(config, report):
            ExperimentFolder(config["folder"], 1).write_control(stop=True)
            report(1, {"loss": 1.0})

        self.run(folder, results, short, 2)
        assert self.statuses(folder) == {"t0": "finished"}


def counting(folder: Path, trainable=counts, scheduler: str = "none", **changes) -> Experiment:
    """Return three trials that take two seconds each and append each step to a file."""
    files = {name: str(folder / name) for name in ("journal", "hurry")}
    space = {"x": tune.choice([1, 2, 3]), "steps": 40, "pause": 0.05, **files, **changes}
    return Experiment(
        f"counting.{scheduler}", Space(space, keys={}), trainable, metric="loss", mode="min", seeds=(),
        scheduler=scheduler,
    )  # fmt: skip


def lines(folder: Path) -> list[str]:
    """Return the steps that the trials of a folder have made."""
    journal = folder / "journal"
    return journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []


@pytest.fixture
def at_first_result(monkeypatch):
    """Call a function with the monitor after the first result."""

    def arrange(act):
        results = []

        class Recorder(SearchMonitor):
            def on_result(self, *arguments, **named):
                super().on_result(*arguments, **named)
                results.append(1)
                if len(results) == 1:
                    act(self)

        monkeypatch.setattr("tune_hpc.search.base_runner.SearchMonitor", Recorder)

    return arrange


@pytest.fixture
def after_lines(tmp_path):
    """Send signals to this process when the trials have made a number of steps; return the times."""
    moments, threads = [], []

    def send(number, signals, pause_s=0.5):
        def wait():
            deadline = time.monotonic() + 60
            while len(lines(tmp_path)) < number and time.monotonic() < deadline:
                time.sleep(0.02)
            for number_of_signal in signals if len(lines(tmp_path)) >= number else ():
                moments.append(time.monotonic())
                os.kill(os.getpid(), number_of_signal)
                time.sleep(pause_s)

        threads.append(threading.Thread(target=wait))
        threads[0].start()
        return moments

    yield send
    for thread in threads:
        thread.join()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestOnRay:
    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["interrupt", "warning", "time budget", "target"])
    def test_trials_resume_exactly_at_their_last_step(self, how, tmp_path, at_first_result):
        steps = when(20, x=1) | 60 if how == "target" else 40
        experiment = counting(tmp_path, steps=steps, is_careless=how == "interrupt")
        options = {"target": {"target": 1.5}, "time budget": {"time_budget_s": 3600}}.get(how, {})

        def end(callback):
            if how == "time budget":
                callback.criteria._started_at -= 3600
            elif how != "target":
                os.kill(os.getpid(), signal.SIGINT if how == "interrupt" else signal.SIGUSR1)

        at_first_result(end)
        first = run(experiment, output_dir=tmp_path / "out", checkpoint_interval_s=3600, **options, **QUIET)
        state, reason = {
            "interrupt": ("interrupted", "interrupted"),
            "warning": ("interrupted", "the batch system's time is nearly over (SIGUSR1)"),
            "time budget": ("stopped", "the time budget of 3600 s is spent"),
            "target": ("stopped", "a trial reached 1.05, and 1.5 was the target"),
        }[how]
        assert (first.experiment["state"], first.experiment["ended_by"]) == (state, reason)
        assert first.experiment["is_to_be_requeued"] == (how == "warning")
        assert first.counts().get("running", 0) >= 1
        made = Counter(lines(tmp_path))
        assert set(made.values()) == {1}
        # Every step was reported and is in the results.
        assert len(first.history) == len(made)
        assert first.trials["steps_run"].sum() == len(made)

        assert StopRequest(ExperimentFolder(tmp_path / "out", 1)).is_made  # until the next search starts
        (tmp_path / "hurry").touch()
        (whole,) = resume(tmp_path / "out", **QUIET)
        assert whole.experiment["state"] == "finished"
        assert whole.counts() == {"finished": 3}
        assert set(Counter(lines(tmp_path)).values()) == {1}
        assert len(whole.history) == len(lines(tmp_path)) == whole.trials["steps"].sum()

    @pytest.mark.slow
    def test_fused_group_resumes_to_the_same_bits(self, tmp_path):
        space = {"model": "softmax", "optimizer": tune.choice(["adam", "momentum"]), "learning_rate": 0.01,
                 "steps": 4000, "num_evaluations": 100, "num_evaluation_images": 1000}  # fmt: skip
        fused = Experiment("fused", Space(space), metric="valid_loss", mode="min", seeds=(0, 1))
        trials = tmp_path / "out" / "trials"

        def warn_at_the_first_state():
            deadline = time.monotonic() + 120
            while not list(trials.glob("b*.checkpoint")) and time.monotonic() < deadline:
                time.sleep(0.01)
            if list(trials.glob("b*.checkpoint")):
                os.kill(os.getpid(), signal.SIGUSR1)

        threading.Thread(target=warn_at_the_first_state, daemon=True).start()
        half = run(fused, output_dir=tmp_path / "out", checkpoint_interval_s=0.0, **QUIET)
        assert half.experiment["state"] == "interrupted"
        assert half.counts() == {"running": 2 * len(list(trials.glob("b*.checkpoint")))}
        assert half.trials["steps_run"].between(1, 3999).all()
        (resumed,) = resume(tmp_path / "out", **QUIET)
        whole = run(fused, output_dir=tmp_path / "whole", **QUIET)
        assert list(resumed.trials["num_fused"]) == list(whole.trials["num_fused"]) == [2] * 4
        pd.testing.assert_frame_equal(resumed.history, whole.history, check_exact=True)

    @pytest.mark.slow
    def test_trials_without_a_state_end_in_time_or_restart(self, tmp_path, after_lines, monkeypatch):
        monkeypatch.setattr(stopping, "WAIT_S", 3.0)
        experiment = counting(tmp_path, lingers, steps=when(20, x=1) | 200)
        moments = after_lines(2, [signal.SIGUSR1])
        first = run(experiment, output_dir=tmp_path / "out", **QUIET)
        assert 3.0 <= time.monotonic() - moments[0] < 6.0
        assert dict(zip(first.trials["x"], first.trials["status"], strict=True)) == {1: "finished", 2: "running"}
        (tmp_path / "hurry").touch()
        (whole,) = resume(tmp_path / "out", **QUIET)
        assert whole.counts() == {"finished": 3}
        assert Counter(lines(tmp_path)) == {"1": 1, "2": 2, "3": 1}

    def test_second_interrupt_stops_at_once(self, tmp_path, after_lines):
        before = signal.getsignal(signal.SIGINT)
        moments = after_lines(2, [signal.SIGINT, signal.SIGINT])
        first = run(counting(tmp_path, lingers, steps=600), output_dir=tmp_path / "out", **QUIET)
        assert time.monotonic() - moments[1] < 3.0
        assert signal.getsignal(signal.SIGINT) == before
        assert first.experiment["state"] == "interrupted"
        assert first.counts() == {"running": 2}

    @pytest.mark.slow
    def test_stop_ends_all_following_searches(self, tmp_path, after_lines):
        experiments = [counting(tmp_path, scheduler="asha"), counting(tmp_path, scheduler="none")]
        folders = [tmp_path / one.name for one in experiments]
        after_lines(30, [signal.SIGINT])
        first, second = run_all(experiments, folders=folders, checkpoint_interval_s=3600, **QUIET)
        assert set(first.counts()) <= {"running", "stopped"}
        assert first.counts()["running"] >= 1
        assert len(second.trials) == 0
        assert [one.experiment["state"] for one in (first, second)] == ["interrupted"] * 2
        assert all(StopRequest(ExperimentFolder(folder, 1)).is_made for folder in folders)
        description = json.loads((folders[0] / "experiment.json").read_text(encoding="utf-8"))
        assert description["ended_by"] == "interrupted"
        (tmp_path / "hurry").touch()
        resumed, fresh = resume(tmp_path, **QUIET)
        assert resumed.experiment["state"] == fresh.experiment["state"] == "finished"
        assert set(resumed.counts()) <= {"finished", "stopped"}
        assert len(resumed.trials) == len(fresh.trials) == 3
        assert fresh.counts() == {"finished": 3}
