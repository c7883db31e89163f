"""MLflow runs of an export."""

from datetime import UTC, datetime

import pytest

from tune_hpc.export.exporter import export_search
from tune_hpc.export.mlflow import _valid_names
from tune_hpc.storage.trial_file import config_to_row

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's warnings about itself.


@pytest.fixture(autouse=True)
def default_uri(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def runs(client):
    experiment = client.get_experiment_by_name("made.up")
    found = client.search_runs([experiment.experiment_id])
    return {run.data.tags["tune_hpc.trial_id"]: run for run in found}


@pytest.mark.slow
def test_ended_trial_is_a_run(folder, write, trial):
    write(trial("t00000", num_steps=2500))
    write(trial("t00001", status="stopped", batch_size=50.0))
    write(trial("t00002", status="failed"))
    write(trial("t00003", status="running"))
    (done,) = export_search(folder.path, "mlflow")
    assert done.num_trials == 3
    assert done.viewer == f"mlflow ui --backend-store-uri sqlite:///{folder.mlflow}"
    client = mlflow.MlflowClient(tracking_uri=done.uri)
    found = runs(client)
    assert {name: run.info.status for name, run in found.items()} == {
        "t00000": "FINISHED", "t00001": "KILLED", "t00002": "FAILED",
    }  # fmt: skip
    run = found["t00000"]
    assert run.info.run_name == "t00000"
    assert run.data.params == {"optimizer": "adam", "learning_rate": "0.1", "batch_size": "100", "seed": "0"}
    assert found["t00001"].data.params["batch_size"] == "50"
    assert run.data.metrics["test_loss"] == pytest.approx(0.5, abs=1e-6)
    assert run.data.metrics["best_step"] > 0
    curve = client.get_metric_history(run.info.run_id, "train_loss")
    assert sorted(one.step for one in curve) == [*range(0, 2500, 3), 2500]
    assert "out of memory" in found["t00002"].data.tags["tune_hpc.error"]
    assert run.info.end_time - run.info.start_time == 1500


@pytest.mark.slow
def test_run_has_values_of_all_types_and_the_time_of_the_end(folder, write, trial):
    row, history = trial("t00000")
    config = {"optimizer": None, "batch_size": [1, 2], "learning_rate": "1", "seed": 1}
    write((row | config_to_row(config) | {"ended_at": "2026-01-01T12:00:00.500+00:00"}, history))
    (done,) = export_search(folder.path, "mlflow")
    run = runs(mlflow.MlflowClient(tracking_uri=done.uri))["t00000"]
    assert run.data.params == {"optimizer": "None", "batch_size": "[1, 2]", "learning_rate": "1", "seed": "1"}
    assert datetime.fromtimestamp(run.info.end_time / 1000, UTC).isoformat() == "2026-01-01T12:00:00.500000+00:00"


@pytest.mark.slow
def test_later_export_adds_new_trials_and_repeats_unfinished_runs(folder, write, trial):
    write(trial("t00000"))
    write(trial("t00001"))
    uri = export_search(folder.path, "mlflow")[0].uri
    client = mlflow.MlflowClient(tracking_uri=uri)
    first = runs(client)
    client.update_run(first["t00001"].info.run_id, status="RUNNING")
    write(trial("t00002"))
    assert export_search(folder.path, "mlflow")[0].num_trials == 2
    second = runs(client)
    assert sorted(second) == ["t00000", "t00001", "t00002"]
    assert second["t00000"].info.run_id == first["t00000"].info.run_id
    assert {run.info.status for run in second.values()} == {"FINISHED"}


@pytest.mark.slow
def test_tracking_uri_of_the_environment_is_the_default(folder, write, trial, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'all.db'}")
    write(trial("t00000"))
    assert export_search(folder.path, "mlflow")[0].uri == f"sqlite:///{tmp_path / 'all.db'}"
    assert not folder.mlflow.exists()


def test_names_are_mapped_to_those_that_mlflow_accepts():
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    names = [
        "acc@5", "acc_5", "loss (log)", "größe", "a//b", "../up", "/root", ".", "x" * 300, "x" * 299 + "y",
        "model/depth", "lr-1.5: 2", "a\\b", "100%",
    ]  # fmt: skip
    valid = _valid_names(names)
    assert sorted(valid) == sorted(names)
    assert len(set(valid.values())) == len(names)
    for name in valid.values():
        _validate_metric_name(name)
        _validate_param_name(name)
        assert len(name) <= 250
    assert (valid["acc_5"], valid["acc@5"], valid["model/depth"], valid["lr-1.5: 2"]) == (
        "acc_5", "acc_5_", "model/depth", "lr-1.5: 2",
    )  # fmt: skip


@pytest.mark.slow
def test_search_with_a_name_that_mlflow_rejects_is_exported(folder, write, trial):
    row, history = trial("t00000")
    write((row | {"acc@5": 0.7}, history.rename(columns={"test_loss": "loss@1"})))
    client = mlflow.MlflowClient(tracking_uri=export_search(folder.path, "mlflow")[0].uri)
    metrics = runs(client)["t00000"].data.metrics
    assert metrics["acc_5"] == 0.7
    assert metrics["loss_1"] == pytest.approx(0.5, abs=0.1)
