"""Jobs on a full disk."""

import os
import subprocess

import pytest

from tests.jobs.job_factories import job_in
from tests.jobs.user_trainable import WALK, num_starts, until, walk
from tune_hpc.errors import FolderError
from tune_hpc.jobs.client import LocalClient
from tune_hpc.jobs.job_folder import RESERVED_BYTES, JobFolder, make_id
from tune_hpc.jobs.status import JobState


@pytest.fixture
def small_disk(tmp_path):
    """A file system of three megabytes; only root can mount it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(path):
    """Fill the disk with a file, and return its size."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass
    return path.stat().st_size


@pytest.mark.slow
def test_job_on_a_full_disk_fails_with_the_reason_and_is_resumed_later(small_disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "walks_here.py").write_text(WALK, encoding="utf-8")
    job = LocalClient(small_disk / "jobs").submit(walk(tmp_path), max_concurrent=2, checkpoint_interval_s=0.5)
    until(job, lambda status: len(list((job.folder.experiment("walk").path / "trials").glob("*.checkpoint"))) == 2)
    assert fill(small_disk / "filler") > 0
    (tmp_path / "hurry").touch()
    failed = job.wait(90)
    assert failed.state is JobState.FAILED
    assert "No space left on device; make room there" in failed.reason
    assert failed.reason in "".join(job.logs())
    fill(small_disk / "rest")
    with pytest.raises(FolderError, match="No space left on device"):
        job.resume()
    assert job.status().state is JobState.FAILED

    (small_disk / "filler").unlink()
    (small_disk / "rest").unlink()
    assert job.resume().wait(90).state is JobState.FINISHED
    trials = job.results()[0].trials
    assert list(trials["status"]) == ["finished"] * 4
    assert list(trials["steps_run"]) == [400] * 4
    assert len(num_starts(tmp_path)) == 4
    assert not list(job.folder.attempts.glob("*.room"))


def test_failed_submission_leaves_no_folder(small_disk):
    present = job_in(small_disk)
    fill(small_disk / "filler")
    other = JobFolder(small_disk / make_id("other"))
    with pytest.raises(FolderError, match="No space left on device; make room there"):
        other.make({"id": other.id, "experiments": ["x" * 5000]})
    assert sorted(one.name for one in small_disk.iterdir()) == ["filler", present.id]


def test_disk_space_is_reserved_once_released_and_not_fetched(tmp_path):
    job = job_in(tmp_path / "jobs")
    job.reserve_disk_space(1)
    job.reserve_disk_space(2)
    assert [(one.name, one.stat().st_size) for one in job.attempts.glob("*.room")] == [("2.room", RESERVED_BYTES)]
    LocalClient(tmp_path / "jobs").job(job.id).fetch(tmp_path / "copy")
    assert "2.room" not in os.listdir(tmp_path / "copy" / "attempts")
    job.release_disk_space()
    assert not list(job.attempts.glob("*.room"))
