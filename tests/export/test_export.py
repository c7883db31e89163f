"""Exports: nothing is missed, nothing comes twice, and following a search ends when the search does."""

import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from tune_hpc.analysis.frames import trials_frame, write_frames
from tune_hpc.analysis.results import load
from tune_hpc.analysis.trial_updates import TrialUpdates
from tune_hpc.errors import ExportError, FolderError, InvalidExperimentError, MissingPackageError, UnknownNameError
from tune_hpc.export import export
from tune_hpc.export.export import check_tools, export_search
from tune_hpc.export.exporter import points, search_id
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.process import may_be_running, this_process
from tune_hpc.storage.trial_file import write_trial

KEYS = ["optimizer", "learning_rate", "batch_size", "seed"]
ASKED = {"name": "made.up", "metric": "test_loss", "mode": "min", "config_keys": KEYS, "state": "finished"}
SEEN: list[tuple[str, str, int]] = []


class ListSink:
    """Notes what it is given."""

    FOREIGN = (ZeroDivisionError,)

    def __init__(self, home, experiment, place):
        self.place = place or "nowhere"
        self.num_exported = 0
        self.config = None

    def take(self, row, config, history):
        SEEN.append((row["trial_id"], row["status"], len(history)))
        assert set(config) == set(KEYS)
        assert not any(value is None or value != value for value in row.values())
        self.num_exported += row["status"] != "running"
        _ = 1 / (row["learning_rate"] if self.place == "broken" else 1)

    def flush(self):
        SEEN.append(("flush", "", 0))


@pytest.fixture(autouse=True)
def list_tool(monkeypatch):
    SEEN.clear()
    monkeypatch.setitem(
        export.TOOLS, "list", export.ExportTool(f"{__name__}:ListSink", "json", "pip install it", "cat")
    )
    monkeypatch.setattr(export, "LOOK_INTERVAL_S", 0.02)


@pytest.fixture
def home(tmp_path):
    home = ExperimentFolder(tmp_path / "run")
    home.claim("made.up")
    home.write(ASKED)
    return home


def write(home, made):
    row, history = made
    write_trial(home.part(row["trial_id"]), row, history)


def finish(home, **changes):
    """End a search as a run does: frames, state, no parts."""
    results = load(home.path)
    write_frames(home, results.trials, results.history)
    home.write(ASKED | changes)
    for part in home.parts.glob("*.parquet"):
        part.unlink()


def trials():
    return [one for one in SEEN if one[0] != "flush"]


class TestNews:
    def test_each_change_is_told_once(self, home, trial):
        news = TrialUpdates(home)
        assert list(news.trials()) == []
        write(home, trial("t00000", status="running", num_steps=5))
        assert [(row["status"], len(history)) for row, history in news.trials()] == [("running", 6)]
        assert list(news.trials()) == []
        write(home, trial("t00000", status="running", num_steps=9))
        write(home, trial("t00001"))
        assert [(row["trial_id"], len(history)) for row, history in news.trials()] == [("t00000", 10), ("t00001", 21)]
        write(home, trial("t00000"))
        assert [row["status"] for row, _ in news.trials()] == ["finished"]
        finish(home)
        assert list(news.trials()) == []

    def test_what_ended_between_two_looks_is_found_in_the_frames(self, home, trial):
        news = TrialUpdates(home)
        write(home, trial("t00000"))
        assert len(list(news.trials())) == 1
        write(home, trial("t00001", status="failed"))
        write(home, trial("t00002"))
        finish(home)
        told = [(row["trial_id"], row["status"], len(history)) for row, history in news.trials()]
        assert told == [("t00001", "failed", 0), ("t00002", "finished", 21)]

    def test_a_part_counts_more_than_an_earlier_runs_frames(self, home, trial):
        row, history = trial("t00000", status="running", num_steps=3)
        write_frames(home, trials_frame([row], KEYS), history.assign(trial_id="t00000"))
        write(home, trial("t00000"))
        assert [(row["status"], len(own)) for row, own in TrialUpdates(home).trials()] == [("finished", 21)]

    def test_a_broken_part_is_named(self, home):
        home.parts.mkdir()
        home.part("t00000").write_bytes(b"no")
        with pytest.raises(FolderError, match=r"t00000\.parquet is not readable"):
            list(TrialUpdates(home).trials())


class TestExport:
    def test_every_experiment_below_a_folder_is_exported(self, tmp_path, trial):
        for name in ("a", "b"):
            home = ExperimentFolder(tmp_path / name)
            home.claim(name)
            home.write(ASKED | {"name": name})
            write(home, trial("t00000"))
        done = export_search(tmp_path, "list")
        assert [(one.experiment, one.tool, one.num_trials, one.viewer) for one in done] == [
            ("a", "list", 1, "cat nowhere"), ("b", "list", 1, "cat nowhere"),
        ]  # fmt: skip

    def test_following_ends_when_the_search_has(self, home, trial):
        home.write(ASKED | {"state": "running", "process": {"host": "another", "pid": 1, "began": ""}})
        write(home, trial("t00000", status="running", num_steps=5))
        thread = threading.Thread(target=export_search, args=(home.path, "list"), kwargs={"follow": True})
        thread.start()
        deadline = time.monotonic() + 20
        while not trials() and time.monotonic() < deadline:
            time.sleep(0.01)
        write(home, trial("t00000"))
        write(home, trial("t00001"))
        finish(home)
        thread.join(20)
        assert not thread.is_alive()
        assert trials() == [("t00000", "running", 6), ("t00000", "finished", 21), ("t00001", "finished", 21)]

    def test_following_ends_when_the_driver_is_gone(self, home, trial):
        code = "from tune_hpc.storage.process import this_process; import json; print(json.dumps(this_process()))"
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        home.write(ASKED | {"state": "running", "process": eval(told)})
        write(home, trial("t00000"))
        (done,) = export_search(home.path, "list", follow=True)
        assert done.num_trials == 1

    def test_two_exports_of_the_same_to_the_same_do_not_run_at_once(self, home, trial):
        with export._locked(home, "list"), pytest.raises(ExportError, match="by another process; wait for it"):
            export_search(home.path, "list")
        export_search(home.path, "list")

    def test_what_a_tool_raises_is_told_in_one_line(self, home, trial):
        write(home, trial("t00000", learning_rate=0.0))
        with pytest.raises(ExportError, match=r"made\.up cannot be exported to list: .*by zero; choose another place"):
            export_search(home.path, "list", where="broken")

    @pytest.mark.parametrize(
        ("tools", "error", "message"),
        [
            ("paper", UnknownNameError, "an export goes to tensorboard, optuna, mlflow, list; got 'paper'"),
            ("", UnknownNameError, "got ''"),
            (["optuna", "absent"], MissingPackageError, "needs the package no_such_package, .*; pip install"),
        ],
    )
    def test_a_tool_that_is_not_there_is_refused(self, monkeypatch, tools, error, message):
        absent = export.ExportTool("x:y", "no_such_package", "pip install it", "x")
        if "absent" in tools:
            monkeypatch.setitem(export.TOOLS, "absent", absent)
        with pytest.raises(error, match=message):
            check_tools(tools)

    def test_tools_are_named_one_by_one_or_as_a_list(self):
        assert check_tools(["optuna,tensorboard", "optuna"]) == ("optuna", "tensorboard")
        assert check_tools(()) == ()

    def test_one_place_for_several_tools_is_refused(self, home):
        with pytest.raises(InvalidExperimentError, match="export to list, optuna one by one"):
            export_search(home.path, "list,optuna", where="there")


def test_a_process_of_another_machine_may_be_running():
    assert may_be_running({"host": "another", "pid": 1, "began": "x"})
    assert not may_be_running(None)
    assert not may_be_running(this_process() | {"began": "long ago"})


def test_searches_of_one_name_are_told_apart_by_their_beginning():
    origin = {"machine": {"host": "node1"}, "started": "2020-01-01T00:00:00+00:00"}
    assert search_id(ASKED | {"provenance": origin}) == "made.up node1 2020-01-01T00:00:00+00:00"
    assert search_id(ASKED) == "made.up"


class TestPoints:
    history = pd.DataFrame({"step": range(0, 2001), "loss": range(0, 2001)}).assign(few=lambda df: df["loss"])
    history.loc[history["step"] % 500 != 0, "few"] = float("nan")

    def test_they_are_thinned_evenly_and_the_last_is_kept(self):
        steps, values = points(self.history, "loss", 100)
        assert steps.tolist() == [*range(0, 2000, 21), 2000]
        assert values.tolist() == steps.tolist()
        assert points(self.history, "few", 100)[0].tolist() == [0, 500, 1000, 1500, 2000]

    def test_a_trial_that_goes_on_has_its_share_of_them(self):
        steps, _ = points(self.history.iloc[:501], "loss", 100, num_steps=2000)
        assert len(steps) in (24, 25, 26)
        assert set(steps) <= set(range(0, 501, 21))
        assert points(self.history.iloc[:0], "loss", 100, num_steps=2000)[0].tolist() == []
