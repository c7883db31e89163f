"""Commands on jobs: list, status, logs, stop, fetch, submit, resume and extend by id."""

import json
from pathlib import Path

import pytest

from tests.jobs.job_factories import beat, job_in, write_progress
from tune_hpc import cli
from tune_hpc.cli.main import USAGE
from tune_hpc.errors import FolderError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TUNE_HPC_STORAGE", raising=False)
    return tmp_path


@pytest.fixture
def ended(folder):
    """A stopped job in a storage that is not in the history."""
    job = job_in(folder / "elsewhere")
    job.output.write_text("3/5 trials\n", encoding="utf-8")
    write_progress(job, ended={"finished": 3}, best={"value": 0.5, "trial_id": "t00002"})
    beat(job, state="stopped", reason="it was stopped by a test", ended_at="2026-01-01T00:00:09+00:00")
    return job


def run(capsys, *arguments, code=0):
    assert cli.main(list(map(str, arguments))) == code
    return capsys.readouterr()


def test_jobs_are_listed_with_state_and_best_value(ended, capsys):
    lines = run(capsys, "jobs", "--storage", ended.path.parent).out.splitlines()
    assert lines[1].split()[:5] == [ended.id, "stopped", "3/5", "loss", "0.5"]


def test_empty_storage_prints_the_command_that_submits(folder, capsys):
    assert run(capsys, "jobs", "--storage", folder / "new").out.startswith(
        f"there is no job in {folder / 'new'}; to submit one: tune-hpc submit"
    )


def test_storage_that_is_a_file_or_empty_is_rejected(folder, capsys):
    (folder / "file").touch()
    error = run(capsys, "jobs", "--storage", folder / "file", code=USAGE).err
    assert error == f"tune-hpc: {folder / 'file'} is a file; a storage is a folder\n"
    for words in (["jobs", "--storage"], ["submit", "exercise1_1stpart", "--storage"], ["resume"], ["show"]):
        assert run(capsys, *words, "", code=USAGE).err == "tune-hpc: the name of a folder is empty\n"


def test_fetch_copies_an_experiment_named_ray_and_hidden_artifacts(folder, capsys):
    job = job_in(folder / "jobs")
    for name in ("ray/trials.parquet", "walk/ray/state.pkl", "walk/artifacts/t00000/ray/.mine", "walk/.half"):
        (job.path / "experiments" / name).parent.mkdir(parents=True, exist_ok=True)
        (job.path / "experiments" / name).touch()
    run(capsys, "fetch", job.id, "--storage", folder / "jobs", "--output", folder / "got")
    got = [path.relative_to(folder / "got") for path in (folder / "got" / "experiments").rglob("*") if path.is_file()]
    assert {"experiments/ray/trials.parquet", "experiments/walk/artifacts/t00000/ray/.mine"} <= set(map(str, got))
    assert not {"state.pkl", ".half"} & {path.name for path in got}


def test_unreachable_storage_of_the_history_hides_no_other(ended, capsys, monkeypatch):
    from tune_hpc.jobs.client import remember
    from tune_hpc.storage.filesystem import Storage

    def fail(method):
        def call(storage, *arguments):
            if "away" in storage.uri:
                raise FolderError("s3://away does not answer (no route)")
            return method(storage, *arguments)

        return call

    for name in ("exists", "download", "list_names"):
        monkeypatch.setattr(Storage, name, fail(getattr(Storage, name)))
    assert f"no job {ended.id} in " in run(capsys, "status", ended.id, code=USAGE).err
    remember("storages", str(ended.path.parent))
    remember("storages", "/away")
    assert run(capsys, "status", ended.id).out.startswith(f"{ended.id}: stopped (it was stopped by a test)\n")
    listed = run(capsys, "jobs")
    assert ended.id in listed.out
    assert listed.err == "tune-hpc: s3://away does not answer (no route)\n"
    gone = run(capsys, "status", f"{ended.id[:-4]}ffff", code=USAGE).err
    assert "; s3://away does not answer (no route); --storage names another storage" in gone
    assert "does not answer" in run(capsys, "jobs", "--storage", "/away", code=USAGE).err
    assert "does not answer" in run(capsys, "status", ended.id, "--storage", "/away", code=USAGE).err


def test_storage_of_the_environment_is_searched(ended, capsys, monkeypatch):
    monkeypatch.setenv("TUNE_HPC_STORAGE", str(ended.path.parent))
    assert run(capsys, "logs", ended.id).out == "3/5 trials\n"


def test_status_prints_json_and_waits(ended, capsys):
    shown = json.loads(run(capsys, "status", ended.id, "--storage", ended.path.parent, "--json", "--wait").out)
    assert (shown["state"], shown["experiments"][0]["best_trial"]) == ("stopped", "t00002")
    beat(ended, state="failed", error="no room", ended_at="2026-01-01T00:00:09+00:00")
    assert "failed (no room)" in run(capsys, "status", ended.id, "--storage", ended.path.parent, "--wait", code=1).out


def test_ended_job_is_not_stopped_again(ended, capsys):
    assert "stopped (it was stopped by a test)" in run(capsys, "stop", ended.id, "--storage", ended.path.parent).out
    assert not list(ended.attempts.glob("*.stop"))


def test_fetch_updates_a_copy(ended, capsys, folder):
    where = ("fetch", ended.id, "--storage", ended.path.parent)
    assert run(capsys, *where).out.endswith(f"files in runs/{ended.id}\n")
    copy, progress = folder / "runs" / ended.id, Path("experiments") / "synthetic" / "progress.json"
    assert (copy / progress).read_bytes() == (ended.path / progress).read_bytes()
    (ended.path / "experiments" / "synthetic" / "ray").mkdir()
    (ended.path / "experiments" / "synthetic" / "ray" / "big").touch()
    (ended.path / "new.log").write_text("new", encoding="utf-8")
    ended.output.unlink()
    (copy / "my_notes.md").write_text("mine", encoding="utf-8")
    run(capsys, *where)
    assert (copy / "my_notes.md").exists()
    assert (copy / "new.log").read_text(encoding="utf-8") == "new"
    assert not (copy / "output.log").exists()
    assert not (copy / "experiments" / "synthetic" / "ray").exists()
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").touch()
    refused = run(capsys, *where, "--output", folder / "mine", code=USAGE).err
    assert f"mine is not empty and holds no copy of {ended.id}; choose another folder with --output" in refused
    assert (folder / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("submit", "exercise9"), "no experiment is called 'exercise9'"),
        (("submit", "exercise2.softmax", "--address", "ray://head:10001"), "of its dashboard, like http://head"),
        (("submit", "exercise2.softmax", "--address", ""), "is that of its dashboard, like http://head:8265; got ''"),
        (("submit", "exercise2.softmax", "--address", "127.0.0.1:9"), "no Ray cluster answers at http://127.0.0.1:9"),
        (("submit", "exercise2.softmax", "--num-samples", "0"), "num_samples must be at least 1; got 0"),
        (("submit", "exercise2.softmax", "--export", "paper"), "paper"),
        (("submit", "exercise2.softmax", "--storage", "/proc/jobs"), "/proc/jobs"),
        (("status", "../etc/passwd"), "no job ../etc/passwd in"),
    ],
)
def test_invalid_input_is_rejected_in_one_line_and_nothing_is_written(folder, capsys, arguments, message):
    shown = run(capsys, *arguments, code=USAGE)
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert not (folder / "runs").exists()


def test_id_of_an_existing_folder_is_a_folder(ended, capsys, monkeypatch):
    monkeypatch.chdir(ended.path.parent)
    assert "has no search to resume" in run(capsys, "resume", ended.id, code=USAGE).err


def test_grid_cannot_be_extended(folder, capsys):
    job = job_in(folder / "jobs", searcher="grid")
    beat(job, state="finished", ended_at="2026-01-01T00:00:09+00:00")
    line = run(capsys, "extend", job.id, "--num-samples", "3", "--storage", folder / "jobs", code=USAGE).err
    assert line == "tune-hpc: synthetic uses a grid, which cannot be extended; submit a new job\n"


def test_submit_passes_the_folders_of_a_warm_start(folder, capsys, monkeypatch):
    from tune_hpc.jobs import client

    submitted = {}

    def submit(self, experiments, **options):
        submitted.update(options)
        return job_in(folder / "jobs")

    monkeypatch.setattr(client.JobClient, "submit", submit)
    tpe = ["--searcher", "tpe", "--num-samples", "3", "--set", "learning_rate=loguniform(1e-4, 1)"]
    run(capsys, "submit", "exercise2.softmax", *tpe, "--from", "runs/first", "--storage", folder / "jobs")
    assert submitted["warm_start"] == [str(folder / "runs" / "first")]
