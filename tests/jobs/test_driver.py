"""Heartbeat, claim and final state of a driver."""

import errno
import json
import shutil
import time
from io import StringIO
from types import SimpleNamespace

import pytest
from ray import tune

from tests.jobs.job_factories import job_in
from tests.search.trainables import fails_at_two
from tune_hpc import Experiment, Space
from tune_hpc.errors import FolderError
from tune_hpc.jobs import driver
from tune_hpc.jobs.job_folder import JobFolder, make_id
from tune_hpc.jobs.status import JobState, job_status

HEARTBEAT_S = 0.02


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job whose driver has fifty heartbeats a second."""
    monkeypatch.setattr(driver, "HEARTBEAT_S", HEARTBEAT_S)
    return job_in(tmp_path)


def wait_until(holds):
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(HEARTBEAT_S)


def written_at(job):
    return (job.attempts / "1.run.json").stat().st_mtime_ns


def test_heartbeat_rewrites_the_state_and_stops_a_superseded_driver(job):
    job.claim(1)
    with driver.Heartbeat(job, 1):
        first = written_at(job)
        wait_until(lambda: written_at(job) > first)
        assert not job.stop_file(1).exists()
        job.add_attempt("resume", {"kind": "elsewhere"}, {}, last=1)
        wait_until(job.stop_file(1).exists)


@pytest.mark.parametrize(
    "error",
    [FolderError("no answer"), OSError(errno.ESTALE, "stale"), PermissionError("no"), OSError(errno.EIO, "io"),
     RuntimeError("odd"), KeyError("odd")],
    ids=lambda error: type(error).__name__ + str(getattr(error, "errno", "")),
)  # fmt: skip
@pytest.mark.parametrize("method", ["write_driver_status", "attempt_numbers"])
def test_heartbeat_survives_every_error(job, monkeypatch, caplog, method, error):
    real, num_failed = getattr(JobFolder, method), 0

    def fail(self, *arguments):
        nonlocal num_failed
        num_failed += 1
        raise error

    job.claim(1)
    with driver.Heartbeat(job, 1):
        monkeypatch.setattr(JobFolder, method, fail)
        wait_until(lambda: num_failed > 3)
        monkeypatch.setattr(JobFolder, method, real)
        last = written_at(job)
        wait_until(lambda: written_at(job) > last)
    assert len([record for record in caplog.records if "was not written" in record.message]) == 1


def test_heartbeat_does_not_recreate_a_deleted_job(job):
    job.claim(1)
    heartbeat = driver.Heartbeat(job, 1)
    with heartbeat:
        shutil.rmtree(job.path)
        time.sleep(5 * HEARTBEAT_S)
    heartbeat.finish({"state": "stopped"})
    assert not job.path.exists()


def test_final_state_is_written_after_the_release_of_reserved_space(job):
    job.claim(1)
    heartbeat = driver.Heartbeat(job, 1)
    with heartbeat:
        assert list(job.attempts.glob("*.room"))
    assert not list(job.attempts.glob("*.room"))
    heartbeat.finish({"state": "failed", "error": "no room"})
    state = json.loads((job.attempts / "1.run.json").read_text(encoding="utf-8"))
    assert (state["state"], state["error"]) == ("failed", "no room")
    assert state["started_at"] <= state["ended_at"]


def test_second_or_superseded_driver_does_not_start(job, monkeypatch):
    monkeypatch.setattr(driver, "_run", lambda *arguments: pytest.fail("it ran"))
    job.claim(1)
    assert driver.drive(job, 1, StringIO())["state"] is JobState.STOPPED
    job.add_attempt("resume", {}, {}, last=1)
    job.add_attempt("resume", {}, {}, last=2)
    output = StringIO()
    assert driver.drive(job, 2, output)["state"] is JobState.STOPPED
    assert "was superseded" in output.getvalue()


@pytest.mark.parametrize("signal_error", [SystemExit(1), KeyboardInterrupt()])
def test_driver_terminated_before_the_first_trial_is_stopped(job, monkeypatch, signal_error):
    def run(*arguments):
        raise signal_error

    monkeypatch.setattr(driver, "_run", run)
    assert driver.drive(job, 1, StringIO())["state"] is JobState.STOPPED
    assert job.read_driver_status(1)["state"] == "stopped"


@pytest.mark.parametrize(
    ("ended_by", "state"), [("the time budget of 1 s is spent", "stopped"), ("the first trials all failed", "failed")]
)
def test_job_that_stopped_after_failures_is_failed(ended_by, state):
    experiment = {"name": "e", "state": "stopped", "ended_by": ended_by, "has_failed": state == "failed"}
    final = driver._final_state([SimpleNamespace(experiment=experiment)])
    assert (final["state"], final.get("error", "")) == (state, f"e: {ended_by}" if state == "failed" else "")


@pytest.mark.parametrize(("values", "state"), [([2], JobState.FAILED), ([1, 2], JobState.FINISHED)])
def test_job_is_failed_with_the_first_error_if_all_its_trials_failed(tmp_path, values, state):
    space = Space({"x": tune.choice(values)}, keys={})
    experiment = Experiment("fails", space, fails_at_two, metric="loss", mode="min", seeds=())
    job = JobFolder(tmp_path / make_id("fails"))
    job.make({"id": job.id, "submitted": "", "experiments": [experiment.to_json()], "options": {"runner": "local"}})
    job.add_attempt("start", {}, {})
    output = StringIO()
    final = driver.drive(job, 1, output)
    assert final["state"] is state
    error = f"t0000{len(values) - 1}: RuntimeError: two is not allowed (in fails_at_two, trainables.py line "
    line = f"fails: 1 of {len(values)} trials failed, {error}"
    assert output.getvalue().split("report: ")[0].splitlines()[-1].startswith(line)
    assert final.get("error", "").startswith(line if state is JobState.FAILED else "")
    status = str(job_status(job))
    assert (f"failed ({line}" in status) == (state is JobState.FAILED)
    assert (f"1 failed; best loss 0.5 (t00000); first error: {error}" in status) == (state is JobState.FINISHED)
