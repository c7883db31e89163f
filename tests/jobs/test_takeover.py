"""Suspended, terminated and killed drivers lose and repeat no trial."""

import os
import random
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.jobs.user_trainable import WALK, minimum, num_starts, until, walk
from tune_hpc import run
from tune_hpc.errors import FolderError
from tune_hpc.jobs import driver
from tune_hpc.jobs.client import InProcessClient, LocalClient
from tune_hpc.jobs.job_folder import JobFolder
from tune_hpc.jobs.status import JobState

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the trainable."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walks_here.py").write_text(WALK, encoding="utf-8")
    return tmp_path


def submit(folder, **changes):
    job = LocalClient(folder / "jobs").submit(walk(folder, **changes), checkpoint_interval_s=0.2, max_concurrent=2)
    until(job, lambda status: status.experiments[0].num_running == 2)
    until(job, lambda status: len(list(job.folder.experiment("walk").trials.glob("*.checkpoint"))) == 2)
    return job


def check_complete(job, num_trials):
    """Assert that every trial finished once, with the values of gradient descent."""
    results = job.results()[0]
    assert list(results.trials["status"]) == ["finished"] * num_trials
    assert results.trials["trial_id"].is_unique
    assert results.history.groupby("trial_id", observed=True).size().to_list() == [400] * num_trials
    for row in results.trials.itertuples():
        assert row.loss == minimum(row.rate)


def test_suspended_driver_stops_after_its_replacement(folder):
    job = submit(folder, num_samples=6)
    first = job.folder.read_process(1)["pid"]
    os.kill(first, signal.SIGSTOP)
    until_state(job, JobState.LOST)
    job.resume()
    until(job, lambda status: status.state is JobState.RUNNING and status.experiments[0].num_running == 2)
    os.kill(first, signal.SIGCONT)
    end = time.monotonic() + 60
    while not (run_state := job.folder.read_driver_status(1)).get("ended_at"):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert run_state["state"] == "stopped"
    assert "superseded" in run_state["reason"]
    (folder / "hurry").touch()
    assert job.wait(90).state is JobState.FINISHED, "".join(job.logs())
    check_complete(job, 6)
    assert set(job.results()[0].trials["attempt"]) == {2}
    # Only the two running trials were resumed from their checkpoints.
    assert sorted(num_starts(folder).values()) == [1] * 4 + [2] * 2


def until_state(job, state):
    end = time.monotonic() + 30
    while job.status().state is not state:
        assert time.monotonic() < end, job.status()
        time.sleep(0.1)


@pytest.mark.parametrize("kill", [os.kill, os.killpg], ids=["process", "group"])
def test_sigterm_saves_the_states_of_trials(folder, kill):
    job = submit(folder)
    steps = {path.stem: path.stat().st_mtime_ns for path in job.folder.experiment("walk").trials.glob("*.checkpoint")}
    kill(job.folder.read_process(1)["pid"], signal.SIGTERM)
    status = job.wait(60)
    assert (status.state, status.reason) == (JobState.STOPPED, "terminated (SIGTERM)"), "".join(job.logs())
    assert job.folder.read_driver_status(1)["is_terminated"]
    half = job.results()[0].trials
    assert list(half["status"]) == ["running"] * 2
    saved = {path.stem: path.stat().st_mtime_ns for path in job.folder.experiment("walk").trials.glob("*.checkpoint")}
    assert all(saved[trial] > steps[trial] for trial in steps)
    (folder / "hurry").touch()
    assert job.resume().wait(90).state is JobState.FINISHED
    check_complete(job, 4)
    assert sorted(num_starts(folder).values()) == [1, 1, 2, 2]


def test_ray_of_a_killed_driver_ends(folder):
    job = submit(folder)
    processes = descendants(job.folder.read_process(1)["pid"])
    assert len(processes) >= 4
    job.stop(force=True)
    assert job.wait(30).state is JobState.STOPPED
    end = time.monotonic() + 30
    while alive := [pid for pid in processes if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end, alive
        time.sleep(0.1)


def descendants(pid):
    """Return the children of a process and their descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [*children, *(process for child in children for process in descendants(child))]


def test_search_with_failing_heartbeats_equals_an_undisturbed_one(ray_session, folder, monkeypatch):
    generator, real = random.Random(7), JobFolder.write_driver_status
    num_failed = 0

    def write_driver_status(self, number, state):
        nonlocal num_failed
        if "ended_at" not in state and generator.random() < 0.5:
            num_failed += 1
            raise generator.choice(
                [FolderError("no answer"), PermissionError("no"), OSError(116, "stale"), KeyError("x")]
            )
        real(self, number, state)

    monkeypatch.setattr(driver, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(JobFolder, "write_driver_status", write_driver_status)
    (folder / "hurry").touch()
    job = InProcessClient(folder / "jobs").submit(walk(folder, num_samples=8), max_concurrent=2)
    assert job.wait(90).state is JobState.FINISHED
    assert num_failed > 10
    undisturbed = run(walk(folder, num_samples=8), output_dir=folder / "undisturbed", show_progress=False)
    disturbed = job.results()[0]
    columns = ["trial_id", "status", "rate", "steps_run", "loss", "attempt"]
    pd.testing.assert_frame_equal(disturbed.trials[columns], undisturbed.trials[columns])
    pd.testing.assert_frame_equal(disturbed.history, undisturbed.history)
