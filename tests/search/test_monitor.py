"""Counts, recorded ends and unfinished trials of a search, and errors of trials whose process Ray lost."""

import io
import json

import pytest
from ray import tune

from tune_hpc import Experiment, Space
from tune_hpc.search.monitor import SearchMonitor
from tune_hpc.search.stopping import StopCriteria
from tune_hpc.search.trial_spec import TrialGroup, TrialSpec
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter

NO_HISTORY = TrialFileWriter({}).history()

DIED = """Failure # 1 (occurred at 2026-11-29_04-24-17)
The actor died unexpectedly before finishing this task.
\tclass_name: wrap_function.<locals>.ImplicitFunc
\tpid: 21324
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: """
UNPICKLING = """Failure # 1 (occurred at 2026-11-29_04-24-17)
    return ray.get(self.references[k])
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^
ray.exceptions.RaySystemError: System error: No module named 'my_package'
traceback: Traceback (most recent call last):
  File "serialization.py", line 1, in loads
ModuleNotFoundError: No module named 'my_package'
"""


def spec(number, **config):
    return TrialSpec("x", f"t0000{number}", {"x": number, **config})


def group_of(*numbers, is_sequential=False, **config):
    trials = tuple(spec(number, **config) for number in numbers)
    return TrialGroup(trials[0].trial_id, trials, is_sequential)


def line(number, value, status="finished", steps=9, **more):
    return {"trial_id": f"t0000{number}", "value": value, "status": status, "steps": steps, **more}


def monitor_in(path, criteria=None, **fields):
    """Return a monitor of one experiment of four trials in a new folder."""
    space = Space({"x": tune.choice([0, 1, 2, 3])}, keys={})
    experiment = Experiment("x", space, "a:b", **{"metric": "loss", "mode": "min", "seeds": ()} | fields)
    folder = ExperimentFolder(path / "out")
    folder.claim("x")
    folder.claim_attempt(0)
    return SearchMonitor({"x": experiment}, {"x": folder}, criteria or StopCriteria()), folder


class TestCounts:
    def test_ended_trials_are_counted_by_status_and_the_best_value_is_that_of_a_trained_one(self, tmp_path):
        monitor, _ = monitor_in(tmp_path)
        group = group_of(0, 1, 2, 3)
        monitor.on_start(group)
        counts = monitor.counts["x"]
        assert (counts.running, monitor.num_ended, monitor.any_running, monitor.is_running(group)) == (4, 0, True, True)
        monitor.on_result(group, {"trials": [line(0, 0.5, "running"), line(3, 0.4, "running")]})
        assert (counts.running, monitor.num_ended, counts.best) == (4, 0, {"x": (0.4, "t00003")})
        monitor.on_result(group, {"trials": [line(1, 0.01, "running"), line(2, 0.02, "running")]})
        assert counts.best == {"x": (0.01, "t00001")}
        lines = [line(0, 0.3), line(1, 0.1, "diverged"), line(2, None, "failed", error="ValueError: bad"),
                 line(3, 0.2, "stopped")]  # fmt: skip
        monitor.on_result(group, {"trials": lines, "last": True})
        assert counts.ended == {"finished": 1, "diverged": 1, "failed": 1, "stopped": 1}
        assert counts.best == {"x": (0.2, "t00003")}
        assert counts.first_error == "t00002: ValueError: bad"
        assert (counts.running, monitor.num_ended, monitor.any_running, monitor.is_running(group)) == (
            0,
            4,
            False,
            False,
        )
        assert monitor.unfinished("x") == []

    def test_sequential_group_counts_as_one_running_trial(self, tmp_path):
        monitor, _ = monitor_in(tmp_path)
        monitor.on_start(group_of(0, 1, is_sequential=True))
        assert monitor.counts["x"].running == 1
        monitor.on_start(group_of(2, 3))
        assert monitor.counts["x"].running == 3

    def test_fraction_of_a_trial_is_forgotten_when_it_ends(self, tmp_path):
        monitor, _ = monitor_in(tmp_path)
        first, second = group_of(0, steps=10), group_of(1, steps=20)
        for group, number in ((first, 0), (second, 1)):
            monitor.on_start(group)
            monitor.on_result(group, {"trials": [line(number, 0.5, "running", steps=5)]})
        assert monitor.counts["x"].fractions == {"t00000": 0.5, "t00001": 0.25}
        monitor.on_result(first, {"trials": [line(0, 0.5, steps=10)], "last": True})
        assert monitor.counts["x"].fractions == {"t00001": 0.25}

    def test_result_without_status_and_steps_is_of_a_running_trial(self, tmp_path):
        monitor, _ = monitor_in(tmp_path)
        monitor.on_start(group_of(0, steps=10))
        monitor.on_result(group_of(0, steps=10), {"trials": [{"trial_id": "t00000", "value": 0.5}]})
        counts = monitor.counts["x"]
        assert (counts.best, counts.fractions, counts.running) == ({"x": (0.5, "t00000")}, {"t00000": 0.0}, 1)

    def test_last_result_of_a_group_that_does_not_run_ends_no_trial(self, tmp_path):
        monitor, _ = monitor_in(tmp_path)
        monitor.on_result(group_of(0), {"trials": [line(0, 0.5)], "last": True})
        assert monitor.num_ended == 0

    def test_search_stops_at_the_target_by_a_trial_that_trained(self, tmp_path):
        for status, is_reached in (("finished", True), ("stopped", True), ("diverged", False), ("running", False)):
            criteria = StopCriteria(target=0.5)
            monitor, _ = monitor_in(tmp_path / status, criteria)
            group = group_of(0)
            monitor.on_start(group)
            monitor.on_result(group, {"trials": [line(0, 0.4, status)], "last": True})
            assert (criteria.reason is not None) == is_reached, status

    @pytest.mark.parametrize("num_before", [0, 2])
    def test_first_trials_of_a_run_that_all_fail_stop_it(self, tmp_path, num_before):
        criteria = StopCriteria()
        monitor, _ = monitor_in(tmp_path, criteria)
        monitor.counts["x"].ended["finished"] += num_before
        monitor.start(show_progress=False)
        for number in range(3):
            assert not criteria.has_failed
            monitor.on_start(group_of(number))
            lines = [line(number, None, "failed", error="ValueError: bad")]
            monitor.on_result(group_of(number), {"trials": lines, "last": True})
        assert criteria.has_failed

    def test_time_of_a_search_is_from_its_first_start_to_its_last_change(self, tmp_path, monkeypatch):
        times = iter([10.0, 12.5, 17.0])
        monkeypatch.setattr("tune_hpc.search.monitor.time.perf_counter", lambda: next(times))
        monitor, _ = monitor_in(tmp_path)
        assert monitor.seconds("x") == 0
        monitor.on_start(group_of(0))
        assert monitor.seconds("x") == 0
        monitor.on_result(group_of(0), {"trials": [line(0, 0.5, "running")]})
        monitor.on_result(group_of(0), {"trials": [line(0, 0.5)], "last": True})
        assert monitor.seconds("x") == 7

    def test_progress_is_shown_and_written(self, tmp_path):
        monitor, folder = monitor_in(tmp_path)
        stream = io.StringIO()
        monitor.start(show_progress=True, stream=stream, each_trial=True)
        monitor.on_start(group_of(0))
        monitor.on_result(group_of(0), {"trials": [line(0, 0.5)], "last": True})
        assert "best loss 0.5 (t00000)" in stream.getvalue()
        monitor.show(is_last=True)
        assert json.loads(folder.progress.read_text(encoding="utf-8"))["ended"] == {"finished": 1}


class TestEnds:
    def test_paused_trial_is_unfinished_until_it_starts_again(self, tmp_path):
        monitor, _ = monitor_in(tmp_path)
        monitor.on_start(group_of(0, 1))
        monitor.on_result(group_of(0, 1), {"trials": [line(0, 0.5, "running"), line(1, 0.6, "running")], "last": True})
        assert monitor.unfinished("x") == [spec(0), spec(1)]
        assert monitor.unfinished("another") == []
        assert (monitor.num_ended, monitor.any_running) == (0, False)
        monitor.on_start(group_of(0))
        assert monitor.unfinished("x") == [spec(0), spec(1)]
        monitor.on_result(group_of(0), {"trials": [line(0, 0.5)], "last": True})
        assert monitor.unfinished("x") == [spec(1)]

    def test_stop_by_a_scheduler_ends_the_unfinished_trials_of_a_group(self, tmp_path):
        monitor, folder = monitor_in(tmp_path, searcher="random", num_samples=4, budget=9, scheduler="asha_stopping")
        folder.checkpoint("t00000").parent.mkdir(parents=True, exist_ok=True)
        folder.checkpoint("t00000").write_bytes(b"state")
        monitor.on_start(group_of(0))
        monitor.on_scheduler_stop(group_of(0), 3)
        row = folder.read_row("t00000")
        assert (row["status"], row["steps_run"], row["x"], row["attempt"]) == ("stopped", 3, 0, folder.attempt)
        assert row["stop_reason"] == "stopped by asha_stopping at step 3"
        assert not folder.checkpoint("t00000").exists()
        assert monitor.counts["x"].ended == {"stopped": 1}
        assert (monitor.any_running, monitor.counts["x"].running) == (False, 0)
        monitor.on_scheduler_stop(group_of(0), 3)
        assert monitor.counts["x"].ended == {"stopped": 1}

    def test_stop_of_a_paused_trial_keeps_its_results(self, tmp_path):
        monitor, folder = monitor_in(tmp_path, searcher="random", num_samples=4, budget=9, scheduler="asha")
        folder.write_trial("t00001", spec(1).columns() | {"status": "running", "loss": 0.7, "steps_run": 3}, NO_HISTORY)
        monitor.on_start(group_of(0, 1))
        monitor.on_result(group_of(0, 1), {"trials": [line(0, 0.5, "running"), line(1, 0.7, "running")], "last": True})
        monitor.record_stopped(spec(1), 3)
        row = folder.read_row("t00001")
        assert (row["status"], row["loss"], row["stop_reason"]) == ("stopped", 0.7, "stopped by asha at step 3")
        assert row["ended_at"].endswith("Z") or "+00:00" in row["ended_at"]
        assert monitor.unfinished("x") == [spec(0)]

    def test_state_of_the_best_stopped_trial_remains(self, tmp_path):
        monitor, folder = monitor_in(
            tmp_path, searcher="random", num_samples=4, budget=9, scheduler="asha", keep_checkpoints="best"
        )
        for number, loss in enumerate((0.5, 0.3, 0.4)):
            path = folder.retained_checkpoint(f"t0000{number}", 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"state")
            row = spec(number).columns() | {"status": "running", "loss": loss, "steps_run": 3}
            folder.write_trial(f"t0000{number}", row, NO_HISTORY)
            monitor.record_stopped(spec(number), 3)
        assert monitor.counts["x"].ended == {"stopped": 3}
        assert [bool(folder.retained_steps(f"t0000{number}")) for number in range(3)] == [False, True, False]

    def test_death_of_a_process_fails_the_trials_that_have_not_ended(self, tmp_path):
        monitor, folder = monitor_in(tmp_path)
        folder.write_trial("t00000", spec(0).columns() | {"status": "finished", "loss": 0.5}, NO_HISTORY)
        monitor.on_start(group_of(0, 1, 2))
        monitor.on_process_death(group_of(0, 1, 2), "ValueError: bad")
        assert monitor.counts["x"].ended == {"finished": 1, "failed": 2}
        assert [folder.read_row(f"t0000{number}")["status"] for number in range(3)] == ["finished", "failed", "failed"]
        assert monitor.counts["x"].first_error == "t00001: ValueError: bad; see the log of the trial"
        # The log of a fused group has the name of the group.
        assert folder.log("t00000").read_text(encoding="utf-8") == "ValueError: bad"
        monitor.on_process_death(group_of(0, 1, 2), "again")
        assert monitor.counts["x"].ended == {"finished": 1, "failed": 2}
        assert folder.log("t00000").read_text(encoding="utf-8") == "ValueError: bad"

    def test_death_of_a_sequential_group_fails_the_trial_that_ran(self, tmp_path):
        monitor, folder = monitor_in(tmp_path)
        folder.write_trial("t00000", spec(0).columns() | {"status": "finished", "loss": 0.5}, NO_HISTORY)
        group = group_of(0, 1, 2, is_sequential=True)
        monitor.on_start(group)
        monitor.on_process_death(group, "ValueError: bad")
        assert monitor.counts["x"].ended == {"finished": 1, "failed": 1}
        assert folder.read_row("t00002") is None
        assert folder.log("t00001").read_text(encoding="utf-8") == "ValueError: bad"

    def test_states_of_trials_that_lost_are_deleted(self, tmp_path):
        monitor, folder = monitor_in(tmp_path, keep_checkpoints="best")
        for number in range(3):
            path = folder.retained_checkpoint(f"t0000{number}", 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"state")
        monitor.on_start(group_of(0, 1))
        monitor.on_result(group_of(0, 1), {"trials": [line(0, 0.5), line(1, 0.2, "diverged")], "last": True})
        assert [bool(folder.retained_steps(f"t0000{number}")) for number in range(3)] == [True, False, True]
        monitor.on_start(group_of(2))
        monitor.on_result(group_of(2), {"trials": [line(2, 0.4)], "last": True})
        assert [bool(folder.retained_steps(f"t0000{number}")) for number in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("report", "reason", "error"),
    [
        (UNPICKLING, "exception", "ModuleNotFoundError: No module named 'my_package'; see the log of the trial"),
        ("ray::train()\n  File 'a.py'\ntorch.cuda.OutOfMemoryError: CUDA error: full", "exception",
         "torch.cuda.OutOfMemoryError: CUDA error: full; see the log of the trial"),
        (f"{DIED}Worker exits unexpectedly. Worker exits with an exit code 4.", "process died",
         "the trial's process died: Worker exits unexpectedly. Worker exits with an exit code 4; see the log of the "
         "trial"),
        (f"{DIED}Worker unexpectedly exits with code 2. End of file. Some common causes include: (1)", "process died",
         "the trial's process died: Worker unexpectedly exits with code 2. End of file; lack of memory is the usual "
         "cause; see the log of the trial"),
        (f"{DIED}Task was killed due to the node running low on memory.\nMemory was 15GB / 16GB.", "out of memory",
         "the trial's process died: its node is low on memory, so that Ray killed it; run fewer trials at once; see "
         "the log of the trial"),
        (f"{DIED}first.\n{DIED}Worker exits with an exit code 4. Some common causes: (1)", "process died",
         "the trial's process died: Worker exits with an exit code 4; see the log of the trial"),
        ("", "process died", "the trial's process died: Ray gives no reason; lack of memory is the usual cause; see "
                             "the log of the trial"),
    ],
)  # fmt: skip
def test_error_of_a_lost_process_is_its_exception_or_its_cause(tmp_path, report, reason, error):
    monitor, folder = monitor_in(tmp_path)
    group = TrialGroup("t00000", (TrialSpec("x", "t00000", {"x": 1}),))
    monitor.on_start(group)
    monitor.on_process_death(group, report)
    row = folder.read_row("t00000")
    assert (row["status"], row["stop_reason"], row["error"]) == ("failed", reason, error)
    assert monitor.counts["x"].first_error == f"t00000: {error}"
    assert folder.log("t00000").read_text(encoding="utf-8") == report
