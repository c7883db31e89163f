"""What a driver's signs of life tell it: somebody else goes on, nobody wants the job any more, the storage is away."""

import json
import shutil
import time

import pytest

from tests.cluster.stories import job_in
from tune_hpc.cluster import driver
from tune_hpc.cluster.job_folder import JobFolder
from tune_hpc.errors import FolderError

BEAT_S = 0.02


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job whose driver says fifty times a second that it lives."""
    monkeypatch.setattr(driver, "BEAT_S", BEAT_S)
    return job_in(tmp_path)


def is_asked_to_stop(job, within_s):
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if job.stop_of(1).exists():
            return True
        time.sleep(BEAT_S)
    return False


def test_a_driver_goes_on_as_long_as_it_is_the_last_one(job):
    with driver._Life(job, 1):
        assert not is_asked_to_stop(job, 10 * BEAT_S)
        job.add_attempt("resume", {"kind": "elsewhere"}, {})
        assert is_asked_to_stop(job, 5)


def test_a_driver_stops_when_its_job_was_removed(job):
    with driver._Life(job, 1):
        shutil.rmtree(job.path)
        assert is_asked_to_stop(job, 5)


def test_a_file_that_is_out_of_sight_for_a_moment_is_not_removed(job, monkeypatch):
    seen = iter([True, False, False] * 1000)
    monkeypatch.setattr(JobFolder, "is_there", property(lambda self: next(seen)))
    with driver._Life(job, 1):
        assert not is_asked_to_stop(job, 20 * BEAT_S)


def test_a_storage_that_does_not_answer_ends_no_sign_of_life(job, monkeypatch):
    def away(self):
        raise FolderError("the store does not answer")

    monkeypatch.setattr(JobFolder, "last_attempt", away)
    with driver._Life(job, 1):
        first = job.read_run(1)["beat"]
        end = time.monotonic() + 10
        while job.read_run(1)["beat"] == first:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_the_last_words_tell_how_it_ended(job):
    life = driver._Life(job, 1)
    with life:
        assert list(job.attempts.glob("*.room"))
    assert not list(job.attempts.glob("*.room"))
    life.end({"state": "failed", "error": "no room"})
    told = json.loads((job.attempts / "1.run.json").read_text(encoding="utf-8"))
    assert (told["state"], told["error"]) == ("failed", "no room")
    assert told["began"] <= told["beat"] <= told["ended"]
