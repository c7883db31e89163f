"""What MLflow finds, where it is installed."""

import pytest

from tune_hpc.export.export import export_search
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import write_trial

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own, about MLflow's own.

KEYS = ["optimizer", "learning_rate", "batch_size", "seed"]
ASKED = {"name": "made.up", "metric": "test_loss", "mode": "min", "config_keys": KEYS, "state": "finished"}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    home = ExperimentFolder(tmp_path / "run")
    home.claim("made.up")
    home.write(ASKED)
    return home


def write(home, made):
    row, history = made
    write_trial(home.part(row["trial_id"]), row, history)


def runs(client):
    experiment = client.get_experiment_by_name("made.up")
    found = client.search_runs([experiment.experiment_id])
    return {run.data.tags["tune_hpc.trial_id"]: run for run in found}


def test_a_trial_that_ended_is_a_run(home, trial):
    write(home, trial("t00000", num_steps=2500))
    write(home, trial("t00001", status="stopped", batch_size=50.0))
    write(home, trial("t00002", status="failed"))
    write(home, trial("t00003", status="running"))
    (done,) = export_search(home.path, "mlflow")
    assert done.num_trials == 3
    assert done.viewer == f"mlflow ui --backend-store-uri sqlite:///{home.mlflow}"
    client = mlflow.MlflowClient(tracking_uri=done.place)
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


def test_only_what_is_new_is_added_and_what_was_cut_off_is_done_again(home, trial):
    write(home, trial("t00000"))
    write(home, trial("t00001"))
    place = export_search(home.path, "mlflow")[0].place
    client = mlflow.MlflowClient(tracking_uri=place)
    first = runs(client)
    client.update_run(first["t00001"].info.run_id, status="RUNNING")
    write(home, trial("t00002"))
    assert export_search(home.path, "mlflow")[0].num_trials == 2
    second = runs(client)
    assert sorted(second) == ["t00000", "t00001", "t00002"]
    assert second["t00000"].info.run_id == first["t00000"].info.run_id
    assert {run.info.status for run in second.values()} == {"FINISHED"}


def test_the_environments_server_is_the_place(home, trial, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'all.db'}")
    write(home, trial("t00000"))
    assert export_search(home.path, "mlflow")[0].place == f"sqlite:///{tmp_path / 'all.db'}"
    assert not home.mlflow.exists()
