"""The trainable without Ray: on one process, and on two under torchrun."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "torchrun_trial.py"
#: Runs the script as on a machine without Ray, pandas and torchvision.
WITHOUT = f"""
import runpy, sys
for package in ("ray", "pandas", "pyarrow", "torchvision"):
    sys.modules[package] = None
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
SETTINGS = {"model": "softmax", "learning_rate": 0.01, "batch_size": 100, "steps": 20, "num_evaluations": 4, "seed": 3}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mnist")]


def train_script(folder: Path, *launcher: str, settings: dict = SETTINGS) -> dict:
    folder.mkdir(exist_ok=True)
    (folder / "without.py").write_text(WITHOUT, encoding="utf-8")
    words = [f"--set={key}={value}" for key, value in settings.items()]
    done = subprocess.run(
        [sys.executable, *launcher, "without.py", *words, "--output", "trial.json"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "trial.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return train_script(tmp_path_factory.mktemp("single"))


def test_one_process_learns_the_same_as_the_training_loop(single):
    from tune_hpc.learning.training import train

    reported = {}
    train(SETTINGS, lambda step, metrics: reported.update(metrics) if "test_loss" in metrics else None, device="cpu")
    last = {name: single["row"][name] for name in reported}
    assert last == {name: float(value) for name, value in reported.items()}
    assert single["row"]["status"] == "finished"
    assert single["config"]["optimizer"] == "gradient_descent"
    assert len(single["history"]["train_loss"]) == len(single["history"]["step"])
    assert [value for value in single["history"]["test_loss"] if value is not None][-1] == last["test_loss"]


def test_two_processes_learn_the_same_as_one(single, tmp_path):
    both = train_script(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert both["row"]["workers"] == 2
    assert both["history"]["step"] == single["history"]["step"]
    for name in ("train_loss", "test_loss", "test_accuracy"):
        assert both["row"][name] == pytest.approx(single["row"][name], rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("steps", "each key is set once"), ("stepz=3", "no such key 'stepz'"), ("steps=many", "steps must be"),
     ("optimizer=adamm", "optimizer must be one of")],
)  # fmt: skip
def test_invalid_setting_is_reported_in_one_line(setting, message, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--set", setting], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
