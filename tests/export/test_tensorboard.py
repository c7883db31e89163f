"""TensorBoard event files of an export, read as TensorBoard reads them."""

import struct
from contextlib import closing

import numpy as np
import pytest
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.record_writer import masked_crc32c

from tests import results_fixtures
from tune_hpc.errors import ExportError
from tune_hpc.export import tensorboard
from tune_hpc.export.exporter import export_search
from tune_hpc.export.tensorboard import MAX_POINTS, TensorBoardExporter
from tune_hpc.storage.trial_file import config_to_row

EXPERIMENT = results_fixtures.EXPERIMENT | {
    "metric": "best_test_accuracy", "mode": "max", "config_keys": [*results_fixtures.KEYS, "nesterov"],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    return results_fixtures.make_folder(tmp_path / "run", EXPERIMENT)


@pytest.fixture
def exporter(folder):
    with closing(TensorBoardExporter(folder, EXPERIMENT, None)) as exporter:
        yield exporter


def records(file):
    """Return the events of a file, after a check of every check sum."""
    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc32c(data[12 : 12 + length])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    assert found[0].file_version == "brain.Event:2"
    return found


def events(folder, trial_id):
    """Return the events that TensorBoard shows: a session start drops earlier events from its step on."""
    found = []
    for file in sorted((folder / trial_id).iterdir()):
        for event in records(file):
            if event.session_log.status == SessionLog.START:
                found = [earlier for earlier in found if earlier.step < event.step]
            found.append(event)
    return found


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


def test_trial_is_a_run_with_curves_and_configuration(folder, write, trial):
    made = trial("t00000", nesterov=True)
    write(made)
    write(trial("t00001", status="failed"))
    (done,) = export_search(folder.path, "tensorboard")
    assert done.viewer == f"tensorboard --logdir {folder.path / 'tensorboard'}"
    found = events(folder.tensorboard, "t00000")
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
    assert hparams(events(folder.tensorboard, "t00001"), "session_end_info").status == Status.STATUS_FAILURE


def test_configuration_keeps_texts_and_numbers_apart(folder, write, trial):
    row, history = trial("t00000")
    write((row | config_to_row({"optimizer": None, "batch_size": [1, 2], "learning_rate": "1", "seed": 1}), history))
    export_search(folder.path, "tensorboard")
    found = hparams(events(folder.tensorboard, "t00000"), "session_start_info").hparams
    assert {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()} == {
        "optimizer": "None", "batch_size": "[1, 2]", "learning_rate": "1", "seed": 1.0,
    }  # fmt: skip


def test_long_curves_are_thinned(folder, write, trial):
    write(trial("t00000", num_steps=25_000))
    export_search(folder.path, "tensorboard")
    steps = [step for step, _ in scalars(events(folder.tensorboard, "t00000"), "train_loss")]
    assert MAX_POINTS / 2 < len(steps) <= MAX_POINTS + 1
    assert set(np.diff(steps[:-1])) == {26}
    assert steps[-1] == 25_000


def test_running_trial_grows_without_repetition(folder, write, trial):
    row, history = trial("t00000")
    for num_steps in (5, 12, 12):
        write((row | {"status": "running"}, history.iloc[:num_steps]))
        assert export_search(folder.path, "tensorboard")[0].num_trials == 0
        assert [step for step, _ in scalars(events(folder.tensorboard, "t00000"), "train_loss")] == [*range(num_steps)]
    write((row, history))
    assert [export_search(folder.path, "tensorboard")[0].num_trials for _ in range(2)] == [1, 0]
    found = events(folder.tensorboard, "t00000")
    assert [step for step, _ in scalars(found, "train_loss")] == [*range(21)]
    assert hparams(found, "session_start_info").group_name == "t00000"


def test_one_export_appends_to_one_file(folder, exporter, trial):
    row, history = trial("t00000")
    for num_steps in (5, 12):
        exporter.add(row | {"status": "running"}, {}, history.iloc[:num_steps])
        exporter.flush()
        assert [step for step, _ in scalars(events(folder.tensorboard, "t00000"), "train_loss")] == [*range(num_steps)]
    exporter.add(row, {}, history)
    (file,) = (folder.tensorboard / "t00000").iterdir()
    assert [step for step, _ in scalars(records(file), "train_loss")] == [*range(21)]


@pytest.mark.parametrize("kind", ["shorter", "other values"])
def test_restarted_trial_replaces_its_points(folder, exporter, trial, kind):
    row, history = trial("t00000", status="running")
    again = history.iloc[:6] if kind == "shorter" else history.assign(train_loss=7.0)
    for current in (history.iloc[:10], again):
        exporter.add(row, {}, current)
        exporter.flush()
    found = scalars(events(folder.tensorboard, "t00000"), "train_loss")
    assert [step for step, _ in found] == again["step"].tolist()
    assert [value for _, value in found] == pytest.approx(again["train_loss"].tolist(), rel=1e-6)


def test_number_of_open_files_is_bounded(folder, exporter, trial, monkeypatch):
    monkeypatch.setattr(tensorboard, "MAX_OPEN", 2)
    for num_steps in (3, 6):
        for number in range(4):
            row, history = trial(f"t{number:05d}", status="running", num_steps=num_steps)
            exporter.add(row, {}, history)
    exporter.flush()
    for number in range(4):
        found = events(folder.tensorboard, f"t{number:05d}")
        assert [step for step, _ in scalars(found, "train_loss")] == [*range(7)]


def test_points_of_a_killed_export_are_replaced(folder, exporter, write, trial):
    row, history = trial("t00000")
    exporter.add(row, {}, history)  # The process ends before flush.
    write(trial("t00000"))
    (done,) = export_search(folder.path, "tensorboard")
    assert done.num_trials == 1
    assert len(scalars(events(folder.tensorboard, "t00000"), "train_loss")) == 21


def test_searches_of_one_name_have_separate_folders(folder, write, trial, tmp_path):
    write(trial("t00000"))
    for started in ("2020", "2021", "2020"):
        folder.write(EXPERIMENT | {"provenance": {"started": started}})
        export_search(folder.path, "tensorboard", where=tmp_path / "logs")
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["made.up", "made.up-2"]


@pytest.mark.parametrize(
    ("exported", "message"),
    [
        ('{"search": "made.up 2020", "trials": {}}', r"contains another search, made\.up 2020; remove the folder"),
        ("{", r"exported\.json cannot be read: .*; remove .* and export again"),
    ],
    ids=["another search", "damaged"],
)
def test_unusable_state_file_is_rejected(folder, exported, message):
    folder.tensorboard.mkdir()
    (folder.tensorboard / "exported.json").write_text(exported)
    with pytest.raises(ExportError, match=message):
        export_search(folder.path, "tensorboard")


def test_overwriting_a_search_removes_its_exports(folder, write, trial):
    write(trial("t00000"))
    export_search(folder.path, "tensorboard")
    folder.optuna_journal.touch()
    folder.mlflow.touch()
    folder.claim("made.up", overwrite=True)
    assert list(folder.path.iterdir()) == []
