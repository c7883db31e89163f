"""Search files: the experiments and options that they define, and rejected contents."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tune_hpc import load
from tune_hpc.cli import main
from tune_hpc.cli.main import _parser
from tune_hpc.cli.options import run_options
from tune_hpc.cli.selection import find_experiments
from tune_hpc.service.schemas import SearchRequest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "command"


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Return a function that returns the experiment of a search file with flags, and the options of its run."""
    monkeypatch.chdir(tmp_path)

    def call(text, *flags, name="search.yaml"):
        Path(name).write_text(text, encoding="utf-8")
        parsed = _parser().parse_args(["run", name, *flags])
        (experiment,) = find_experiments(parsed)
        return experiment, {name: value for name, value in run_options(parsed).items() if value not in (None, False)}

    return call


@pytest.fixture
def reject(read, capsys):
    """Return a function that runs a search file with invalid contents, and returns the line of the error."""

    def call(text, *flags, name="search.yaml"):
        Path(name).write_text(text, encoding="utf-8")
        assert main(["run", name, *flags]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.count("\n") == 1
        return output.err

    return call


COMMAND = "command: prog {x}\nset: {x: [1, 2]}\n"


def test_registered_experiment_has_the_changes_of_the_file(read):
    text = (
        "space: exercise3.winner\nquick: true\nseeds: 2\nset:\n  dropout: [0.4, 0.5]\n  steps: 7\ntime_budget_s: 1h30m"
    )
    experiment, options = read(text)
    assert (experiment.name, experiment.quick, experiment.num_trials) == ("exercise3.winner", True, 4)
    assert options == {"time_budget_s": 5400}


def test_request_to_the_service_is_a_search_file(read):
    request = {
        "space": "exercise1_1stpart", "set": {"learning_rate": {"loguniform": [1e-4, 1]}}, "num_samples": 5,
        "searcher": "tpe", "search_seed": 3, "max_concurrent": 2, "fuse": "off", "target": 0.5,
    }  # fmt: skip
    from search_spaces.exercise1_1stpart import experiments
    from tune_hpc.service.experiments import Registry

    expected = Registry(experiments).build_experiment(SearchRequest(**request))
    for name in ("search.json", "search.yml"):
        experiment, options = read(json.dumps(request), name=name)
        assert experiment == expected
        assert options == {"max_concurrent": 2, "fuse": "off", "target": 0.5}


def test_every_field_of_a_request_is_a_key(reject):
    keys = reject("space: exercise2\nnum_sample: 3").partition("allowed are ")[2].strip().split(", ")
    assert {*SearchRequest.model_fields, "command", "pattern"} <= {*keys}


def test_whole_space_replaces_that_of_the_experiment(read):
    experiment, _ = read("space: exercise1_1stpart\nparameters: {model: line, steps: 7}\nset: {learning_rate: 0.1}")
    assert experiment.space.to_json() == {"model": "line", "steps": 7, "learning_rate": 0.1}


def test_words_of_yaml_1_1_stay_texts(read):
    experiment, _ = read("command: prog {x}\nset: {x: [no, on, 1e-3, 1:30, 08, '08', '1', 1, null, [1, 2]]}\n")
    values = experiment.space.reachable_values("x")
    assert json.dumps(values) == '["no", "on", 0.001, "1:30", 8, "08", "1", 1, null, [1, 2]]'


def test_quoted_number_is_a_text_as_in_a_request(read):
    text = "command: prog {a}\nset: {a: '1', b: 'true', c: 'x', d: '1,2', e: 'uniform(0, 1)', f: 1, g: 'null'}\n"
    experiment, _ = read(f"{text}num_samples: 3")
    assert experiment.space.to_json() == {
        "a": "1", "b": "true", "c": "x", "d": {"choice": [1, 2]}, "e": {"uniform": [0, 1]}, "f": 1, "g": "null"
    }  # fmt: skip


def test_numbers_and_words_are_those_of_yaml_1_2(read):
    text = (
        "command: prog {a}\nset: {a: [1e-4, 2.5E+3, .5, -3, 010, off, yes, 2026-01-01, true], b: 'uniform(0, 1e-1)'}\n"
    )
    experiment, _ = read(f"{text}num_samples: 3\nfuse: off")
    assert experiment.space.to_json() == {
        "a": {"choice": [0.0001, 2500.0, 0.5, -3, 10, "off", "yes", "2026-01-01", True]}, "b": {"uniform": [0, 0.1]}
    }  # fmt: skip


def test_function_has_the_name_of_the_file(read, tmp_path, monkeypatch):
    (tmp_path / "my_functions.py").write_text("def train(config, report):\n    report(1, {'loss': config['x']})\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    experiment, _ = read("space: my_functions:train\nset: {x: [1, 2]}\nmetric: loss", name="my.search.yaml")
    assert (experiment.name, experiment.trainable, experiment.seeds) == ("my.search", "my_functions:train", (0,))


def test_large_space_of_a_function_is_sampled(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large.py").write_text("def train(config, report): ...\n")
    text = """
        space: large:train
        set: {loss: "randint(0, 10000000)", epochs: 9}
        metric: accuracy
        mode: max
        num_samples: 3
        budget: 9
    """
    experiment, _ = read(text)
    assert (experiment.num_trials, experiment.searcher) == (3, "random")
    assert (experiment.metric, experiment.budget) == ("accuracy", 9)


def test_flags_replace_options_of_the_file(read):
    text = f"{COMMAND}pattern: '(?P<a>.)'\nsearch_seed: 5\nnum_samples: 3\nmetric: a\nmode: max\ntime_budget_s: 60\n"
    flags = ("--search-seed", "0", "--num-samples", "4", "--metric", "b", "--time-budget", "2h", "--set", "x=3")
    experiment, options = read(text, *flags, "--command", "other {x}", "--pattern", "(?P<b>.)")
    assert (experiment.search_seed, experiment.num_samples, experiment.metric, experiment.mode) == (0, 4, "b", "max")
    assert (experiment.trainable.template, experiment.trainable.pattern) == ("other {x}", "(?P<b>.)")
    assert (experiment.space.to_json(), options) == ({"x": 3}, {"time_budget_s": 7200})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("space: exercise2\nnum_sample: 3", "search.yaml: there is no key 'num_sample'; did you mean num_samples? "),
        ("space: exercise2\n1: 3", "search.yaml: there is no key 1; allowed are space, command, pattern, param"),
        ("- 1", "search.yaml must be a mapping of keys like space and set; got [1]"),
        ("", "search.yaml must be a mapping of keys like space and set; got None"),
        ("space: [", "search.yaml is not valid YAML: expected the node content, but found '<stream end>' (line 1)"),
        ("set: {x: 1}\nset: {x: 2}", "search.yaml is not valid YAML: set is given twice (line 1)"),
        ("a: !!python/object:os.system 1", "search.yaml is not valid YAML: could not determine a constructor"),
        ("set: {x: 1}", "a run has an experiment or a command; got neither"),
        (f"space: exercise2\n{COMMAND}", "a run has an experiment or a command; got exercise2 and a command"),
        ("space: 3", "search.yaml: space must be the name of an experiment, or package.module:attribute; got 3"),
        ("space: exercise2\nset: [1]", "search.yaml: set must be a mapping of names to values; got [1]"),
        (f"{COMMAND}num_samples: many", "search.yaml: num_samples: it must be whole number, at least 1; got 'many'"),
        (f"{COMMAND}num_samples: 2.5", "search.yaml: num_samples: it must be whole number, at least 1; got 2.5"),
        (f"{COMMAND}num_samples: true", "search.yaml: num_samples: it must be whole number, at least 1; got True"),
        (f"{COMMAND}num_samples: 0", "num_samples must be at least 1; got 0"),
        (f"{COMMAND}quick: maybe", "search.yaml: quick: it must be true or false; got 'maybe'"),
        (f"{COMMAND}mode: 3", "search.yaml: mode: it must be min, max; got 3"),
        (f"{COMMAND}mode: best", "mode must be min or max; got 'best'"),
        (f"{COMMAND}export: [3]", "search.yaml: export: it must be words; got [3]"),
        (f"{COMMAND}time_budget_s: soon", "search.yaml: time_budget_s: a time is a number of seconds, or like 90s, "),
        ("command: prog {x} {y}\nset: {x: 1}", "the command has no parameter 'y'; the space has x, seed"),
        ("command: prog {x}\nset: {x: {unifrom: [0, 1]}}", "x: there is no domain 'unifrom'; allowed are choice, unif"),
    ],
)  # fmt: skip
def test_invalid_file_is_rejected(reject, text, message):
    assert message in reject(text)


def test_key_given_twice_in_json_is_rejected(reject):
    message = reject('{"set": {"x": [1, 2], "x": [7]}}', name="search.json")
    assert message == "tune-hpc: search.json is not valid: x is given twice\n"


def test_invalid_json_is_rejected(reject):
    assert "search.json is not valid: Expecting value: line 1" in reject(
        "{x}".replace("x", '"space": '), name="search.json"
    )


def test_missing_file_and_second_name_are_rejected(reject, capsys):
    assert main(["run", "no.yaml"]) == 2
    assert (
        capsys.readouterr().err == "tune-hpc: no.yaml cannot be read: No such file or directory; name a search file\n"
    )
    assert "a search file is given alone; got search.yaml, exercise2" in reject(COMMAND, "exercise2")


def test_batch_script_runs_the_file(read, capsys):
    read(COMMAND)
    assert main(["slurm", "search.yaml", "--time", "10"]) == 0
    text = " ".join(capsys.readouterr().out.replace("\\\n", " ").split())
    assert "tune-hpc run search.yaml '--command=prog {x}' --output-dir=runs/search --resume" in text


class TestExample:
    @pytest.fixture(autouse=True)
    def in_root(self, tmp_path, monkeypatch):
        """Change to a copy of the root of the repository, with this interpreter as python."""
        (tmp_path / "examples").symlink_to(EXAMPLE.parent)
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "python").symlink_to(sys.executable)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
        monkeypatch.chdir(tmp_path)

    def test_command_runs(self, capsys):
        words = "python examples/command/train.py --lr {lr}"
        metric = ["--metric", "val_loss", "--mode", "min"]
        arguments = ["--command", words, "--set", "lr=0.1,0.01", *metric, "--local", "--no-report"]
        assert main(["run", *arguments]) == 0
        assert "train: 2 finished; best val_loss 0.08091 at lr=0.1\n" in capsys.readouterr().out
        assert len(load("runs/train").history) == 40

    @pytest.mark.slow
    def test_search_file_runs_as_a_process(self):
        words = [
            sys.executable,
            "-m",
            "tune_hpc.cli",
            "run",
            "examples/command/search.yaml",
            "--num-samples",
            "2",
            "--local",
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=True)
        assert "search: 4 finished; best val_loss " in done.stdout
        assert load("runs/search").trials["seed"].tolist() == [0, 1, 0, 1]
        assert Path("runs/search/report.html").is_file()
