"""Folders that earlier versions wrote: ``tests/data/formats`` has one of each commit that changed the files.

``finished`` is ``exercise1_1stpart`` with 20 steps. ``killed`` is ``exercise2.softmax`` with three optimizers, killed
after the first trials, of which two remain.
"""

import shutil
from pathlib import Path

import pytest

from tune_hpc import load, resume
from tune_hpc.errors import FolderError
from tune_hpc.report.report import write_report

FORMATS = Path(__file__).parents[1] / "data" / "formats"
COMMITS = sorted(path.name for path in FORMATS.iterdir())
#: Best loss after 20 steps, and its learning rate.
BEST = 1.0060251951217651
#: Its experiment.json has no searcher and no scheduler.
TOO_OLD = "bbd2728"


@pytest.mark.parametrize("commit", COMMITS)
def test_results_of_an_earlier_version_are_read(commit):
    results = load(FORMATS / commit / "finished")
    assert results.counts() == {"finished": 5}
    assert len(results.history) == 5 * 21
    assert results.best()["train_loss"] == pytest.approx(BEST, rel=1e-6)
    assert results.best()["learning_rate"] == 0.01


@pytest.mark.slow
@pytest.mark.parametrize("commit", COMMITS)
def test_report_of_an_earlier_version_is_written(commit, tmp_path):
    shutil.copytree(FORMATS / commit / "finished", tmp_path / "out")
    assert "0.01" in write_report([load(tmp_path / "out")], tmp_path / "report.html").read_text()


@pytest.mark.parametrize("commit", [commit for commit in COMMITS if (FORMATS / commit / "killed").exists()])
def test_trials_of_an_interrupted_search_of_an_earlier_version_are_read(commit):
    results = load(FORMATS / commit / "killed")
    assert results.counts() == {"finished": 2}
    assert len(results.history) == 2 * 401


@pytest.mark.slow
@pytest.mark.parametrize("commit", [*sorted(set(COMMITS) - {TOO_OLD, "142b1e9"})])
def test_interrupted_search_of_an_earlier_version_is_resumed(commit, tmp_path):
    shutil.copytree(FORMATS / commit / "killed", tmp_path / "out")
    before = load(tmp_path / "out")
    (results,) = resume(tmp_path / "out", runner="local", show_progress=False)
    assert results.counts() == {"finished": 24}
    same = results.trials["trial_id"].isin(before.trials["trial_id"])
    assert list(results.trials.loc[same, "valid_loss"]) == list(before.trials["valid_loss"])


def test_search_of_a_version_without_schedulers_is_not_resumed(tmp_path):
    shutil.copytree(FORMATS / TOO_OLD / "killed", tmp_path / "out")
    with pytest.raises(FolderError, match=r"experiment.json has a missing or unknown field: 'scheduler'"):
        resume(tmp_path / "out", runner="local", show_progress=False)
