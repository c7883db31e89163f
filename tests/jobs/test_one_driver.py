"""One driver per search: claims of attempts, idempotency keys, and superseded drivers."""

import random
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.jobs.job_factories import StandInLauncher, beat, job_in
from tune_hpc import extend, resume
from tune_hpc.errors import ClusterError, ConflictError, RequestError, TuneHpcError, UnknownNameError
from tune_hpc.jobs.client import JobClient
from tune_hpc.jobs.job_folder import JobFolder
from tune_hpc.jobs.status import HEARTBEAT_TIMEOUT_S, DriverState, JobState
from tune_hpc.search.ray_runner import RayRunner
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.filesystem import Storage
from tune_hpc.storage.process import process_of


def in_threads(*calls):
    """Return the result or error of each of some simultaneous calls."""

    def outcome(call):
        try:
            return call()
        except TuneHpcError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(outcome, calls))


@pytest.fixture
def stopped(tmp_path):
    """A stopped job, and a client with a slow launcher."""
    job = job_in(tmp_path / "jobs")
    beat(job, state="stopped", ended_at="2026-01-01T00:00:09+00:00")
    return job, JobClient(tmp_path / "jobs", StandInLauncher(DriverState.WAITING, delay_s=0.02))


def test_exclusive_creation_has_one_winner_and_whole_content(tmp_path):
    outcomes = in_threads(*[lambda: Storage(tmp_path).create_exclusive("file", "x" * 10_000)] * 20)
    assert outcomes.count(True) == 1
    assert (tmp_path / "file").read_text(encoding="utf-8") == "x" * 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_simultaneous_claims_of_an_attempt_have_one_winner(tmp_path):
    job = job_in(tmp_path)
    outcomes = in_threads(*[lambda: job.add_attempt("resume", {}, {}, last=1).number] * 20)
    assert [one for one in outcomes if isinstance(one, int)] == [2]
    assert job.attempt_numbers() == [1, 2]
    assert in_threads(*[lambda: job.claim(2)] * 20).count(True) == 1
    assert not job.claim(1)


def test_number_of_a_deleted_attempt_is_not_reused(tmp_path):
    job = job_in(tmp_path)
    job.delete_attempt(job.add_attempt("resume", {}, {}, last=1))
    assert job.last_attempt().number == 1
    assert job.add_attempt("resume", {}, {}, last=1).number == 3


@pytest.mark.parametrize("seed", range(50))
def test_two_resumes_start_one_driver(stopped, seed):
    job, client = stopped
    delays = [0.0, random.Random(seed).uniform(0.0, 0.1)]

    def resume(delay_s):
        time.sleep(delay_s)
        return client.job(job.id).resume()

    outcomes = in_threads(*[lambda delay_s=delay_s: resume(delay_s) for delay_s in delays])
    assert client.launcher.started == [2]
    assert sum(isinstance(one, ConflictError) for one in outcomes) == 1


def test_two_extensions_add_their_configurations_once(stopped):
    job, client = stopped
    outcomes = in_threads(*[lambda: client.job(job.id).extend(10)] * 2)
    assert client.launcher.started == [2]
    assert sum(isinstance(one, ConflictError) for one in outcomes) == 1


def test_resume_of_an_outdated_attempt_is_rejected(stopped):
    job, client = stopped
    with pytest.raises(ConflictError, match=r"another process changed \S+ first \(attempt 1\)"):
        client.job(job.id).resume(attempt=0)
    client.job(job.id).resume(attempt=1)
    with pytest.raises(ConflictError, match="is pending; stop it first, or wait for its end, to resume it"):
        client.job(job.id).resume()
    assert client.launcher.started == [2]


def test_repeated_request_with_an_idempotency_key_does_nothing(stopped):
    job, client = stopped
    client.job(job.id).extend(10, key="monday")
    client.job(job.id).extend(10, key="monday")
    with pytest.raises(RequestError, match="the Idempotency-Key of this request was used for another request"):
        client.job(job.id).extend(11, key="monday")
    with pytest.raises(RequestError, match="choose a new key"):
        client.job(job.id).resume(key="monday")
    assert client.launcher.started == [2]


@pytest.mark.parametrize("driver", [DriverState.UNKNOWN, DriverState.ALIVE])
def test_job_of_unknown_state_is_resumed_only_by_force(tmp_path, driver):
    job = job_in(tmp_path / "jobs")
    client = JobClient(tmp_path / "jobs", StandInLauncher(driver))
    beat(job, seconds_since_heartbeat=2 * HEARTBEAT_TIMEOUT_S)
    assert client.job(job.id).status().state is JobState.UNKNOWN
    found = client.job(job.id)
    for change in (found.resume, lambda: found.extend(3), found.delete):
        with pytest.raises(ConflictError, match=r"the driver of \S+ may be running"):
            change()
    assert client.launcher.started == []
    client.job(job.id).resume(force=True)
    assert client.launcher.started == [2]


def test_driver_of_a_slow_cluster_is_not_started_again(tmp_path):
    job = job_in(tmp_path / "jobs")
    client = JobClient(tmp_path / "jobs", StandInLauncher(DriverState.ALIVE, delay_s=0.6))
    beat(job, seconds_since_heartbeat=0.75 * HEARTBEAT_TIMEOUT_S)
    with pytest.raises(ConflictError, match="is running; stop it first"):
        client.job(job.id).resume()


def test_simultaneous_delete_and_resume_leave_no_driver_without_a_folder(tmp_path):
    for _ in range(20):
        job = job_in(tmp_path / "jobs")
        beat(job, state="stopped", ended_at="2026-01-01T00:00:09+00:00")
        client = JobClient(tmp_path / "jobs", StandInLauncher(DriverState.WAITING))
        in_threads(lambda job=job, client=client: client.job(job.id).resume(),
                   lambda job=job, client=client: client.job(job.id).delete())  # fmt: skip
        assert job.path.exists() == bool(client.launcher.started)
    assert not [path for path in (tmp_path / "jobs").iterdir() if path.name.startswith((".deleted", ".new"))]


def test_submission_with_a_key_starts_one_job(tmp_path):
    from search_spaces import exercise1_1stpart

    client = JobClient(tmp_path / "jobs", StandInLauncher())
    experiment = exercise1_1stpart.experiments[0]
    outcomes = in_threads(*[lambda: client.submit_once(experiment, "monday", "digest")] * 8)
    jobs = [one for one in outcomes if isinstance(one, tuple)]
    assert [is_new for _, is_new in jobs].count(True) == 1
    assert len({job.id for job, _ in jobs}) == 1
    assert client.launcher.started == [1]
    with pytest.raises(RequestError, match="used for another request"):
        client.submit_once(experiment, "monday", "another digest")
    job, _ = client.submit_once(experiment, "monday", "digest")
    client.launcher.driver = DriverState.GONE
    beat(job.folder, state="finished", ended_at="2026-01-01T00:00:09+00:00")
    job.delete()
    assert not list((tmp_path / "jobs" / ".requests").iterdir())
    assert client.submit_once(experiment, "monday", "another digest")[1]


def claimed(path, number=1):
    folder = ExperimentFolder(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.claim_attempt(folder.last_attempt(), number)
    return folder


def test_superseded_attempt_writes_nothing(tmp_path):
    first = claimed(tmp_path / "x")
    first.write({"name": "x"})
    second = claimed(tmp_path / "x", 2)
    assert (first.is_superseded(), second.is_superseded()) == (True, False)
    with pytest.raises(ConflictError, match=r"attempt 1 of \S+ was superseded \(attempt 2\), or"):
        first.write({"name": "x", "state": "finished"})
    assert "state" not in second.read()
    with pytest.raises(ConflictError, match="another process resumed"):
        first.claim_attempt(1)


def test_simultaneous_claims_of_an_experiment_have_one_winner(tmp_path):
    claimed(tmp_path / "x")
    outcomes = in_threads(*[lambda: ExperimentFolder(tmp_path / "x").claim_attempt(1)] * 20)
    assert outcomes.count(None) == 1


def test_attempt_without_a_folder_writes_nothing(tmp_path):
    first = claimed(tmp_path / "jobs" / "x")
    for path in sorted((tmp_path / "jobs").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(ConflictError, match="or the folder was deleted"):
        first.write({"name": "x"})
    assert not first.path.exists()


def test_half_written_control_file_has_no_effect(tmp_path):
    first = claimed(tmp_path / "x")
    first.control.write_text("", encoding="utf-8")
    assert first.read_control() == (1, False)
    first.write_control(stop=True)
    assert first.read_control() == (1, True)


def test_readers_see_one_attempt_at_each_moment(tmp_path):
    folder = claimed(tmp_path / "x")
    stop = threading.Event()

    def supersede():
        for number in range(2, 30):
            claimed(tmp_path / "x", number)
        stop.set()

    thread = threading.Thread(target=supersede)
    thread.start()
    numbers = []
    while not stop.is_set():
        number, is_stop = folder.read_control()
        numbers.append(number)
        assert not is_stop
    thread.join()
    # An empty file is read as the reader's own attempt.
    assert [one for one in numbers if one != 1] == sorted(one for one in numbers if one != 1)


def searched(path, **changes):
    """Return the folder of a search that is marked as running."""
    from search_spaces import exercise1_1stpart

    folder = claimed(path)
    description = exercise1_1stpart.experiments[0].to_json() | {
        "format": 1, "state": "running", "config_keys": [], "attempt": 1,
        "process": {"host": "elsewhere", "pid": 7, "began": "then"},
    }  # fmt: skip
    folder.write(description | changes)
    return folder


@pytest.mark.parametrize("change", [resume, lambda folder, **options: extend(folder, num_samples=2, **options)])
def test_search_that_may_run_elsewhere_is_resumed_only_by_force(tmp_path, monkeypatch, change):
    folder = searched(tmp_path / "x", searcher="random", num_samples=3)
    with pytest.raises(ConflictError, match=r"was being run by process 7 on elsewhere.*make sure.*then use --force"):
        change(folder.path)
    assert folder.last_attempt() == 1
    monkeypatch.setattr(RayRunner, "run", lambda self: [None])
    change(folder.path, force=True)
    assert folder.last_attempt() == 2
    assert folder.is_superseded()


def test_search_that_runs_here_is_not_resumed(tmp_path):
    process = subprocess.Popen(["sleep", "60"])
    try:
        folder = searched(tmp_path / "x", process=process_of(process.pid))
        with pytest.raises(ConflictError, match=f"is being run by process {process.pid} of this machine"):
            resume(folder.path)
    finally:
        process.kill()
        process.wait()


def test_simultaneous_resumes_of_a_folder_have_one_winner(tmp_path, monkeypatch):
    folder = searched(tmp_path / "x", state="interrupted")
    monkeypatch.setattr(RayRunner, "run", lambda self: [None])
    seen = ExperimentFolder.last_attempt
    monkeypatch.setattr(ExperimentFolder, "last_attempt", lambda self: (seen(self), time.sleep(0.05))[0])
    outcomes = in_threads(*[lambda: resume(folder.path)] * 2)
    assert sum(isinstance(one, ConflictError) for one in outcomes) == 1
    assert seen(folder) == 2


def test_job_is_resumed_after_one_of_its_experiments_was_resumed(stopped):
    job, client = stopped
    claimed(job.experiment("synthetic").path, 5)
    client.job(job.id).resume()
    assert client.launcher.started == [6]


def test_failed_submission_does_not_use_up_the_key(tmp_path):
    from search_spaces import exercise1_1stpart

    launcher = StandInLauncher(delay_s=0.05)
    client, refusing = JobClient(tmp_path / "jobs", launcher), JobClient(tmp_path / "jobs", StandInLauncher())

    def refuse(timeout_s=15.0):
        raise ClusterError("no cluster answers")

    refusing.launcher.check = refuse
    experiment = exercise1_1stpart.experiments[0]
    outcomes = in_threads(*[lambda each=each: each.submit_once(experiment, "k", "d") for each in (client, refusing)])
    assert sum(isinstance(one, ClusterError) for one in outcomes) == 1
    assert client.submit_once(experiment, "k", "d")[1] is False
    assert launcher.started == [1]


def test_driver_with_a_future_heartbeat_is_unknown(tmp_path):
    job = job_in(tmp_path / "jobs")
    beat(job, seconds_since_heartbeat=-86_400)
    for driver, state in ((DriverState.UNKNOWN, JobState.UNKNOWN), (DriverState.GONE, JobState.LOST)):
        assert JobClient(tmp_path / "jobs", StandInLauncher(driver)).job(job.id).status().state is state


def test_status_of_a_job_during_its_deletion_names_the_job(tmp_path, monkeypatch):
    job = job_in(tmp_path / "jobs")
    beat(job)
    found = JobClient(tmp_path / "jobs", StandInLauncher()).job(job.id)
    monkeypatch.setattr(JobFolder, "seconds_since_heartbeat", lambda self, number: (self.delete(), 1 / 0))
    with pytest.raises(UnknownNameError, match=f"{job.id} was deleted"):
        found.status()
