"""Copy of a user's code in a job."""

import importlib
import json
import logging
import sys

import pytest
from ray import tune

from tests.jobs.job_factories import job_in
from tune_hpc import Experiment, LocalClient, Space
from tune_hpc.errors import ConflictError, FolderError, InvalidExperimentError, UnknownNameError
from tune_hpc.jobs import job_code
from tune_hpc.jobs.job_code import copy_code
from tune_hpc.jobs.status import JobState

FILES = {
    "my_job/__init__.py": "",
    "my_job/search.py": """
from pathlib import Path
from my_job.models.deep import factor
from .losses import loss

def train(config, report):
    import my_job_tool
    text = (Path(__file__).parent / "data" / "offset.txt").read_text()
    report(1, {"loss": my_job_tool.double(loss(config["x"])) * factor + float(text)})

def fail(config, report):
    raise ValueError(f"no {config['x']}")
""",
    "my_job/losses.py": "def loss(x):\n    return 1.0 * x\n",
    "my_job/models/__init__.py": "",
    "my_job/models/deep.py": "factor = 10\n",
    "my_job/data/offset.txt": "0.5",
    "my_job/data/large.bin": "x" * 1_000_001,
    "my_job/.hidden/secret.py": "",
    "my_job_tool.py": "def double(x):\n    return 2 * x\n",
    "my_job_unrelated.py": "",
    "results.csv": "1",
    "env/pyvenv.cfg": "",
    "env/lib/thing.py": "",
}

PACKAGE = [
    "my_job/__init__.py", "my_job/data/offset.txt", "my_job/losses.py", "my_job/models/__init__.py",
    "my_job/models/deep.py", "my_job/search.py",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Working folder with a package, a module that it imports, and other files."""
    root = tmp_path / "code"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()
    yield root
    for name in [name for name in sys.modules if name.startswith("my_job")]:
        del sys.modules[name]


def experiment(trainable, **space):
    return Experiment("multi", Space(space or {"x": 1}, keys={}), trainable, metric="loss", mode="min", seeds=())


def copied(tmp_path, trainable, code=None):
    """Return the names of the files that a job of a trainable has."""
    job = job_in(tmp_path / "jobs")
    copy_code(job, [experiment(trainable)], code)
    return sorted(path.relative_to(job.code).as_posix() for path in job.code.rglob("*") if path.is_file())


def test_package_is_copied_with_its_data_and_the_modules_that_it_imports(folder, tmp_path):
    assert copied(tmp_path, "my_job.search:train") == [*PACKAGE, "my_job_tool.py"]


def test_module_is_copied_with_the_modules_that_it_imports(folder, tmp_path):
    (folder / "my_job_alone.py").write_text("import my_job_tool\ndef train(config, report): ...\n", encoding="utf-8")
    assert copied(tmp_path, "my_job_alone:train") == ["my_job_alone.py", "my_job_tool.py"]


def test_package_without_init_is_copied(folder, tmp_path):
    (folder / "my_job" / "__init__.py").unlink()
    assert copied(tmp_path, "my_job.search:train") == [*PACKAGE[1:], "my_job_tool.py"]


@pytest.mark.parametrize("code", [".", "my_job", "my_job/models"])
def test_folder_is_copied_below_the_root_of_its_package(folder, tmp_path, code):
    others = ["my_job_tool.py", "my_job_unrelated.py"] if code == "." else []
    assert copied(tmp_path, "my_job.search:train", code) == [*PACKAGE, *others]


def test_wrong_folder_is_rejected(folder, tmp_path):
    (folder / "empty").mkdir()
    (folder / "other").mkdir()
    (folder / "other" / "thing.py").touch()
    with pytest.raises(FolderError, match="holds no Python file"):
        copied(tmp_path, "my_job.search:train", "empty")
    with pytest.raises(UnknownNameError, match=r"other does not contain the trainable's module my_job; name its"):
        copied(tmp_path, "my_job.search:train", "other")


def test_code_over_the_limit_is_copied_without_data_or_rejected(folder, tmp_path, monkeypatch, caplog):
    num_bytes = sum(len(FILES[name]) for name in PACKAGE if name.endswith(".py")) + len(FILES["my_job_tool.py"])
    monkeypatch.setattr(job_code, "MAX_CODE_BYTES", num_bytes)
    with caplog.at_level(logging.WARNING):
        assert "my_job/data/offset.txt" not in copied(tmp_path, "my_job.search:train")
    assert "its data files are not copied" in caplog.text
    monkeypatch.setattr(job_code, "MAX_CODE_BYTES", num_bytes - 1)
    with pytest.raises(FolderError, match="name the folder of the trainable's modules with code"):
        copied(tmp_path, "my_job.search:train")


def test_trainable_of_the_main_program_is_rejected(tmp_path):
    with pytest.raises(InvalidExperimentError, match="__main__:train is in the main program; move it into a module"):
        copied(tmp_path, "__main__:train")


def test_installed_code_is_not_copied(tmp_path):
    assert copied(tmp_path, "json:loads") == []
    assert copied(tmp_path, "tune_hpc.learning.training:train_fused") == []


@pytest.mark.ray
@pytest.mark.slow
def test_job_of_a_package_finishes_and_one_whose_trials_all_fail_is_failed(folder, tmp_path):
    client = LocalClient(tmp_path / "jobs")
    job = client.submit(experiment("my_job.search:train", x=tune.choice([1, 2])))
    for name in ("my_job", "my_job_tool.py"):
        (folder / name).rename(folder / f"{name}.away")
    assert job.wait(120).state is JobState.FINISHED, "".join(job.logs())
    assert sorted(job.results()[0].trials["loss"]) == [20.5, 40.5]
    for name in ("my_job", "my_job_tool.py"):
        (folder / f"{name}.away").rename(folder / name)
    failed = client.submit(experiment("my_job.search:fail", x=tune.choice([1, 2])))
    status = failed.wait(120)
    assert status.state is JobState.FAILED
    assert status.reason.startswith("multi: 2 of 2 trials failed, t00000: ValueError: no ")
    assert status.reason.endswith(f"; logs: {failed.folder.experiment('multi').logs}")
    assert status.reason in "".join(failed.logs())
    with pytest.raises(ConflictError, match="have ended, with errors; correct the code in "):
        failed.resume()
    assert json.loads((failed.folder.attempts / "1.run.json").read_text(encoding="utf-8"))["state"] == "failed"
