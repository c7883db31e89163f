from pathlib import Path

import pandas as pd
import pytest

from tune_hpc.errors import ConflictError, FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder, find_experiments
from tune_hpc.storage.filesystem import Storage


def started(path: Path, name: str = "made.up") -> ExperimentFolder:
    folder = ExperimentFolder(path)
    folder.claim(name)
    folder.write({"name": name})
    return folder


def test_new_or_empty_folder_is_claimed(tmp_path):
    ExperimentFolder(tmp_path / "a" / "b").claim("made.up")
    assert (tmp_path / "a" / "b").is_dir()
    ExperimentFolder(tmp_path / "a" / "b").claim("made.up")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_folder_of_an_experiment_is_not_claimed(tmp_path):
    started(tmp_path)
    with pytest.raises(FolderError, match=r"already holds the experiment made\.up; choose another"):
        ExperimentFolder(tmp_path).claim("made.up")
    with pytest.raises(FolderError, match="already holds"):
        ExperimentFolder(tmp_path).claim("other", overwrite=True)
    assert ExperimentFolder(tmp_path).read() == {"name": "made.up"}


def test_folder_of_a_start_that_failed_early_is_claimed(tmp_path):
    failed = ExperimentFolder(tmp_path)
    failed.claim("made.up")
    failed.claim_attempt(0)
    (tmp_path / ".experiment.json.0123456789ab.tmp").touch()
    folder = ExperimentFolder(tmp_path)
    folder.claim("made.up")
    folder.claim_attempt(folder.last_attempt())
    folder.write({"name": "made.up"})
    # The first process, if it lives, writes nothing more.
    with pytest.raises(ConflictError):
        failed.write({"name": "made.up"})


def test_check_changes_nothing(tmp_path):
    ExperimentFolder(tmp_path / "new").check_free("made.up")
    assert not (tmp_path / "new").exists()
    folder = started(tmp_path)
    folder.check_free("made.up", overwrite=True)
    assert folder.holds_experiment


def test_overwrite_deletes_all_files_of_the_experiment(tmp_path):
    folder = started(tmp_path)
    folder.tables.mkdir()
    (folder.tables / "old.md").write_text("old")
    folder.trials_file.write_text("old")
    folder.claim("made.up", overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_folder_with_other_files_is_not_claimed(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FolderError, match="not empty and holds no experiment"):
        ExperimentFolder(tmp_path).claim("made.up")
    with pytest.raises(FolderError, match="is a file; choose another output folder"):
        ExperimentFolder(tmp_path / "thesis.tex").claim("made.up")
    with pytest.raises(FolderError, match="cannot be made"):
        ExperimentFolder(tmp_path / "thesis.tex" / "below").claim("made.up")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"name"'])
def test_damaged_experiment_file_is_reported(tmp_path, text):
    (tmp_path / "experiment.json").write_text(text)
    with pytest.raises(FolderError, match="restore it from a copy"):
        ExperimentFolder(tmp_path).read()


def test_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "trials.parquet"
    target.write_text("before")

    def fail_half_way(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(FolderError, match=r"cannot be written: No space left on device; make room there"):
        Storage(tmp_path).write_atomic(target.name, fail_half_way)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_interrupted_write_leaves_no_temporary_file(tmp_path):
    def fail(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Storage(tmp_path).write_atomic("x", fail)
    assert list(tmp_path.iterdir()) == []


def test_experiment_file_is_strict_json(tmp_path):
    folder = started(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write({"name": "made.up", "wall_s": float("nan")})
    assert folder.read() == {"name": "made.up"}


def test_experiments_are_found_below_a_folder_but_not_among_the_files_of_ray(tmp_path):
    for name in ("b", "a/stage", "a/ray/x", "b/inside"):
        started(tmp_path / name)
    started(tmp_path / "c" / "ray")
    found = [folder.path.relative_to(tmp_path).as_posix() for folder in find_experiments(tmp_path)]
    assert found == ["a/stage", "b", "c/ray"]


def test_missing_experiment_is_reported_with_the_reason(tmp_path):
    with pytest.raises(FolderError, match="the folder does not exist"):
        find_experiments(tmp_path / "none")
    with pytest.raises(FolderError, match=r"no experiment\.json in it or below it"):
        find_experiments(tmp_path)


def test_trial_file_holds_row_and_history(tmp_path):
    folder, history = started(tmp_path), pd.DataFrame({"step": [1, 2], "loss": [0.5, 0.25]})
    assert folder.read_row("t0") is None
    folder.write_trial("t0", {"trial_id": "t0", "status": "running"}, history)
    folder.update_status("t0", {"status": "stopped"})
    row, read = folder.read_trial("t0")
    assert row == folder.read_row("t0") == {"trial_id": "t0", "status": "stopped"}
    pd.testing.assert_frame_equal(read, history)
    assert folder.trial_ids() == ["t0"]


def test_unfinished_last_line_is_removed(tmp_path):
    folder = started(tmp_path)
    assert folder.read_lines(folder.rungs, "entry", may_be_absent=True) == []
    for number in range(2):
        folder.append_line(folder.rungs, {"entry": number})
    complete = folder.rungs.read_text()
    folder.rungs.write_text(complete + '{"entry"')
    assert folder.read_lines(folder.rungs, "entry") == [{"entry": 0}, {"entry": 1}]
    assert folder.rungs.read_text() == complete
    with pytest.raises(FolderError, match="its numbers are not 1, 2, 3"):
        folder.read_lines(folder.rungs, "entry", first=1)


def test_cycle_of_links_is_walked_once(tmp_path):
    started(tmp_path / "runs" / "a")
    for name in ("up", "again"):
        (tmp_path / "runs" / name).symlink_to(tmp_path / "runs")
    assert [folder.path.name for folder in find_experiments(tmp_path)] == ["a"]
