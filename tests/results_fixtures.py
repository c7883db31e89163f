"""Fixtures for synthetic results and experiment folders, without a search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tune_hpc.analysis.frames import trials_frame
from tune_hpc.analysis.results import Results
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import summarise

KEYS = ["optimizer", "learning_rate", "batch_size", "seed"]
EXPERIMENT = {"name": "made.up", "metric": "test_loss", "mode": "min", "config_keys": KEYS, "state": "finished"}


def make_folder(path: Path, experiment: dict[str, Any]) -> ExperimentFolder:
    """Return an experiment folder without trials."""
    folder = ExperimentFolder(path)
    folder.claim(experiment["name"])
    folder.write(experiment)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> ExperimentFolder:
    """Return an experiment folder without trials."""
    return make_folder(tmp_path / "run", EXPERIMENT)


@pytest.fixture
def write(folder: ExperimentFolder) -> Callable[..., None]:
    """Return a function that writes a trial into the folder, or into another one."""
    return lambda made, other=folder: other.write_trial(made[0]["trial_id"], *made)


@pytest.fixture
def trial() -> Callable[..., tuple[dict[str, Any], pd.DataFrame]]:
    """Return a function that makes a trial: its row and its history."""

    def make(trial_id: str, loss: float = 0.5, status: str = "finished", num_steps: int = 20, **config: Any):
        step = np.arange(num_steps + 1)
        losses = loss + 2 * np.exp(-step / 5)
        history = pd.DataFrame(
            {"step": step, "train_loss": losses, "test_loss": losses, "test_accuracy": 1 - losses / 5}
        )
        row = {"experiment": "made.up", "trial_id": trial_id, "status": status, "steps_run": num_steps, "train_s": 1.5}
        row |= {"optimizer": "adam", "learning_rate": 0.1, "batch_size": 100, "seed": 0} | config
        if status == "failed":
            return row | {"error": "RuntimeError: <script>alert(1)</script> | out of memory"}, history.iloc[:0]
        return row | summarise(history), history

    return make


@pytest.fixture
def results_of() -> Callable[..., Results]:
    """Return a function that makes results from trials and entries of experiment.json."""

    def make(*trials: tuple[dict[str, Any], pd.DataFrame], **description: Any) -> Results:
        experiment = {"name": "made.up", "metric": "test_loss", "mode": "min", "config_keys": KEYS} | description
        histories = [history.assign(trial_id=row["trial_id"]) for row, history in trials if len(history)]
        history = pd.concat(histories, ignore_index=True) if histories else pd.DataFrame({"trial_id": [], "step": []})
        return Results(experiment, trials_frame([row for row, _ in trials], experiment["config_keys"]), history)

    return make


@pytest.fixture
def grid(trial: Callable, results_of: Callable) -> Callable[..., Results]:
    """Return a function that makes two optimizers, three rates, two seeds; best: adam at 0.01, momentum at 0.1."""

    def make(**description: Any) -> Results:
        best = {"adam": 0.01, "momentum": 0.1}
        trials = [
            trial(f"{number:05d}", loss=0.3 + abs(np.log10(rate / best[optimizer])) + 0.01 * seed, optimizer=optimizer,
                  learning_rate=rate, seed=seed)
            for number, (optimizer, rate, seed) in enumerate(
                (optimizer, rate, seed) for optimizer in best for rate in (0.1, 0.01, 0.001) for seed in (0, 1)
            )
        ]  # fmt: skip
        return results_of(*trials, **description)

    return make
