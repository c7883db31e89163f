"""What TensorBoard finds in its logs, read record by record."""

import json
import struct

import numpy as np
import pytest
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.record_writer import masked_crc32c

from tune_hpc.errors import ExportError
from tune_hpc.export.export import export_search
from tune_hpc.export.tensorboard import MAX_POINTS
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import write_trial

KEYS = ["optimizer", "learning_rate", "batch_size", "seed", "nesterov"]
ASKED = {"name": "made.up", "metric": "best_test_accuracy", "mode": "max", "config_keys": KEYS, "state": "finished"}


@pytest.fixture
def home(tmp_path):
    home = ExperimentFolder(tmp_path / "run")
    home.claim("made.up")
    home.write(ASKED)
    return home


def write(home, made):
    row, history = made
    write_trial(home.part(row["trial_id"]), row, history)


def events(folder, trial_id):
    """Return the events of a trial's one file, every check sum verified."""
    (path,) = (folder / trial_id).iterdir()
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(data[12 : 12 + length])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert found[0].file_version == "brain.Event:2"
    return found


def starts(found):
    return [place for place, event in enumerate(found) if event.session_log.status == SessionLog.START]


def scalars(found, tag):
    return [(event.step, value.simple_value) for event in found for value in event.summary.value if value.tag == tag]


def hparams(found, tag):
    (content,) = (
        value.metadata.plugin_data.content
        for event in found
        for value in event.summary.value
        if value.tag == f"_hparams_/{tag}"
    )
    return getattr(HParamsPluginData.FromString(content), tag)


def test_a_trial_is_a_run_with_its_curves_and_its_configuration(home, trial):
    made = trial("t00000", nesterov=True)
    write(home, made)
    (done,) = export_search(home.path, "tensorboard")
    assert done.viewer == f"tensorboard --logdir {home.path / 'tensorboard'}"
    found = events(home.tensorboard, "t00000")
    row, history = made
    for column in ("train_loss", "test_accuracy"):
        steps, values = zip(*scalars(found, column), strict=True)
        assert list(steps) == history["step"].tolist()
        assert values == pytest.approx(history[column].tolist(), rel=1e-6)
    assert scalars(found, "summary/best_test_accuracy") == [(20, pytest.approx(row["best_test_accuracy"]))]
    start = hparams(found, "session_start_info")
    assert start.group_name == "t00000"
    assert {name: value.WhichOneof("kind") for name, value in start.hparams.items()} == {
        "optimizer": "string_value", "learning_rate": "number_value", "batch_size": "number_value",
        "seed": "number_value", "nesterov": "bool_value",
    }  # fmt: skip
    assert start.hparams["learning_rate"].number_value == 0.1
    assert hparams(found, "session_end_info").status == Status.STATUS_SUCCESS


def test_a_trial_without_a_history_is_a_failed_run(home, trial):
    write(home, trial("t00000", status="failed"))
    export_search(home.path, "tensorboard")
    assert hparams(events(home.tensorboard, "t00000"), "session_end_info").status == Status.STATUS_FAILURE


def test_long_curves_are_thinned(home, trial):
    write(home, trial("t00000", num_steps=25_000))
    export_search(home.path, "tensorboard")
    steps = [step for step, _ in scalars(events(home.tensorboard, "t00000"), "train_loss")]
    assert MAX_POINTS / 2 < len(steps) <= MAX_POINTS + 1
    assert set(np.diff(steps[:-1])) == {26}
    assert steps[-1] == 25_000


def test_a_trial_under_way_grows_and_nothing_comes_twice(home, trial):
    row, history = trial("t00000")
    for num_steps in (5, 12, 12):
        write(home, (row | {"status": "running"}, history.iloc[:num_steps]))
        assert export_search(home.path, "tensorboard")[0].num_trials == 0
        assert [step for step, _ in scalars(events(home.tensorboard, "t00000"), "train_loss")] == [*range(num_steps)]
    write(home, (row, history))
    assert [export_search(home.path, "tensorboard")[0].num_trials for _ in range(2)] == [1, 0]
    found = events(home.tensorboard, "t00000")
    assert [step for step, _ in scalars(found, "train_loss")] == [*range(21)]
    assert hparams(found, "session_start_info").group_name == "t00000"
    assert starts(found) == [1]


@pytest.mark.parametrize("kind", ["shorter", "other values"])
def test_a_trial_that_begins_anew_is_marked_so_and_exported_from_its_beginning(home, trial, kind):
    row, history = trial("t00000", status="running")
    write(home, (row, history.iloc[:10]))
    export_search(home.path, "tensorboard")
    again = history.iloc[:6] if kind == "shorter" else history.assign(train_loss=7.0)
    write(home, (row, again))
    export_search(home.path, "tensorboard")
    found = events(home.tensorboard, "t00000")
    first, mark = starts(found)
    assert first == 1
    assert found[mark].step == 0
    assert [step for step, _ in scalars(found[mark:], "train_loss")] == again["step"].tolist()


def test_what_was_written_when_an_export_was_cut_off_is_cut_back(home, trial):
    row, history = trial("t00000", status="running", num_steps=5)
    write(home, (row, history))
    export_search(home.path, "tensorboard")
    (path,) = (home.tensorboard / "t00000").iterdir()
    with path.open("ab") as file:
        file.write(b"half a record")
    write(home, trial("t00000"))
    export_search(home.path, "tensorboard")
    assert len(scalars(events(home.tensorboard, "t00000"), "train_loss")) == 21


def test_searches_of_one_name_have_folders_of_their_own_in_one_place(home, trial, tmp_path):
    write(home, trial("t00000"))
    for started in ("2020", "2021", "2020"):
        home.write(ASKED | {"provenance": {"started": started}})
        export_search(home.path, "tensorboard", where=tmp_path / "logs")
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["made.up", "made.up-2"]


def test_another_searchs_logs_in_the_folder_are_refused(home):
    home.tensorboard.mkdir()
    (home.tensorboard / "exported.json").write_text(json.dumps({"search": "made.up 2020", "trials": {}}))
    with pytest.raises(ExportError, match=r"holds the logs of another search, made\.up 2020; remove them"):
        export_search(home.path, "tensorboard")


def test_a_damaged_note_of_what_was_exported_is_named(home):
    home.tensorboard.mkdir()
    (home.tensorboard / "exported.json").write_text("{")
    with pytest.raises(ExportError, match=r"exported\.json cannot be read: .*; remove .* and export anew"):
        export_search(home.path, "tensorboard")


def test_overwriting_a_search_removes_its_exports(home, trial):
    write(home, trial("t00000"))
    export_search(home.path, "tensorboard")
    home.optuna_journal.touch()
    home.mlflow.touch()
    home.claim("made.up", overwrite=True)
    assert list(home.path.iterdir()) == []
