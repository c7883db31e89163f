"""Stored trials: an experiment folder of tune_hpc, trial folders of Ray Tune, a study of Optuna.

All have the same synthetic search: an optimizer, a learning rate and a seed, and a loss and an accuracy at 20 steps.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

from benchmarks.peers.load import GROUPS, METRIC, STUDY, optuna_storage
from search_spaces.exercise2 import LEARNING_RATES, OPTIMIZERS
from tune_hpc.analysis.frames import trials_frame, write_frames
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import summarise

NUM_ROWS = 20


def synthetic_trials(num_trials: int) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each trial's configuration and its history: ``step``, ``test_loss``, ``test_accuracy``."""
    generator = np.random.default_rng(0)
    steps = 25 * np.arange(1, NUM_ROWS + 1)
    grid = [*itertools.product(OPTIMIZERS, LEARNING_RATES)]
    for number in range(num_trials):
        optimizer, rate = grid[number % len(grid)]
        accuracy = 1 - generator.uniform(0.1, 0.5, NUM_ROWS) / np.sqrt(steps)
        history = pd.DataFrame({"step": steps, "test_loss": 3 * (1 - accuracy), METRIC: accuracy})
        yield {"optimizer": optimizer, "learning_rate": rate, "seed": number // len(grid)}, history


def store_tune_hpc(folder: Path, num_trials: int) -> None:
    """Write an experiment folder."""
    rows, histories = [], []
    for number, (config, history) in enumerate(synthetic_trials(num_trials)):
        identity = {"experiment": "stored", "trial_id": f"t{number:05d}", "status": "finished"}
        rows.append({**identity, **config, **summarise(history)})
        histories.append(history.assign(trial_id=identity["trial_id"]))
    keys = [*GROUPS, "seed"]
    experiment_folder = ExperimentFolder(folder)
    experiment_folder.claim("stored")
    experiment_folder.write(
        {"name": "stored", "metric": METRIC, "mode": "max", "config_keys": keys, "num_trials": num_trials}
    )
    write_frames(experiment_folder, trials_frame(rows, keys), pd.concat(histories, ignore_index=True))


def store_ray(folder: Path, num_trials: int) -> None:
    """Write a folder per trial with the result.json of Ray Tune's default loggers, the only file that it reads."""
    for number, (config, history) in enumerate(synthetic_trials(num_trials)):
        trial_id = f"f0f0f_{number:05d}"
        trial_folder = folder / f"trainable_{trial_id}"
        trial_folder.mkdir(parents=True)
        results = [
            {
                **metrics, "timestamp": 1_790_000_000 + row, "checkpoint_dir_name": None, "done": row == NUM_ROWS,
                "training_iteration": row, "trial_id": trial_id, "date": "2026-01-01_00-00-00",
                "time_this_iter_s": 0.5, "time_total_s": 0.5 * row, "pid": 1000, "hostname": "node",
                "node_ip": "127.0.0.1", "config": config, "time_since_restore": 0.5 * row,
                "iterations_since_restore": row, "experiment_tag": f"{number}_optimizer={config['optimizer']}",
            }
            for row, metrics in enumerate(history.to_dict("records"), start=1)
        ]  # fmt: skip
        lines = [json.dumps(one) + "\n" for one in results]
        (trial_folder / "result.json").write_text("".join(lines), encoding="utf-8")


def store_optuna(folder: Path, num_trials: int) -> None:
    """Write a study into an SQLite file."""
    folder.mkdir(parents=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    choices: dict[str, list[Any]] = {"optimizer": OPTIMIZERS, "learning_rate": LEARNING_RATES}
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.CategoricalDistribution(values) for name, values in choices.items()
    }
    distributions["seed"] = optuna.distributions.IntDistribution(0, num_trials)
    study = optuna.create_study(storage=optuna_storage(folder), study_name=STUDY, direction="maximize")
    trials = []
    for config, history in synthetic_trials(num_trials):
        values = dict(zip(history["step"].tolist(), history[METRIC].tolist(), strict=True))
        trials.append(
            optuna.create_trial(
                params=config, distributions=distributions, value=values[max(values)], intermediate_values=values
            )
        )
    study.add_trials(trials)


STORES = {"tune_hpc": store_tune_hpc, "ray": store_ray, "optuna": store_optuna}


def main() -> None:
    """Store trials for a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=STORES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("num_trials", type=int)
    flags = parser.parse_args()
    STORES[flags.tool](flags.folder, flags.num_trials)


if __name__ == "__main__":
    main()
