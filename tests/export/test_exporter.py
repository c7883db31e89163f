"""Exports: complete, without repetition, and ending with the search that they follow."""

import json
import subprocess
import sys
import threading
import time
from importlib.metadata import EntryPoint, entry_points

import pandas as pd
import pytest

from tests.results_fixtures import EXPERIMENT, KEYS, make_folder
from tune_hpc.analysis.frames import trials_frame, write_frames
from tune_hpc.analysis.loading import load
from tune_hpc.errors import ExportError, FolderError, InvalidExperimentError, MissingPackageError, UnknownNameError
from tune_hpc.export import exporter
from tune_hpc.export.exporter import Exporter, export_search, points, search_id
from tune_hpc.search import object_reference
from tune_hpc.search.object_reference import check_tools

SEEN: list[tuple[str, str, int]] = []


class ListExporter(Exporter):
    """Records its calls; fails at a learning rate of 0 for the URI ``broken``."""

    package = "json"
    remedy = "pip install it"
    viewer = "cat"

    def __init__(self, folder, experiment, uri):
        self.uri = uri or "nowhere"
        self.num_exported = 0

    @classmethod
    def expected_errors(cls):
        return (ZeroDivisionError,)

    def add(self, row, config, history):
        SEEN.append((row["trial_id"], row["status"], len(history)))
        assert set(config) == set(KEYS)
        assert not any(value is None or value != value for value in row.values())
        self.num_exported += row["status"] != "running"
        _ = 1 / (row["learning_rate"] if self.uri == "broken" else 1)


@pytest.fixture(autouse=True)
def list_tool(monkeypatch):
    SEEN.clear()
    point = EntryPoint("list", f"{__name__}:ListExporter", object_reference.EXPORTERS)
    monkeypatch.setattr(object_reference, "entry_points", lambda group: [*entry_points(group=group), point])
    monkeypatch.setattr(exporter, "POLL_INTERVAL_S", 0.02)


def finish(folder, **changes):
    """End a search as a run does: write the frames and the state, and delete the trial files."""
    results = load(folder.path)
    write_frames(folder, results.trials, results.history)
    folder.write(EXPERIMENT | changes)
    for part in folder.trials.glob("*.parquet"):
        part.unlink()


class TestUpdates:
    @pytest.fixture
    def exports(self, folder):
        """Return a function that exports all changes, and returns the trials that were exported."""
        exporting = exporter._Export(folder, "list", None)

        def update():
            SEEN.clear()
            exporting.update()
            return list(SEEN)

        return update

    def test_each_change_is_exported_once(self, exports, folder, write, trial):
        assert exports() == []
        write(trial("t00000", status="running", num_steps=5))
        assert exports() == [("t00000", "running", 6)]
        assert exports() == []
        write(trial("t00000", status="running", num_steps=9))
        write(trial("t00001"))
        assert exports() == [("t00000", "running", 10), ("t00001", "finished", 21)]
        write(trial("t00000"))
        assert exports() == [("t00000", "finished", 21)]
        finish(folder)
        assert exports() == []

    def test_trials_that_ended_between_two_updates_are_in_the_frames(self, exports, folder, write, trial):
        write(trial("t00000"))
        assert len(exports()) == 1
        write(trial("t00001", status="failed"))
        write(trial("t00002"))
        finish(folder)
        assert exports() == [("t00001", "failed", 0), ("t00002", "finished", 21)]

    def test_trial_file_takes_precedence_over_frames(self, exports, folder, write, trial):
        row, history = trial("t00000", status="running", num_steps=3)
        write_frames(folder, trials_frame([row], KEYS), history.assign(trial_id="t00000"))
        write(trial("t00000"))
        assert exports() == [("t00000", "finished", 21)]

    def test_damaged_trial_file_is_named(self, exports, folder):
        folder.trials.mkdir()
        folder.trial_file("t00000").write_bytes(b"no")
        with pytest.raises(FolderError, match=r"t00000\.parquet is not readable"):
            exports()


class TestExport:
    def test_every_experiment_below_a_folder_is_exported(self, tmp_path, write, trial):
        for name in ("a", "b"):
            write(trial("t00000"), make_folder(tmp_path / "searches" / name, EXPERIMENT | {"name": name}))
        done = export_search(tmp_path / "searches", "list")
        assert [(one.experiment, one.tool, one.num_trials, one.viewer) for one in done] == [
            ("a", "list", 1, "cat nowhere"), ("b", "list", 1, "cat nowhere"),
        ]  # fmt: skip

    def test_follow_ends_with_the_search(self, folder, write, trial):
        folder.write(EXPERIMENT | {"state": "running", "process": {"host": "another", "pid": 1, "began": ""}})
        write(trial("t00000", status="running", num_steps=5))
        thread = threading.Thread(target=export_search, args=(folder.path, "list"), kwargs={"follow": True})
        thread.start()
        deadline = time.monotonic() + 20
        while not SEEN and time.monotonic() < deadline:
            time.sleep(0.01)
        write(trial("t00000"))
        write(trial("t00001"))
        finish(folder)
        thread.join(20)
        assert not thread.is_alive()
        assert SEEN == [("t00000", "running", 6), ("t00000", "finished", 21), ("t00001", "finished", 21)]

    def test_follow_ends_with_the_driver(self, folder, write, trial):
        code = "from tune_hpc.storage.process import this_process; import json; print(json.dumps(this_process()))"
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        write(trial("t00000"))
        for process in (json.loads(output), None):
            folder.write(EXPERIMENT | {"state": "running", "process": process})
            (done,) = export_search(folder.path, "list", follow=True)
            assert done.num_trials == 1

    def test_concurrent_export_is_rejected(self, folder, write, trial):
        with (
            exporter._locked(folder, "list"),
            pytest.raises(ExportError, match=r"another process exports .* to list; wait for it"),
        ):
            export_search(folder.path, "list")
        export_search(folder.path, "list")

    def test_error_of_a_tool_becomes_one_line(self, folder, write, trial):
        write(trial("t00000", learning_rate=0.0))
        with pytest.raises(
            ExportError, match=r"made\.up cannot be exported to list: .*by zero; choose another destination"
        ):
            export_search(folder.path, "list", where="broken")

    @pytest.mark.parametrize(
        ("tools", "error", "message"),
        [
            ("paper", UnknownNameError, "an export goes to list, mlflow, optuna, tensorboard; got 'paper'"),
            ("", UnknownNameError, "got ''"),
            (["optuna", "list"], MissingPackageError, "to list needs the package no_such_package, .*; pip install it"),
        ],
    )
    def test_unavailable_tool_is_rejected(self, monkeypatch, tools, error, message):
        monkeypatch.setattr(ListExporter, "package", "no_such_package")
        with pytest.raises(error, match=message):
            check_tools(tools)

    def test_tools_are_a_text_or_a_list(self):
        assert check_tools(["optuna,tensorboard", "optuna"]) == ("optuna", "tensorboard")
        assert check_tools(()) == ()

    def test_one_destination_for_several_tools_is_rejected(self, folder):
        with pytest.raises(InvalidExperimentError, match="export to list, optuna one by one"):
            export_search(folder.path, "list,optuna", where="there")


def test_search_id_has_host_and_start():
    provenance = {"machine": {"host": "node1"}, "started": "2020-01-01T00:00:00+00:00"}
    assert search_id(EXPERIMENT | {"provenance": provenance}) == "made.up node1 2020-01-01T00:00:00+00:00"
    assert search_id(EXPERIMENT) == "made.up"


class TestPoints:
    history = pd.DataFrame({"step": range(0, 2001), "loss": range(0, 2001)}).assign(few=lambda df: df["loss"])
    history.loc[history["step"] % 500 != 0, "few"] = float("nan")

    def test_history_is_thinned_evenly_with_the_last_point(self):
        assert points(self.history, "loss", 100) == [(step, step) for step in (*range(0, 2000, 21), 2000)]
        assert points(self.history, "few", 100) == [(step, step) for step in range(0, 2001, 500)]

    def test_running_trial_has_the_points_of_the_finished_one(self):
        steps = [step for step, _ in points(self.history.iloc[:501], "loss", 100, num_steps=2000)]
        assert len(steps) in (24, 25, 26)
        assert set(steps) <= set(range(0, 501, 21))
        assert points(self.history.iloc[:0], "loss", 100, num_steps=2000) == []
