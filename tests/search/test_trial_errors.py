"""Errors of trainables in rows: their text, their location, and objects that cannot be pickled."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ray import tune

from tune_hpc import Experiment, Space, cli, run
from tune_hpc.errors import InvalidExperimentError
from tune_hpc.search.trial_errors import (
    EXCEPTION,
    OUT_OF_MEMORY,
    PROCESS_DIED,
    describe_death,
    describe_exception,
    is_device_lost,
)
from tune_hpc.storage.checksum import load_json
from tune_hpc.storage.trial_file import MAX_ERROR, to_error_text

LOCAL = {"runner": "local", "show_progress": False}


def search(trainable, **space) -> Experiment:
    space = {"x": tune.choice([1, 2])} | space
    return Experiment("search", Space(space, keys={}), trainable, metric="loss", mode="min", seeds=())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain: 1 × 2", "plain: 1 × 2"),
        ("two\nlines\tand\r\x00more", "two lines and more"),
        ("\x1b[31;1mred\x1b[0m \x1b]0;title\x07\x1b[2Jgone\x9b1m", "red gone 1m"),
        ("x" * 100_000, "x" * MAX_ERROR + "... (100000 characters, in the log of the trial)"),
    ],
)
def test_error_is_one_short_line_without_control_characters(text, expected):
    assert to_error_text(text) == expected


def test_long_error_is_shortened_in_the_row_and_complete_on_the_terminal(tmp_path, capfd):
    def fails(config, report):
        raise ValueError("\x1b[31mred\x1b[0m " + "x" * 100_000)

    results = run(search(fails), output_dir=tmp_path / "out", **LOCAL)
    error = results.trials.loc[0, "error"]
    assert error.startswith("ValueError: red xxx")
    assert "(in fails, test_trial_errors.py line " in error
    assert len(error) < MAX_ERROR + 150
    assert "x" * 100_000 in capfd.readouterr().err
    assert cli.main(["show", str(tmp_path / "out")]) == cli.SUCCESS
    shown = capfd.readouterr().out
    assert "\x1b" not in shown
    assert len(shown) < 10_000


@pytest.mark.parametrize(
    ("source", "location"),
    [
        ("json.loads('[')", "(in helper, user.py line 4)"),
        ("report('one', {})", "(in helper, user.py line 4)"),
        ("raise KeyError(1)", "(in helper, user.py line 4)"),
    ],
)
def test_error_names_the_last_line_of_the_users_code(write_module, tmp_path, source, location):
    write_module(
        "user",
        f"import json\n\ndef helper(report):\n    {source}\n\ndef train(config, report):\n    helper(report)\n",
    )
    try:
        experiment = search("user:train")
        results = run(experiment, output_dir=tmp_path / "out", **LOCAL)
    finally:
        sys.modules.pop("user", None)
    assert results.trials.loc[0, "error"].endswith(location)


def raised(call, *arguments):
    with pytest.raises(BaseException) as error:  # noqa: PT011 - any exception of the call
        call(*arguments)
    return error.value


def test_location_is_that_of_the_innermost_function_of_the_user():
    def parse(text):
        return json.loads(text)

    described = describe_exception(raised(parse, "["))
    assert described["stop_reason"] == EXCEPTION
    line = parse.__code__.co_firstlineno + 1
    assert described["error"] == (
        f"json.decoder.JSONDecodeError: Expecting value: line 1 column 2 (char 1) "
        f"(in parse, test_trial_errors.py line {line})"
    )


def test_location_without_a_function_of_the_user_is_the_last_one():
    # The first frame is that of the test, which is outside of any installation.
    error = raised(json.loads, "[")
    error.__traceback__ = error.__traceback__.tb_next.tb_next
    described = describe_exception(error)["error"]
    assert "(in raw_decode, decoder.py line " in described


class OutOfMemoryError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), OUT_OF_MEMORY),
        (OutOfMemoryError("CUDA out of memory"), OUT_OF_MEMORY),
        (RuntimeError("out of memory"), EXCEPTION),
        (SystemExit(1), EXCEPTION),
    ],
)
def test_reason_of_an_exception(error, reason):
    def fail():
        raise error

    assert describe_exception(raised(fail))["stop_reason"] == reason


class AcceleratorError(RuntimeError):
    pass


class Unprintable(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (AcceleratorError("x"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError("error in CUDA code"), False),
        (Unprintable(), False),
    ],
)
def test_device_is_lost_after_errors_of_cuda(error, is_lost):
    assert is_device_lost(error) is is_lost


@pytest.mark.parametrize(
    ("report", "reason", "error"),
    [
        (
            "ray::f()\n  File x\nray.exceptions.RayTaskError: ValueError\nValueError: first\nuser.MyError: last\n",
            EXCEPTION,
            "user.MyError: last; see the log of the trial",
        ),
        ("SystemExit\n", EXCEPTION, "SystemExit; see the log of the trial"),
        (
            "Task was killed due to the node running low on memory.",
            OUT_OF_MEMORY,
            "the trial's process died: its node is low on memory, so that Ray killed it; run fewer trials at once; "
            "see the log of the trial",
        ),
        (
            "Worker exit type: SYSTEM_ERROR Worker exit detail: first\nWorker exits with exit code 1. Some common "
            "causes include: (1) the process was killed",
            PROCESS_DIED,
            "the trial's process died: Worker exits with exit code 1; see the log of the trial",
        ),
        (
            "Worker exit detail: Worker unexpectedly exits. Some common causes include",
            PROCESS_DIED,
            "the trial's process died: Worker unexpectedly exits; lack of memory is the usual cause; see the log of "
            "the trial",
        ),
        (
            "",
            PROCESS_DIED,
            "the trial's process died: Ray gives no reason; lack of memory is the usual cause; see the log of the "
            "trial",
        ),
    ],
)
def test_report_of_ray_on_a_dead_process(report, reason, error):
    assert describe_death(report) == {"stop_reason": reason, "error": error}


def test_object_that_cannot_be_pickled_is_named(tmp_path):
    lock = threading.Lock()

    def locks(config, report):
        with lock:
            report(1, {"loss": 1.0})

    with pytest.raises(InvalidExperimentError) as error:
        run(search(locks), output_dir=tmp_path / "out", show_progress=False)
    assert str(error.value) == (
        "the trainable test_object_that_cannot_be_pickled_is_named.<locals>.locks cannot be sent to other processes: "
        "its variable lock (_thread.lock) cannot be pickled; create such objects inside the trainable, or define the "
        "trainable at the top of a module"
    )
    assert not (tmp_path / "out").exists()


def test_search_of_a_main_program_names_the_remedy(tmp_path, capsys):
    run(search(lambda config, report: report(1, {"loss": 1.0})), output_dir=tmp_path / "out", **LOCAL)
    description = load_json((tmp_path / "out" / "experiment.json").read_bytes())
    description |= {"trainable": "__main__:mine", "searcher": "random", "num_samples": 2}
    (tmp_path / "out" / "experiment.json").write_text(json.dumps(description), encoding="utf-8")
    assert cli.main(["extend", str(tmp_path / "out"), "--num-samples", "1", "--local"]) == cli.USAGE
    assert capsys.readouterr().err == (
        "tune-hpc: the trainable mine was defined in a main program, a notebook or a function, and cannot be found by "
        "its name __main__:mine; pass it from Python: resume(folder, trainable=mine), or extend\n"
    )


@pytest.mark.slow
def test_output_in_ascii_loses_nothing(tmp_path):
    (tmp_path / "user.py").write_text(
        "def train(config, report):\n    report(1, {'größe': 1.0 * config['x']})\n", encoding="utf-8"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONPATH": str(Path.cwd())}

    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "tune_hpc.cli", *arguments], cwd=tmp_path, env=environment, capture_output=True,
            text=True, encoding="ascii", check=True,
        ).stdout  # fmt: skip

    space = ["--set", "x=1,2", "--set", "name=ä,ö", "--metric", "größe", "--mode", "min"]
    shown = command("run", "user:train", *space, "--local", "--no-report", "--output-dir", "out")
    assert "best gr\\xf6\\xdfe 1 at x=1, name=\\xe4" in shown
    assert "gr\\xf6\\xdfe" in command("show", "out")
    assert "\\xf6" in command("compare", "out", "--by", "name")
