"""Experiment folder of an export, and a function that writes trials into it."""

import pytest

from tune_hpc.storage.experiment_folder import ExperimentFolder

KEYS = ["optimizer", "learning_rate", "batch_size", "seed"]
EXPERIMENT = {"name": "made.up", "metric": "test_loss", "mode": "min", "config_keys": KEYS, "state": "finished"}


def make_folder(path, experiment):
    folder = ExperimentFolder(path)
    folder.claim(experiment["name"])
    folder.write(experiment)
    return folder


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "run", EXPERIMENT)


@pytest.fixture
def write(folder):
    def write(made, folder=folder):
        row, history = made
        folder.write_trial(row["trial_id"], row, history)

    return write
