"""Progress of a search: counts, lines and the bar."""

import io
import json
import math
import sys

import pytest

from tests.search.trainables import parabola
from tune_hpc import Experiment, Space, run
from tune_hpc.errors import ClusterError
from tune_hpc.search.monitor import SearchMonitor
from tune_hpc.search.progress import LINE_INTERVAL_S, SearchProgress, TrialCounts
from tune_hpc.search.stopping import StopCriteria
from tune_hpc.search.trial_spec import TrialGroup, TrialSpec
from tune_hpc.storage.experiment_folder import ExperimentFolder


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def line_progress(num_trials=4):
    clock, stream = Clock(), io.StringIO()
    counts = TrialCounts(num_trials)
    return counts, clock, stream, SearchProgress([counts], {"a": "test_loss", "b": "test_accuracy"}, stream, clock)


@pytest.mark.parametrize(("mode", "best"), [("min", (0.1, "t1")), ("max", (0.9, "t2"))])
def test_best_value_is_recorded_with_its_trial(mode, best):
    counts = TrialCounts(4)
    for trial_id, value in (("t0", 0.5), ("t1", 0.1), ("t2", 0.9), ("t3", 0.5)):
        counts.record_value("a", trial_id, value, mode)
    assert counts.best == {"a": best}


def test_best_value_is_the_latest_of_a_trial_that_has_not_failed():
    counts = TrialCounts(3)
    for trial_id, value in (("t0", 0.1), ("t1", 0.2), ("t2", 0.05), ("t0", 0.9)):
        counts.record_value("a", trial_id, value, "min")
    counts.discard_value("a", "t2", "min")
    assert counts.best == {"a": (0.2, "t1")}
    for trial_id in ("t3", "t1", "t0"):
        counts.discard_value("a", trial_id, "min")
    assert counts.best == {}


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_non_finite_values_have_no_effect(mode, value):
    counts = TrialCounts(4)
    counts.record_value("a", "t0", value, mode)
    assert counts.best == {}
    counts.record_value("a", "t1", 0.5, mode)
    counts.record_value("a", "t2", value, mode)
    assert counts.best == {"a": (0.5, "t1")}


def test_summary_omits_zero_counts():
    counts = TrialCounts(9)
    assert counts.summary() == ""
    counts.running = 2
    counts.ended.update(finished=3, diverged=1, failed=1)
    assert counts.summary() == "2 running, 1 diverged, 1 failed"
    assert counts.num_ended == 5


def test_line_is_written_each_minute_and_at_the_end():
    counts, clock, stream, progress = line_progress()
    with progress:
        for _ in range(int(2.5 * LINE_INTERVAL_S)):
            clock.now += 1
            progress.update()
        assert len(stream.getvalue().splitlines()) == 2
        counts.ended["finished"] = 4
    lines = stream.getvalue().splitlines()
    assert lines == ["0/4 trials, 60 s", "0/4 trials, 120 s", "4/4 trials, 150 s"]


def test_line_has_the_time_left_the_counts_and_the_best():
    counts, clock, stream, progress = line_progress()
    with progress:
        clock.now += LINE_INTERVAL_S
        counts.running = 2
        counts.ended.update(finished=1, diverged=1)
        counts.record_value("a", "t00001", 0.123456, "min")
        progress.update()
        assert stream.getvalue() == (
            "2/4 trials, 60 s, about 60 s left; 2 running, 1 diverged; best test_loss 0.1235 (t00001)\n"
        )


def test_best_values_of_several_experiments_are_not_shown():
    counts, _, stream, progress = line_progress()
    counts.record_value("a", "t0", 0.1, "min")
    counts.record_value("b", "t0", 0.9, "max")
    with progress:
        pass
    assert "best" not in stream.getvalue()


def test_last_line_is_written_after_an_interrupt():
    _, clock, stream, progress = line_progress()
    progress.__enter__()
    clock.now += 5
    progress.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert stream.getvalue() == "0/4 trials, 5 s\n"


@pytest.mark.parametrize("error", [BrokenPipeError, OSError, ValueError])
def test_output_that_cannot_be_written_does_not_end_the_search(error):
    class Closed(io.StringIO):
        def write(self, text):
            raise error

    counts = TrialCounts(4)
    with SearchProgress([counts], {}, Closed(), each_trial=True) as progress:
        counts.ended["finished"] += 1
        progress.update()


def test_search_runs_without_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with SearchProgress([TrialCounts(4)], {}) as progress:
        progress.update()


def test_terminal_shows_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    counts, stream = TrialCounts(4), Terminal()
    with SearchProgress([counts], {"a": "test_loss"}, stream) as progress:
        counts.ended["finished"] = 3
        counts.running = 1
        counts.record_value("a", "t00002", 0.25, "min")
        progress.update()
    shown = stream.getvalue()
    assert "3/4 trials" in shown
    assert "1 running; best test_loss 0.25 (t00002)" in shown
    assert "left" in shown
    assert "\x1b[" in shown


def test_steps_of_running_trials_count():
    counts, clock, stream, progress = line_progress(10)
    with progress:
        counts.running = 4
        counts.fractions = {"t0": 0.25, "t1": 0.75}
        clock.now += LINE_INTERVAL_S
        progress.update()
        assert stream.getvalue() == "0/10 trials, 60 s, about 540 s left; 4 running at 50% of their steps\n"
        counts.ended["finished"], counts.running, counts.fractions = 10, 0, {}
    assert stream.getvalue().endswith("\n10/10 trials, 60 s\n")


def test_time_left_of_a_resumed_search_is_that_of_its_own_trials():
    clock, stream, counts = Clock(), io.StringIO(), TrialCounts(30)
    counts.ended["finished"] = 20
    with SearchProgress([counts], {"a": "loss"}, stream, clock) as progress:
        clock.now += LINE_INTERVAL_S
        counts.ended["finished"] = 25
        progress.update()
        assert stream.getvalue() == "25/30 trials, 60 s, about 60 s left\n"


def test_bar_moves_with_the_steps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    counts, stream = TrialCounts(72), Terminal()
    with SearchProgress([counts], {}, stream) as progress:
        counts.running = 72
        counts.fractions = {f"t{number}": 0.5 for number in range(72)}
        progress.update()
        assert progress._bar.tasks[0].percentage == 50
    assert "0/72 trials" in stream.getvalue()
    assert "72 running at 50% of their steps" in stream.getvalue()


@pytest.mark.parametrize(
    ("config", "budget", "fraction"),
    [({"steps": 8}, "steps", 0.25), ({"epochs": 4}, "epochs", 0.5), ({}, 20, 0.1), ({}, "steps", None),
     ({"steps": "auto"}, "steps", None), ({"steps": 1}, "steps", 1.0)],
)  # fmt: skip
def test_fraction_of_a_running_trial_follows_from_its_budget(tmp_path, config, budget, fraction):
    experiment = Experiment(
        "x", Space({"x": 1}, keys={}), "a:b", metric="loss", mode="min", seeds=(), budget=budget
    )  # fmt: skip
    folder = ExperimentFolder(tmp_path / "out")
    folder.claim("x")
    folder.claim_attempt(0)
    monitor = SearchMonitor({"x": experiment}, {"x": folder}, StopCriteria())
    monitor.start(show_progress=False)
    group = TrialGroup("t0", (TrialSpec("x", "t0", config),))
    monitor.on_start(group)
    monitor.on_result(group, {"trials": [{"trial_id": "t0", "value": 0.5, "steps": 2}]})
    assert monitor.counts["x"].mean_fraction == fraction
    monitor.show(is_last=True)
    assert json.loads(folder.progress.read_text(encoding="utf-8"))["fraction"] == fraction
    line = {"trial_id": "t0", "value": 0.5, "steps": 8, "status": "finished"}
    monitor.on_result(group, {"trials": [line], "last": True})
    assert monitor.counts["x"].num_done == 1


def test_start_of_ray_is_announced(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise ClusterError("no Ray in this test")

    monkeypatch.setattr("tune_hpc.search.ray_runner.ray.is_initialized", lambda: False)
    monkeypatch.setattr("tune_hpc.search.ray_runner.ray_session", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    experiment = Experiment("x", Space({"x": 1}, keys={}), parabola, metric="loss", mode="min", seeds=())
    for options, text in (
        ({}, "starting Ray\n"), ({"address": "head:6379"}, "connecting to Ray at head:6379\n"),
        ({"show_progress": False}, ""),
    ):  # fmt: skip
        stream = io.StringIO()
        with pytest.raises(ClusterError):
            run(experiment, output_dir=tmp_path / "out", stream=stream, **options)
        assert stream.getvalue() == text
