"""A bundle on the machine where it runs, without Ray: what its members leave, and what happens when it breaks."""

import numpy as np
import pandas as pd
import pytest

from tune_hpc.errors import FolderError
from tune_hpc.learning import training
from tune_hpc.learning.config import complete
from tune_hpc.search import reporter, trial_runner
from tune_hpc.search.experiment import TRAIN
from tune_hpc.search.trial_runner import TrialContext
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter, read_trial

CONFIGS = [
    {"model": "line", "steps": 60, "num_evaluations": 6, "optimizer": optimizer, "learning_rate": rate}
    for optimizer, rate in (("adam", 0.01), ("ftrl", 0.1), ("gradient_descent", 0.5), ("adam", 0.1))
]


@pytest.fixture
def run_fused(tmp_path, monkeypatch):
    """Run the members as one bundle; returns the rows and, for each trial, the file it left."""
    monkeypatch.setattr(trial_runner, "_match_threads", lambda: None)
    told = []
    monkeypatch.setattr(reporter.tune, "report", told.append)
    folder = ExperimentFolder(tmp_path)
    ExperimentFolder(tmp_path).claim_attempt(0)
    assignment = TrialContext("line", str(tmp_path), TRAIN, "train_loss", 1, checkpoint_interval_s=0.0)
    members = [
        {"experiment": "line", "trial_id": f"t{number:05d}", "config": complete(config)}
        for number, config in enumerate(CONFIGS)
    ]

    def run():
        trial_runner.run_bundle({"bundle_id": "b00000", "members": members}, {"line": assignment}, {})
        return told[-1]["members"], [pd.read_parquet(folder.part(member["trial_id"])) for member in members]

    return run


def alone(config):
    record = TrialFileWriter({})
    row = training.train(config, record.add)
    return row, record.history()


def test_each_member_leaves_a_file_as_if_it_had_run_alone(run_fused, tmp_path):
    rows, histories = run_fused()
    assert [row["status"] for row in rows] == ["finished", "finished", "diverged", "finished"]
    for config, history in zip(CONFIGS, histories, strict=True):
        _, expected = alone(config)
        pd.testing.assert_frame_equal(history, expected, rtol=1e-4, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "trials").glob("*.*")) == [f"t{n:05d}.parquet" for n in range(4)]


def test_members_under_way_keep_what_they_have_reported(run_fused, monkeypatch, tmp_path):
    """Every report is followed by a look into the files, where nothing stands between two of them."""
    monkeypatch.setattr(reporter, "KEEP_INTERVAL_S", 0.0)
    monkeypatch.setattr(reporter, "KEEP_RATIO", 0)
    written = []
    leave_under_way = trial_runner.write_unfinished

    def look(folder, records, took_s):
        leave_under_way(folder, records, took_s)
        written.append([read_trial(folder.part(record.row["trial_id"])) for record in records])
        assert {(row["status"], row["num_fused"]) for row, _ in written[-1]} == {("running", 4)}

    monkeypatch.setattr(trial_runner, "write_unfinished", look)
    rows, histories = run_fused()
    assert [row["status"] for row in rows] == ["finished", "finished", "diverged", "finished"]
    lengths = [len(history) for _, history in (members[0] for members in written)]
    assert lengths == sorted(lengths)
    assert len(set(lengths)) > 5
    row, history = written[-1][0]
    pd.testing.assert_frame_equal(history, histories[0].iloc[: len(history)])
    assert row["steps_run"] == history["step"].max()


def test_a_trial_goes_on_where_what_it_reported_cannot_be_kept_for_a_while(run_fused, monkeypatch, tmp_path):
    monkeypatch.setattr(reporter, "KEEP_INTERVAL_S", 0.0)
    monkeypatch.setattr(reporter, "KEEP_RATIO", 0)
    leave = trial_runner._leave

    def full(folder, record, outcome, took_s):
        if outcome["status"] == "running":
            raise FolderError("the disk is full")
        return leave(folder, record, outcome, took_s)

    monkeypatch.setattr(trial_runner, "_leave", full)
    rows, _ = run_fused()
    assert [row["status"] for row in rows] == ["finished", "finished", "diverged", "finished"]
    log = (tmp_path / "logs" / "b00000.log").read_text()
    assert "what was reported until now is not kept: the disk is full" in log


def test_a_program_that_breaks_is_run_one_by_one_and_the_log_says_so(run_fused, monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise RuntimeError("out of something")

    monkeypatch.setattr(training, "train_fused", broken)
    monkeypatch.setattr(training, "train", train_alone_but_refuse_ftrl)
    rows, _ = run_fused()
    assert [row["status"] for row in rows] == ["finished", "failed", "diverged", "finished"]
    log = (tmp_path / "logs" / "b00000.log").read_text(encoding="utf-8")
    assert "RuntimeError: out of something" in log
    assert "one by one" in log


_train_fused = training.train_fused


def train_alone_but_refuse_ftrl(config, report, *, checkpoint=None, images=None, device=None):
    """Stand for a member that would have broken the program."""
    if config["optimizer"] == "ftrl":
        raise RuntimeError("out of something")
    return _train_fused([config], [report], checkpoint=checkpoint, images=images, device=device)[0]


def test_a_bundle_whose_process_died_goes_on_from_its_checkpoint_to_the_same_bits(run_fused, monkeypatch, tmp_path):
    class LostError(BaseException):
        """Stands for the end of the process: nothing catches it."""

    _, whole = run_fused()
    for part in (tmp_path / "trials").glob("*.*"):
        part.unlink()

    monkeypatch.setattr(training, "Training", dying_after(30, LostError))
    with pytest.raises(LostError):
        run_fused()
    assert [path.name for path in (tmp_path / "trials").glob("*.*")] == ["b00000.checkpoint"]

    starts = []
    monkeypatch.setattr(training, "Training", dying_after(None, LostError, starts))
    _, resumed = run_fused()
    assert starts[0] == 30
    for before, after in zip(whole, resumed, strict=True):
        pd.testing.assert_frame_equal(before, after, check_exact=True)
    assert not (tmp_path / "trials" / "b00000.checkpoint").exists()


_Training = training.Training


def dying_after(step, error, starts=None):
    class Dying(_Training):
        def run(self, start, end):
            if starts is not None:
                starts.append(start)
            if step is not None and start >= step:
                raise error
            return super().run(start, end)

    return Dying


def test_a_history_is_whole_even_where_members_end_at_different_steps(run_fused):
    _, histories = run_fused()
    lengths = [len(history) for history in histories]
    assert lengths[2] < 60
    assert [lengths[0], lengths[1], lengths[3]] == [61, 61, 61]
    assert all(np.array_equal(history["step"], np.arange(len(history))) for history in histories)
