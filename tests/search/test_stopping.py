"""Searches that end before their time: who is asked, what is kept, how long it takes, and that nothing runs twice."""

import json
import logging
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher

from tests.search.trainables import counts, lingers
from tune_hpc import Experiment, Space, resume, run, run_all, when
from tune_hpc.search import reporter, stop_request, stopping, trial_runner
from tune_hpc.search.callback import SearchCallback
from tune_hpc.search.limits import StopCriteria
from tune_hpc.search.reporter import MonitoredMetric, TrialCheckpoint
from tune_hpc.search.searchers.optuna_searcher import OptunaSearcher
from tune_hpc.search.searchers.ray_searcher import RaySearcherAdapter
from tune_hpc.search.stop_request import LOOK_INTERVAL_S, StopRequest, StopRequested
from tune_hpc.search.stopping import GracefulStopper
from tune_hpc.search.trial_runner import TrialContext, run_bundle
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter, read_row

QUIET = {"show_progress": False}


@pytest.fixture
def home(tmp_path):
    home = ExperimentFolder(tmp_path / "out")
    home.path.mkdir()
    home.claim_attempt(0)
    return home


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 50.0

        def monotonic(self):
            return self.now

    clock = Clock()
    for module in (stopping, stop_request):
        monkeypatch.setattr(module.time, "monotonic", clock.monotonic)
    return clock


class TestRequest:
    def test_a_trial_looks_five_times_a_second_at_most(self, home, clock):
        request = StopRequest(home)
        assert not request.is_made
        home.write_control(stop=True)
        clock.now += 0.9 * LOOK_INTERVAL_S
        assert not request.is_made
        clock.now += 0.2 * LOOK_INTERVAL_S
        assert request.is_made

    def test_who_was_asked_stops_whatever_the_next_search_says(self, home, clock):
        home.write_control(stop=True)
        request = StopRequest(home)
        assert request.is_made
        home.write_control()
        clock.now += 10
        assert request.is_made
        assert not StopRequest(home).is_made

    def test_a_folder_without_the_file_asks_nothing(self, tmp_path):
        assert not StopRequest(ExperimentFolder(tmp_path)).is_made

    @pytest.mark.parametrize("error", [PermissionError("no"), OSError(116, "stale"), OSError(5, "io")])
    def test_storage_that_does_not_answer_for_a_while_orders_nothing(self, home, clock, monkeypatch, error):
        def fail(*arguments, **options):
            raise error

        request, limits = StopRequest(home), StopCriteria(stop_file=home.path / "1.stop")
        limits._looked_at = 0.0
        monkeypatch.setattr(Path, "is_file", fail)
        monkeypatch.setattr(Path, "read_text", fail)
        assert not request.is_made
        assert not limits.are_reached()
        monkeypatch.undo()
        home.write_control(stop=True)
        assert StopRequest(home).is_made

    def test_trial_of_a_superseded_attempt_stops_and_saves_nothing(self, home):
        ExperimentFolder(home.path).claim_attempt(1)
        request = StopRequest(home)
        assert request.is_made
        assert request.is_superseded
        checkpoint = TrialCheckpoint(home.checkpoint("t00000"), [TrialFileWriter({})], 0.0, StopRequest(home))
        with pytest.raises(StopRequested):
            checkpoint.save(1, lambda: {"step": 1})
        assert not home.checkpoint("t00000").exists()

    def test_the_state_that_is_offered_next_is_kept_whatever_the_interval(self, home):
        path = home.checkpoint("t00000")
        record = TrialFileWriter({})
        checkpoint = TrialCheckpoint(path, [record], 3600, StopRequest(home))
        checkpoint.save(1, lambda: {"step": 1})
        assert not path.exists()
        assert not checkpoint.has_stopped
        home.write_control(stop=True)
        record.add(2, {"loss": 0.5})
        checkpoint = TrialCheckpoint(path, [record], 3600, StopRequest(home))
        with pytest.raises(StopRequested):
            checkpoint.save(2, lambda: {"step": 2})
        assert checkpoint.has_stopped
        assert TrialCheckpoint(path, [TrialFileWriter({})], 3600).load() == {"step": 2}

    def test_no_trainable_takes_it_for_a_failure_of_its_own(self):
        assert not issubclass(StopRequested, Exception)


class TestEnding:
    """When everything is stopped, without Ray."""

    class SearchCallback:
        """What is under way, as far as anybody asks."""

        is_any_under_way = True
        num_cut_off = 0

        num_shown = 0

        def kill_running(self):
            self.num_cut_off += 1

        def show(self):
            self.num_shown += 1

    @pytest.fixture
    def homes(self, tmp_path):
        homes = [ExperimentFolder(tmp_path / name) for name in "ab"]
        for home in homes:
            home.path.mkdir()
            home.claim_attempt(0)
        return homes

    @pytest.fixture
    def limits(self):
        return StopCriteria()

    @pytest.fixture
    def asked(self, limits, homes, caplog):
        caplog.set_level(logging.INFO)
        return GracefulStopper(limits, self.SearchCallback(), homes)

    def test_a_search_that_no_limit_ends_goes_on(self, asked, homes):
        assert not asked.stop_all()
        assert not any(StopRequest(home).is_made for home in homes)
        # A search of long trials has no news for minutes, but shows that it lives.
        assert asked.watcher.num_shown == 1

    def test_all_experiments_are_asked_and_waited_for(self, asked, limits, homes, clock, caplog):
        limits._interrupt(signal.SIGINT, None)
        for _ in range(10):
            assert not asked.stop_all()
            clock.now += 2.9
        assert all(StopRequest(home).is_made for home in homes)
        assert [record.message for record in caplog.records] == [
            "stopping: trials under way save their state, at most 30 s; press Ctrl-C again to stop at once"
        ]
        asked.watcher.is_any_under_way = False
        assert asked.stop_all()
        assert asked.watcher.num_cut_off == 0

    def test_who_takes_too_long_is_cut_off(self, asked, limits, clock, caplog):
        limits._warn(signal.SIGUSR1, None)
        assert not asked.stop_all()
        clock.now += stopping.WAIT_S
        assert asked.stop_all()
        assert asked.watcher.num_cut_off == 1
        assert caplog.records[0].message == (
            "the batch system's time is nearly over (SIGUSR1): trials under way save their state, at most 30 s; "
            "press Ctrl-C to stop at once"
        )

    def test_a_folder_that_cannot_be_written_keeps_no_other_one_from_being_asked(self, asked, limits, homes, caplog):
        homes[0].control.unlink()
        homes[0].control.mkdir()
        limits._interrupt(signal.SIGINT, None)
        assert not asked.stop_all()
        assert StopRequest(homes[1]).is_made
        assert "control cannot be written: Is a directory; choose another folder, or make room" in caplog.messages[0]

    def test_with_nothing_under_way_nobody_is_waited_for(self, asked, limits, caplog):
        limits._warn(signal.SIGUSR1, None)
        asked.watcher.is_any_under_way = False
        assert asked.stop_all()
        assert not caplog.records

    @pytest.mark.parametrize("first", ["_interrupt", "_warn"])
    def test_an_interrupt_while_it_ends_ends_it_at_once(self, asked, limits, first):
        before = signal.getsignal(signal.SIGINT)
        with limits.restoring_signal_handlers():
            limits.install_signal_handlers()
            getattr(limits, first)(0, None)
            assert not asked.stop_all()
            limits._interrupt(signal.SIGINT, None)
            assert asked.stop_all()
            assert asked.watcher.num_cut_off == 1
            assert limits.is_warned == (first == "_warn")
            assert signal.getsignal(signal.SIGINT) == before
        assert signal.getsignal(signal.SIGINT) == before

    def test_a_warning_after_an_interrupt_changes_nothing(self, limits):
        limits._interrupt(signal.SIGINT, None)
        limits._warn(signal.SIGUSR1, None)
        limits._warn(signal.SIGUSR1, None)
        assert (limits.reason, limits.is_warned, limits.force_stop) == ("interrupted", False, False)

    def test_signals_are_given_back(self, limits):
        numbers = (signal.SIGINT, signal.SIGUSR1)
        before = [signal.getsignal(number) for number in numbers]
        with limits.restoring_signal_handlers():
            limits.install_signal_handlers()
            assert not set(before) & {signal.getsignal(number) for number in numbers}
        assert [signal.getsignal(number) for number in numbers] == before


class TestProposals:
    class OptunaSearcher:
        """Remembers what it is told."""

        def __init__(self):
            self.experiment = Experiment("e", Space({"x": 1}, keys={}), lingers, metric="loss", mode="min", seeds=())
            self.told = []

        def ended(self, *what):
            self.told.append(what)

    def test_nothing_is_handed_out_once_a_search_is_to_end_and_no_learner_hears_of_what_did_not_begin(self):
        members = [{"experiment": "e", "trial_id": f"t{number}", "config": {}} for number in range(3)]
        is_ending = []
        learner = self.OptunaSearcher()
        proposals = RaySearcherAdapter(
            [{"bundle_id": "b", "members": members}, {"bundle_id": "t9", "members": members[:1]}],
            [learner], lambda samples: [], {}, 1, is_ending=lambda: bool(is_ending),
        )  # fmt: skip
        assert proposals.suggest("ray")["bundle_id"] == "b"
        is_ending.append(True)
        assert proposals.suggest("other") == Searcher.FINISHED
        told = [
            {"trial_id": "t0", "status": "finished", "value": 0.5, "steps": 9},
            {"trial_id": "t1", "status": "running", "value": 0.7, "steps": 4},
        ]
        proposals.on_trial_complete("ray", {"members": told, "last": True, "done": True, "step": 4, "value": 0.7})
        assert learner.told == [("t0", "finished", 0.5, 9), ("t1", "running", 0.7, 4)]

    def test_a_learner_waits_for_a_trial_that_saved_its_state(self, home):
        space = Space({"x": tune.uniform(0, 1)}, keys={})
        search = Experiment(
            "e", space, lingers, metric="loss", mode="min", seeds=(), searcher="tpe", num_samples=2
        )  # fmt: skip
        learner = OptunaSearcher(search, home)
        (sample,) = learner.propose()
        learner.ended(sample["trial_id"], "running", 0.7, 4)
        assert [one.state for one in learner.study.trials] == [TrialState.RUNNING]
        learner.ended(sample["trial_id"], "finished", 0.5, 9)
        assert [one.state for one in learner.study.trials] == [TrialState.COMPLETE]


class TestBundle:
    """What a bundle leaves, in this process."""

    @pytest.fixture
    def told(self, monkeypatch):
        told = []
        monkeypatch.setattr(reporter.tune, "report", told.append)
        monkeypatch.setattr(trial_runner, "_match_threads", lambda: None)
        return told

    def bundle(self, home, trainable, number=1, **more):
        members = [
            {"experiment": "e", "trial_id": f"t{each}", "config": {"x": each, "home": str(home.path), **more}}
            for each in range(number)
        ]
        bundle = {"bundle_id": "t0", "members": members, "in_turn": number > 1}
        return bundle, {"e": TrialContext("e", str(home.path), trainable, "loss", 1, 3600.0)}, {}

    def status(self, home):
        return {path.stem: read_row(path)["status"] for path in sorted(home.parts.glob("*.parquet"))}

    @pytest.mark.parametrize("watched", [None, MonitoredMetric("loss", False, "min")])
    def test_who_comes_to_his_turn_too_late_does_not_begin(self, home, told, watched):
        home.write_control(stop=True)
        bundle, assignments, images = self.bundle(home, lingers)
        run_bundle(bundle, {"e": replace(assignments["e"], watched=watched)}, images)
        assert told[-1]["members"] == []
        assert told[-1]["last"]
        assert ({"step", "progress", "value"} <= set(told[-1])) == (watched is not None)
        assert self.status(home) == {}

    def test_of_several_in_turn_one_saves_its_state_and_the_rest_do_not_begin(self, home, told, monkeypatch):
        monkeypatch.setattr(stop_request, "LOOK_INTERVAL_S", 0.0)

        def asks(config, report, checkpoint):
            report(1, {"loss": 1.0})
            if config["x"] == 1:
                ExperimentFolder(config["home"], 1).write_control(stop=True)
            checkpoint.save(1, lambda: {"step": 1})
            report(2, {"loss": 0.5})

        run_bundle(*self.bundle(home, asks, 3))
        assert self.status(home) == {"t0": "finished", "t1": "running"}
        assert [(one["trial_id"], one["status"], one["steps"]) for one in told[-1]["members"]] == [
            ("t0", "finished", 2),
            ("t1", "running", 1),
        ]
        assert [path.name for path in home.parts.glob("*.checkpoint")] == ["t1.checkpoint"]

    @pytest.mark.parametrize("afterwards", ["returns", "raises"])
    def test_a_trainable_that_swallows_everything_has_stopped_all_the_same(self, home, told, monkeypatch, afterwards):
        monkeypatch.setattr(stop_request, "LOOK_INTERVAL_S", 0.0)

        def swallows(config, report, checkpoint):
            report(1, {"loss": 1.0})
            ExperimentFolder(config["home"], 1).write_control(stop=True)
            try:
                checkpoint.save(1, lambda: {"step": 1})
            except BaseException:  # noqa: BLE001 - as a careless user would
                if config["afterwards"] == "raises":
                    raise ValueError("it failed to save") from None

        run_bundle(*self.bundle(home, swallows, afterwards=afterwards))
        assert self.status(home) == {"t0": "running"}
        assert home.checkpoint("t0").exists()

    def test_a_trial_without_a_state_runs_to_its_end(self, home, told, monkeypatch):
        monkeypatch.setattr(stop_request, "LOOK_INTERVAL_S", 0.0)

        def short(config, report):
            ExperimentFolder(config["home"], 1).write_control(stop=True)
            report(1, {"loss": 1.0})

        run_bundle(*self.bundle(home, short, 2))
        assert self.status(home) == {"t0": "finished"}


def counting(folder: Path, trainable=counts, scheduler: str = "none", **changes) -> Experiment:
    """Return three trials, that take two seconds each and write down each step that they make."""
    files = {name: str(folder / name) for name in ("journal", "hurry")}
    space = {"x": tune.choice([1, 2, 3]), "steps": 40, "pause": 0.05, **files, **changes}
    return Experiment(
        f"counting.{scheduler}", Space(space, keys={}), trainable, metric="loss", mode="min", seeds=(),
        scheduler=scheduler,
    )  # fmt: skip


def lines(folder: Path) -> list[str]:
    """Return what the trials of a folder have written down."""
    journal = folder / "journal"
    return journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []


@pytest.fixture
def at_first_result(monkeypatch):
    """Do something with the watcher when a trial has told of a value for the first time."""

    def arrange(act):
        told = []

        class Seen(SearchCallback):
            def on_trial_result(self, *arguments, **named):
                super().on_trial_result(*arguments, **named)
                told.append(1)
                if len(told) == 1:
                    act(self)

        monkeypatch.setattr("tune_hpc.search.running.SearchCallback", Seen)

    return arrange


@pytest.fixture
def after_lines(tmp_path):
    """Send this process signals when the trials have written so many lines; return the moments."""
    moments, threads = [], []

    def send(number, signals, pause_s=0.5):
        def wait():
            deadline = time.monotonic() + 60
            while len(lines(tmp_path)) < number and time.monotonic() < deadline:
                time.sleep(0.02)
            for one in signals if len(lines(tmp_path)) >= number else ():
                moments.append(time.monotonic())
                os.kill(os.getpid(), one)
                time.sleep(pause_s)

        threads.append(threading.Thread(target=wait))
        threads[0].start()
        return moments

    yield send
    for one in threads:
        one.join()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestOnRay:
    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["interrupt", "warning", "time budget", "target"])
    def test_each_trial_goes_on_exactly_where_it_was_asked_to_stop(self, how, tmp_path, at_first_result):
        steps = when(20, x=1) | 60 if how == "target" else 40
        experiment = counting(tmp_path, steps=steps, is_careless=how == "interrupt")
        options = {"target": {"target": 1.5}, "time budget": {"time_budget_s": 3600}}.get(how, {})

        def end(watcher):
            if how == "time budget":
                watcher.limits._began -= 3600
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
        # All that was made was reported, and is there.
        assert len(first.history) == len(made)
        assert first.trials["steps_run"].sum() == len(made)

        home = ExperimentFolder(tmp_path / "out")
        home.attempt = 1
        assert StopRequest(home).is_made  # Until the next search begins.
        (tmp_path / "hurry").touch()
        (whole,) = resume(tmp_path / "out", **QUIET)
        assert whole.experiment["state"] == "finished"
        assert whole.counts() == {"finished": 3}
        assert set(Counter(lines(tmp_path)).values()) == {1}
        assert len(whole.history) == len(lines(tmp_path)) == whole.trials["steps"].sum()

    @pytest.mark.slow
    def test_a_fused_program_goes_on_to_the_same_bits(self, tmp_path):
        space = {"model": "softmax", "optimizer": tune.choice(["adam", "momentum"]), "learning_rate": 0.01,
                 "steps": 4000, "num_evaluations": 100, "num_evaluation_images": 1000}  # fmt: skip
        fused = Experiment("fused", Space(space), metric="valid_loss", mode="min", seeds=(0, 1))
        parts = tmp_path / "out" / "trials"

        def warn_at_the_first_state():
            deadline = time.monotonic() + 120
            while not list(parts.glob("b*.checkpoint")) and time.monotonic() < deadline:
                time.sleep(0.01)
            if list(parts.glob("b*.checkpoint")):
                os.kill(os.getpid(), signal.SIGUSR1)

        threading.Thread(target=warn_at_the_first_state, daemon=True).start()
        half = run(fused, output_dir=tmp_path / "out", checkpoint_interval_s=0.0, **QUIET)
        assert half.experiment["state"] == "interrupted"
        kept = list(parts.glob("b*.checkpoint"))
        assert half.counts() == {"running": 2 * len(kept)}
        assert half.trials["steps_run"].between(1, 3999).all()
        (resumed,) = resume(tmp_path / "out", **QUIET)
        whole = run(fused, output_dir=tmp_path / "whole", **QUIET)
        assert list(resumed.trials["num_fused"]) == list(whole.trials["num_fused"]) == [2] * 4
        pd.testing.assert_frame_equal(resumed.history, whole.history, check_exact=True)

    @pytest.mark.slow
    def test_trials_without_a_state_end_in_the_time_that_there_is_or_begin_afresh(
        self, tmp_path, after_lines, monkeypatch
    ):
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

    def test_a_second_interrupt_ends_it_at_once(self, tmp_path, after_lines):
        before = signal.getsignal(signal.SIGINT)
        moments = after_lines(2, [signal.SIGINT, signal.SIGINT])
        first = run(counting(tmp_path, lingers, steps=600), output_dir=tmp_path / "out", **QUIET)
        assert time.monotonic() - moments[1] < 3.0
        assert signal.getsignal(signal.SIGINT) == before
        assert first.experiment["state"] == "interrupted"
        assert first.counts() == {"running": 2}

    @pytest.mark.slow
    def test_a_stop_is_none_of_a_schedulers_and_ends_all_that_was_to_follow(self, tmp_path, after_lines):
        experiments = [counting(tmp_path, scheduler="asha"), counting(tmp_path, scheduler="none")]
        folders = [tmp_path / one.name for one in experiments]
        after_lines(30, [signal.SIGINT])
        first, second = run_all(experiments, folders=folders, checkpoint_interval_s=3600, **QUIET)
        assert set(first.counts()) <= {"running", "stopped"}
        assert first.counts()["running"] >= 1
        assert len(second.trials) == 0
        assert [one.experiment["state"] for one in (first, second)] == ["interrupted"] * 2
        assert all(StopRequest(ExperimentFolder(folder, 1)).is_made for folder in folders)
        asked = json.loads((folders[0] / "experiment.json").read_text(encoding="utf-8"))
        assert asked["ended_by"] == "interrupted"
        (tmp_path / "hurry").touch()
        goes_on, fresh = resume(tmp_path, **QUIET)
        assert goes_on.experiment["state"] == fresh.experiment["state"] == "finished"
        assert set(goes_on.counts()) <= {"finished", "stopped"}
        assert len(goes_on.trials) == len(fresh.trials) == 3
        assert fresh.counts() == {"finished": 3}
