"""Command line: rejected input, output, exit codes. No test starts Ray."""

import importlib
import io
import logging
import os
import platform
import re
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from tune_hpc import __version__, cli
from tune_hpc.analysis.frames import trials_frame, write_frames
from tune_hpc.cli.main import _parser
from tune_hpc.cli.selection import find_experiments
from tune_hpc.search.progress import SearchProgress, TrialCounts
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import summarise

#: The module, because the package has a function of this name.
COMMANDS = sys.modules["tune_hpc.cli.main"]

MINE = """
from ray import tune
from tune_hpc import Experiment, Space

def train(config, report):
    report(1, {"loss": 1.0})

experiment = Experiment("mine", Space({"x": tune.choice([1, 2])}, keys={}), train, metric="loss", mode="min", seeds=())
number = 3
nothing = []
lost = experiment.replace(name="lost", trainable="no_such_module:train")
picky = experiment.replace(name="picky", runner="scaling")
calls = []

def refuse(experiments, **options):
    from tune_hpc.errors import InvalidExperimentError
    calls.append(options)
    raise InvalidExperimentError("picky rejects everything")

def pretend(experiments, *, folders, **options):
    import pandas as pd
    from tune_hpc import Results
    calls.append(options | {"folders": folders})
    status = options.get("address") or "finished"
    trials = pd.DataFrame({"trial_id": ["t00000"], "status": [status], "x": [1], "loss": [0.25], "error": [None]})
    return [
        Results(one.to_json() | {"config_keys": ["x"], "state": "interrupted" if status == "running" else "finished"},
                trials, pd.DataFrame({"trial_id": [], "step": []}))
        for one in experiments
    ]

pretended = experiment.replace(name="pretended", runner="search")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Working folder with a module of a user; a start of Ray or a download is a failure."""

    def refuse(*arguments, **options):
        raise AssertionError("the input was not rejected in time")

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr("tune_hpc.learning.download.read_files", refuse)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "broken.py").write_text("x = (\n")
    (tmp_path / "file").write_text("x")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("x")
    yield tmp_path
    for name in ("mine", "broken"):
        sys.modules.pop(name, None)


@pytest.fixture
def calls(folder, monkeypatch):
    """Calls of the runners: ``pretend`` runs searches, ``refuse`` runs scaling measurements."""
    mine = importlib.import_module("mine")
    runners = {"search": mine.pretend, "scaling": mine.refuse}
    monkeypatch.setattr("tune_hpc.jobs.launch._runner", runners.__getitem__)
    return mine.calls


@pytest.fixture
def finished(folder):
    """Experiment folder with two finished trials and a failed one."""
    keys = ["optimizer", "learning_rate", "momentum", "seed"]
    description = {
        "name": "made.up", "metric": "test_loss", "mode": "min", "config_keys": keys, "state": "finished",
        "space": {"optimizer": "adam", "learning_rate": {"choice": [0.1, 0.2, 0.3]}},
    }  # fmt: skip
    run = ExperimentFolder(folder / "run")
    run.claim("made.up")
    run.write(description)
    history = pd.DataFrame({"step": np.arange(3), "test_loss": [3.0, 2.0, 1.0], "test_accuracy": [0.1, 0.5, 0.9]})
    rows = []
    for number, rate in enumerate((0.1, 0.2, 0.3)):
        config = {"optimizer": "adam", "learning_rate": rate, "seed": 0}
        row = {"trial_id": f"t{number:05d}", "status": "finished"} | config
        rows.append(row | summarise(history.assign(test_loss=history["test_loss"] * rate)))
    rows[2] = {name: rows[2][name] for name in ("trial_id", "optimizer", "learning_rate", "seed")}
    rows[2] |= {"status": "failed", "error": "ValueError: no"}
    histories = [history.assign(trial_id=row["trial_id"]) for row in rows[:2]]
    write_frames(run, trials_frame(rows, keys), pd.concat(histories, ignore_index=True))
    return run.path


@pytest.fixture
def reject(folder, capsys):
    """Function that runs a command with invalid input, and returns the line of the error."""

    def call(*arguments):
        before = sorted(folder.rglob("*"))
        code = cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert code == cli.USAGE == 2
        assert output.out == ""
        assert re.fullmatch(r"tune-hpc: [^\n]*\n", output.err)
        assert "Traceback" not in output.err
        assert [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts] == before
        return output.err.removeprefix("tune-hpc: ").removesuffix("\n")

    return call


LINE, WINNER = "exercise1_1stpart", "exercise3.winner"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([LINE, "--set", "optimizer=adamm"], "optimizer must be one of gradient_descent, momentum, nesterov, adagrad, "
         "adadelta, adam, rmsprop, ftrl, proximal_adagrad, proximal_gradient_descent; got 'adamm'"),
        ([LINE, "--set", "optimizer=adam,adamm"], "proximal_gradient_descent; got 'adamm'"),
        ([WINNER, "--set", "model=mlp"], "model must be one of line, softmax, cnn; got 'mlp'"),
        ([LINE, "--set", "learning_rat=1"], "no such key 'learning_rat'; a trial's keys are model, data, optimizer, "),
        ([LINE, "--set", "steps=1", "--set", "steps=2"], "--set takes each key once; steps is given twice"),
        ([LINE, "--set", "steps=1", "--set", " steps =1"], "--set takes each key once; steps is given twice"),
        ([LINE, "--set", "steps"], "--set takes KEY=VALUE or KEY[OTHER=VALUES]=VALUE; got 'steps'"),
        ([LINE, "--set", "=3"], "--set takes KEY=VALUE or KEY[OTHER=VALUES]=VALUE; got '=3'"),
        ([LINE, "--set", "learning_rate=-1"], "learning_rate must be a number above 0; got -1"),
        ([LINE, "--set", "learning_rate=fast"], "learning_rate must be a number above 0; got 'fast'"),
        ([WINNER, "--set", "dropout=1"], "dropout must be a number at least 0 and below 1; got 1"),
        ([WINNER, "--set", "batch_size=70000"],
         "batch_size must be a whole number at least 1 and at most 50000; got 70000"),
        ([LINE, "--set", "optimizer="], "optimizer: a value is missing in ''"),
        ([LINE, "--set", "optimizer=choice()"], "optimizer: choice needs at least one value; got none"),
        ([LINE, "--set", "steps=5,5"], "steps: choice takes each value once; got 5, 5"),
        ([LINE, "--set", "beta1=0.5"], "beta1 belongs to adam; the space has optimizer=gradient_descent"),
        ([LINE, "--set", "data=mnist"],
         "the model line and the data line need each other; got model='line' with data='mnist'"),
        ([LINE, "--set", "learning_rate=loguniform(1e-4, 1)"], "a grid needs finite parameters; learning_rate is "
         "loguniform(0.0001, 1): list its values, or search at random with num_samples"),
        ([LINE, "--set", "learning_rate=loguniform(0, 1)", "--num-samples", "3"],
         "learning_rate: the lower bound of loguniform must be above 0; got 0, 1"),
        ([LINE, "--set", "steps=randint(1, 1000000000)"], "an experiment has at most 100000 trials; exercise1_1stpart "
         "has 4999999995: narrow its space, or use fewer with num_samples"),
        ([LINE, "--seeds", "0"], "seeds must be at least 1; got 0"),
        ([LINE, "--seeds", "2", "--set", "seed=1"], "the seed is given twice: seed=1 in the space and seeds=[0, 1]"),
        ([LINE, "--num-samples", "0"], "num_samples must be at least 1; got 0"),
        ([LINE, "--num-samples", "-3"], "num_samples must be at least 1; got -3"),
        ([LINE, "--searcher", "bayes"], "searcher must be one of grid, random, quasi_random, tpe, gp; got 'bayes'"),
        ([LINE, "--searcher", "tpe"], "a tpe search needs num_samples; it was left out"),
        ([LINE, "--searcher", "grid", "--num-samples", "3"], "a grid runs every configuration once; got num_samples=3"),
        ([LINE, "--searcher", "quasi_random", "--num-samples", "9"], "a quasi-random search tries no configuration "
         "twice; got num_samples=9 for 5 configurations"),
        ([WINNER, "--searcher", "tpe", "--num-samples", "3"], "tpe needs a parameter that varies"),
        (["json:dumps", "--searcher", "gp", "--num-samples", "3", "--set", "x=randint(0, 10000000)"],
         "gp lists all values of a parameter, at most 1000000; x has 10000000: use tpe, or a range of floats"),
        (["--command", "''", "--set", "x=1,2"], "the command is empty; give a program and its arguments"),
        ([LINE, "--scheduler", "best"],
         "scheduler must be one of none, asha, pbt, asha_stopping, hyperband, median; got 'best'"),
        (["mine:train", "--set", "x=1,2", "--scheduler", "asha"],
         "a scheduler counts steps, and mine.train has no parameter steps with whole numbers"),
        ([LINE, "--set", "momentum[optimizer=adamm]=0.9"], "optimizer must be one of gradient_descent, momentum"),
        ([LINE, "--set", "momentum[optimizer=adam]=0.9"], "momentum: its condition optimizer=adam never holds"),
        ([LINE, "--set", "momentum[width=2]=0.9"], "momentum: its condition is on width, which is no parameter"),
        ([LINE, "--from", "."], "is no experiment folder: no experiment.json in it or below it"),
        ([LINE, "--search-seed", "-1"], "search_seed must be at least 0; got -1"),
        ([LINE, "--metric", "W"],
         "metric W needs a mode, min or max; exercise1_1stpart is ranked by the min of train_loss"),
        ([LINE, "--metric", "accuracy", "--mode", "max"], "the metric of exercise1_1stpart must be one of train_loss, "
         "W, b, steps_run, setup_s, train_s, eval_s, samples_per_s; got 'accuracy'"),
        ([LINE, "--cpus-per-trial", "0"], "cpus_per_trial must be above 0; got 0.0"),
        ([LINE, "--gpus-per-trial", "1.5"], "gpus_per_trial must be a fraction up to 1, or a whole number; got 1.5"),
        ([LINE, "--max-concurrent", "0"], "max_concurrent must be at least 1; got 0"),
        ([LINE, LINE], "each experiment is given once, with its own folder; got exercise1_1stpart, exercise1_1st"),
        (["exercise5"], "no experiment is called 'exercise5'; registered are exercise1_1stpart, exercise1_2ndpart, "),
        (["no_such_module:train"], "no module 'no_such_module', neither installed nor in "),
        (["..mine:train"], "'..mine:train' is not a reference; use the form package.module:attribute"),
        (["mine:trian"], "mine has no 'trian'; it has Experiment, Space, train, experiment, number,"),
        (["mine:number"], "mine:number is of type int; it must be an Experiment or a list of them"),
        (["mine:nothing"], "mine:nothing is of type list; it must be an Experiment or a list of them"),
        (["mine:train"], "mine:train is a function: give its parameters with --set KEY=VALUE, or name an Experiment"),
        (["mine:train", "--set", "status=1"], "status is a column of the results; rename the parameter"),
        (["mine:experiment", "--metric", "score"],
         "metric score needs a mode, min or max; mine is ranked by the min of loss"),
        (["mine:lost"], "no module 'no_such_module', neither installed nor in "),
        (["broken:train", "--set", "x=1"], "broken cannot be imported: "),
        ([], "a run has an experiment or a command; got neither: name an experiment (tune-hpc list), package."),
        ([LINE, "--command", "x {a}"], "a run has an experiment or a command; got exercise1_1stpart and a command: "),
        ([LINE, "--pattern", "x"], "--pattern is for the output of a command; add --command"),
        (["--command", "x {a}"], "a command has no space: give its parameters with --set KEY=VALUE"),
        (["--command", "x {a} {b}", "--set", "a=1"], "the command has no parameter 'b'; the space has a, seed; write "),
        (["--command", "x {a", "--set", "a=1"], "the command 'x {a' is malformed: expected '}' before end of string; "),
        (["--command", "x '{a}", "--set", "a=1"], "is malformed: no closing quotation; write {{ and }} for braces"),
        (["--command", " ", "--set", "a=1"], "the command is empty; give a program and its arguments"),
        (["--command", "x {a:.3f}", "--set", "a=1"], "has a format for 'a'; write {a}, or {{ for a brace"),
        (["--command", "x {a}", "--set", "a=1", "--pattern", "(?P<x"], "the pattern '(?P<x' is malformed: missing >, "),
        (["--command", "x {a}", "--set", "a=1", "--pattern", r"(?P<step>\d+)"], "has no group for a metric; name one"),
        (["--command", "x {a}", "--set", "b=1,2", "--set", "a[b=1]=3"],
         "the command has {a}, which does not exist in every configuration; read it from the environment variable"),
        (["--command", "x {a}", "--set", "a=1", "--set", "steps=9", "--scheduler", "asha"],
         "asha needs a trainable that saves its state, and a command saves none; use asha_stopping, hyperband, median"),
    ],
)  # fmt: skip
def test_invalid_run_is_rejected(reject, arguments, message):
    assert message in reject("run", *arguments)


@pytest.mark.parametrize(
    ("output_dir", "arguments", "message"),
    [
        ("file", [], "file cannot be made: .*file is a file; choose another output folder"),
        ("file/below", [], "file/below cannot be made: .*file is a file; choose another output folder"),
        ("foreign", [], "foreign is not empty and holds no experiment; choose an empty or new output folder"),
        ("run", [], "run already holds the experiment made.up; choose another output folder"),
        (
            "run",
            ["--overwrite"],
            "choose another output folder, or resume or overwrite it",
        ),
        ("run", ["exercise1_2ndpart"], "holds one experiment, not 2; choose another folder$"),
        ("a" * 300, [], "cannot be read: File name too long; choose another folder"),
    ],
)
def test_unusable_output_folder_is_rejected(reject, finished, output_dir, arguments, message):
    assert re.search(message, reject("run", LINE, *arguments, "--output-dir", output_dir))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["--seeds", "2"],
            "a scaling measurement has one value of seed; got 0, 1; its repeats have distinct seeds: set repeats",
        ),
        (["--set", "workers=0"], "workers must be a whole number at least 1; got 0"),
        (["--set", "workers=151"], "workers must be a whole number from 1 to the batch size 150; got 151"),
        (["--set", "num_timed_steps=0"], "num_timed_steps must be a whole number from 1 to the 5000 steps; got 0"),
        (["--set", "stepz=5"], "no such key 'stepz'; a trial's keys are "),
    ],
)
def test_invalid_scaling_measurement_is_rejected(reject, settings, message):
    assert message in reject("run", "exercise4", *settings)


def test_last_experiment_is_checked_before_the_first_one_runs(reject, calls):
    assert reject("run", "mine:pretended", "mine:picky", "--no-report") == "picky rejects everything"
    assert [options.get("check_only") for options in calls] == [True, True]


@pytest.mark.parametrize("verb", ["show", "report"])
@pytest.mark.parametrize("name", ["trials.parquet", "history.parquet"])
def test_corrupted_parquet_file_is_named(reject, finished, verb, name):
    (finished / name).write_bytes(b"PAR1 garbage PAR1")
    assert re.search(rf"run/{name} is not readable as Parquet \(.*\); restore it from a copy", reject(verb, finished))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": ', "run/experiment.json cannot be read: .*; restore it from a copy"),
        ("[]", "run/experiment.json describes no experiment: it has no name; restore it from a copy"),
        ('{"name": "x"}', "describes no experiment: it has no config_keys, metric, mode; restore it from a copy"),
    ],
)
def test_corrupted_description_is_named(reject, finished, text, message):
    (finished / "experiment.json").write_text(text)
    assert re.search(message, reject("show", finished))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere"], "nowhere is no experiment folder: the folder does not exist"),
        (["show", "foreign"], "foreign is no experiment folder: no experiment.json in it or below it"),
        (["show", "file"], "file is no experiment folder: no experiment.json in it or below it"),
        (["show", "a" * 300], "cannot be read: File name too long"),
        (["show", "run", "-n", "0"], "-n must be at least 1; got 0"),
        (
            ["show", "run", "--metric", "accuracy"],
            "no column 'accuracy' in the trials of made.up; there are experiment, trial_id, ",
        ),
        (
            ["show", "run", "--metric", "optimizer"],
            "column optimizer of made.up is not numeric; numeric columns are learning_rate, mom",
        ),
        (["run", LINE, "--resume"], "--resume needs --output-dir, the folder of the searches to resume"),
        (
            ["run", LINE, "--resume", "--overwrite", "--output-dir", "x"],
            "--resume keeps earlier results and --overwrite removes them",
        ),
        (["resume", "nowhere"], "nowhere is no experiment folder: the folder does not exist"),
        (["extend", "nowhere", "--num-samples", "3"], "nowhere is no experiment folder: the folder does not exist"),
        (["extend", "nowhere", "--num-samples", "0"], "num_samples must be at least 1; got 0"),
        (["resume", "nowhere", "--time-budget", "0"], "time_budget_s must be above 0; got 0.0"),
        (["resume", "nowhere", "--export", "paper"], "an export goes to mlflow, optuna, tensorboard; got 'paper'"),
        (["run", LINE, "--export", "optuna,paper"], "an export goes to mlflow, optuna, tensorboard; got 'paper'"),
        (["export", "nowhere", "--to", "optuna"], "nowhere is no experiment folder: the folder does not exist"),
        (["export", "foreign", "--to", "optuna"], "foreign is no experiment folder: no experiment.json in it or below"),
        (["export", "nowhere", "--to", "optuna,mlfow"], "an export goes to mlflow, optuna, tensorboard; got 'mlfow'"),
        (["report", "foreign"], "foreign is no experiment folder: no experiment.json in it or below it"),
        (["report", "run", "nowhere"], "nowhere is no experiment folder: the folder does not exist"),
        (["report", "run", "-o", "foreign"], "foreign is a folder; name the HTML file to write"),
        (["report", "run", "-o", "file/page.html"], "file is a file; choose another output folder"),
        (["list", "exercise5"], "no experiment is called 'exercise5'; registered are exercise1_1stpart, "),
        (["data", "emnist"], "no such image data set 'emnist'; there are mnist, fashion_mnist"),
        (["data", "mnist", "emnist"], "no such image data set 'emnist'; there are mnist, fashion_mnist"),
    ],
)
def test_other_commands_reject_invalid_input(reject, finished, arguments, message):
    assert message in reject(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"], ["show"], ["run", LINE, "--fast"], ["run", LINE, "--seeds", "many"],
        ["run", LINE, "--mode", "best"], ["run", LINE, "--qui"], ["show", "run", "-n", "x"],
    ],
)  # fmt: skip
def test_unknown_or_malformed_flags_exit_with_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == cli.USAGE
    assert re.fullmatch(r"tune-hpc[ \w]*: error: .*; see tune-hpc[ \w]* --help\n", capsys.readouterr().err)


def test_help_is_shown_without_a_command(capsys):
    assert cli.main([]) == cli.USAGE
    assert capsys.readouterr().out.startswith("usage: tune-hpc")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("5min", 300), ("5m", 300), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("1 d", 86400),
     ("1h 30min", 5400), (".5h", 1800), ("1e3", 1000)],
)  # fmt: skip
def test_time_has_units(text, seconds):
    for command in (["run", "x"], ["submit", "x"], ["resume", "x"], ["slurm", "x", "--time=9"]):
        assert _parser().parse_args([*command, "--time-budget", text]).time_budget_s == seconds


@pytest.mark.parametrize("text", ["", "h", "5x", "1h30", "soon", "1:30", "1,5h"])
def test_other_time_is_rejected_in_one_line(capsys, text):
    with pytest.raises(SystemExit):
        _parser().parse_args(["run", "x", f"--time-budget={text}"])
    assert capsys.readouterr().err == (
        "tune-hpc run: error: argument --time-budget: a time is a number of seconds, or like 90s, 5min, 1h30m, 1.5h; "
        f"got {text!r}; see tune-hpc run --help\n"
    )


def experiments_of(*arguments):
    flags = _parser().parse_args(["run", *arguments])
    return find_experiments(flags)


def test_flags_change_the_experiments():
    (experiment,) = experiments_of(WINNER, "--seeds", "3", "--set", "dropout=0.4,0.5", "--quick", "--set", "steps=7")
    assert (experiment.seeds, experiment.quick, experiment.num_trials) == ((0, 1, 2), True, 6)
    assert experiment.space.to_json()["dropout"] == {"choice": [0.4, 0.5]}
    assert experiment.space["steps"] == 7
    (experiment,) = experiments_of(
        LINE, "--set", "learning_rate=loguniform(1e-4, 1e-2)", "--num-samples", "5", "--search-seed", "3",
        "--metric", "W", "--mode", "min",
    )  # fmt: skip
    assert (experiment.searcher, experiment.num_samples, experiment.search_seed, experiment.num_trials) == (
        "random",
        5,
        3,
        5,
    )
    assert (experiment.metric, experiment.mode) == ("W", "min")


def test_name_selects_a_stage_an_exercise_all_or_an_object():
    assert [one.name for one in experiments_of(WINNER)] == [WINNER]
    assert len(experiments_of("exercise3")) == 9
    assert len(experiments_of("all")) == 14
    assert [one.name for one in experiments_of("mine:experiment", WINNER)] == ["mine", WINNER]


def test_function_is_searched_over_the_parameters_of_set():
    (experiment,) = experiments_of("mine:train", "--set", "x=1,2,3", "--set", "optimizer=mine")
    assert (experiment.name, experiment.metric, experiment.mode) == ("mine.train", "loss", "min")
    assert experiment.seeds == (0,)
    assert [config["x"] for config in experiment.configs()] == [1, 2, 3]
    (experiment,) = experiments_of("mine:train", "--set", "x=1", "--metric", "score", "--mode", "max", "--seeds", "2")
    assert (experiment.metric, experiment.mode, experiment.seeds) == ("score", "max", (0, 1))


@pytest.fixture
def run_pretended(calls):
    """Function that runs an experiment with the runner ``pretend``, and returns exit code and options."""
    return lambda *arguments: (cli.main(["run", "mine:pretended", "--no-report", *arguments]), calls[-1])


def test_flags_reach_the_runner(run_pretended, capsys):
    code, options = run_pretended(
        "--output-dir", "there", "--cpus-per-trial", "2", "--max-concurrent", "3", "--data-dir", "images",
        "--overwrite", "--fuse", "16", "--time-budget", "1.5h", "--target", "0.99", "--export", "optuna,tensorboard",
        "--local", "--fail-fast",
    )  # fmt: skip
    assert code == cli.SUCCESS
    assert [str(folder) for folder in options.pop("folders")] == ["there"]
    assert options == {
        "address": None, "overwrite": True, "resume_started": False, "cpus_per_trial": 2, "gpus_per_trial": None,
        "max_concurrent": 3, "data_dir": "images", "fuse": "16", "time_budget_s": 5400.0, "target": 0.99,
        "no_reuse": False, "max_failures": None, "trial_time_limit_s": None,
        "force": False, "export": ["optuna,tensorboard"], "runner": "local", "fail_fast": True,
    }  # fmt: skip
    assert capsys.readouterr().out == "pretended: 1 finished; best loss 0.25 at x=1\n"


def test_searchers_and_schedulers_are_chosen_by_flags():
    (experiment,) = experiments_of(WINNER, "--set", "dropout=uniform(0, 0.5)", "--searcher", "tpe", "--num-samples",
                                   "7", "--scheduler", "asha", "--search-seed", "5")  # fmt: skip
    assert (experiment.searcher, experiment.num_samples, experiment.scheduler, experiment.search_seed) == (
        "tpe",
        7,
        "asha",
        5,
    )
    (other,) = experiments_of(WINNER, "--set", "dropout=uniform(0, 0.5)", "--num-samples", "7")
    assert (other.searcher, other.scheduler) == ("random", "none")


def test_default_output_folder_is_below_runs(folder, run_pretended):
    assert str(run_pretended()[1]["folders"][0]) == "runs/pretended"
    (folder / "runs" / "pretended").mkdir(parents=True)
    assert str(run_pretended()[1]["folders"][0]) == "runs/pretended-2"


@pytest.mark.parametrize(
    ("status", "code"), [("finished", cli.SUCCESS), ("failed", cli.FAILURE), ("running", cli.INTERRUPTED)]
)
def test_exit_code_depends_on_the_outcome(run_pretended, status, code):
    assert run_pretended("--address", status)[0] == code


def test_run_prints_the_first_error_and_the_folder_of_the_logs(folder, capsys):
    (folder / "mine.py").write_text(MINE.replace("report(1,", "print('began'); 1 / (config['x'] - 2); report(1,"))
    assert cli.main(["run", "mine:experiment", "--local", "--output-dir", "half", "--no-report"]) == cli.SUCCESS
    error = "t00001: ZeroDivisionError: division by zero (in train, mine.py line 6)"
    assert capsys.readouterr().out.endswith(f"\nmine: 1 of 2 trials failed, {error}\n")
    assert cli.main(["run", "mine:train", "--set", "x=2", "--local", "--output-dir", "all", "--no-report"]) == 1
    assert "mine.train: 1 of 1 trials failed, t00000: ZeroDivisionError" in capsys.readouterr().out


def test_search_that_a_target_stops_before_its_first_trial_is_no_failure(folder, capsys):
    (folder / "mine.py").write_text(f"{MINE}both = [experiment, experiment.replace(name='second')]\n")
    flags = ["--local", "--no-report", "--output-dir"]
    assert cli.main(["run", "mine:both", "--target", "1", *flags, "early"]) == cli.SUCCESS
    assert "second: no trials" in capsys.readouterr().out
    (folder / "mine.py").write_text(f"{MINE.replace('report(1,', '1 / 0; report(1,')}both = [experiment]\n")
    sys.modules.pop("mine")
    assert cli.main(["run", "mine:both", "--max-failures", "1", *flags, "failed"]) == cli.FAILURE


def test_warning_signal_during_the_report_has_no_effect(folder, monkeypatch):
    def write_report(*arguments, **options):
        os.kill(os.getpid(), signal.SIGUSR1)
        return "report.html"

    monkeypatch.setattr("tune_hpc.report.report.write_report", write_report)
    (folder / "mine.py").write_text(MINE)
    assert cli.main(["run", "mine:experiment", "--local", "--output-dir", "out"]) == cli.SUCCESS
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_interrupt_is_reported_in_one_line(monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS, "find_experiments", interrupt)
    assert cli.main(["run", LINE]) == cli.INTERRUPTED == 130
    assert capsys.readouterr().err == "tune-hpc: interrupted\n"


def test_log_lines_appear_above_the_progress_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    def search(flags):
        with SearchProgress([TrialCounts(3)], {}):
            logging.getLogger("tune_hpc.search").info("stopping")
        return []

    monkeypatch.setattr(COMMANDS, "find_experiments", search)
    monkeypatch.setattr(COMMANDS, "run_experiments", lambda *arguments: 0)
    assert cli.main(["run", LINE]) == cli.SUCCESS
    # Rich removes the bar's line first, and draws it again below.
    assert re.search(r"\x1b\[2Kstopping\s*\n.*0/3 trials", terminal.getvalue())


def test_show_prints_counts_best_trials_and_errors(finished, capsys):
    assert cli.main(["show", str(finished)]) == cli.SUCCESS
    output = capsys.readouterr().out
    assert output.startswith("made.up: 2 finished, 1 failed; best test_loss 0.1 at learning_rate=0.1\n")
    best, failed = output.split("failed:\n")
    assert [line.split()[1] for line in best.splitlines() if line.startswith("| t0")] == ["t00000", "t00001"]
    assert "ValueError: no" in failed


def test_show_ranks_by_metric_and_limits_rows(finished, capsys):
    assert cli.main(["show", str(finished), "--metric", "learning_rate", "--mode", "max", "-n", "1"]) == cli.SUCCESS
    output = capsys.readouterr().out.partition("failed:")[0]
    assert "best learning_rate 0.2 at learning_rate=0.2" in output
    assert [line.split()[1] for line in output.splitlines() if line.startswith("| t0")] == ["t00001"]


def test_compare_ranks_values_and_searches(finished, capsys):
    assert cli.main(["compare", str(finished), "--by", "learning_rate"]) == cli.SUCCESS
    output = capsys.readouterr().out
    assert output.startswith("learning rate 0.1 has the best test loss 0.1; inconclusive with one seed each.\n")
    first_column = [line.split()[1] for line in output.splitlines() if line.startswith("|  ")]
    assert first_column == ["learning_rate", "0.1", "0.2"]
    page = finished.parent / "compared.html"
    assert cli.main(["compare", str(finished), str(finished), "--output", str(page)]) == cli.SUCCESS
    output, html = capsys.readouterr().out, page.read_text(encoding="utf-8")
    assert output.endswith(f"report: {page}\n")
    assert html.count("<section id=") == 3
    assert html.index(output.splitlines()[0]) < html.index("Provenance")
    assert cli.main(["compare", str(finished)]) == cli.USAGE
    assert "is one search; name another folder, or a parameter: --by" in capsys.readouterr().err


def test_export_prints_new_trials_and_the_viewer(finished, capsys):
    for num_new in (3, 0):
        assert cli.main(["export", str(finished), "--to", "tensorboard"]) == cli.SUCCESS
        shown_by = f"tensorboard --logdir {finished / 'tensorboard'}"
        assert capsys.readouterr().out == f"made.up: {num_new} new trials exported to tensorboard; {shown_by}\n"


def test_missing_extra_is_reported_before_the_run(reject, monkeypatch):
    monkeypatch.setattr("tune_hpc.search.object_reference.find_spec", lambda name: None if name == "mlflow" else name)
    assert reject("run", LINE, "--export", "mlflow") == (
        "an export to mlflow needs the package mlflow, which is not installed; install tune_hpc with its extra [mlflow]"
    )


def test_report_prints_the_path_of_the_page(finished, folder, capsys):
    assert cli.main(["report", str(finished), "-o", str(folder / "page.html")]) == cli.SUCCESS
    assert capsys.readouterr().out == f"{folder / 'page.html'}\n"
    assert "made.up" in (folder / "page.html").read_text()


def test_list_prints_sizes(capsys):
    assert cli.main(["list"]) == cli.SUCCESS
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 14
    assert next(line for line in lines if "exercise2.softmax" in line).split()[:3] == ["exercise2.softmax", "72", "72"]


def test_list_of_one_experiment_prints_its_parameters(capsys):
    assert cli.main(["list", "exercise3.decay"]) == cli.SUCCESS
    output = capsys.readouterr().out
    assert output.startswith("exercise3.decay: A decaying learning rate (Table 4.3) (report, Table 4.3; 2 trials)\n")
    assert "\n  batch_size = choice(150, 100)\n" in output
    assert "\n  decay_rate = 0.95\n" in output


def test_data_prints_folders(monkeypatch, capsys, folder):
    monkeypatch.setattr("tune_hpc.learning.download.find_or_download", lambda name, folder: folder / name)
    assert cli.main(["data", "mnist", "fashion_mnist", "--data-dir", str(folder)]) == cli.SUCCESS
    assert capsys.readouterr().out == f"mnist: {folder / 'mnist'}\nfashion_mnist: {folder / 'fashion_mnist'}\n"


def test_help_has_examples_and_version_is_printed(capsys):
    for arguments, expected in ((["--help"], "tune-hpc run exercise2.softmax"), (["--version"], __version__)):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == 0
        assert expected in capsys.readouterr().out


class TestResumeCommands:
    @pytest.fixture
    def stop(self, folder, capsys):
        """Function that runs two searches until the first trial ends, and returns the commands that it prints."""
        source = MINE + "\nsecond = experiment.replace(name='second')\nboth = [experiment, second]\n"
        (folder / "mine.py").write_text(source)

        def run(*names):
            arguments = ["run", *names, "--target", "100", "--local", "--no-report", "--output-dir", "out"]
            cli.main(arguments)
            return [line for line in capsys.readouterr().out.splitlines() if "to resume" in line]

        return run

    def test_searches_of_one_folder_have_one_command(self, stop, folder, capsys):
        reason = "a trial reached 1, and 100 was the target"
        assert stop("mine:both") == [f"2 searches: {reason}; to resume: tune-hpc resume {folder / 'out'}"]
        assert cli.main(["resume", "out", "--local", "--no-report"]) == cli.SUCCESS
        assert capsys.readouterr().out.count("2 finished") == 2

    def test_folder_with_other_searches_is_not_resumed_as_a_whole(self, stop, folder):
        (folder / "out").mkdir()
        (folder / "run").mkdir()
        ExperimentFolder(folder / "out" / "other").claim("other")
        ExperimentFolder(folder / "out" / "other").write({"name": "other", "state": "stopped", "format": 1})
        assert [line.rpartition("/")[2] for line in stop("mine:both")] == ["mine", "second"]

    def test_single_search_has_its_own_command(self, stop, folder):
        assert [line.partition("resume: ")[2] for line in stop("mine:experiment")] == [
            f"tune-hpc resume {folder / 'out'}"
        ]


def test_show_prints_how_to_resume_an_unfinished_search(folder, capsys):
    rows = [{"trial_id": "t00000", "status": "finished", "x": 1, "loss": 0.5}, {"trial_id": "t00001", "x": 2}]
    made = ExperimentFolder(folder / "my run")
    made.claim("mine")
    made.write(
        {
            "name": "mine", "metric": "loss", "mode": "min", "config_keys": ["x"], "runner": "search",
            "state": "running", "process": {"host": platform.node(), "pid": 2**22 + 1}, "num_trials": 5,
        }
    )  # fmt: skip
    write_frames(
        made,
        trials_frame([{"status": "running"} | row for row in rows], ["x"]),
        pd.DataFrame({"trial_id": [], "step": []}),
    )
    assert cli.main(["show", str(made.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("mine: 1 finished, 1 running; best loss 0.5 at x=1")
    assert lines[1] == f"mine: 1 of 5 trials have ended; to resume: tune-hpc resume '{made.path}'"


def test_compare_names_constants_that_differ(folder, capsys):
    (folder / "mine.py").write_text(MINE)
    for epochs in (15, 40):
        flags = ["--set", f"epochs={epochs}", "--local", "--no-report", "--output-dir", f"run{epochs}"]
        assert cli.main(["run", "mine:experiment", *flags]) == cli.SUCCESS
    capsys.readouterr()
    assert cli.main(["compare", "run15", "run40"]) == cli.SUCCESS
    assert capsys.readouterr().out.endswith("\nThe searches also differ in epochs (15, 40).\n")


@pytest.mark.parametrize("num_finished", [0, 1])
def test_show_prints_the_first_error(folder, capsys, num_finished):
    rows = [{"trial_id": f"t{n:05d}", "status": "failed", "x": n, "error": "ValueError: no data"} for n in range(2)]
    rows += [{"trial_id": "t00009", "status": "finished", "x": 9, "loss": 0.25}] * num_finished
    experiment = {"name": "mine", "metric": "loss", "mode": "min", "config_keys": ["x"], "state": "finished"}
    made = ExperimentFolder(folder / "run")
    made.claim("mine")
    made.write(experiment)
    write_frames(made, trials_frame(rows, ["x"]), pd.DataFrame({"trial_id": [], "step": []}))
    assert cli.main(["show", str(made.path)]) == 0
    assert f"mine: 2 of {2 + num_finished} trials failed, t00000: ValueError: no data" in capsys.readouterr().out


def test_output_on_a_full_disk_is_a_one_line_error():
    command = [sys.executable, "-m", "tune_hpc.cli", "list"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "tune-hpc: [Errno 28] No space left on device\n")


def test_deleted_working_directory_is_a_one_line_error(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "deleted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err == "tune-hpc: the working directory has been deleted; change to another one\n"
