"""Experiments of another installed package: listed and run like those of this project."""

import os
import subprocess
import sys

import pytest

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "valley"
version = "1.0"

[project.entry-points."tune_hpc.experiments"]
valley = "valley:experiments"
broken = "valley:no_such_name"

[tool.setuptools]
py-modules = ["valley"]
"""
MODULE = """
from ray import tune
from tune_hpc import Experiment, Space

def train(config, report):
    for step in range(1, 4):
        report(step, {"loss": (config["x"] - 1) ** 2 + 1 / step})

space = Space({"x": tune.choice([0.0, 1.0, 2.0])}, keys={})
experiments = [Experiment("valley", space, train, metric="loss", mode="min", seeds=(), title="The lowest point")]
"""


@pytest.fixture(scope="module")
def tune_hpc(tmp_path_factory):
    """Return a function that runs ``tune-hpc`` beside an installed package with one experiment."""
    source = tmp_path_factory.mktemp("source")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "valley.py").write_text(MODULE)
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True, text=True)
    folder = tmp_path_factory.mktemp("work")
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])

    def run(*arguments):
        code = "from tune_hpc.cli import run_and_exit; run_and_exit()"
        return subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": path},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


def test_experiment_of_a_package_is_listed(tune_hpc):
    done = tune_hpc("list")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["valley", "3", "3", "x", "The", "lowest", "point"] in lines
    assert ["exercise2.softmax", "72"] in [line[:2] for line in lines]
    assert "the entry point broken of the group tune_hpc.experiments is skipped" in done.stderr


def test_unknown_name_is_answered_with_the_registered_ones(tune_hpc):
    done = tune_hpc("list", "hill")
    assert done.returncode == 2
    assert "no experiment is called 'hill'; registered are " in done.stderr
    assert "valley" in done.stderr


@pytest.mark.slow
def test_experiment_of_a_package_runs(tune_hpc, tmp_path):
    done = tune_hpc("run", "valley", "--output-dir", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "3 finished" in done.stdout
    assert "best loss 0.3333" in done.stdout
