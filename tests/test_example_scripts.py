"""Each example as a whole process, at its small size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tune_hpc import load

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "packages", "metric", "limits"),
    [
        ("pytorch_cnn", ["sklearn"], "accuracy", (0.9, 1)),
        ("sklearn_svm", ["sklearn"], "accuracy", (0.95, 1)),
        ("xgboost_trees", ["sklearn", "xgboost"], "rmse", (50, 60)),
        ("lightning_mlp", ["sklearn", "pytorch_lightning"], "valid_loss", (0, 0.5)),
        ("transformers_trainer", ["transformers", "accelerate"], "valid_loss", (0, 0.3)),
    ],
)
def test_example_finds_a_good_model(name, packages, metric, limits, tmp_path):
    for package in packages:
        pytest.importorskip(package, reason=f"needs {package}: install the extra [examples]")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, EXAMPLES / f"{name}.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    (folder,) = (tmp_path / "runs").iterdir()
    results = load(folder)
    assert not results.failures
    lower, upper = limits
    assert lower <= results.best()[metric] <= upper


def test_first_example_is_short():
    lines = [line for line in (EXAMPLES / "pytorch_cnn.py").read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 37  # With three commands: at most 40 lines from an empty environment to the best model.


def test_notebook_runs_and_has_its_outputs(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient: install the extra [examples]")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: install the extra [examples]")
    pytest.importorskip("ipykernel", reason="needs ipykernel: install the extra [examples]")
    path = EXAMPLES / "analysis.ipynb"
    assert path.stat().st_size < 100_000
    notebook = nbformat.read(path, as_version=4)
    stored = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(map(bool, stored)) >= 4
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    ran = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert [len(outputs) for outputs in ran] == [len(outputs) for outputs in stored]


def test_local_run_ends_with_its_result(tmp_path):
    pytest.importorskip("sklearn", reason="needs scikit-learn: install the extra [examples]")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "tune_hpc.cli", "run", "examples.pytorch_cnn:experiment", "--local", "--no-report"]
    sizes = ["--set", "epochs=1", "--num-samples", "1"]
    done = subprocess.run([*command, *sizes], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("digits: 1 finished; best accuracy")
    assert "leaked" not in done.stderr
