"""Experiment folder of a search, and a function that writes trials into it."""

import pytest

from tests.results_fixtures import KEYS
from tune_hpc.storage.experiment_folder import ExperimentFolder


@pytest.fixture
def folder(tmp_path):
    folder = ExperimentFolder(tmp_path / "run")
    folder.claim("made.up")
    folder.write({"name": "made.up", "metric": "test_loss", "mode": "min", "config_keys": KEYS})
    return folder


@pytest.fixture
def write(folder):
    return lambda made: folder.write_trial(made[0]["trial_id"], *made)
