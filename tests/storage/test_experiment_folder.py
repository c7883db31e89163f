import json
from pathlib import Path

import pytest

from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder, find_experiments, write_atomic


def begun(path: Path, name: str = "made.up") -> ExperimentFolder:
    folder = ExperimentFolder(path)
    folder.claim(name)
    folder.write({"name": name})
    return folder


def test_a_new_or_empty_folder_is_claimed(tmp_path):
    ExperimentFolder(tmp_path / "a" / "b").claim("made.up")
    assert (tmp_path / "a" / "b").is_dir()
    ExperimentFolder(tmp_path / "a" / "b").claim("made.up")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_with_an_experiment_is_not_taken_over(tmp_path):
    begun(tmp_path)
    with pytest.raises(FolderError, match=r"already holds the experiment made\.up; choose another"):
        ExperimentFolder(tmp_path).claim("made.up")
    with pytest.raises(FolderError, match="already holds"):
        ExperimentFolder(tmp_path).claim("other", overwrite=True)
    assert ExperimentFolder(tmp_path).read() == {"name": "made.up"}


def test_checking_changes_nothing(tmp_path):
    ExperimentFolder(tmp_path / "new").check_free("made.up")
    assert not (tmp_path / "new").exists()
    folder = begun(tmp_path)
    folder.check_free("made.up", overwrite=True)
    assert folder.holds_experiment


def test_overwrite_leaves_nothing_of_the_same_experiment(tmp_path):
    folder = begun(tmp_path)
    folder.tables.mkdir()
    (folder.tables / "old.md").write_text("old")
    folder.trials_file.write_text("old")
    folder.claim("made.up", overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_anything_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FolderError, match="not empty and holds no experiment"):
        ExperimentFolder(tmp_path).claim("made.up")
    with pytest.raises(FolderError, match="is a file; choose another output folder"):
        ExperimentFolder(tmp_path / "thesis.tex").claim("made.up")
    with pytest.raises(FolderError, match="cannot be made"):
        ExperimentFolder(tmp_path / "thesis.tex" / "below").claim("made.up")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"name"'])
def test_a_broken_experiment_file_is_one_clear_error(tmp_path, text):
    (tmp_path / "experiment.json").write_text(text)
    with pytest.raises(FolderError, match="restore it from a copy"):
        ExperimentFolder(tmp_path).read()


def test_files_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "trials.parquet"
    target.write_text("before")

    def fail_half_way(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(FolderError, match=r"cannot be written: No space left on device; make room there"):
        write_atomic(target, fail_half_way)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_half_written_file_is_removed_whatever_stops_the_writing(tmp_path):
    def fail(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []


def test_experiment_json_is_strict_json(tmp_path):
    folder = begun(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write({"name": "made.up", "wall_s": float("nan")})
    assert json.loads(folder.experiment_file.read_text()) == {"name": "made.up"}


def test_experiments_are_found_below_but_not_in_what_ray_keeps(tmp_path):
    begun(tmp_path / "b")
    begun(tmp_path / "a" / "stage")
    begun(tmp_path / "a" / "ray" / "x")
    begun(tmp_path / "b" / "inside")
    assert [one.path.relative_to(tmp_path).as_posix() for one in find_experiments(tmp_path)] == ["a/stage", "b"]


def test_no_experiment_is_an_error_that_says_why(tmp_path):
    with pytest.raises(FolderError, match="the folder does not exist"):
        find_experiments(tmp_path / "none")
    with pytest.raises(FolderError, match=r"no experiment\.json in it or below it"):
        find_experiments(tmp_path)
