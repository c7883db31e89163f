"""The trainable without Ray: alone, and on two processes of torchrun's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "torchrun_trial.py"
#: A machine that has neither Ray nor pandas nor torchvision.
WITHOUT = f"""
import runpy, sys
for package in ("ray", "pandas", "pyarrow", "torchvision"):
    sys.modules[package] = None
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
SETTINGS = {"model": "softmax", "learning_rate": 0.01, "batch_size": 100, "steps": 20, "num_evaluations": 4, "seed": 3}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("mnist")]


def trained(folder: Path, *launcher: str, settings: dict = SETTINGS) -> dict:
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
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone"))


def test_one_process_learns_what_the_loop_does_in_a_search(alone):
    from tune_hpc.learning.training import train

    reported = {}
    train(SETTINGS, lambda step, metrics: reported.update(metrics) if "test_loss" in metrics else None, device="cpu")
    last = {name: alone["row"][name] for name in reported}
    assert last == {name: float(value) for name, value in reported.items()}
    assert alone["row"]["status"] == "finished"
    assert alone["config"]["optimizer"] == "gradient_descent"
    assert len(alone["history"]["train_loss"]) == len(alone["history"]["step"])
    assert [value for value in alone["history"]["test_loss"] if value is not None][-1] == last["test_loss"]


def test_two_processes_learn_what_one_does(alone, tmp_path):
    both = trained(tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    assert both["row"]["workers"] == 2
    assert both["history"]["step"] == alone["history"]["step"]
    for name in ("train_loss", "test_loss", "test_accuracy"):
        assert both["row"][name] == pytest.approx(alone["row"][name], rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("steps", "each key is set once"), ("stepz=3", "no such key 'stepz'"), ("steps=many", "steps must be"),
     ("optimizer=adamm", "optimizer must be one of")],
)  # fmt: skip
def test_a_wrong_setting_is_told_in_one_line(setting, message, tmp_path):
    done = subprocess.run(
        [sys.executable, SCRIPT, "--set", setting], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
