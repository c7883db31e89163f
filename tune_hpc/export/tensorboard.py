"""Export of a search as TensorBoard event files, in one folder for each trial.

    TRIAL_ID/events.out.tfevents.*   a scalar for each metric, and the configuration for the HPARAMS tab
    exported.json                    the search, and the trials that are exported to their end

An export writes a new event file for each trial that is not yet in ``exported.json``, from the trial's first step on.
The file starts with a session mark at step 0, at which TensorBoard drops everything in earlier files. A trial that
restarts during an export, or resumes from a state before the exported steps, gets a new file as well.

``tensorboardX.SummaryWriter(purge_step=0)`` writes the same mark. The exporter uses the synchronous ``EventsWriter``
below it, because the queue of a ``SummaryWriter`` blocks forever once its thread has met a full disk.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata

from tune_hpc.analysis.frames import IDENTITY, MEASURES
from tune_hpc.errors import ExportError
from tune_hpc.export.exporter import Exporter, points, search_id
from tune_hpc.storage.experiment_folder import ExperimentFolder, numbered_names
from tune_hpc.storage.filesystem import Storage

#: Maximum number of points of a metric of a finished trial; TensorBoard draws a thousand.
MAX_POINTS = 1000
#: Maximum number of running trials with an open event file.
MAX_OPEN = 256

_EXPORTED = "exported.json"


class TensorBoardExporter(Exporter):
    """Exporter to event files: ``tensorboard/`` in the experiment folder, or a folder of the search below another.

    Raises:
        ExportError: The folder contains another search, or ``exported.json`` is damaged.
    """

    package: ClassVar[str] = "tensorboardX"
    remedy: ClassVar[str] = "pip install tensorboardX"
    viewer: ClassVar[str] = "tensorboard --logdir"

    def __init__(self, folder: ExperimentFolder, experiment: Mapping[str, Any], uri: str | None) -> None:
        self._search = search_id(experiment)
        self._metric = experiment["metric"]
        # A member of a population changes its configuration; the HPARAMS tab shows the last one.
        self._config_changes = experiment.get("scheduler") == "pbt"
        self.folder = folder.tensorboard
        if uri is not None:
            self.folder = _free_folder(Path(uri), experiment["name"], self._search)
        self.uri = str(self.folder)
        self.num_exported = 0
        exported = _read_exported(self.folder)
        if exported.get("search", self._search) != self._search:
            raise ExportError(f"{self.folder} contains another search, {exported['search']}; remove the folder")
        self._ended = {
            name: trial for name, trial in exported.get("trials", {}).items() if trial["status"] != "running"
        }
        self._logs: dict[str, _TrialLog] = {}

    @classmethod
    def expected_errors(cls) -> tuple[type[Exception], ...]:
        """Return the exceptions that an unusable destination raises."""
        return (OSError,)

    def add(self, row: Mapping[str, Any], config: Mapping[str, Any], history: pd.DataFrame) -> None:
        """Write what is new of a trial."""
        trial_id = str(row["trial_id"])
        if trial_id in self._ended:
            return
        log = self._logs.pop(trial_id, None)
        if log is not None and not log.is_continued_by(history):
            log.writer.close()
            log = None
        log = log or _TrialLog(self.folder / trial_id)
        has_ended = row["status"] != "running"
        if not log.has_config and (has_ended or not self._config_changes):
            log.write_config(trial_id, config)
        log.write_history(history, None if has_ended else config.get("steps"))
        if has_ended:
            log.write_end(row, self._summary(row, config, history))
            log.writer.close()
            self._ended[trial_id] = {"status": row["status"]}
            self.num_exported += 1
            return
        self._logs[trial_id] = log
        if len(self._logs) > MAX_OPEN:
            self._logs.pop(next(iter(self._logs))).writer.close()

    def _summary(self, row: Mapping[str, Any], config: Mapping[str, Any], history: pd.DataFrame) -> dict[str, float]:
        """Return the numbers of a row that are no configuration, no measure and no metric of the history."""
        known = {*config, *IDENTITY, *MEASURES} - {self._metric} | set(history)
        return {
            f"summary/{name}": float(value)
            for name, value in row.items()
            if name not in known and isinstance(value, int | float) and not isinstance(value, bool)
        }

    def flush(self) -> None:
        """Write everything to disk, and record the trials that are exported to their end."""
        for log in self._logs.values():
            log.writer.flush()
        text = json.dumps({"search": self._search, "trials": self._ended}) + "\n"
        Storage(self.folder).write_atomic(_EXPORTED, text)

    def close(self) -> None:
        """Close the event files."""
        for log in self._logs.values():
            log.writer.close()


class _TrialLog:
    """Event file of a trial; TensorBoard drops earlier files of the folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The names have a time in seconds; the number makes them unique and keeps their order.
        self.writer = EventsWriter(str(folder / "events"), f".{len(list(folder.iterdir())):06d}")
        self._write(session_log=SessionLog(status=SessionLog.START))
        self._last: dict[str, tuple[int, float]] = {}
        self.has_config = False

    def is_continued_by(self, history: pd.DataFrame) -> bool:
        """Return whether a history contains the last points that were written."""
        return all(
            column in history and value in history.loc[history["step"] == step, column].to_numpy()
            for column, (step, value) in self._last.items()
        )

    def write_config(self, trial_id: str, config: Mapping[str, Any]) -> None:
        """Write the configuration for the HPARAMS tab."""
        info = SessionStartInfo(group_name=trial_id, start_time_secs=time.time())
        for name, value in config.items():
            if isinstance(value, bool | np.bool_):
                info.hparams[name].bool_value = bool(value)
            elif isinstance(value, int | float):
                info.hparams[name].number_value = value
            else:
                info.hparams[name].string_value = str(value)
        self._write_hparams(session_start_info=info)
        self.has_config = True

    def write_history(self, history: pd.DataFrame, num_steps: Any) -> None:
        """Write the new points of each metric."""
        by_step: dict[int, dict[str, float]] = defaultdict(dict)
        for column in history.columns.drop("step"):
            found = points(history, column, MAX_POINTS, num_steps)
            last_step = self._last[column][0] if column in self._last else -math.inf
            for step, value in found:
                if step > last_step:
                    by_step[step][column] = value
            if found:
                self._last[column] = found[-1]
        for step in sorted(by_step):
            self._write_scalars(step, by_step[step])

    def write_end(self, row: Mapping[str, Any], summary: Mapping[str, float]) -> None:
        """Write the summary and the status of a trial that has ended."""
        self._write_scalars(int(row.get("steps_run", 0)), summary)
        is_success = row["status"] in ("finished", "stopped")
        status = Status.STATUS_SUCCESS if is_success else Status.STATUS_FAILURE
        self._write_hparams(session_end_info=SessionEndInfo(status=status, end_time_secs=time.time()))

    def _write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._write(step, summary=summary)

    def _write_hparams(self, **content: Any) -> None:
        """Write a record of the HPARAMS tab: a summary whose metadata have the content."""
        (tag,) = content
        data = HParamsPluginData(version=0, **content).SerializeToString()
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="hparams", content=data))
        self._write(summary=Summary(value=[Summary.Value(tag=f"_hparams_/{tag}", metadata=metadata)]))

    def _write(self, step: int = 0, **content: Any) -> None:
        self.writer.write_event(Event(wall_time=time.time(), step=step, **content))


def _read_exported(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / _EXPORTED).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ExportError(f"{folder / _EXPORTED} cannot be read: {error}; remove {folder} and export again") from error


def _free_folder(parent: Path, name: str, search: str) -> Path:
    """Return the folder of a search below a folder, which may contain other searches of the same name."""
    folders = map(parent.joinpath, numbered_names(name))
    return next(folder for folder in folders if _read_exported(folder).get("search", search) == search)
