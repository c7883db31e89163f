"""State of the repository with a user's trainable."""

import importlib
import subprocess
import sys

import pytest

from tests.search import trainables
from tune_hpc.learning.training import train
from tune_hpc.search import provenance
from tune_hpc.search.provenance import record_repository, repository_state
from tune_hpc.storage.experiment_folder import ExperimentFolder


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Module ``my_repository_search`` with the function ``train`` in a new repository."""
    root = tmp_path / "repository"
    (root / "code").mkdir(parents=True)
    (root / "code" / "my_repository_search.py").write_text("def train(config, report):\n    pass\n", encoding="utf-8")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "Start")
    monkeypatch.setattr(sys, "path", [str(root / "code"), *sys.path])
    importlib.invalidate_caches()
    yield importlib.import_module("my_repository_search")
    del sys.modules["my_repository_search"]


@pytest.fixture
def folder(tmp_path):
    folder = ExperimentFolder(tmp_path / "out")
    folder.claim("x")
    folder.claim_attempt(0)
    return folder


def git(root, *arguments):
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_without_changes_has_no_diff(module, folder, tmp_path):
    commit = git(tmp_path / "repository", "rev-parse", "--short=12", "HEAD")
    expected = {"commit": commit, "has_changes": False, "untracked": [], "diff": None}
    assert record_repository(module.train, folder) == {"code": expected}


def test_uncommitted_changes_are_stored_and_new_modules_named(module, folder, tmp_path):
    root = tmp_path / "repository"
    with open(module.__file__, "a", encoding="utf-8") as file:
        file.write("CHANGED = 1\n")
    (root / "new.py").touch()
    code = record_repository(module.train, folder)["code"]
    assert (code["has_changes"], code["untracked"], code["diff"]) == (True, ["new.py"], "changes/1.diff")
    assert "+CHANGED = 1\n" in (folder.path / code["diff"]).read_text(encoding="utf-8")


def test_large_diff_is_not_stored(module, folder, monkeypatch):
    monkeypatch.setattr(provenance, "MAX_DIFF_BYTES", 10)
    with open(module.__file__, "a", encoding="utf-8") as file:
        file.write("CHANGED = 1\n")
    code = record_repository(module.train, folder)["code"]
    assert (code["has_changes"], code["diff"]) == (True, None)
    assert not folder.changes.exists()


def test_own_repository_and_no_repository_are_not_recorded(folder, tmp_path):
    assert record_repository(train, folder) == {}
    assert record_repository(trainables.fails_at_two, folder) == {}
    assert repository_state(tmp_path) is None
