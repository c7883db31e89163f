"""A search looked at again and again while it runs: what is read, and that it is what a whole reading gives."""

import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_hpc.analysis import frames, reader, results
from tune_hpc.analysis.frames import LazyHistory, trials_frame, write_frames
from tune_hpc.analysis.reader import ResultsReader
from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder

KEYS = ["optimizer", "learning_rate", "batch_size", "seed"]


@pytest.fixture
def home(tmp_path):
    home = ExperimentFolder(tmp_path / "run")
    home.claim("made.up")
    home.write({"name": "made.up", "metric": "test_loss", "mode": "min", "config_keys": KEYS})
    return home


@pytest.fixture
def was_read(monkeypatch):
    """Return the trials whose files were read, in this order."""
    read, names = reader.read_trial_table, []

    def noted(part):
        names.append(part.stem)
        return read(part)

    monkeypatch.setattr(reader, "read_trial_table", noted)
    return names


def write(home, made):
    row, history = made
    home.write_trial(row["trial_id"], row, history)


def check_matches(followed, home):
    whole = results.load(home.path)
    pd.testing.assert_frame_equal(followed.trials, whole.trials)
    pd.testing.assert_frame_equal(followed.history, whole.history)
    assert (followed.experiment, followed.folder, followed.counts()) == (whole.experiment, home.path, whole.counts())


def test_only_what_is_new_is_read(home, trial, was_read):
    followed = ResultsReader(home)
    assert (followed.results().trials.empty, followed.version) == (True, 1)
    for name in ("a", "b"):
        write(home, trial(name))
    check_matches(followed.results(), home)
    assert (followed.version, was_read) == (2, ["a", "b"])
    assert followed.results() is followed.results()
    write(home, trial("c", status="failed"))
    write(home, trial("a", loss=0.1))
    check_matches(followed.results(), home)
    assert (followed.version, was_read) == (3, ["a", "b", "a", "c"])
    assert followed.results().num_bytes > 0


def test_what_has_gone_into_the_frames_is_followed(home, trial, results_of, was_read):
    followed = ResultsReader(home)
    made = [trial(name) for name in ("a", "b")]
    for one in made:
        write(home, one)
    followed.results()
    whole = results_of(*made)
    write_frames(home, whole.trials, whole.history)
    for name in ("a", "b"):
        os.remove(home.trial_file(name))
    check_matches(followed.results(), home)
    write(home, trial("c"))
    check_matches(followed.results(), home)
    assert list(followed.results().trials["trial_id"]) == ["a", "b", "c"]
    assert was_read == ["a", "b", "c"]


def test_a_part_that_goes_while_all_are_read_is_found_in_the_frames(home, trial, results_of, monkeypatch):
    made = [trial(name) for name in ("a", "b")]
    for one in made:
        write(home, one)
    read = reader.read_trial_table

    def ended(part):
        if part.stem == "b" and part.exists():
            whole = results_of(*made)
            write_frames(home, whole.trials, whole.history)
            for name in ("a", "b"):
                os.remove(home.trial_file(name))
        return read(part)

    monkeypatch.setattr(reader, "read_trial_table", ended)
    followed = ResultsReader(home)
    assert list(followed.results().trials["trial_id"]) == ["a", "b"]
    check_matches(followed.results(), home)


def test_parts_that_go_between_the_listing_and_the_frames_are_not_missed(home, trial, results_of, monkeypatch):
    write(home, trial("a"))
    whole, read = results_of(trial("a")), frames.read_frames

    def ended(folder):
        found = read(folder)
        if home.trial_file("a").exists():
            write_frames(home, whole.trials, whole.history)
            os.remove(home.trial_file("a"))
        return found

    monkeypatch.setattr(frames, "read_frames", ended)
    assert list(results.load(home.path).trials["trial_id"]) == ["a"]
    check_matches(ResultsReader(home).results(), home)


def test_an_unreadable_file_is_named_and_read_again_once_it_is_well(home, trial):
    followed = ResultsReader(home)
    write(home, trial("a"))
    followed.results()
    home.trial_file("b").write_bytes(b"PAR1 garbage")
    for _ in range(2):
        with pytest.raises(FolderError, match=r"b.parquet is not readable as Parquet"):
            followed.results()
    write(home, trial("b"))
    check_matches(followed.results(), home)


metrics = st.lists(st.sampled_from(["loss", "accuracy", "own"]), unique=True)
values = st.one_of(st.just(np.nan), st.floats(-1, 1))
#: Of some trials which metrics they reported, and where; and how many of them are in the frames already.
reported = st.lists(st.tuples(metrics, st.lists(values, max_size=4)), max_size=5)


@given(reported, st.integers(0, 5), st.sets(st.integers(0, 5)))
def test_histories_put_together_are_those_that_went_in(trials, num_framed, asked):
    alone = {
        f"t{number}": pd.DataFrame({"step": range(len(taken)), **dict.fromkeys(names, taken)}).astype({"step": "int64"})
        for number, (names, taken) in enumerate(trials)
    }
    first = [df.assign(trial_id=name) for name, df in list(alone.items())[:num_framed]]
    frame = pd.concat(first, ignore_index=True) if first else pd.DataFrame({"trial_id": [], "step": []})
    tables = {name: reader.pa.Table.from_pandas(df) for name, df in list(alone.items())[num_framed:]}
    histories = LazyHistory(frame, tables)
    for wanted in (None, {f"t{number}" for number in asked}):
        df = histories.frame(wanted)
        assert list(df) == histories.columns
        for name, one in alone.items():
            own = df[df["trial_id"] == name].drop(columns="trial_id").reset_index(drop=True)
            expected = one if wanted is None or name in wanted else one.iloc[:0]
            for column in one if len(one) else ():
                np.testing.assert_array_equal(own[column].to_numpy(float), expected[column].to_numpy(float))
            assert len(own) == len(expected)
    for metric in ("loss", "accuracy", "own"):
        took = {name for name, one in alone.items() if metric in one and one[metric].notna().any()}
        assert histories.trials_with(metric) == took


def test_trials_are_told_whatever_their_files_lack(home, trial):
    row, history = trial("a")
    home.write_trial("a", row, history[["step", "train_loss"]])
    write(home, trial("b"))
    found = ResultsReader(home).results()
    assert found.histories.trials_with("test_loss") == {"b"}
    assert found.histories.frame(["a"])["test_loss"].isna().all()
    assert list(found.histories.frame([])) == found.histories.columns
    pd.testing.assert_frame_equal(found.trials, trials_frame([row, trial("b")[0]], KEYS))
