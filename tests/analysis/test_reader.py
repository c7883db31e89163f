"""Incremental reading of a running search, compared with a complete reading."""

import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.results_fixtures import KEYS
from tune_hpc.analysis import frames, reader
from tune_hpc.analysis.frames import LazyHistory, trials_frame, write_frames
from tune_hpc.analysis.loading import load
from tune_hpc.analysis.reader import ResultsReader
from tune_hpc.errors import FolderError


@pytest.fixture
def was_read(monkeypatch):
    """Return the trials whose files were read, in order."""
    read, names = reader.read_trial_table, []

    def record(part):
        names.append(part.stem)
        return read(part)

    monkeypatch.setattr(reader, "read_trial_table", record)
    return names


def finish(folder, whole):
    """Move all trials into the frames, as a search does at its end."""
    write_frames(folder, whole.trials, whole.history)
    for trial_id in whole.trials["trial_id"]:
        os.remove(folder.trial_file(trial_id))


def check_matches(followed, folder):
    whole = load(folder.path)
    pd.testing.assert_frame_equal(followed.trials, whole.trials)
    pd.testing.assert_frame_equal(followed.history, whole.history)
    assert (followed.experiment, followed.folder, followed.counts()) == (whole.experiment, folder.path, whole.counts())


def test_only_changed_files_are_read(folder, write, trial, was_read):
    followed = ResultsReader(folder)
    assert (followed.results().trials.empty, followed.version) == (True, 1)
    for name in ("a", "b"):
        write(trial(name))
    check_matches(followed.results(), folder)
    assert (followed.version, was_read) == (2, ["a", "b"])
    assert followed.results() is followed.results()
    write(trial("c", status="failed"))
    write(trial("a", loss=0.1))
    check_matches(followed.results(), folder)
    assert (followed.version, was_read) == (3, ["a", "b", "a", "c"])
    assert followed.results().num_bytes > 0


def test_trials_that_move_into_the_frames_are_found(folder, write, trial, results_of, was_read):
    followed = ResultsReader(folder)
    made = [trial(name) for name in ("a", "b")]
    for trial_data in made:
        write(trial_data)
    followed.results()
    finish(folder, results_of(*made))
    check_matches(followed.results(), folder)
    write(trial("c"))
    check_matches(followed.results(), folder)
    assert list(followed.results().trials["trial_id"]) == ["a", "b", "c"]
    assert was_read == ["a", "b", "c"]


def test_trial_file_deleted_during_a_read_is_found_in_the_frames(folder, write, trial, results_of, monkeypatch):
    made = [trial(name) for name in ("a", "b")]
    for trial_data in made:
        write(trial_data)
    read = reader.read_trial_table

    def ended(part):
        if part.stem == "b" and part.exists():
            finish(folder, results_of(*made))
        return read(part)

    monkeypatch.setattr(reader, "read_trial_table", ended)
    followed = ResultsReader(folder)
    assert list(followed.results().trials["trial_id"]) == ["a", "b"]
    check_matches(followed.results(), folder)


def test_trial_files_deleted_after_the_listing_are_found_in_the_frames(folder, write, trial, results_of, monkeypatch):
    write(trial("a"))
    read = frames.read_frames

    def ended(folder, **options):
        found = read(folder, **options)
        if folder.trial_file("a").exists():
            finish(folder, results_of(trial("a")))
        return found

    monkeypatch.setattr(frames, "read_frames", ended)
    assert list(load(folder.path).trials["trial_id"]) == ["a"]
    check_matches(ResultsReader(folder).results(), folder)


def test_damaged_file_is_named_and_read_again_after_its_repair(folder, write, trial):
    followed = ResultsReader(folder)
    write(trial("a"))
    followed.results()
    folder.trial_file("b").write_bytes(b"PAR1 garbage")
    for _ in range(2):
        with pytest.raises(FolderError, match=r"b.parquet is not readable as Parquet"):
            followed.results()
    write(trial("b"))
    check_matches(followed.results(), folder)


metrics = st.lists(st.sampled_from(["loss", "accuracy", "own"]), unique=True)
values = st.one_of(st.just(np.nan), st.floats(-1, 1))
#: Metrics and values of some trials.
reported = st.lists(st.tuples(metrics, st.lists(values, max_size=4)), max_size=5)


@given(reported, st.integers(0, 5), st.sets(st.integers(0, 5)))
def test_concatenated_history_equals_its_parts(trials, num_framed, numbers):
    alone = {
        f"t{number}": pd.DataFrame({"step": range(len(taken)), **dict.fromkeys(names, taken)}).astype({"step": "int64"})
        for number, (names, taken) in enumerate(trials)
    }
    first = [df.assign(trial_id=name) for name, df in list(alone.items())[:num_framed]]
    frame = pd.concat(first, ignore_index=True) if first else pd.DataFrame({"trial_id": [], "step": []})
    tables = {name: reader.pa.Table.from_pandas(df) for name, df in list(alone.items())[num_framed:]}
    histories = LazyHistory(frame, tables)
    for wanted in (None, {f"t{number}" for number in numbers}):
        df = histories.frame(wanted)
        assert list(df) == histories.columns
        for name, part in alone.items():
            rows = df[df["trial_id"] == name].drop(columns="trial_id").reset_index(drop=True)
            expected = part if wanted is None or name in wanted else part.iloc[:0]
            for column in part if len(part) else ():
                np.testing.assert_array_equal(rows[column].to_numpy(float), expected[column].to_numpy(float))
            assert len(rows) == len(expected)
    for metric in ("loss", "accuracy", "own"):
        took = {name for name, part in alone.items() if metric in part and part[metric].notna().any()}
        assert histories.trials_with(metric) == took


def test_trials_with_different_metrics_are_concatenated(folder, write, trial):
    row, history = trial("a")
    folder.write_trial("a", row, history[["step", "train_loss"]])
    write(trial("b"))
    found = ResultsReader(folder).results()
    assert found.histories.trials_with("test_loss") == {"b"}
    assert found.histories.frame(["a"])["test_loss"].isna().all()
    assert list(found.histories.frame([])) == found.histories.columns
    pd.testing.assert_frame_equal(found.trials, trials_frame([row, trial("b")[0]], KEYS))
