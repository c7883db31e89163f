"""Exporter interface, and export of searches to other tools: TensorBoard, Optuna's dashboard, MLflow.

An export only reads the experiment folder: a search neither waits for it nor fails with it. An export that follows a
search looks for changes every second. Nothing is exported twice, neither by one call nor by a later one.

TensorBoard gets trials while they run, Optuna and MLflow when they have ended.
"""

import fcntl
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd

from tune_hpc.analysis.frames import read_frames
from tune_hpc.errors import ExportError, FolderError, InvalidExperimentError, TuneHpcError
from tune_hpc.search.object_reference import check_tools, exporter_class
from tune_hpc.storage.experiment_folder import ExperimentFolder, find_experiments
from tune_hpc.storage.process import may_be_running
from tune_hpc.storage.trial_file import row_to_config, to_jsonable

#: Seconds between two looks at a search that is followed.
POLL_INTERVAL_S = 1.0

_log = logging.getLogger(__name__)


class Exporter(Protocol):
    """Export of one search to one tool; the base class of exporters.

    Attributes:
        package: Package that the exporter imports when it is created.
        remedy: How to install the package.
        viewer: Command that shows a URI.
        uri: Where the exporter writes, in the terms of the tool.
        num_exported: Number of trials that have ended and are newly exported.
    """

    package: ClassVar[str]
    remedy: ClassVar[str]
    viewer: ClassVar[str]
    uri: str
    num_exported: int

    def __init__(self, folder: ExperimentFolder, experiment: Mapping[str, Any], uri: str | None) -> None:
        """Open the destination.

        Args:
            folder: Experiment folder.
            experiment: Contents of its experiment.json.
            uri: Destination; ``None``: the default of the tool.
        """

    @classmethod
    def expected_errors(cls) -> tuple[type[Exception], ...]:
        """Return the exceptions that an unusable destination raises."""

    def add(self, row: Mapping[str, Any], config: Mapping[str, Any], history: pd.DataFrame) -> None:
        """Export a trial: once when it has ended, and before whenever it has reported more.

        Args:
            row: Its columns of the trials frame that have a value.
            config: Its configuration.
            history: ``step`` and a column for each metric.
        """

    def flush(self) -> None:
        """Make everything visible to the tool; by default it is at once."""

    def close(self) -> None:
        """Release files and connections; by default there are none."""


def search_id(experiment: Mapping[str, Any]) -> str:
    """Return an identifier of a search among those of the same name: its host and start."""
    provenance = experiment.get("provenance") or {}
    host = (provenance.get("machine") or {}).get("host", "")
    return f"{experiment['name']} {host} {provenance.get('started', '')}".strip()


def points(
    history: pd.DataFrame, column: str, max_points: int, num_steps: int | None = None
) -> list[tuple[int, float]]:
    """Return the steps and values of a metric of one trial, evenly thinned and without missing values.

    The last point may exceed the maximum number of points. ``num_steps`` is the last step of a running trial. It gets
    the points that it will have as a finished trial; its latest value is one of them only by chance.
    """
    values = history[column].to_numpy(float)
    steps = history["step"].to_numpy()
    valid = np.flatnonzero(~np.isnan(values))
    num_expected = len(valid)
    if isinstance(num_steps, int) and len(valid) and 0 < steps[valid[-1]] < num_steps:
        num_expected = round(len(valid) * num_steps / steps[valid[-1]])
    indices = valid[:: max(1, math.ceil(num_expected / max_points))]
    if num_steps is None and len(valid) and indices[-1] != valid[-1]:
        indices = np.append(indices, valid[-1])
    return list(zip(steps[indices].astype(int).tolist(), values[indices].tolist(), strict=True))


@dataclass(frozen=True)
class ExportResult:
    """Result of the export of one experiment to one tool.

    Attributes:
        experiment: Name of the experiment.
        tool: Name of the tool.
        num_trials: Number of trials that have ended and are newly exported.
        uri: Where they are.
    """

    experiment: str
    tool: str
    num_trials: int
    uri: str

    @property
    def viewer(self) -> str:
        """The command that shows them, or the address of the server that does."""
        return self.uri if self.uri.startswith("http") else f"{exporter_class(self.tool).viewer} {self.uri}"


def export_search(
    folder: str | Path | Sequence[str | Path],
    to: str | Sequence[str],
    *,
    where: str | Path | None = None,
    follow: bool = False,
) -> list[ExportResult]:
    """Export searches, finished or not, to other tools; trials that are already there stay unchanged.

    Args:
        folder: An experiment folder, a folder of such folders, or a list of either.
        to: ``tensorboard``, ``optuna``, ``mlflow``, the name of another registered exporter, or several names.
        where: Destination: for TensorBoard a folder, for Optuna a journal file or the URL of a storage, for MLflow a
            tracking URI. By default ``tensorboard/``, ``optuna.journal`` and ``mlflow.db`` in the experiment folder,
            or for MLflow the environment variable ``MLFLOW_TRACKING_URI``.
        follow: Continue until the searches, or the processes that run them, have ended.

    Returns:
        One result for each experiment and tool.

    Raises:
        FolderError: The folder holds no experiment, or a file cannot be read.
        ExportError: The destination is not writable, or another process exports to it.
        UnknownNameError: There is no exporter to a tool.
        MissingPackageError: A package is not installed.
        InvalidExperimentError: ``where`` is given for several tools.

    Example:
        >>> import shutil
        >>> from tune_hpc import export_search
        >>> folder = shutil.copytree("docs/results/exercise1_1stpart", "runs/line")
        >>> (exported,) = export_search(folder, "tensorboard")
        >>> exported.num_trials
        5
    """
    tools = check_tools(to)
    if where is not None and len(tools) > 1:
        raise InvalidExperimentError(f"--where holds for one tool; export to {', '.join(tools)} one by one")
    roots = [folder] if isinstance(folder, str | Path) else folder
    folders = [experiment for root in roots for experiment in find_experiments(root)]
    with ExitStack() as stack:
        pairs = [(experiment_folder, tool) for experiment_folder in folders for tool in tools]
        for pair in pairs:
            stack.enter_context(_locked(*pair))
        exports = [
            stack.enter_context(closing(_Export(*pair, None if where is None else str(where)))) for pair in pairs
        ]
        active = list(exports)
        while active:
            for export in list(active):
                # Read before the update: the update then includes the last trials of a search that has just ended.
                is_last = not follow or not export.is_search_running()
                export.update()
                if is_last:
                    active.remove(export)
            if active:
                time.sleep(POLL_INTERVAL_S)
        return [export.result() for export in exports]


@contextmanager
def _locked(folder: ExperimentFolder, tool: str) -> Iterator[None]:
    """Prevent concurrent exports of one search to one tool, which would both add the same trials."""
    log = folder.log(f"export.{tool}")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab")
    except OSError as error:
        raise ExportError(f"{log} is not writable: {error.strerror}; export a copy of {folder.path}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(f"another process exports {folder.path} to {tool}; wait for it, or stop it") from None
        except OSError:
            _log.debug("%s: the file system has no locks", folder.path)
        yield


class _Export:
    """Export of one experiment to one tool; reads trial files and frames that have changed."""

    def __init__(self, folder: ExperimentFolder, tool: str, uri: str | None) -> None:
        self._folder = folder
        self._tool = tool
        self._class = exporter_class(tool)
        self._ended: set[str] = set()
        self._versions: dict[Path, tuple[int, int]] = {}
        experiment = folder.read()
        self._name = experiment["name"]
        with self._export_errors():
            self._exporter = self._class(folder, experiment, uri)

    def is_search_running(self) -> bool:
        """Return whether a process still runs the search."""
        description = self._folder.read()
        return description.get("state") == "running" and may_be_running(description.get("process"))

    def update(self) -> None:
        """Export each trial that has ended or reported more since the last call."""
        has_changed = False
        # Read before the trials: an adaptive searcher adds keys.
        keys = self._folder.read()["config_keys"]
        with self._export_errors():
            for values, history in self._changed_trials():
                row = {str(name): value for name, value in values.items() if value is not None}
                if row["status"] != "running":
                    self._ended.add(row["trial_id"])
                # The columns of a row lack None, and values of several types are texts there.
                typed = row | row_to_config(row)
                config = {key: to_jsonable(typed[key]) for key in keys if key in typed}
                self._exporter.add(row, config, history)
                has_changed = True
            if has_changed:
                self._exporter.flush()

    def _changed_trials(self) -> Iterator[tuple[Mapping[Any, Any], pd.DataFrame]]:
        """Yield row and history of each changed trial."""
        current = set()
        for trial_id in self._folder.trial_ids():
            file = self._folder.trial_file(trial_id)
            if trial_id not in self._ended and self._has_changed(file):
                try:
                    yield self._folder.read_trial(trial_id)
                except FolderError:
                    if file.exists():
                        raise
                    continue
            # A file that is missing by now has been merged into the frames.
            if file in self._versions:
                current.add(trial_id)
        # The history is the last file of a search: once it is new, both frames are.
        if self._has_changed(self._folder.history_file):
            trials, history = read_frames(self._folder)
            histories = dict(iter(history.groupby("trial_id", observed=True)))
            for row in trials.astype(object).where(trials.notna(), None).to_dict("records"):
                trial_id = row["trial_id"]
                if trial_id not in self._ended | current:
                    yield row, histories.get(trial_id, history.iloc[:0]).drop(columns="trial_id")

    def _has_changed(self, file: Path) -> bool:
        before = self._versions.pop(file, None)
        with suppress(FileNotFoundError):
            status = file.stat()
            self._versions[file] = status.st_mtime_ns, status.st_size
        return self._versions.get(file) not in (None, before)

    def close(self) -> None:
        with self._export_errors():
            self._exporter.close()

    def result(self) -> ExportResult:
        return ExportResult(self._name, self._tool, self._exporter.num_exported, self._exporter.uri)

    @contextmanager
    def _export_errors(self) -> Iterator[None]:
        """Raise the errors of a tool as ``ExportError``."""
        try:
            yield
        except TuneHpcError:
            raise
        except self._class.expected_errors() as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise ExportError(
                f"{self._name} cannot be exported to {self._tool}: {reason}; choose another destination (--where)"
            ) from error
