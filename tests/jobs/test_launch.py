"""Launch, resume and check experiments."""

import json

import pytest
from ray import tune

from tests.search.trainables import parabola
from tune_hpc import Experiment, Space, load
from tune_hpc.errors import FolderError
from tune_hpc.jobs.launch import folders_in, launch
from tune_hpc.scaling.measurement import run_all as measure_all
from tune_hpc.search.experiment_json import check_same_search, experiment_from_json
from tune_hpc.search.stopping import StopCriteria


def experiment(name="parabola", **changes):
    space = Space({"learning_rate": tune.choice([0.01, 0.1, 0.3]), "steps": 20}, keys={})
    return Experiment(name, space, parabola, metric="loss", mode="min", seeds=(), **changes)


def stored(experiment):
    """Return an experiment as in experiment.json."""
    return json.loads(json.dumps(experiment.to_json()))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestOnRay:
    def test_started_experiments_are_resumed_and_others_started(self, tmp_path):
        experiments = [experiment("first"), experiment("second"), experiment("third")]
        folders = folders_in(tmp_path / "all", experiments)
        stop = tmp_path / "stop"
        launch(experiments[:1], folders[:1], resume_started=True, show_progress=False)
        stop.touch()
        launched = launch(experiments[:2], folders[:2], resume_started=True, show_progress=False, stop_file=stop)
        assert [results.experiment["state"] for results in launched] == ["finished", "stopped"]
        assert launched[1].experiment["ended_by"] == "a stop was requested"
        finished = (folders[0] / "trials.parquet").read_bytes()
        for _ in range(2):
            whole = launch(experiments, folders, resume_started=True, show_progress=False)
            assert [one.name for one in whole] == ["first", "second", "third"]
            assert [one.experiment["state"] for one in whole] == ["finished"] * 3
            assert [len(one.trials) for one in whole] == [3, 3, 3]
            assert (folders[0] / "trials.parquet").read_bytes() == finished
        progress = json.loads((folders[2] / "progress.json").read_text(encoding="utf-8"))
        assert (progress["num_trials"], progress["ended"], progress["running"]) == (3, {"finished": 3}, 0)
        assert progress["best"]["value"] == load(folders[2]).best()["loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "another"}, "name is parabola there and another here"),
        ({"searcher": "random", "num_samples": 2}, "searcher is grid there and random here"),
        ({"search_seed": 3}, "search_seed is 0 there and 3 here"),
        ({"space": {"learning_rate": tune.choice([0.01, 0.1, 0.3]), "steps": 30}}, "steps is 20 there and 30 here"),
        ({"space": {"learning_rate": 0.1, "steps": 20}}, r"learning_rate is \{'choice': \[0.01, 0.1, 0.3\]\} there"),
        ({"space": {"learning_rate": tune.choice([0.01, 0.1, 0.3])}}, "steps is 20 there and None here"),
    ],
)
def test_different_search_is_not_resumed(changes, message):
    if "space" in changes:
        changes = {"space": Space(changes["space"], keys={})}
    with pytest.raises(FolderError, match=f"runs/a has another search: {message}"):
        check_same_search(experiment().replace(**changes), stored(experiment()), "runs/a")


def test_title_and_description_may_differ_on_resume():
    check_same_search(experiment(title="A title", description="A description"), stored(experiment()), "runs/a")


def test_finished_measurement_is_not_repeated(tmp_path, monkeypatch):
    from search_spaces.exercise4 import experiment as scaling

    folder = tmp_path / "scaling"
    folder.mkdir()
    finished = stored(scaling.quick_version()) | {"state": "finished", "config_keys": [], "num_trials": 0}
    (folder / "experiment.json").write_text(json.dumps(finished), encoding="utf-8")
    (results,) = measure_all([scaling.quick_version()], folders=[folder], resume_started=True)
    assert results.experiment["state"] == "finished"
    with pytest.raises(FolderError, match="has another search: "):
        measure_all([scaling], folders=[folder], resume_started=True)
    assert experiment_from_json(finished).name == "exercise4"


def test_stop_file_stops_a_search(tmp_path, monkeypatch):
    monkeypatch.setattr("tune_hpc.search.stopping.DRIVER_POLL_INTERVAL_S", 0.0)
    criteria = StopCriteria(stop_file=tmp_path / "stop")
    assert not criteria.is_met()
    (tmp_path / "stop").touch()
    assert criteria.is_met()
    assert (criteria.reason, criteria.is_user_request) == ("a stop was requested", True)
