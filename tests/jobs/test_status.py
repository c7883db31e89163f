"""Job status from its folder, for every combination of heartbeat, launcher and process."""

import json
import os
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.jobs.job_factories import beat, job_in, set_age, write_progress
from tune_hpc.errors import FolderError, UnknownNameError
from tune_hpc.jobs.job_folder import JobFolder, is_id, make_id
from tune_hpc.jobs.status import (
    HEARTBEAT_TIMEOUT_S,
    LAUNCH_TIMEOUT_S,
    DriverState,
    ExperimentStatus,
    JobState,
    job_status,
)
from tune_hpc.storage import filesystem
from tune_hpc.storage.process import is_running, may_be_running, process_of, this_process
from tune_hpc.storage.shared_folder import open_no_follow


@pytest.fixture
def job(tmp_path):
    return job_in(tmp_path)


@pytest.fixture
def child():
    """A process of this machine."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def wait_for_state(pid, letter):
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != letter:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_id_has_name_time_and_random_digits():
    made = make_id("exercise2.softmax", datetime(2026, 11, 23, 12, 45, 33, tzinfo=UTC))
    assert made[:-8] == "exercise2.softmax-20261123-124533-"
    assert is_id(made)
    assert made != make_id("exercise2.softmax", datetime(2026, 11, 23, 12, 45, 33, tzinfo=UTC))


@pytest.mark.parametrize("text", ["", ".", "..", "../x-20261123-124533-abcd", "x-20261123-124533-abcd/..", "x", "a\nb",
                                  "x-20261123-124533-ABCD", ".x-20261123-124533-abcd"])  # fmt: skip
def test_malformed_id_is_rejected(text):
    assert not is_id(text)


@pytest.mark.parametrize(
    ("driver", "state", "reason"),
    [
        (DriverState.WAITING, JobState.PENDING, ""),
        (DriverState.UNKNOWN, JobState.PENDING, "the cluster is unreachable"),
        (DriverState.GONE, JobState.FAILED, "the driver ended before it started the job: no such module"),
    ],
)
def test_job_before_the_start_of_its_driver_is_pending_or_failed(job, driver, state, reason):
    status = job_status(job, driver, "no such module")
    assert (status.state, status.reason) == (state, reason)


def test_attempt_without_a_launched_driver_fails_after_a_timeout(job):
    job.add_attempt("resume", {}, {}, last=1)
    assert job_status(job, DriverState.GONE).state is JobState.PENDING
    set_age(job.attempts / "2.json", 2 * LAUNCH_TIMEOUT_S)
    status = job_status(job, DriverState.GONE)
    assert (status.state, status.reason) == (JobState.FAILED, "the driver was never started")


@pytest.mark.parametrize(
    ("driver", "seconds_since_heartbeat", "state"),
    [
        (DriverState.UNKNOWN, 0, JobState.RUNNING),
        (DriverState.ALIVE, 0, JobState.RUNNING),
        (DriverState.GONE, 0, JobState.LOST),
        (DriverState.GONE, 2 * HEARTBEAT_TIMEOUT_S, JobState.LOST),
        (DriverState.UNKNOWN, 2 * HEARTBEAT_TIMEOUT_S, JobState.UNKNOWN),
        (DriverState.ALIVE, 2 * HEARTBEAT_TIMEOUT_S, JobState.UNKNOWN),
    ],
)
def test_driver_without_a_heartbeat_is_lost_or_unknown(job, driver, seconds_since_heartbeat, state):
    beat(job, seconds_since_heartbeat=seconds_since_heartbeat)
    status = job_status(job, driver)
    assert status.state is state
    assert status.reason.startswith("the driver is gone") == (state is JobState.LOST)
    assert status.reason.startswith("no heartbeat for 2 min") == (state is JobState.UNKNOWN)


@pytest.mark.parametrize("skew_s", [3600, -3600, -90])
def test_clock_of_the_driver_does_not_matter(job, skew_s):
    moment = datetime.fromtimestamp(time.time() + skew_s, UTC).isoformat()
    beat(job, started_at=moment, heartbeat_at=moment, beat=moment)
    assert job_status(job).state is JobState.RUNNING
    beat(job, seconds_since_heartbeat=2 * HEARTBEAT_TIMEOUT_S, started_at=moment, heartbeat_at=moment, beat=moment)
    assert job_status(job).state is JobState.UNKNOWN


def test_clock_of_the_reader_does_not_matter(job, monkeypatch):
    beat(job)
    monkeypatch.setattr(filesystem.time, "time", lambda: 0.0)
    assert job_status(job).state is JobState.RUNNING


def test_missing_process_of_this_machine_is_lost_at_once(job):
    beat(job, process={**process_of(1), "began": "another boot:1"})
    assert job_status(job).state is JobState.LOST
    assert job_status(job, DriverState.ALIVE).state is JobState.LOST
    beat(job, process=this_process())
    assert job_status(job).state is JobState.RUNNING


def test_stopped_process_and_zombie_are_not_alive(job, child):
    process = process_of(child.pid)
    assert is_running(process)
    child.send_signal(signal.SIGSTOP)
    wait_for_state(child.pid, "T")
    assert not is_running(process)
    beat(job, process=process)
    assert job_status(job).state is JobState.LOST
    child.send_signal(signal.SIGCONT)
    wait_for_state(child.pid, "S")
    assert job_status(job).state is JobState.RUNNING
    child.kill()
    wait_for_state(child.pid, "Z")
    assert not is_running(process)
    assert job_status(job).state is JobState.LOST


def test_process_elsewhere_may_run_unless_slurm_restarted_its_job(monkeypatch):
    assert may_be_running({"host": "elsewhere", "pid": 1, "began": "x"})
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert this_process()["slurm_job"] == "7"
    assert not may_be_running({"host": "elsewhere", "pid": 1, "began": "x", "slurm_job": "7"})
    assert may_be_running({"host": "elsewhere", "pid": 1, "began": "x", "slurm_job": "8"})


def test_job_is_stopping_until_it_has_stopped(job):
    beat(job)
    job.request_stop(1)
    assert job_status(job).state is JobState.STOPPING
    assert job_status(job, DriverState.GONE).state is JobState.STOPPED
    beat(job, state="stopped", reason="a stop was requested", ended_at="2026-01-01T00:00:09+00:00")
    status = job_status(job)
    assert (status.state, status.reason) == (JobState.STOPPED, "a stop was requested")
    assert status.ended_at == "2026-01-01T00:00:09+00:00"


def test_latest_attempt_counts(job):
    beat(job, state="stopped", ended_at="2026-01-01T00:00:09+00:00")
    job.write_process(job.add_attempt("resume", {"kind": "process"}, {}, last=1).number, {})
    status = job_status(job, DriverState.WAITING)
    assert (status.state, status.attempt, status.location) == (JobState.PENDING, 2, {"kind": "process"})


def test_progress_comes_from_the_experiment_folders(job):
    beat(job)
    assert "synthetic: 0/5 trials" in str(job_status(job))
    best = {"value": 0.25, "trial_id": "t00001"}
    write_progress(job, ended={"finished": 2, "diverged": 1}, running=2, best=best, left_s=90)
    status = job_status(job)
    assert (status.num_ended, status.num_trials) == (3, 5)
    progress = "synthetic: 3/5 trials; 2 running; 1 diverged; best loss 0.25 (t00001); about 90 s left"
    assert str(status) == f"{job.id}: running\n  {progress}"


def test_status_of_an_experiment_has_all_of_its_progress(job):
    assert job_status(job).experiments == (ExperimentStatus("synthetic", "waiting", 5, "loss"),)
    beat(job)
    best, error = {"value": 0.25, "trial_id": "t00001"}, "t00002: ValueError: bad"
    ended = {"finished": 1, "failed": 2}
    write_progress(job, ended=ended, running=2, best=best, left_s=30, first_error=error, fraction=0.4)
    expected = ExperimentStatus(
        "synthetic", "running", 5, "loss", ended, 2, 0.25, "t00001", remaining_s=30, first_error=error, fraction=0.4
    )  # fmt: skip
    assert job_status(job).experiments == (expected,)
    assert str(expected) == (
        "synthetic: 3/5 trials; 2 running at 40% of their steps; 2 failed; best loss 0.25 (t00001); about 30 s left; "
        f"first error: {error}"
    )
    write_progress(job, ended={"failed": 5}, first_error=error, left_s=0)
    assert str(job_status(job)).endswith("synthetic: 5/5 trials; 5 failed")
    write_progress(job)
    assert job_status(job).experiments == (ExperimentStatus("synthetic", "running", 5, "loss"),)


def test_experiment_of_an_early_release_has_the_number_of_trials_of_the_job(job):
    beat(job)
    write_progress(job, running=2)
    folder = job.experiment("synthetic")
    folder.write({name: value for name, value in folder.read().items() if name not in ("attempt", "num_trials")})
    assert job_status(job).experiments == (ExperimentStatus("synthetic", "running", 5, "loss", num_running=2),)


def test_job_without_an_attempt_has_failed(tmp_path):
    job = job_in(tmp_path)
    for path in job.attempts.iterdir():
        path.unlink()
    status = job_status(job)
    assert (status.state, status.reason, status.attempt) == (JobState.FAILED, "no driver was started", 0)
    assert (status.requested_at, status.started_at) == ("2026-01-01T00:00:00+00:00", None)


def test_error_of_a_driver_precedes_its_reason(job):
    beat(job, state="failed", error="no memory", reason="time limit", ended_at="2026-01-01T00:00:09+00:00")
    assert job_status(job).reason == "no memory"
    beat(job, state="finished", ended_at="2026-01-01T00:00:09+00:00")
    assert job_status(job).reason == ""


@pytest.mark.parametrize(
    ("driver", "detail"),
    [(DriverState.ALIVE, "though its process exists"), (DriverState.UNKNOWN, "and its cluster or host is unreachable")],
)
def test_reason_of_a_missing_heartbeat_is_the_state_of_the_process(job, driver, detail):
    beat(job, seconds_since_heartbeat=2 * HEARTBEAT_TIMEOUT_S)
    assert job_status(job, driver).reason == f"no heartbeat for 2 min, {detail}"
    assert job_status(job, DriverState.GONE).reason == "the driver is gone; its last heartbeat was 2 min ago"


def test_job_of_a_missing_driver_has_failed_without_an_output(job):
    assert job_status(job, DriverState.GONE).reason == "the driver ended before it started the job"
    job.request_stop(1)
    beat(job)
    assert job_status(job, DriverState.GONE).reason == "the driver was killed after a stop request"


@pytest.mark.parametrize(("state", "is_active"), [("pending", True), ("running", True), ("stopping", True),
    ("stopped", False), ("finished", False), ("failed", False), ("lost", False), ("unknown", False)])  # fmt: skip
def test_job_is_active_until_its_driver_ends(state, is_active):
    assert JobState(state).is_active == is_active


@pytest.mark.parametrize(("attempt", "driver"), [(0, DriverState.ALIVE), (1, DriverState.GONE)])
def test_trials_of_an_earlier_attempt_or_a_lost_driver_do_not_run(job, attempt, driver):
    beat(job)
    write_progress(job, attempt=attempt, ended={"finished": 2}, running=2, left_s=90)
    assert str(job_status(job, driver)).endswith("synthetic: 2/5 trials")


@pytest.mark.parametrize(
    ("left_s", "text"),
    [(7, "7 s"), (99, "99 s"), (100, "2 min"), (700, "12 min"), (5990, "100 min"), (6000, "1.7 h"), (36_000, "10.0 h"),
     (float("inf"), "an unknown time")],
)  # fmt: skip
def test_remaining_time_has_a_unit(job, left_s, text):
    beat(job)
    write_progress(job, ended={}, left_s=left_s)
    assert f"about {text} left" in str(job_status(job))


def test_half_written_progress_file_is_ignored(job):
    beat(job)
    write_progress(job)
    job.experiment("synthetic").progress.write_text('{"ended": {', encoding="utf-8")
    assert job_status(job).num_ended == 0


@pytest.mark.parametrize("content", ["[]", "{}", '{"experiments": []}', '{"experiments": [{"name": "x"}]}',
    '{"experiments": [{"name": "../x", "metric": "a", "searcher": "a", "scheduler": "a", "num_trials": 1}]}',
    '{"experiments": [{"name": "x", "metric": "a", "searcher": "a", "scheduler": "a", "num_trials": null}]}',
])  # fmt: skip
def test_malformed_job_is_reported(job, content):
    job.job_file.write_text(content, encoding="utf-8")
    with pytest.raises(FolderError, match=r"job\.json (does not describe a job|cannot be read)"):
        job_status(job)
    with pytest.raises(UnknownNameError, match="holds no job made"):
        job_status(JobFolder(job.path.with_name("made-20260101-000000-0000")))


def test_job_of_the_first_format_is_read(tmp_path):
    job = JobFolder(tmp_path / "old-20260101-000000-0000")
    job.attempts.mkdir(parents=True)
    plain = {"name": "old", "num_trials": 5, "metric": "loss", "searcher": "random", "scheduler": "none"}
    files = {
        "job.json": {"id": job.id, "submitted": "2026-01-01T00:00:00+00:00", "experiments": [plain], "options": {}},
        "attempts/1.json": {"verb": "start", "asked_at": "2026-01-01T00:00:01+00:00", "place": {"kind": "x"},
                            "options": {}},
        "attempts/1.run.json": {"began": "2026-01-01T00:00:02+00:00", "ended": "2026-01-01T00:00:03+00:00",
                                "beat": "2026-01-01T00:00:03+00:00", "state": "finished", "process": {}},
    }  # fmt: skip
    for name, content in files.items():
        (job.path / name).write_text(json.dumps(content), encoding="utf-8")
    status = job_status(job)
    assert (status.state, status.attempt, status.location) == (JobState.FINISHED, 1, {"kind": "x"})
    assert (status.requested_at[-7], status.started_at[-7], status.ended_at[-7]) == ("1", "2", "3")
    assert job.experiment("old").path == job.path / "old"


def test_symbolic_links_in_a_job_are_not_followed(job, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("{}", encoding="utf-8")
    for path in (job.output, job.report):
        path.symlink_to(secret)
        with pytest.raises(FolderError, match="is or lies behind a symbolic link"):
            open_no_follow(job.storage, path)
    with pytest.raises(FolderError, match=r"output\.log cannot be written"):
        job.open_output()
    (job.path / "experiments").symlink_to(tmp_path)
    with pytest.raises(FolderError, match="is a symbolic link"):
        job.experiment("synthetic")
    os.mkfifo(job.path / "pipe")
    with pytest.raises(FolderError, match="is not a regular file"):
        open_no_follow(job.storage, job.path / "pipe")


def test_version_changes_with_every_file_that_a_reader_sees(job):
    write_progress(job)
    folder = job.experiment("synthetic")
    folder.logs.mkdir()
    seen = {job.version()}
    assert job.version() in seen
    for path in (job.output, job.report, folder.progress, folder.trials_file, folder.trial_file("t1"), folder.log("t1"),
                 job.attempts / "1.run.json", job.stop_file(1)):  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        path.write_text("changed", encoding="utf-8")
        assert job.version() not in seen, path
        seen.add(job.version())
