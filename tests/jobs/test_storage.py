"""Access to a storage, deletion of jobs, malformed jobs, and experiments named like files of a job."""

import json
import os

import pytest

from tests.jobs.job_factories import StandInLauncher, beat, job_in
from tune_hpc import cli
from tune_hpc.cli.main import USAGE
from tune_hpc.errors import FolderError
from tune_hpc.jobs.client import JobClient, LocalClient
from tune_hpc.jobs.job_folder import JobFolder
from tune_hpc.search.experiment import Experiment, Space
from tune_hpc.storage import s3
from tune_hpc.storage.filesystem import Storage
from tune_hpc.storage.shared_folder import check_private


def experiment(name):
    return Experiment(name, Space({"model": "line", "steps": 10}), metric="train_loss", mode="min")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777, 0o702])
def test_storage_writable_by_others_is_rejected_unless_shared(tmp_path, mode):
    storage = tmp_path / "jobs"
    storage.mkdir()
    storage.chmod(mode)
    with pytest.raises(FolderError, match=r"other users can write to .*chmod go-w .*or use --shared-storage"):
        check_private(Storage(storage))
    launcher = StandInLauncher()
    with pytest.raises(FolderError, match="other users can write to"):
        JobClient(storage, launcher).submit(experiment("line"))
    assert not launcher.started
    assert not list(storage.iterdir())
    JobClient(storage, launcher, shared_storage=True).submit(experiment("line"))
    assert launcher.started == [1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_storage_of_another_user_is_rejected_unless_shared(tmp_path):
    (tmp_path / "jobs").mkdir(mode=0o700)
    os.chown(tmp_path / "jobs", 65534, 65534)
    with pytest.raises(FolderError, match=r"belongs to another user \(uid 65534\)"):
        check_private(Storage(tmp_path / "jobs"))
    check_private(Storage(tmp_path / "jobs"), shared=True)


def test_storage_and_jobs_are_private(tmp_path):
    old = os.umask(0)
    try:
        job = JobClient(tmp_path / "new" / "jobs", StandInLauncher()).submit(experiment("line"))
        shared = JobClient(tmp_path / "shared", StandInLauncher(), shared_storage=True).submit(experiment("line"))
    finally:
        os.umask(old)
    assert [path.stat().st_mode & 0o777 for path in (job.client.storage.root, job.folder.path)] == [0o700, 0o700]
    assert [path.stat().st_mode & 0o777 for path in (shared.client.storage.root, shared.folder.path)] == [0o777, 0o777]


@pytest.mark.parametrize("name", ["code", "attempts", "report.html", "output.log", "job.json", "experiments"])
def test_experiment_may_have_the_name_of_a_file_of_its_job(tmp_path, name):
    job = JobClient(tmp_path / "jobs", StandInLauncher()).submit(experiment(name))
    folder = job.folder.experiment(name)
    folder.claim(name)
    folder.write({"name": name, "metric": "train_loss", "state": "running"})
    job.folder.report.write_text("report", encoding="utf-8")
    assert job.status().experiments[0].state == "running"
    assert folder.path.parent.name == "experiments"


def test_stopped_job_is_deleted_with_all_its_files(tmp_path, capsys):
    job, other = job_in(tmp_path / "jobs"), job_in(tmp_path / "jobs")
    beat(other)
    beat(job, state="finished", ended_at="2026-01-01T00:00:09+00:00")
    assert cli.main(["delete", job.id, other.id, "--storage", str(tmp_path / "jobs")]) == USAGE
    printed = capsys.readouterr()
    assert printed.out == f"deleted {job.id}\n"
    assert "is running; stop it first, or wait for its end, to delete it" in printed.err
    assert [one.id for one in LocalClient(tmp_path / "jobs").list()] == [other.id]
    assert not [path for path in (tmp_path / "jobs").iterdir() if "deleted" in path.name]


@pytest.mark.parametrize(
    ("file", "content"),
    [("job.json", {"experiments": [{"name": 7}]}), ("attempts/1.run.json", {"process": 3, "started_at": 1}),
     ("attempts/1.run.json", {"ended_at": "x", "state": "odd"}), ("attempts/1.json", [1]),
     ("job.json", {"experiments": "x" * 10}), ("job.json", "half")],
)  # fmt: skip
def test_malformed_job_hides_no_other_job(tmp_path, capsys, file, content):
    job, other = job_in(tmp_path / "jobs"), job_in(tmp_path / "jobs")
    beat(other)
    text = "[" if content == "half" else json.dumps(content)
    (job.path / file).write_text(text, encoding="utf-8")
    assert cli.main(["jobs", "--storage", str(tmp_path / "jobs")]) == 0
    lines = capsys.readouterr().out
    assert f"{job.id}  unreadable" in lines
    assert f"{other.id}  running" in lines


def test_version_of_a_job_in_a_bucket_is_one_request(bucket, monkeypatch):
    job = JobFolder(f"{bucket}/line-20260101-000000-0000")
    plain = {"name": "line", "num_trials": 1, "metric": "loss", "searcher": "grid", "scheduler": "none"}
    job.make({"id": job.id, "submitted": "2026-01-01T00:00:00+00:00", "experiments": [plain], "options": {}})
    store, requests = s3.filesystem(), []

    class Counting:
        def __getattr__(self, name):
            requests.append(name)
            return getattr(store, name)

    with monkeypatch.context() as patch:
        patch.setattr(s3, "filesystem", Counting)
        before = job.version()
    assert requests == ["get_file_info"]
    job.add_attempt("start", {}, {})
    assert job.version() != before
