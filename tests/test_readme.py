"""What the README shows is what happens."""

import json
import re
from pathlib import Path

import pytest

import tune_hpc
from tune_hpc import Experiment, load

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def block(first_words: str) -> str:
    """Return the code block of the README that holds some words."""
    blocks = re.findall(r"```\w*\n(.*?)```", README, flags=re.DOTALL)
    (found,) = [one for one in blocks if first_words in one]
    return found


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_trainable_of_ones_own_runs_as_experiment_and_as_function(write_module, tmp_path, capsys):
    from tune_hpc.cli import main

    write_module("my_search", block("# my_search.py"))
    assert main(["run", "my_search:experiment"]) == 0
    results = load(tmp_path / "runs" / "my_search.experiment")
    assert results.best()["rate"] == 0.5
    assert main(["run", "my_search:train", "--set", "rate=0.01,0.1,0.5"]) == 0
    assert load(tmp_path / "runs" / "my_search.train").trials["loss"].tolist() == results.trials["loss"].tolist()
    assert "best loss 0" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_the_changed_space_runs_from_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    really_run = tune_hpc.run

    def run_small(experiment: Experiment):
        """Run what the README builds at a size for a test, where the README then looks for it."""
        assert experiment.num_trials == 60
        small = experiment.with_values(
            {"width": 0.1, "batch_size": 10, "steps": 2, "num_evaluations": 1, "num_evaluation_images": 50}
        ).replace(num_samples=2, seeds=(0, 1))
        return really_run(small, show_progress=False)

    monkeypatch.setattr(tune_hpc, "run", run_small, raising=False)
    names: dict = {}
    exec(compile(block("from search_spaces import exercise3"), "README.md", "exec"), names)
    assert names["results"].counts() == {"finished": 4}


def test_every_verb_and_file_it_names_exists():
    root = Path(__file__).parents[1]
    for name in re.findall(r"^([a-z_]+/)\s", block("tune_hpc/\n  learning/"), flags=re.MULTILINE):
        assert (root / name).is_dir(), name
    for target in re.findall(r"(?:^|`)make ([a-z]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (root / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE), target


SEARCHING = (Path(__file__).parents[1] / "docs" / "searching.md").read_text(encoding="utf-8")


def test_a_space_with_conditions_is_the_same_in_python_json_and_on_the_command_line():
    from tune_hpc import Space
    from tune_hpc.search.space.parsing import parse_settings

    names: dict = {}
    exec("from ray import tune\n" + block("from tune_hpc import Space, when"), names)
    space = names["space"]
    assert space.scientific == ("optimizer",)
    shown, command, plain = re.findall(r"```(?:python|sh|json)\n(.*?)```", SEARCHING, flags=re.DOTALL)[:3]
    exec(shown, names)
    assert Space(dict(names["space"]), roles={"optimizer": "scientific"}) == space
    written = Space(parse_settings(re.findall(r"--set '?(.*?)'?(?= --| \\|$)", command, flags=re.MULTILINE)))
    without_nesterov = space | {"optimizer": written["optimizer"]}
    assert written.to_json()["momentum"] == json.loads(plain)["momentum"] == without_nesterov.to_json()["momentum"]
    assert written.to_json()["learning_rate"] == space.to_json()["learning_rate"]


def test_every_searcher_and_scheduler_is_told_of():
    from tune_hpc.search.experiment import SCHEDULERS, SEARCHERS

    assert re.findall(r"^\| `(\w+)` \|", SEARCHING, flags=re.MULTILINE) == [*SEARCHERS, *SCHEDULERS]
