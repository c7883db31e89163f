import threading
from datetime import UTC, datetime

import pytest

from tests.cluster.stories import beat, job_in, progress
from tune_hpc.analysis.process import process_of, this_process
from tune_hpc.cluster.job_folder import JobFolder, JobState, is_id, make_id
from tune_hpc.cluster.launchers import DriverState
from tune_hpc.cluster.status import SILENT_S, status_of
from tune_hpc.errors import FolderError, UnknownNameError


@pytest.fixture
def job(tmp_path):
    return job_in(tmp_path)


def test_an_id_has_the_name_the_moment_and_four_digits():
    made = make_id("exercise2.softmax", datetime(2026, 11, 23, 12, 45, 33, tzinfo=UTC))
    assert made[:-4] == "exercise2.softmax-20261123-124533-"
    assert is_id(made)
    assert made != make_id("exercise2.softmax", datetime(2026, 11, 23, 12, 45, 33, tzinfo=UTC))


@pytest.mark.parametrize("text", ["", ".", "..", "../x-20261123-124533-abcd", "x-20261123-124533-abcd/..", "x", "a\nb",
                                  "x-20261123-124533-ABCD", ".x-20261123-124533-abcd"])  # fmt: skip
def test_what_could_lead_out_of_the_storage_is_no_id(text):
    assert not is_id(text)


def test_of_two_who_ask_at_once_one_is_refused_and_of_two_drivers_one_begins(job):
    done = []

    def ask():
        try:
            done.append(job.add_attempt("resume", {}, {}).number)
        except FolderError as error:
            done.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    numbers = sorted(one for one in done if isinstance(one, int))
    assert numbers == list(range(2, len(numbers) + 2))
    assert all("somebody else asked" in one for one in done if isinstance(one, str))
    assert [job.claim(7), job.claim(7)] == [True, False]


def test_what_nobody_took_is_forgotten_and_its_number_not_used_again(job):
    job.withdraw(job.add_attempt("resume", {}, {}))
    assert job.last_attempt().number == 1
    assert job.add_attempt("resume", {}, {}).number == 3


def test_a_job_that_nobody_has_begun_is_pending(job):
    assert status_of(job, DriverState.WAITING).state is JobState.PENDING
    told = status_of(job)
    assert (told.state, told.reason) == (JobState.PENDING, "where it is to run does not answer")


def test_a_driver_that_is_gone_before_it_began_has_failed_with_what_was_said(job):
    told = status_of(job, DriverState.GONE, "no such module")
    assert (told.state, told.reason) == (JobState.FAILED, "its driver ended before it began: no such module")


@pytest.mark.parametrize(
    ("driver", "ago_s", "state"),
    [
        (DriverState.ALIVE, 10 * SILENT_S, JobState.RUNNING),
        (DriverState.UNKNOWN, 0, JobState.RUNNING),
        (DriverState.UNKNOWN, 2 * SILENT_S, JobState.LOST),
        (DriverState.GONE, 0, JobState.LOST),
    ],
)
def test_a_driver_that_is_not_heard_of_is_lost_unless_somebody_knows_better(job, driver, ago_s, state):
    beat(job, ago_s=ago_s)
    told = status_of(job, driver)
    assert told.state is state
    assert told.reason.startswith("its driver was last heard of at") == (state is JobState.LOST)


def test_a_process_of_this_machine_that_is_gone_is_known_to_be_lost_at_once(job):
    beat(job, process={**process_of(1), "began": "another boot:1"})
    assert status_of(job).state is JobState.LOST
    beat(job, process=this_process())
    assert status_of(job).state is JobState.RUNNING


def test_a_job_that_is_asked_to_stop_is_stopping_until_it_has(job):
    beat(job)
    job.ask_to_stop(1)
    assert status_of(job).state is JobState.STOPPING
    beat(job, state="stopped", reason="it was asked to stop", ended="2026-01-01T00:00:09+00:00")
    told = status_of(job)
    assert (told.state, told.reason, told.ended_at) == (
        JobState.STOPPED, "it was asked to stop", "2026-01-01T00:00:09+00:00"
    )  # fmt: skip


def test_the_latest_attempt_is_what_counts(job):
    beat(job, state="stopped", ended="2026-01-01T00:00:09+00:00")
    job.add_attempt("resume", {"kind": "process"}, {})
    told = status_of(job, DriverState.WAITING)
    assert (told.state, told.attempt, told.place) == (JobState.PENDING, 2, {"kind": "process"})


def test_how_far_it_is_stands_in_its_experiments_folders(job):
    beat(job)
    assert "made.up: 0/5 trials" in str(status_of(job))
    progress(
        job, ended={"finished": 2, "diverged": 1}, running=2, best={"value": 0.25, "trial_id": "t00001"}, left_s=90
    )
    told = status_of(job)
    assert (told.num_ended, told.num_trials) == (3, 5)
    assert str(told) == (
        f"{job.id}: running\n  made.up: 3/5 trials; 2 running; 1 diverged; best loss 0.25 (t00001); about 90 s left"
    )


def test_what_was_under_way_before_its_driver_began_is_not_any_more(job):
    beat(job)
    progress(job, at="2026-01-01T00:00:00+00:00", ended={"finished": 2}, running=2, left_s=90)
    assert str(status_of(job)).endswith("made.up: 2/5 trials")


def test_nothing_is_under_way_without_a_driver(job):
    beat(job)
    progress(job, ended={"finished": 2}, running=2, left_s=90)
    assert str(status_of(job, DriverState.GONE)).endswith("made.up: 2/5 trials")


@pytest.mark.parametrize(("left_s", "words"), [(7, "7 s"), (700, "12 min"), (36_000, "10.0 h")])
def test_the_time_left_is_told_as_one_says_it(job, left_s, words):
    beat(job)
    progress(job, ended={}, left_s=left_s)
    assert f"about {words} left" in str(status_of(job))


def test_half_a_progress_file_is_none(job):
    beat(job)
    progress(job)
    (job.path / "made.up" / "progress.json").write_text('{"ended": {', encoding="utf-8")
    assert status_of(job).num_ended == 0


def test_a_damaged_job_is_told_with_its_file(job):
    job.job_file.write_text("[]", encoding="utf-8")
    with pytest.raises(FolderError, match=r"job\.json describes no job; restore it from a copy"):
        status_of(job)
    with pytest.raises(UnknownNameError, match="holds no job made"):
        status_of(JobFolder(job.path.with_name("made-20260101-000000-0000")))
