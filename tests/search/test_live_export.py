"""Exports of a running search on Ray, and the messages on failed and slow exports."""

import logging

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import tune

from tests.search.trainables import parabola
from tune_hpc import Experiment, Space, export_search, extend, run
from tune_hpc.search import base_runner
from tune_hpc.search.base_runner import LiveExport
from tune_hpc.storage.experiment_folder import ExperimentFolder


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_live_export_has_all_trials(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(base_runner, "EXPORT_WAIT_S", 120.0)
    space = Space({"learning_rate": tune.uniform(0.01, 0.5), "steps": 20}, keys={})
    experiment = Experiment(
        "parabola", space, parabola, metric="loss", mode="min", searcher="tpe", num_samples=3, seeds=(0, 1)
    )
    folder = tmp_path / "run"
    tools = {"export": ("tensorboard", "optuna"), "show_progress": False}
    run(experiment, output_dir=folder, **tools)
    extend(folder, num_samples=1, **tools)
    files = ExperimentFolder(folder)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    runs = sorted(path.name for path in files.tensorboard.iterdir() if path.is_dir())
    assert runs == [f"t{number:05d}" for number in range(8)]
    storage = JournalStorage(JournalFileBackend(str(files.optuna_journal)))
    trials = optuna.load_study(study_name="parabola", storage=storage).trials
    ids = sorted(tuple(trial.user_attrs["trial_ids"]) for trial in trials)
    assert ids == [(f"t{number:05d}", f"t{number + 1:05d}") for number in range(0, 8, 2)]
    assert {len(trial.intermediate_values) for trial in trials} == {20}
    assert [one.num_trials for one in export_search(folder, ("tensorboard", "optuna"))] == [0, 0]


@pytest.fixture
def folder(tmp_path):
    folder = ExperimentFolder(tmp_path / "run")
    folder.claim("made.up")
    return folder


def start(folder, monkeypatch, program):
    monkeypatch.setattr(base_runner, "_EXPORT_PROGRAM", program)
    return LiveExport([folder], ["optuna"])


def test_failed_export_is_logged_with_reason_and_remedy(folder, monkeypatch, caplog):
    program = "import sys; print('tune-hpc: no room', file=sys.stderr); sys.exit(2)"
    start(folder, monkeypatch, program).wait()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the export to optuna failed: no room; the results are complete, and `tune-hpc export {folder.path} --to "
        "optuna` repeats the export"
    )


def test_slow_export_continues_in_the_background(folder, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(base_runner, "EXPORT_WAIT_S", 0.1)
    started = start(folder, monkeypatch, "import time; time.sleep(30)")
    started.wait()
    (process,) = started._processes.values()
    assert caplog.messages == [f"the export to optuna continues in the background, process {process.pid}"]
    assert process.poll() is None
    process.kill()
    process.wait()
