"""Time limit of trials."""

import sys
import time

import numpy as np
import pytest
from ray import tune

from tune_hpc import Command, Experiment, Space, resume, run
from tune_hpc.search.experiment import TRAIN
from tune_hpc.search.stopping import StopRequest, StopRequested, TimeLimit
from tune_hpc.search.trial_checkpoint import TrialCheckpoint
from tune_hpc.search.trial_runner import TrialRunner
from tune_hpc.search.trial_spec import RankedMetric, TrialContext, TrialGroup, TrialSpec
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter

LOCAL = {"runner": "local", "show_progress": False}


def waits(config, report):
    """Report at the pace of the configuration; ``except Exception`` does not catch the end."""
    for step in range(1, 6):
        time.sleep(config["pause"])
        try:
            report(step, {"loss": 1 / step})
        except Exception:  # noqa: BLE001 - as a careless user would
            continue


def search(trainable, scheduler="none", **space) -> Experiment:
    return Experiment(
        "search", Space(space, keys={}), trainable, metric="loss", mode="min", seeds=(), scheduler=scheduler
    )  # fmt: skip


def test_slow_trial_ends_at_its_next_report_and_others_go_to_their_end(tmp_path):
    experiment = search(waits, pause=tune.choice([0.25, 0.0]))
    results = run(experiment, output_dir=tmp_path / "out", trial_time_limit_s=0.3, **LOCAL)
    slow, fast = results.trials.to_dict("records")
    assert (slow["status"], slow["stop_reason"], slow["steps_run"], slow["loss"]) == ("stopped", "time limit", 2, 0.5)
    assert (fast["status"], fast["steps_run"]) == ("finished", 5)
    assert results.experiment["state"] == "finished"


def test_state_ends_a_trial_that_reports_rarely(tmp_path):
    def saves(config, report, checkpoint):
        report(1, {"loss": 1.0})
        for step in range(1, 100):
            time.sleep(0.05)
            checkpoint.save(step, lambda: {})

    results = run(search(saves, x=1), output_dir=tmp_path / "out", trial_time_limit_s=0.1, **LOCAL)
    assert results.trials.loc[0, ["status", "stop_reason", "loss"]].tolist() == ["stopped", "time limit", 1.0]
    assert not list((tmp_path / "out").glob("trials/*"))


def test_time_of_the_run_that_saved_the_state_counts(tmp_path):
    folder = ExperimentFolder(tmp_path)
    folder.claim_attempt(0)
    folder.write_control(stop=True)

    def checkpoint(limit):
        return TrialCheckpoint(tmp_path / "t", [TrialFileWriter({})], 0.0, StopRequest(folder), time_limit=limit)

    first = TimeLimit(100)
    first.add(70)
    with pytest.raises(StopRequested):
        checkpoint(first).save(1, lambda: {})
    resumed = TimeLimit(100)
    checkpoint(resumed).load()
    assert 70 < resumed.elapsed_s < 80


def test_command_is_terminated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("import time\nprint('loss=0.5')\ntime.sleep(60)\n", encoding="utf-8")
    command = Command(f"{sys.executable} train.py", pattern="loss=(?P<loss>.+)")
    started = time.monotonic()
    results = run(search(command, x=1), output_dir="out", trial_time_limit_s=1.0, **LOCAL)
    assert time.monotonic() - started < 20
    assert results.trials.loc[0, ["status", "stop_reason", "loss"]].tolist() == ["stopped", "time limit", 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("num_trials", [1, 2])
def test_built_in_trials_stop_and_a_diverged_member_stays_diverged(tmp_path, monkeypatch, num_trials):
    times = iter(np.arange(0, 1000, 0.1))
    monkeypatch.setattr("tune_hpc.search.stopping.time", type("Clock", (), {"monotonic": lambda: next(times)}))
    folder = ExperimentFolder(tmp_path / "out")
    folder.path.mkdir()
    folder.claim_attempt(0)
    configs = [
        {"data": "line", "model": "line", "optimizer": "gradient_descent", "learning_rate": rate, "steps": 10_000,
         "num_evaluations": 1000, "seed": 0}
        for rate in (0.01, 1e6)
    ]  # fmt: skip
    metric = RankedMetric("train_loss", "min")
    context = TrialContext("e", str(folder.path), TRAIN, "train_loss", metric, 1, 3600.0, time_limit_s=2.0)
    results = []
    runner = TrialRunner(context, results.append, {}, lambda images: images, num_threads=1)
    trials = tuple(TrialSpec("e", f"t{number}", config) for number, config in enumerate(configs[:num_trials]))
    runner.run(TrialGroup("b0", trials))
    rows = [folder.read_row(trial.trial_id) for trial in trials]
    assert [row["status"] for row in rows] == ["stopped", "diverged"][:num_trials]
    assert rows[0]["stop_reason"] == "time limit"
    assert 0 < rows[0]["steps_run"] < 10_000
    assert rows[0]["train_loss"] > 0
    assert not list(folder.trials.glob("*.checkpoint"))


@pytest.mark.parametrize("scheduler", ["asha", "pbt", "median"])
def test_schedulers_accept_trials_that_ended_themselves(tmp_path, scheduler):
    def trains(config, report, checkpoint):
        for step in range((checkpoint.load() or 0) + 1, 28):
            if config["x"] in (2, 5):
                time.sleep(0.06)
            report(step, {"loss": config["x"] + 1 / step})
            checkpoint.save(step, lambda step=step: step)

    experiment = search(trains, scheduler, x=tune.choice(list(range(9))), steps=27)
    results = run(experiment, output_dir=tmp_path / "out", trial_time_limit_s=0.1, **LOCAL)
    assert results.experiment["state"] == "finished"
    assert (results.trials["stop_reason"] == "time limit").any()
    (resumed,) = resume(tmp_path / "out", **LOCAL)
    assert resumed.counts() == results.counts()


@pytest.mark.ray
def test_limit_holds_on_ray(ray_session, tmp_path):
    experiment = search(waits, pause=tune.choice([3.2, 0.0, 0.01]))
    results = run(experiment, output_dir=tmp_path / "out", trial_time_limit_s=3.0, show_progress=False)
    assert results.trials["status"].tolist() == ["stopped", "finished", "finished"]
    assert results.trials.loc[0, "stop_reason"] == "time limit"
