"""Experiments brought to their ends by the same call again and again."""

import json

import pytest
from ray import tune

from tests.search.trainables import parabola
from tune_hpc import Experiment, Space, cli, load
from tune_hpc.errors import FolderError
from tune_hpc.jobs.launch import folders_in, launch
from tune_hpc.scaling.measurement import run_all as measure_all
from tune_hpc.search.experiment import experiment_from_json
from tune_hpc.search.stopping import StopCriteria


def experiment(name="parabola", **changes):
    space = Space({"learning_rate": tune.choice([0.01, 0.1, 0.3]), "steps": 20}, keys={})
    return Experiment(name, space, parabola, metric="loss", mode="min", seeds=(), **changes)


def held(one):
    """Return what a folder says of an experiment that ran."""
    return json.loads(json.dumps(one.to_json()))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
class TestOnRay:
    def test_what_was_begun_goes_on_and_what_was_not_begins(self, tmp_path):
        experiments = [experiment("first"), experiment("second"), experiment("third")]
        folders = folders_in(tmp_path / "all", experiments)
        stop = tmp_path / "stop"
        launch(experiments[:1], folders[:1], go_on=True, show_progress=False)
        stop.touch()
        begun = launch(experiments[:2], folders[:2], go_on=True, show_progress=False, stop_file=stop)
        assert [one.experiment["state"] for one in begun] == ["finished", "stopped"]
        assert begun[1].experiment["ended_by"] == "a stop was requested"
        finished = (folders[0] / "trials.parquet").read_bytes()
        for _ in range(2):
            whole = launch(experiments, folders, go_on=True, show_progress=False)
            assert [one.name for one in whole] == ["first", "second", "third"]
            assert [one.experiment["state"] for one in whole] == ["finished"] * 3
            assert [len(one.trials) for one in whole] == [3, 3, 3]
            assert (folders[0] / "trials.parquet").read_bytes() == finished
        told = json.loads((folders[2] / "progress.json").read_text(encoding="utf-8"))
        assert (told["num_trials"], told["ended"], told["running"]) == (3, {"finished": 3}, 0)
        assert told["best"]["value"] == load(folders[2]).best()["loss"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "another"}, "name is parabola there and another here"),
        ({"searcher": "random", "num_samples": 2}, "searcher is grid there and random here"),
        ({"search_seed": 3}, "search_seed is 0 there and 3 here"),
        ({"space": {"learning_rate": tune.choice([0.01, 0.1, 0.3]), "steps": 30}}, "steps is 20 there and 30 here"),
        ({"space": {"learning_rate": 0.1, "steps": 20}}, r"learning_rate is \{'choice': \[0.01, 0.1, 0.3\]\} there"),
        ({"space": {"learning_rate": tune.choice([0.01, 0.1, 0.3])}}, "steps is 20 there and None here"),
    ],
)
def test_another_search_than_the_one_that_is_there_does_not_go_on(changes, told):
    there = held(experiment())
    if "space" in changes:
        changes = {"space": Space(changes["space"], keys={})}
    with pytest.raises(FolderError, match=f"runs/a holds another search: {told}"):
        experiment().replace(**changes).check_matches(there, "runs/a")


def test_what_is_drawn_or_said_of_a_search_makes_no_other_one_of_it():
    experiment(title="A title", description="More words").check_matches(held(experiment()), "runs/a")


def test_a_measurement_that_came_to_its_end_is_kept(tmp_path, monkeypatch):
    from search_spaces.exercise4 import experiment as scaling

    home = tmp_path / "scaling"
    home.mkdir()
    asked = held(scaling.quick_version()) | {"state": "finished", "config_keys": []}
    (home / "experiment.json").write_text(json.dumps(asked), encoding="utf-8")
    (kept,) = measure_all([scaling.quick_version()], folders=[home], go_on=True)
    assert kept.experiment["state"] == "finished"
    with pytest.raises(FolderError, match="holds another search: "):
        measure_all([scaling], folders=[home], go_on=True)
    assert experiment_from_json(asked).name == "exercise4"


def test_a_file_ends_a_search_when_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("tune_hpc.search.stopping.DRIVER_POLL_INTERVAL_S", 0.0)
    limits = StopCriteria(stop_file=tmp_path / "stop")
    assert not limits.are_reached()
    (tmp_path / "stop").touch()
    assert limits.are_reached()
    assert (limits.reason, limits.is_user_request) == ("a stop was requested", True)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--resume"], "--resume needs --output-dir, the folder of the searches to resume"),
        (
            ["--resume", "--overwrite", "--output-dir", "x"],
            "--resume keeps earlier results and --overwrite removes them",
        ),
    ],
)
def test_flags_that_contradict_one_another_are_refused(flags, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "exercise1_1stpart", *flags]) == cli.USAGE
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
