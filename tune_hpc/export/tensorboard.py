"""TensorBoard's logs of a search: a folder for each trial with one event file, which grows while the trial runs.

    TRIAL_ID/events.out.tfevents.tune_hpc   a scalar for each metric; the configuration, as the HPARAMS tab wants it
    exported.json                           the search's name and beginning, and how far each trial was exported

Only what is in ``exported.json`` counts: a file that is longer was being written when an export was cut off, and is cut
back. A trial that began anew, or goes on from a state before what was exported, is exported from its beginning, after
the mark by which TensorBoard drops what a run that was started again had written.
"""

import json
import math
import struct
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.record_writer import masked_crc32c

from tune_hpc.analysis.results import IDENTITY, MEASURES
from tune_hpc.errors import ExportError
from tune_hpc.export.exporter import points, search_id
from tune_hpc.storage.experiment_folder import ExperimentFolder, write_atomic

#: Points of a metric that a finished trial has at most; TensorBoard itself draws a thousand.
MAX_POINTS = 1000

_EVENTS = "events.out.tfevents.tune_hpc"


class TensorBoardExporter:
    """Writes event files.

    Args:
        home: The experiment's folder.
        experiment: Its experiment.json.
        place: A folder, in which the search gets one of its own; by default ``tensorboard/`` in the experiment's.

    Raises:
        ExportError: what is known of earlier exports cannot be read.
    """

    FOREIGN = (OSError,)

    def __init__(self, home: ExperimentFolder, experiment: Mapping[str, Any], place: str | None) -> None:
        self._search = search_id(experiment)
        self._metric = experiment["metric"]
        # A member of a population changes its configuration; the HPARAMS tab takes one, and is told the last.
        self._tells_config_last = experiment.get("scheduler") == "pbt"
        self.folder = home.tensorboard if place is None else _own_folder(Path(place), experiment["name"], self._search)
        self.place = str(self.folder)
        self.num_exported = 0
        known = _read_state(self.folder)
        if known.get("search", self._search) != self._search:
            raise ExportError(f"{self.folder} holds the logs of another search, {known['search']}; remove them")
        self._trials: dict[str, dict[str, Any]] = known.get("trials", {})

    def take(self, row: Mapping[str, Any], config: Mapping[str, Any], history: pd.DataFrame) -> None:
        """Append what is new of a trial to its event file."""
        trial_id = str(row["trial_id"])
        known = self._trials.get(trial_id)
        if known is not None and known["status"] != "running":
            return
        events = []
        if known is None:
            events += [Event(file_version="brain.Event:2"), _start()]
            known = {"size": 0, "columns": {}, "config_is_told": False}
        elif any(_is_another(history, column, *last) for column, last in known["columns"].items()):
            events.append(_start())
            known |= {"columns": {}, "config_is_told": False}
        has_ended = row["status"] != "running"
        if not known["config_is_told"] and (has_ended or not self._tells_config_last):
            events.append(_hparams(session_start_info=_start_info(trial_id, config)))
            known["config_is_told"] = True
        events += _scalars(history, None if has_ended else config.get("steps"), known["columns"])
        if has_ended:
            events += self._summary(row, config, history)
            well = row["status"] in ("finished", "stopped")
            status = Status.STATUS_SUCCESS if well else Status.STATUS_FAILURE
            events.append(_hparams(session_end_info=SessionEndInfo(status=status, end_time_secs=time.time())))
            self.num_exported += 1
        size = _append(self.folder / trial_id / _EVENTS, events, known["size"])
        self._trials[trial_id] = {"status": row["status"]} if has_ended else known | {"status": "running", "size": size}

    def _summary(self, row: Mapping[str, Any], config: Mapping[str, Any], history: pd.DataFrame) -> list[Event]:
        """Return numbers that a trial has one of, in a section of their own."""
        known = {*config, *IDENTITY, *history, *MEASURES} - {self._metric} | set(history)
        numbers = {
            name: float(value)
            for name, value in row.items()
            if name not in known and isinstance(value, int | float) and not isinstance(value, bool)
        }
        return [_event(int(row.get("steps_run", 0)), {f"summary/{name}": value for name, value in numbers.items()})]

    def flush(self) -> None:
        """Note how far every trial is exported."""
        text = json.dumps({"search": self._search, "trials": self._trials}) + "\n"
        write_atomic(_state_file(self.folder), lambda path: path.write_text(text, encoding="utf-8"))


def _state_file(folder: Path) -> Path:
    return folder / "exported.json"


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_state_file(folder).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ExportError(f"{_state_file(folder)} cannot be read: {error}; remove {folder} and export anew") from error


def _own_folder(parent: Path, name: str, search: str) -> Path:
    """Return the folder of a search among those of others, some of which may have the same name."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        if _read_state(folder).get("search", search) == search:
            return folder
        number += 1


def _scalars(history: pd.DataFrame, num_steps: Any, columns: dict[str, list[float]]) -> list[Event]:
    """Return the points of each metric that were not exported yet, and note in ``columns`` the last of each."""
    by_step: dict[int, dict[str, float]] = defaultdict(dict)
    for column in history.columns.drop("step"):
        steps, values = points(history, column, MAX_POINTS, num_steps)
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            if step > columns.get(column, [-math.inf])[0]:
                by_step[step][column] = value
        if len(steps):
            columns[column] = [int(steps[-1]), float(values[-1])]
    return [_event(step, by_step[step]) for step in sorted(by_step)]


def _is_another(history: pd.DataFrame, column: str, step: int, value: float) -> bool:
    """Whether a history does not hold what was exported last of a metric."""
    return column not in history or value not in history.loc[history["step"] == step, column].to_numpy()


def _start_info(trial_id: str, config: Mapping[str, Any]) -> SessionStartInfo:
    info = SessionStartInfo(group_name=trial_id, start_time_secs=time.time())
    for name, value in config.items():
        if isinstance(value, bool | np.bool_):
            info.hparams[name].bool_value = bool(value)
        elif isinstance(value, int | float):
            info.hparams[name].number_value = value
        else:
            info.hparams[name].string_value = str(value)
    return info


def _start() -> Event:
    """Return the mark of a run's start; each but the first lets TensorBoard drop what came before."""
    return Event(session_log=SessionLog(status=SessionLog.START))


def _hparams(**content: Any) -> Event:
    """Return what the HPARAMS tab reads: a summary without a value whose metadata say it all."""
    (tag,) = content
    data = HParamsPluginData(version=0, **content).SerializeToString()
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="hparams", content=data))
    return Event(summary=Summary(value=[Summary.Value(tag=f"_hparams_/{tag}", metadata=metadata)]))


def _event(step: int, values: Mapping[str, float]) -> Event:
    return Event(
        step=step, summary=Summary(value=[Summary.Value(tag=tag, simple_value=one) for tag, one in values.items()])
    )


def _append(path: Path, events: list[Event], size: int) -> int:
    """Write events behind the first ``size`` bytes of a file and return its new size."""
    written = bytearray()
    for event in events:
        event.wall_time = time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        written += length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(size)
        file.write(written)
    return size + len(written)
