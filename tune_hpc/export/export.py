"""Export of searches to other tools: TensorBoard, Optuna's dashboard, MLflow.

An export only reads the experiment folder: a search neither waits for it nor fails with it. An export that follows a
search looks for changes every second. Nothing is exported twice, neither by one call nor by a later one.

TensorBoard gets trials while they run, Optuna and MLflow when they have ended.
"""

import fcntl
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tune_hpc.errors import ExportError, InvalidExperimentError, TuneHpcError
from tune_hpc.export.trial_updates import TrialUpdates
from tune_hpc.search.exporter_registry import check_tools, exporter_class
from tune_hpc.storage.experiment_folder import ExperimentFolder, find_experiments

#: Seconds between two looks at a search that is followed.
POLL_INTERVAL_S = 1.0

_log = logging.getLogger(__name__)


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
                is_last = not follow or not export.updates.is_search_running()
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
    """Export of one experiment to one tool."""

    def __init__(self, folder: ExperimentFolder, tool: str, uri: str | None) -> None:
        self.updates = TrialUpdates(folder)
        self._folder = folder
        self._tool = tool
        self._class = exporter_class(tool)
        experiment = folder.read()
        self._name = experiment["name"]
        with self._export_errors():
            self._exporter = self._class(folder, experiment, uri)

    def update(self) -> None:
        """Export all changes."""
        has_changed = False
        # Read before the trials: an adaptive searcher adds keys.
        keys = self._folder.read()["config_keys"]
        with self._export_errors():
            for row, history in self.updates.trials():
                self._exporter.add(row, {key: row[key] for key in keys if key in row}, history)
                has_changed = True
            if has_changed:
                self._exporter.flush()

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
