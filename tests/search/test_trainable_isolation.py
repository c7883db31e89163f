"""Trainables that change their process, their arguments or their arrays: other trials and values stay as they are."""

import asyncio
import json
import multiprocessing
import os
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from ray import tune

from tune_hpc import Experiment, Space, load, resume, run
from tune_hpc.analysis.frames import write_frames
from tune_hpc.errors import FolderError, InvalidExperimentError
from tune_hpc.storage.checksum import load_json
from tune_hpc.storage.experiment_folder import ExperimentFolder

QUIET = {"runner": "local", "show_progress": False}


@pytest.fixture
def search(tmp_path):
    """Return a function that runs a trainable in this process for ``k`` in 1, 2, 3."""

    def run_trainable(trainable, **changes):
        fields = {"space": {"k": tune.choice([1, 2, 3])}, "seeds": ()} | changes
        space = Space(fields.pop("space"))
        experiment = Experiment("mine", space, trainable, metric="loss", mode="min", **fields)
        return run(experiment, output_dir=tmp_path / "mine", **QUIET, max_failures=0)

    return run_trainable


@pytest.mark.parametrize("make", [np.zeros, lambda shape: torch.zeros(shape, dtype=torch.float64)])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_array_that_a_trainable_changes_in_place_keeps_its_reported_values(search, make, shape):
    def train(config, report):
        total = make(shape)
        for step in range(1, 4):
            total += 1
            report(step, {"loss": total})

    assert search(train).history["loss"].tolist() == [1, 2, 3] * 3


def test_configuration_that_a_trainable_changes_is_that_of_its_trial_only(search):
    def train(config, report):
        config["opt"]["lr"] *= 10
        report(1, {"loss": config["opt"]["lr"]})

    results = search(train, space={"opt": tune.choice([{"lr": 1}, {"lr": 2}])}, seeds=(0, 1, 2))
    assert results.trials["loss"].tolist() == [10] * 3 + [20] * 3
    assert [json.loads(text)["opt"]["lr"] for text in results.trials["config"]] == [1] * 3 + [2] * 3


def test_report_after_the_end_of_a_trial_is_rejected(search, monkeypatch):
    threads, errors = [], []
    monkeypatch.setattr(threading, "excepthook", lambda hook: errors.append(str(hook.exc_value)))

    def train(config, report):
        def watch():
            time.sleep(0.05)
            report(2, {"loss": 0.0})

        threads.append(threading.Thread(target=watch))
        threads[-1].start()
        report(1, {"loss": 1.0})

    results = search(train)
    for thread in threads:
        thread.join()
    assert errors == ["report was called after the end of the trial; wait for threads before returning"] * 3
    assert results.counts() == {"finished": 3}
    assert results.history["step"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (torch.tensor(0.25), "finished"),
        (torch.tensor(0.25, dtype=torch.bfloat16, requires_grad=True), "finished"),
        (np.float32(0.25), "finished"),
        (Fraction(1, 4), "finished"),
        (float("inf"), "diverged"),
        (torch.tensor(float("nan")), "diverged"),
        (np.ma.masked, "diverged"),
        (1j, "failed"),
        (np.datetime64("2026-01-01"), "failed"),
        ("high", "failed"),
        ([1.0, 2.0], "failed"),
    ],
)
@pytest.mark.parametrize("is_reported", [True, False])
def test_metric_is_a_number_or_its_trial_fails(search, value, status, is_reported):
    def train(config, report):
        metrics = {"loss": value if config["k"] == 2 else float(config["k"])}
        if not is_reported:
            return metrics
        report(1, metrics)
        return None

    trials = search(train).trials
    assert trials["status"].tolist() == ["finished", status, "finished"]
    assert trials["loss"].dropna().tolist() == ([1.0, 0.25, 3.0] if status == "finished" else [1.0, 3.0])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"trial_id": "other"}, "got the metric 'trial_id', which is a column of the results"),
        ({"k": 5}, "got the metric 'k', which is a parameter"),
        ({"error": 0.1}, "got the metric 'error'"),
        ({1: 2}, "must be a word; got 1"),
        ({"caf\udce9": 2}, "must be a word"),
        ({"steps_run": "x"}, "steps_run has 'x'"),
    ],
)
def test_returned_column_of_another_meaning_fails_the_trial(search, returned, message):
    trials = search(lambda config, report: {"loss": 1.0} | (returned if config["k"] == 2 else {})).trials
    assert trials["status"].tolist() == ["finished", "failed", "finished"]
    assert message in trials.loc[1, "error"]


@pytest.mark.parametrize(
    ("returned", "text"),
    [
        (2**70, "1180591620717411303424"),
        ("caf\udce9.txt", "caf\\udce9.txt"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (torch.tensor(2.5), "2.5"),
    ],
)
def test_any_other_returned_value_leaves_the_search_readable(search, returned, text):
    results = search(lambda config, report: {"loss": 1.0, "note": returned if config["k"] == 2 else 5})
    assert results.counts() == {"finished": 3}
    assert str(load(results.folder).trials.loc[1, "note"]) == text


@pytest.mark.parametrize("step", [1e300, np.inf, 2**63, -1, np.nan, "1", True, [[1, 2]]])
def test_step_that_is_no_whole_number_fails_the_trial(search, step):
    def train(config, report):
        report(step if config["k"] == 2 else 1, {"loss": 1.0})

    results = search(train)
    assert results.trials["status"].tolist() == ["finished", "failed", "finished"]
    assert "a step must be a whole number from 0 on, at most 2**53" in results.trials.loc[1, "error"]
    assert results.history["step"].tolist() == [1, 1]


@pytest.mark.parametrize("has_bare_except", [True, False])
def test_divergence_that_a_trainable_catches_ends_its_trial(search, has_bare_except):
    def train(config, report):
        for step in range(1, 4):
            try:
                report(step, {"loss": np.nan if step == 2 else 1 / step})
            except BaseException as error:
                if not has_bare_except and not isinstance(error, Exception):
                    raise

    results = search(train)
    assert results.counts() == {"diverged": 3}
    assert results.history["step"].tolist() == [1, 1, 1]
    assert results.trials["stop_reason"].tolist() == ["non-finite loss at step 2"] * 3


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


class Cancelled(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [Unprintable(), Cancelled("x"), asyncio.CancelledError(), GeneratorExit(), OSError("cannot open caf\udce9.txt")],
    ids=lambda error: type(error).__name__,
)
def test_any_exception_fails_its_trial_only(search, error):
    def train(config, report):
        report(1, {"loss": 1.0})
        if config["k"] == 2:
            raise error

    results = search(train)
    assert results.trials["status"].tolist() == ["finished", "failed", "finished"]
    assert type(error).__name__ in load(results.folder).trials.loc[1, "error"]


@pytest.mark.parametrize("ending", ["return", "exit", "raise", "report"])
def test_forked_child_runs_no_trials(search, tmp_path, ending):
    def train(config, report):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            report(1, {"loss": 1.0})
        elif ending == "exit":
            raise SystemExit
        elif ending == "raise":
            raise ValueError("in the child")
        elif ending == "report":
            report(1, {"loss": 0.0})
        with (tmp_path / "calls.txt").open("a") as file:
            file.write(f"{config['k']} ")

    results = search(train)
    assert results.counts() == {"finished": 3}
    assert results.trials["loss"].tolist() == [1.0] * 3
    num_calls = 6 if ending == "return" else 3
    assert len((tmp_path / "calls.txt").read_text().split()) == num_calls
    assert not multiprocessing.active_children()


def test_working_directory_of_a_trainable_ends_with_its_trial(search, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = []

    def train(config, report):
        folders.append(os.getcwd())
        os.chdir("/")
        return {"loss": 1.0}

    search(train)
    assert folders == [str(tmp_path)] * 3
    assert os.getcwd() == str(tmp_path)


def test_metric_with_the_name_of_a_parameter_is_rejected():
    with pytest.raises(InvalidExperimentError, match="loss is a metric and a parameter"):
        Experiment("mine", Space({"loss": tune.choice([1, 2])}), lambda config, report: None, metric="loss", mode="min")


def curve(config, report):
    for step in range(1, 4):
        report(step, {"loss": config["k"] / step})


def test_search_killed_between_its_two_frames_loses_no_history(search, tmp_path, monkeypatch):
    folder = ExperimentFolder(tmp_path / "mine")
    replace, names = os.replace, []

    def killed(source, target, **options):
        names.append(os.path.basename(target))
        if {"trials.parquet", "history.parquet"} <= set(names):
            raise KeyboardInterrupt
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        search(curve)
    monkeypatch.undo()
    expected = [k / step for k in (1, 2, 3) for step in (1, 2, 3)]
    assert load(folder.path).history["loss"].tolist() == expected
    (results,) = resume(folder.path, trainable=curve, force=True, **QUIET)
    assert results.counts() == {"finished": 3}
    assert results.history["loss"].tolist() == expected


def test_retry_of_failed_trials_that_is_killed_is_resumed(search, tmp_path, monkeypatch):
    def flaky(config, report):
        if config["k"] == 2 and not (tmp_path / "fixed").exists():
            raise ValueError("flaky")
        return {"loss": 1.0}

    folder = search(flaky).folder

    def killed(*arguments):
        write_frames(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("tune_hpc.analysis.frames.write_frames", killed)
    with pytest.raises(KeyboardInterrupt):
        resume(folder, trainable=flaky, retry_failed=True, **QUIET)
    monkeypatch.undo()
    (tmp_path / "fixed").touch()
    (results,) = resume(folder, trainable=flaky, **QUIET)
    assert results.counts() == {"finished": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "running", "process": 5},
        {"state": "running", "process": {"pid": 5}},
        {"state": "interrupted", "provenance": {"wall_s": "x"}},
        {"state": "interrupted", "provenance": {"continued": 5}},
    ],
)
def test_edited_experiment_file_is_rejected_before_the_start(search, changes):
    folder = ExperimentFolder(search(curve).folder)
    edited = load_json(folder.experiment_file.read_bytes()) | changes
    edited.pop("crc32", None)
    folder.experiment_file.write_text(json.dumps(edited))
    with pytest.raises(FolderError, match=r"experiment\.json is damaged: (process|provenance)"):
        resume(folder.path, trainable=curve, **QUIET)
