"""Runs of searches in this process."""

import io
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
import ray
from ray import tune

from tests.search.trainables import parabola, slides
from tune_hpc import Experiment, Space, load, resume, run
from tune_hpc.errors import InvalidExperimentError
from tune_hpc.search.options import PAUSING, STOPPING

LOCAL = {"runner": "local", "show_progress": False}
STEPS = 27


def search(trainable=slides, searcher="random", scheduler="none", num_samples=None, **space) -> Experiment:
    space = {"x": tune.uniform(0, 1), "steps": STEPS} | space
    return Experiment(
        "search", Space(space, keys={}), trainable, metric="loss", mode="min", seeds=(), searcher=searcher,
        scheduler=scheduler, num_samples=num_samples,
    )  # fmt: skip


def counts_up(config, report, checkpoint):
    """Count to ``steps``; send interrupts to this process, once, at step 5 of the trial with ``x=1``."""
    state = checkpoint.load() or {"step": 0}
    for step in range(state["step"] + 1, STEPS + 1):
        report(step, {"loss": config["x"] / step})
        if config["x"] == 1 and step == 5 and not Path(config["marker"]).exists():
            Path(config["marker"]).touch()
            for _ in range(config["signals"]):
                os.kill(os.getpid(), signal.SIGINT)
        checkpoint.save(step, lambda step=step: {"step": step})


@pytest.mark.ray
@pytest.mark.parametrize(
    ("searcher", "scheduler"),
    [("random", "none"), ("tpe", "asha"), ("random", "pbt"), ("random", "median"), ("tpe", "hyperband")],
)
def test_local_run_has_the_same_results_as_a_run_on_ray(ray_session, tmp_path, searcher, scheduler):
    experiment = search(searcher=searcher, scheduler=scheduler, num_samples=8)
    local = run(experiment, output_dir=tmp_path / "local", **LOCAL)
    on_ray = run(experiment, output_dir=tmp_path / "ray", show_progress=False, max_concurrent=1)
    pd.testing.assert_frame_equal(local.history, on_ray.history)
    times = [column for column in ("train_s", "num_fused", "ended_at") if column in local.trials]
    pd.testing.assert_frame_equal(local.trials.drop(columns=times), on_ray.trials.drop(columns=times))


@pytest.mark.parametrize("scheduler", [*PAUSING, *STOPPING])
def test_every_scheduler_ends_all_trials(tmp_path, scheduler):
    results = run(search(scheduler=scheduler, num_samples=12), output_dir=tmp_path / "out", **LOCAL)
    assert results.experiment["state"] == "finished"
    assert set(results.counts()) <= {"finished", "stopped", "diverged"}
    stopped = results.trials[results.trials["status"] == "stopped"]
    assert (stopped["steps_run"] < STEPS).all()
    assert all(reason.startswith(f"stopped by {scheduler} at step ") for reason in stopped["stop_reason"])


def test_ray_is_not_started_and_output_stays_on_the_terminal(tmp_path, capsys):
    def prints(config, report):
        print(f"x is {config['x']}, Ray runs: {ray.is_initialized()}")
        report(1, {"loss": 0.0})

    was_running = ray.is_initialized()
    run(search(prints, "grid", x=tune.choice([1, 2])), output_dir=tmp_path / "out", **LOCAL)
    assert capsys.readouterr().out == f"x is 1, Ray runs: {was_running}\nx is 2, Ray runs: {was_running}\n"
    assert not list((tmp_path / "out").glob("logs/*"))


def test_progress_has_a_line_for_each_trial(tmp_path):
    stream = io.StringIO()
    experiment = search(parabola, "grid", learning_rate=tune.choice([0.1, 0.2, 0.3]), x=0)
    run(experiment, output_dir=tmp_path / "out", runner="local", stream=stream)
    assert [line.partition(" ")[0] for line in stream.getvalue().splitlines()] == ["1/3", "2/3", "3/3"]


def test_fused_trials_agree_with_separate_ones(tmp_path):
    space = Space({"model": "line", "learning_rate": tune.choice([0.01, 0.02, 0.03]), "steps": 50})
    experiment = Experiment("line", space, metric="train_loss", mode="min")
    fused, separate = (
        run(experiment, output_dir=tmp_path / fuse, fuse=fuse, **LOCAL).trials for fuse in ("auto", "off")
    )
    assert set(fused["num_fused"]) == {3}
    assert set(separate["num_fused"]) == {1}
    pd.testing.assert_series_equal(fused["train_loss"], separate["train_loss"], rtol=1e-5)


def test_number_of_threads_is_restored(tmp_path):
    import torch

    def counts_threads(config, report):
        report(1, {"loss": float(torch.get_num_threads())})

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        results = run(search(counts_threads, "grid", x=1), output_dir=tmp_path / "out", **LOCAL)
        assert results.trials["loss"].tolist() == [1.0]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class TestFailFast:
    def fails(self, config, report):
        report(1, {"loss": 1 / config["x"]})

    def test_first_exception_is_raised_and_the_search_can_be_resumed(self, tmp_path):
        experiment = search(self.fails, "grid", x=tune.choice([1, 0, 2]))
        with pytest.raises(ZeroDivisionError):
            run(experiment, output_dir=tmp_path / "out", fail_fast=True, **LOCAL)
        assert load(tmp_path / "out").counts() == {"finished": 1, "running": 1}
        (resumed,) = resume(tmp_path / "out", trainable=self.fails, **LOCAL)
        assert resumed.counts() == {"finished": 2, "failed": 1}
        assert resumed.trials["error"].str.startswith("ZeroDivisionError").tolist() == [False, True, False]

    def test_exception_of_a_fused_program_is_raised(self, tmp_path, monkeypatch):
        def broken(*arguments, **options):
            raise ValueError("broken program")

        monkeypatch.setattr("tune_hpc.learning.training.train_fused", broken)
        space = Space({"model": "line", "learning_rate": tune.choice([0.01, 0.02]), "steps": 5})
        experiment = Experiment("line", space, metric="train_loss", mode="min")
        with pytest.raises(ValueError, match="broken program"):
            run(experiment, output_dir=tmp_path / "out", fail_fast=True, **LOCAL)


@pytest.fixture
def default_interrupts():
    """Handle Ctrl-C as in a terminal; the test processes of pytest-xdist ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_interrupts")
class TestStop:
    @pytest.mark.parametrize("signals", [1, 2])
    def test_interrupted_search_resumes_to_the_results_of_an_undisturbed_one(self, tmp_path, monkeypatch, signals):
        monkeypatch.setattr("tune_hpc.search.stopping.TRIAL_POLL_INTERVAL_S", 0.0)
        experiment = search(
            counts_up, "grid", x=tune.choice([0, 1, 2]), signals=signals, marker=str(tmp_path / "marker")
        )
        with pytest.raises(KeyboardInterrupt) if signals == 2 else nullcontext():
            run(experiment, output_dir=tmp_path / "out", **LOCAL)
        interrupted = load(tmp_path / "out")
        assert interrupted.experiment["state"] == "interrupted"
        assert interrupted.counts() == {"finished": 1, "running": 1}
        (resumed,) = resume(tmp_path / "out", trainable=counts_up, **LOCAL)
        assert resumed.counts() == {"finished": 3}
        assert resumed.history["loss"].tolist() == [x / step for x in range(3) for step in range(1, STEPS + 1)]

    def test_trial_without_a_state_ends_the_run_at_its_next_report(self, tmp_path, monkeypatch):
        def endless(config, report):
            for step in range(1, 10_000_000):
                report(step, {"loss": 1.0})

        monkeypatch.setattr("tune_hpc.search.stopping.WAIT_S", 0.0)
        monkeypatch.setattr("tune_hpc.search.reporter.REPORT_INTERVAL_S", 0.05)
        results = run(search(endless, "grid", x=1), output_dir=tmp_path / "out", time_budget_s=0.1, **LOCAL)
        assert results.experiment["ended_by"] == "the time budget of 0.1 s is spent"
        assert results.counts() == {"running": 1}

    def test_target_stops_the_search(self, tmp_path):
        results = run(search(num_samples=12), output_dir=tmp_path / "out", target=10.0, **LOCAL)
        assert results.experiment["ended_by"].endswith("10 was the target")
        assert sum(results.counts().values()) < 12


class TestDebugger:
    PROGRAM = "def train(config, report):\n    breakpoint()\n    report(1, {'loss': config['x']})\n"

    def debug(self, tmp_path, commands, debugger=""):
        (tmp_path / "my_search.py").write_text(self.PROGRAM)
        flags = ["--set", "x=1,2", "--local", "--no-report", "--output-dir", "out"]
        return subprocess.run(
            [sys.executable, "-m", "tune_hpc.cli", "run", "my_search:train", *flags],
            cwd=tmp_path, input=commands, capture_output=True, text=True, timeout=60,
            env=os.environ | {"PYTHONBREAKPOINT": debugger},
        )  # fmt: skip

    @pytest.mark.parametrize("debugger", ["", "ray.util.rpdb.set_trace"])
    def test_breakpoint_opens_the_debugger_on_the_terminal(self, tmp_path, debugger):
        ended = self.debug(tmp_path, "p config\nc\nc\n", debugger)
        assert "(Pdb) {'x': 1, 'seed': 0}" in ended.stdout
        assert ended.returncode == 0, ended.stderr
        assert load(tmp_path / "out").counts() == {"finished": 2}

    def test_quit_ends_the_run(self, tmp_path):
        ended = self.debug(tmp_path, "q\n")
        assert ended.returncode == 130
        assert ended.stderr.splitlines()[-1] == "tune-hpc: interrupted"
        assert load(tmp_path / "out").counts() == {"running": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner": "threads"}, "runner must be ray or local; got 'threads'"),
        ({"fail_fast": True}, "fail_fast raises an exception in this process: it needs a local run"),
        ({"runner": "local", "address": "host:6379"}, "a local run uses no cluster; got address=host:6379"),
        ({"runner": "local", "cpus_per_trial": 4096}, "a trial requests 4096 CPU cores"),
    ],
)
def test_invalid_options_are_rejected(tmp_path, options, message):
    with pytest.raises(Exception, match=message) as caught:
        run(search(num_samples=1), output_dir=tmp_path / "out", show_progress=False, **options)
    assert caught.type.__module__ == "tune_hpc.errors"
    assert not (tmp_path / "out" / "experiment.json").exists()


def test_trials_with_workers_are_rejected(tmp_path):
    experiment = Experiment("workers", Space({"model": "softmax", "workers": 2}))
    with pytest.raises(InvalidExperimentError, match="a local run has no workers"):
        run(experiment, output_dir=tmp_path / "out", **LOCAL)
