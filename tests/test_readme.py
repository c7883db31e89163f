"""Commands and examples of the README and the guides."""

import json
import re
import shlex
from pathlib import Path

import pytest

import tune_hpc
from tune_hpc import Experiment, load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SEARCHING = (ROOT / "docs" / "searching.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def block(words: str) -> str:
    """Return the code block of the README that contains the words."""
    (found,) = [text for text in re.findall(r"```\w*\n(.*?)```", README, flags=re.DOTALL) if words in text]
    return found


def commands(page: Path) -> list[list[str]]:
    """Return the arguments of each ``tune-hpc`` command in the shell blocks of a page."""
    text = page.read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r"; |\$\(|\)$| > ", line.partition("    #")[0])]
    return [shlex.split(part.rstrip(" )"), comments=True)[1:] for part in parts if part.startswith("tune-hpc ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_valid(page):
    from tune_hpc.cli.main import _parser

    for arguments in commands(page):
        _parser().parse_args(arguments)


def test_readme_has_commands():
    assert len(commands(ROOT / "README.md")) > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_figures_exist(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_example_of_own_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "own_code.md").read_text(encoding="utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    example = example.replace("run(experiment)", 'run(experiment, runner="local", show_progress=False)')
    names = {"__name__": "__main__"}
    exec(example, names)
    assert set(names["model"]) == {"learning_rate", "layers", "epochs"}
    assert isinstance(names["model"]["layers"], list)
    assert names["results"].counts()["stopped"] > names["results"].counts()["finished"]
    assert names["results"].best("latency_ms")["latency_ms"] == 2.0


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_user_defined_trainable_runs_as_experiment_and_as_function(write_module, tmp_path, capsys):
    from tune_hpc.cli import main

    write_module("my_search", block("# my_search.py"))
    assert main(["run", "my_search:experiment"]) == 0
    results = load(tmp_path / "runs" / "parabola")
    assert results.best()["rate"] == 0.5
    assert main(["run", "my_search:train", "--set", "rate=0.01,0.1,0.5"]) == 0
    assert load(tmp_path / "runs" / "my_search.train").trials["loss"].tolist() == results.trials["loss"].tolist()
    assert "best loss 0" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original_run = tune_hpc.run

    def run_small(experiment: Experiment):
        """Run the README's experiment at a small size."""
        assert experiment.num_trials == 60
        small = experiment.with_values(
            {"width": 0.1, "batch_size": 10, "steps": 2, "num_evaluations": 1, "num_evaluation_images": 50}
        ).replace(num_samples=2, seeds=(0, 1))
        return original_run(small, show_progress=False)

    monkeypatch.setattr(tune_hpc, "run", run_small, raising=False)
    names: dict = {}
    exec(compile(block("from search_spaces import exercise3"), "README.md", "exec"), names)
    assert names["results"].counts() == {"finished": 4}


def test_source_tree_has_every_package():
    tree = block("tune_hpc/\n  errors.py")
    listed = set(re.findall(r"^  ([a-z_]+)/", tree, flags=re.MULTILINE))
    assert listed == {path.parent.name for path in (ROOT / "tune_hpc").glob("*/__init__.py")}
    for name in re.findall(r"^([a-z_]+/)\s", tree, flags=re.MULTILINE):
        assert (ROOT / name).is_dir(), name
    for target in re.findall(r"(?:^|`)make ([a-z]+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE), target


def test_conditional_space_is_the_same_in_python_json_and_on_the_command_line():
    from tune_hpc import Space
    from tune_hpc.search.space.parsing import parse_settings

    names: dict = {}
    exec("from ray import tune\n" + block("from tune_hpc import Space, when"), names)
    space = names["space"]
    assert space.scientific == ("optimizer",)
    code, command, plain = re.findall(r"```(?:python|sh|json)\n(.*?)```", SEARCHING, flags=re.DOTALL)[:3]
    exec(code, names)
    assert Space(dict(names["space"]), roles={"optimizer": "scientific"}) == space
    parsed = Space(parse_settings(re.findall(r"--set '?(.*?)'?(?= --| \\|$)", command, flags=re.MULTILINE)))
    without_nesterov = space | {"optimizer": parsed["optimizer"]}
    assert parsed.to_json()["momentum"] == json.loads(plain)["momentum"] == without_nesterov.to_json()["momentum"]
    assert parsed.to_json()["learning_rate"] == space.to_json()["learning_rate"]


def test_every_searcher_and_scheduler_is_documented():
    from tune_hpc.search.options import SCHEDULERS, SEARCHERS

    assert re.findall(r"^\| `(\w+)` \|", SEARCHING, flags=re.MULTILINE) == [*SEARCHERS, *SCHEDULERS]
