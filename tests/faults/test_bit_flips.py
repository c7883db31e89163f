"""Flipped bits and truncation in every kind of file: detected or harmless, never a wrong number."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ray import tune

from tune_hpc.analysis.loading import load
from tune_hpc.errors import TuneHpcError
from tune_hpc.jobs.job_folder import JobFolder
from tune_hpc.learning.checkpoint import load_state
from tune_hpc.search.experiment import Experiment, Space
from tune_hpc.search.runner import run
from tune_hpc.storage.experiment_folder import ExperimentFolder

NUM_FLIPS = 500
REQUEST = {
    "id": "made.up-20261129-000000-00000000",
    "experiments": [{"name": "made.up", "metric": "loss", "searcher": "random", "scheduler": "none", "num_trials": 6}],
    "options": {"max_concurrent": 4, "time_budget_s": 60.0},
}


def train(config, report, checkpoint):
    checkpoint.load()
    for step in range(1, config["steps"] + 1):
        report(step, {"loss": config["rate"] / step})
        checkpoint.save(step, lambda step=step: {"weights": np.full(20, config["rate"]), "step": step})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with a finished search, a search with trial files, and a job."""
    root = tmp_path_factory.mktemp("faults")
    space = Space({"rate": tune.loguniform(1e-4, 1.0), "steps": 9})
    for scheduler in ("asha", "pbt"):
        experiment = Experiment(
            scheduler, space, trainable=train, metric="loss", mode="min", budget="steps", searcher="random",
            scheduler=scheduler, num_samples=6, keep_checkpoints="best",
        )  # fmt: skip
        run(experiment, output_dir=root / scheduler, runner="local", show_progress=False)
    finished = load(root / "asha")
    running = ExperimentFolder(root / "running")
    running.claim("asha")
    running.write(finished.experiment)
    for row in finished.trials.to_dict("records"):
        history = finished.history[finished.history["trial_id"] == row["trial_id"]].drop(columns="trial_id")
        plain = {str(name): None if pd.isna(value) else value for name, value in row.items()}
        running.write_trial(row["trial_id"], plain, history.reset_index(drop=True))
    job = JobFolder(root / REQUEST["id"])
    job.make(REQUEST)
    job.add_attempt("start", {"kind": "local"}, {"max_concurrent": 4})
    job.claim(1)
    job.write_driver_status(1, {"state": "finished", "started_at": "2026-11-29T00:00:00+00:00"})
    return root


def read_everything(root: Path) -> dict[str, Any]:
    """Return what a user can read, each part by itself; an error of tune_hpc is itself a part."""
    job = JobFolder(root / REQUEST["id"])
    parts = {
        **{name: lambda name=name: frames(root / name) for name in ("asha", "pbt", "running")},
        "rungs": lambda: load(root / "asha").rungs(),
        "generations": lambda: load(root / "pbt").generations(),
        **{str(path): lambda path=path: load_state(path) for path in sorted(root.rglob("*.checkpoint"))},
        "job": job.read,
        "attempt": lambda: job.read_attempt(1),
        "status": lambda: job.read_driver_status(1),
    }
    contents = {}
    for name, read in parts.items():
        try:
            contents[name] = read()
        except TuneHpcError as error:
            contents[name] = error
    return contents


def frames(path: Path) -> tuple[Any, ...]:
    results = load(path)
    return dict(results.experiment), results.trials, results.history


def is_equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, pd.DataFrame):
        return isinstance(found, pd.DataFrame) and found.equals(expected)
    if isinstance(expected, np.ndarray):
        return isinstance(found, np.ndarray) and np.array_equal(found, expected)
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(is_equal(found.get(name), value) for name, value in expected.items())
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(is_equal, found, expected))
    return found == expected


def damaged_files(root: Path) -> list[Path]:
    """Return the files that results are read from."""
    names = ("*.parquet", "*.json", "*.jsonl", "*.checkpoint")
    return sorted(path for name in names for path in root.rglob(name) if "ray" not in path.relative_to(root).parts)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damage_is_detected_or_harmless(folder, damage):
    expected = read_everything(folder)
    assert not [part for part in expected.values() if isinstance(part, TuneHpcError)]
    files, generator = damaged_files(folder), random.Random(27)
    kinds = {path.name if path.suffix != ".parquet" else path.parent.name for path in files}
    assert len(kinds) >= 10
    num_detected = 0
    for _ in range(NUM_FLIPS if damage == "flip" else 100):
        path = generator.choice(files)
        content = path.read_bytes()
        position = generator.randrange(len(content))
        changed = bytearray(content[:position] if damage == "truncate" else content)
        if damage == "flip":
            changed[position] ^= 1 << generator.randrange(8)
        path.write_bytes(bytes(changed))
        try:
            found = read_everything(folder)
        finally:
            path.write_bytes(content)
        wrong = [name for name, part in found.items() if not isinstance(part, TuneHpcError)]
        wrong = [name for name in wrong if not is_equal(found[name], expected[name])]
        assert not wrong, f"{damage} at byte {position} of {path.relative_to(folder)}: {wrong}"
        errors = [str(part) for part in found.values() if isinstance(part, TuneHpcError)]
        assert all("\n" not in error and len(error) < 600 for error in errors)
        # The rest of the folder remains readable.
        assert len(errors) <= 3
        num_detected += bool(errors)
    assert num_detected > 50


def test_damaged_folder_is_readable_again_after_a_copy_is_restored(folder, tmp_path):
    shutil.copytree(folder / "asha", tmp_path / "copy")
    path = tmp_path / "copy" / "trials.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(TuneHpcError, match=r"trials\.parquet is not readable as Parquet .*; restore it from a copy"):
        load(tmp_path / "copy")
    path.write_bytes(content)
    assert len(load(tmp_path / "copy").trials) == 6
