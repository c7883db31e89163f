"""Output of trials in their logs, and processes of trials."""

import ctypes
import logging
import os
import subprocess
import sys

import pytest
from ray import tune

from tune_hpc import Experiment, Space, run
from tune_hpc.errors import InvalidExperimentError
from tune_hpc.search.trial_log import redirect_output


def writes(config, report):
    """Write in every way; ``basicConfig`` has an effect in the first trial of a process only."""
    logging.basicConfig(level=logging.INFO, format="log %(message)s")
    logging.getLogger("user").info(config["x"])
    print(f"print {config['x']}")
    print(f"error {config['x']} \udcff", file=sys.stderr)
    subprocess.run(["sh", "-c", f"echo child {config['x']}; echo child error {config['x']} >&2"], check=True)
    ctypes.CDLL(None).printf(b"library %d\n", config["x"])
    report(1, {"loss": 1.0})
    return {"pid": os.getpid()}


def lines(number):
    return [
        f"child {number}", f"child error {number}", f"error {number} \\udcff", f"library {number}", f"log {number}",
        f"print {number}",
    ]  # fmt: skip


def test_each_log_has_the_output_of_its_trial(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    for number in range(3):
        with redirect_output(tmp_path / "logs" / f"{number}.log"):
            writes({"x": number}, lambda *_: None)
        print(f"after {number}", flush=True)
        os.write(2, b"as before\n")
    for number in range(3):
        log = (tmp_path / "logs" / f"{number}.log").read_text(encoding="utf-8")
        assert sorted(log.splitlines()) == lines(number)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("after 0\nafter 1\nafter 2\n", "as before\n" * 3)


def test_log_of_a_resumed_trial_continues_and_a_silent_trial_has_none(tmp_path):
    for text in ("first", "second"):
        with redirect_output(tmp_path / "logs" / "t.log"):
            print(text, end="")
    with redirect_output(tmp_path / "logs" / "silent.log"):
        pass
    assert [path.read_text(encoding="utf-8") for path in (tmp_path / "logs").iterdir()] == ["firstsecond"]


def test_trial_runs_without_a_log_that_cannot_be_written(tmp_path, capfd):
    (tmp_path / "logs").touch()
    with redirect_output(tmp_path / "logs" / "t.log"):
        print("it runs")
    captured = capfd.readouterr()
    assert captured.out == "it runs\n"
    assert captured.err.startswith("the trial has no log: ")


def test_descriptors_are_restored_after_an_exception(tmp_path, capfd):
    num_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KeyError), redirect_output(tmp_path / "t.log"):
        raise KeyError
    assert len(os.listdir("/proc/self/fd")) == num_open
    subprocess.run(["echo", "outside"], check=True)
    assert capfd.readouterr().out == "outside\n"


def search(num_trials) -> Experiment:
    space = Space({"x": tune.choice(list(range(num_trials)))}, keys={})
    return Experiment("search", space, writes, metric="loss", mode="min", seeds=())


@pytest.mark.ray
@pytest.mark.parametrize("no_reuse", [False, True])
def test_processes_are_reused_unless_requested(ray_session, tmp_path, no_reuse):
    results = run(search(8), output_dir=tmp_path / "out", max_concurrent=1, no_reuse=no_reuse, show_progress=False)
    assert results.trials["pid"].nunique() == (8 if no_reuse else 1)
    for number, trial_id in enumerate(results.trials["trial_id"]):
        log = (tmp_path / "out" / "logs" / f"{trial_id}.log").read_text(encoding="utf-8")
        assert sorted(log.splitlines()) == lines(number)


def test_local_run_has_one_process(tmp_path):
    with pytest.raises(InvalidExperimentError, match="no_reuse starts a process for each trial, and a local run has"):
        run(search(1), output_dir=tmp_path / "out", runner="local", no_reuse=True)
