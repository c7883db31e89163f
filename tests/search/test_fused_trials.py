"""Execution of a fused group without Ray: the files of its trials, failures, and resumption."""

import numpy as np
import pandas as pd
import pytest

from tune_hpc.errors import FolderError
from tune_hpc.learning import training
from tune_hpc.learning.config import complete
from tune_hpc.search import reporter
from tune_hpc.search.experiment import TRAIN
from tune_hpc.search.trial_runner import TrialRunner
from tune_hpc.search.trial_spec import RankedMetric, TrialContext, TrialGroup, TrialSpec
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter

CONFIGS = [
    {"model": "line", "steps": 60, "num_evaluations": 6, "optimizer": optimizer, "learning_rate": rate}
    for optimizer, rate in (("adam", 0.01), ("ftrl", 0.1), ("gradient_descent", 0.5), ("adam", 0.1))
]
STATUSES = ["finished", "finished", "diverged", "finished"]


@pytest.fixture
def run_fused(tmp_path, monkeypatch):
    """Run the trials as one group; return their statuses and the contents of their files."""
    results = []
    folder = ExperimentFolder(tmp_path)
    folder.claim_attempt(0)
    metric = RankedMetric("train_loss", "min")
    context = TrialContext("line", str(tmp_path), TRAIN, "train_loss", metric, 1, checkpoint_interval_s=0.0)
    trials = tuple(TrialSpec("line", f"t{number:05d}", complete(config)) for number, config in enumerate(CONFIGS))

    def run():
        TrialRunner(context, results.append, {}, lambda images: images, 1).run(TrialGroup("b00000", trials))
        statuses = [line["status"] for line in results[-1]["trials"]]
        return statuses, [pd.read_parquet(folder.trial_file(trial.trial_id)) for trial in trials]

    return run


@pytest.fixture
def unthrottled(monkeypatch):
    """Write the files of running trials after every report."""
    monkeypatch.setattr(reporter, "WRITE_INTERVAL_S", 0.0)
    monkeypatch.setattr(reporter, "WRITE_RATIO", 0)


def files(tmp_path):
    return sorted(path.name for path in (tmp_path / "trials").glob("*.*"))


def test_fused_trials_have_the_files_of_separate_ones(run_fused, tmp_path):
    statuses, histories = run_fused()
    assert statuses == STATUSES
    for config, history in zip(CONFIGS, histories, strict=True):
        writer = TrialFileWriter({})
        training.train(config, writer.add)
        pd.testing.assert_frame_equal(history, writer.history(), rtol=1e-4, atol=1e-6)
    assert files(tmp_path) == [f"t{number:05d}.parquet" for number in range(4)]


def test_running_trials_write_their_metrics(run_fused, unthrottled, monkeypatch):
    written = []
    write = TrialRunner._write_running

    def read_back(self, writers, train_s):
        write(self, writers, train_s)
        written.append([self.folder.read_trial(writer.row["trial_id"]) for writer in writers])
        assert {(row["status"], row["num_fused"]) for row, _ in written[-1]} == {("running", 4)}

    monkeypatch.setattr(TrialRunner, "_write_running", read_back)
    statuses, histories = run_fused()
    assert statuses == STATUSES
    lengths = [len(history) for _, history in (trials[0] for trials in written)]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 5
    row, history = written[-1][0]
    pd.testing.assert_frame_equal(history, histories[0].iloc[: len(history)])
    assert row["steps_run"] == history["step"].max()


def test_full_disk_does_not_end_a_running_trial(run_fused, unthrottled, monkeypatch, tmp_path):
    write = ExperimentFolder.write_trial

    def full(self, trial_id, row, history):
        if row["status"] == "running":
            raise FolderError("the disk is full")
        write(self, trial_id, row, history)

    monkeypatch.setattr(ExperimentFolder, "write_trial", full)
    assert run_fused()[0] == STATUSES
    assert "the metrics are not saved: the disk is full" in (tmp_path / "logs" / "b00000.log").read_text()


def test_failed_program_runs_as_separate_trials(run_fused, monkeypatch, tmp_path):
    train_fused = training.train_fused

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    def train_except_ftrl(config, report, *, checkpoint=None, images=None, device=None):
        """Raise for the trial that broke the program."""
        if config["optimizer"] == "ftrl":
            raise RuntimeError("out of memory")
        return train_fused([config], [report], checkpoint=checkpoint, images=images, device=device)[0]

    monkeypatch.setattr(training, "train_fused", broken)
    monkeypatch.setattr(training, "train", train_except_ftrl)
    assert run_fused()[0] == ["finished", "failed", "diverged", "finished"]
    log = (tmp_path / "logs" / "b00000.log").read_text(encoding="utf-8")
    assert "RuntimeError: out of memory" in log
    assert "one after another" in log


def test_group_of_a_dead_process_resumes_to_the_same_bits(run_fused, monkeypatch, tmp_path):
    class LostError(BaseException):
        """Stands for the end of the process: nothing catches it."""

    starts = []

    def dying_after(step):
        class Dying(normal):
            def run(self, start, end):
                starts.append(start)
                if step is not None and start >= step:
                    raise LostError
                return super().run(start, end)

        return Dying

    normal = training.Training
    _, expected = run_fused()
    for file in files(tmp_path):
        (tmp_path / "trials" / file).unlink()
    monkeypatch.setattr(training, "Training", dying_after(30))
    with pytest.raises(LostError):
        run_fused()
    assert files(tmp_path) == ["b00000.checkpoint"]

    starts.clear()
    monkeypatch.setattr(training, "Training", dying_after(None))
    _, resumed = run_fused()
    assert starts[0] == 30
    for before, after in zip(expected, resumed, strict=True):
        pd.testing.assert_frame_equal(before, after, check_exact=True)
    assert "b00000.checkpoint" not in files(tmp_path)


def test_histories_are_complete_if_trials_end_at_different_steps(run_fused):
    _, histories = run_fused()
    lengths = [len(history) for history in histories]
    assert lengths[2] < 60
    assert [lengths[0], lengths[1], lengths[3]] == [61, 61, 61]
    assert all(np.array_equal(history["step"], np.arange(len(history))) for history in histories)
