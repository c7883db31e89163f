"""Conformance suite of the clients, on a Ray cluster, on this machine and in this process."""

import os
import re
import signal

import pandas as pd
import pytest

from tests.jobs.user_trainable import WALK, minimum, num_starts, until, walk
from tune_hpc import load_all, load_state
from tune_hpc.errors import ConflictError, FolderError, InvalidExperimentError, UnknownNameError
from tune_hpc.jobs.client import Client, InProcessClient, LocalClient
from tune_hpc.jobs.job_folder import JobFolder
from tune_hpc.jobs.status import JobState

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

KINDS = {
    "in_process": InProcessClient,
    "processes": LocalClient,
    "ray": Client,
}
QUIET = {"max_concurrent": 2}


@pytest.fixture(scope="module", params=KINDS)
def client(request, ray_session, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "walks_here.py").write_text(WALK, encoding="utf-8")
    before = os.getcwd()
    # A user submits from the folder of the modules.
    os.chdir(folder)
    if request.param == "ray":
        head = request.getfixturevalue("head")
        yield Client(head.dashboard, head.token, storage=folder / "jobs")
    else:
        yield KINDS[request.param](folder / "jobs")
    os.chdir(before)


@pytest.fixture(scope="module")
def story(client):
    """A job that is submitted, stopped, resumed and extended, with its statuses and results on the way."""
    folder = client.storage.root.parent
    seen = {"folder": folder}
    job = seen["job"] = client.submit(walk(folder), **QUIET)
    seen["at first"] = job.status()
    until(job, lambda status: status.experiments[0].num_running == 2)
    seen["running"] = job.status()
    with pytest.raises(ConflictError, match="is running; stop it first, or wait for its end"):
        job.resume()
    job.stop()
    seen["stopped"] = job.wait(90)
    seen["half"] = job.results()[0].trials
    job.resume()
    until(job, lambda status: status.state is JobState.RUNNING)
    (folder / "hurry").touch()
    seen["finished"] = job.wait(90)
    seen["whole"] = job.results()[0].trials
    job.extend(2)
    seen["extended"] = job.wait(90)
    seen["log"] = "".join(job.logs())
    return seen


def test_submitted_job_is_found_by_its_id(client, story):
    first = story["at first"]
    assert re.fullmatch(r"walk-\d{8}-\d{6}-[0-9a-f]{8}", first.id)
    assert first.state in (JobState.PENDING, JobState.RUNNING)
    assert (first.num_trials, first.num_ended, first.ended_at) == (4, 0, None)
    assert client.job(first.id).id == first.id
    assert first.id in [job.id for job in client.list()]


def test_status_of_a_running_job_shows_its_progress(story):
    running = story["running"]
    assert running.state is JobState.RUNNING
    assert running.started_at >= running.requested_at
    assert "0/4 trials; 2 running" in str(running)


def test_stopped_job_has_the_states_of_its_trials(story):
    assert story["stopped"].state is JobState.STOPPED
    assert story["stopped"].reason == "a stop was requested"
    assert story["stopped"].ended_at >= story["stopped"].started_at
    assert list(story["half"]["status"]) == ["running", "running"]
    assert story["half"]["steps_run"].between(1, 399).all()


def test_resumed_job_equals_an_uninterrupted_one(story, tmp_path):
    whole, half = story["whole"], story["half"]
    assert story["finished"].state is JobState.FINISHED
    assert (story["finished"].attempt, story["finished"].num_ended) == (2, 4)
    assert list(whole["status"]) == ["finished"] * 4
    assert list(whole["steps_run"]) == [400] * 4
    for row in whole.itertuples():
        assert row.loss == minimum(row.rate)
    starts = num_starts(story["folder"])
    assert {starts[str(rate)] for rate in half["rate"]} == {2}
    assert {starts[str(rate)] for rate in set(whole["rate"]) - set(half["rate"])} == {1}


def test_extended_job_adds_trials_to_the_earlier_ones(story):
    trials = story["job"].results()[0].trials
    assert (story["extended"].state, story["extended"].attempt) == (JobState.FINISHED, 3)
    assert (story["extended"].num_trials, len(trials)) == (6, 6)
    pd.testing.assert_frame_equal(trials.head(4), story["whole"])


def test_job_folder_has_log_report_and_code(story):
    folder = story["job"].folder
    assert "4/4 trials" in story["log"]
    assert "6/6 trials" in story["log"]
    assert story["log"].count("report: ") == 3
    assert folder.report.stat().st_size > 10_000
    assert (folder.code / "walks_here.py").read_text(encoding="utf-8") == WALK


def test_fetched_job_has_the_state_of_the_best_trial(story, tmp_path):
    story["job"].fetch(tmp_path / "copy")
    (results,) = load_all(tmp_path / "copy")
    path = results.best_checkpoint()
    assert path.parent.name == results.best_trial()["trial_id"]
    assert load_state(path)["step"] == results.best_trial()["steps_run"] == 400


def test_finished_job_is_neither_resumed_nor_stopped(client, story):
    with pytest.raises(ConflictError, match="has finished; extend it, or submit a new job"):
        story["job"].resume()
    assert story["job"].stop().state is JobState.FINISHED
    with pytest.raises(InvalidExperimentError, match="num_samples must be at least 1; got 0"):
        story["job"].extend(0)
    with pytest.raises(UnknownNameError, match="has the experiments walk; name one of them"):
        story["job"].extend(1, experiment="run")


def test_job_that_exceeds_the_cluster_fails_with_one_line(client):
    job = client.submit(walk(client.storage.root.parent), cpus_per_trial=99)
    status = job.wait(90)
    assert status.state is JobState.FAILED
    assert "a trial requests 99 CPU" in status.reason
    assert "\n" not in status.reason
    assert "a trial requests 99 CPU" in "".join(job.logs())


def test_job_stopped_before_its_start_is_resumed(client):
    hurried = client.storage.root.parent / "hurry"
    hurried.touch()
    job = client.submit(walk(client.storage.root.parent, num_samples=1), **QUIET)
    assert job.stop().state in (JobState.STOPPED, JobState.STOPPING)
    assert job.wait(90).state is JobState.STOPPED
    assert job.resume().wait(90).state is JobState.FINISHED
    assert len(job.results()[0].trials) == 1


@pytest.mark.parametrize("name", ["walk-20260101-000000-0000", "../jobs", "walk", ""])
def test_unknown_job_is_rejected(client, name):
    with pytest.raises(UnknownNameError):
        client.job(name)


def test_invalid_submission_writes_nothing(client):
    before = sorted(client.storage.root.iterdir())
    with pytest.raises(InvalidExperimentError, match="at least one experiment"):
        client.submit([])
    with pytest.raises(InvalidExperimentError, match="time_budget_s must be above 0"):
        client.submit(walk(client.storage.root.parent), time_budget_s=-1)
    with pytest.raises(FolderError, match="holds no Python file"):
        client.submit(walk(client.storage.root.parent), code=client.storage.root / before[0].name / "attempts")
    assert sorted(client.storage.root.iterdir()) == before


def test_job_of_another_client_is_found_in_the_storage(client, story):
    other = LocalClient(client.storage.root)
    assert other.job(story["job"].id).status().state is JobState.FINISHED
    assert [job.id for job in other.list()] == [job.id for job in client.list()]
    assert JobFolder(client.storage.root / story["job"].id).read()["experiments"][0]["name"] == "walk"


def test_killed_driver_loses_no_trial(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walks_here.py").write_text(WALK, encoding="utf-8")
    job = LocalClient(tmp_path / "jobs").submit(walk(tmp_path), checkpoint_interval_s=0.5, **QUIET)
    until(job, lambda status: status.experiments[0].num_running == 2)
    until(job, lambda status: len(list((job.folder.experiment("walk").path / "trials").glob("*.checkpoint"))) == 2)
    os.kill(job.folder.read_process(1)["pid"], signal.SIGKILL)
    lost = job.wait(30)
    assert (lost.state, lost.num_ended) == (JobState.LOST, 0)
    assert lost.reason.startswith("the driver is gone; its last heartbeat was ")

    job.resume()
    # A trial has the status "running" before its trainable starts.
    until(job, lambda status: sorted(num_starts(tmp_path).values()) == [2, 2])
    job.stop(force=True)
    ended = job.wait(30)
    assert (ended.state, ended.reason) == (JobState.STOPPED, "the driver was killed after a stop request")

    (tmp_path / "hurry").touch()
    assert job.resume().wait(90).state is JobState.FINISHED
    trials = job.results()[0].trials
    assert list(trials["status"]) == ["finished"] * 4
    assert list(trials["steps_run"]) == [400] * 4
    assert sorted(num_starts(tmp_path).values()) == [1, 1, 3, 3]
