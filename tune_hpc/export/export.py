"""Searches in other tools: TensorBoard, Optuna's dashboard, MLflow.

An export reads the experiment folder and nothing else, so a search neither waits for it nor fails with it. It hands
each trial to a sink, which knows one tool; one that follows a search looks every second for what is new. What was
exported before is not exported again, whether by the same call or by an earlier one.

TensorBoard is shown trials while they run. Optuna and MLflow get each when it has ended.
"""

import fcntl
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tune_hpc.analysis.trial_updates import TrialUpdates
from tune_hpc.errors import ExportError, InvalidExperimentError, MissingPackageError, TuneHpcError, UnknownNameError
from tune_hpc.export.exporter import Exporter
from tune_hpc.storage.experiment_folder import ExperimentFolder, find_experiments

#: How often a search that is followed is looked at.
LOOK_INTERVAL_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportTool:
    """One that searches can be exported to.

    Attributes:
        sink: The class, as ``module:name``.
        package: What it needs.
        remedy: What installs it.
        viewer: The command that shows a place.
    """

    sink: str
    package: str
    remedy: str
    viewer: str


TOOLS = {
    "tensorboard": ExportTool(
        "tune_hpc.export.tensorboard:TensorBoardExporter", "tensorboardX", "pip install tensorboardX",
        "tensorboard --logdir",
    ),
    "optuna": ExportTool("tune_hpc.export.optuna:OptunaExporter", "optuna", "pip install optuna", "optuna-dashboard"),
    "mlflow": ExportTool(
        "tune_hpc.export.mlflow:MlflowExporter", "mlflow", "pip install 'tune-hpc[mlflow]'",
        "mlflow ui --backend-store-uri",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ExportResult:
    """What came of one export of one experiment.

    Attributes:
        experiment: Its name.
        tool: Where to.
        num_trials: Trials that ended and were not there before.
        place: Where they are now.
    """

    experiment: str
    tool: str
    num_trials: int
    place: str

    @property
    def viewer(self) -> str:
        """The command that shows them, or the address of the server that does."""
        return self.place if self.place.startswith("http") else f"{TOOLS[self.tool].viewer} {self.place}"


def check_tools(tools: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of tools, each once; a text may name several, with commas between.

    Raises:
        UnknownNameError: one that is none.
        MissingPackageError: what it needs is not installed.
    """
    named = tools.split(",") if isinstance(tools, str) else [name for one in tools for name in one.split(",")]
    chosen = tuple(dict.fromkeys(name.strip() for name in named))
    for name in chosen:
        if name not in TOOLS:
            raise UnknownNameError(f"an export goes to {', '.join(TOOLS)}; got {name!r}")
        if find_spec(TOOLS[name].package) is None:
            raise MissingPackageError(
                f"an export to {name} needs the package {TOOLS[name].package}, which is not installed; "
                f"{TOOLS[name].remedy}"
            )
    return chosen


def export_search(
    folder: str | Path | Sequence[str | Path],
    to: str | Sequence[str],
    *,
    where: str | Path | None = None,
    follow: bool = False,
) -> list[ExportResult]:
    """Export searches, finished or not, to other tools; what is there already is left as it is.

    Args:
        folder: An experiment folder, or one that holds several, or some of these.
        to: ``tensorboard``, ``optuna``, ``mlflow``, or several of them.
        where: For TensorBoard a folder, for Optuna a file of its journal or a storage's URL, for MLflow a tracking URI;
            by default ``tensorboard/``, ``optuna.journal``, and ``mlflow.db`` in the experiment folder, the last unless
            the environment has a ``MLFLOW_TRACKING_URI``.
        follow: Go on until the searches have ended, or the processes that ran them.

    Returns:
        One for each experiment and tool.

    Raises:
        FolderError: no experiment there, or a file of it that cannot be read.
        ExportError: the place cannot be written to, or another process is at it.
        UnknownNameError: no such tool.
        MissingPackageError: its package is not installed.
        InvalidExperimentError: one place for several tools.
    """
    tools = check_tools(to)
    if where is not None and len(tools) > 1:
        raise InvalidExperimentError(f"each tool has a place of its own; export to {', '.join(tools)} one by one")
    folders = [folder] if isinstance(folder, str | Path) else folder
    homes = [home for one in folders for home in find_experiments(one)]
    with ExitStack() as locks:
        for home in homes:
            for tool in tools:
                locks.enter_context(_locked(home, tool))
        exports = [_Export(home, tool, None if where is None else str(where)) for home in homes for tool in tools]
        waiting = list(exports)
        while waiting:
            for one in list(waiting):
                # Asked before looking, so that what came in between is not missed.
                is_over = not follow or not one.news.is_search_running()
                one.go_on()
                if is_over:
                    waiting.remove(one)
            if waiting:
                time.sleep(LOOK_INTERVAL_S)
        return [one.exported() for one in exports]


@contextmanager
def _locked(home: ExperimentFolder, tool: str) -> Iterator[None]:
    """Let no other process export the same to the same tool meanwhile: each would add what the other has not yet."""
    log = home.log(f"export.{tool}")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("ab")
    except OSError as error:
        raise ExportError(f"{log} cannot be written: {error.strerror}; export a copy of {home.path}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(
                f"{home.path} is being exported to {tool} by another process; wait for it, or end it"
            ) from None
        except OSError:
            _log.debug("%s: no locks on this file system", home.path)
        yield


class _Export:
    """One experiment on its way to one tool."""

    def __init__(self, home: ExperimentFolder, tool: str, place: str | None) -> None:
        self.news = TrialUpdates(home)
        self.experiment = home.read()
        self.tool = tool
        module, _, name = TOOLS[tool].sink.partition(":")
        self._sink_class = getattr(import_module(module), name)
        with self._own_errors():
            self._sink: Exporter = self._sink_class(home, self.experiment, place)

    def go_on(self) -> None:
        """Export what is new."""
        is_any = False
        # Read before the trials: a searcher that learns adds to it.
        keys = self.news.home.read()["config_keys"]
        with self._own_errors():
            for row, history in self.news.trials():
                self._sink.take(row, {key: row[key] for key in keys if key in row}, history)
                is_any = True
            if is_any:
                self._sink.flush()

    def exported(self) -> ExportResult:
        """Return what came of it."""
        return ExportResult(self.experiment["name"], self.tool, self._sink.num_exported, self._sink.place)

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Make what a tool raises an error of ours."""
        try:
            yield
        except TuneHpcError:
            raise
        except self._sink_class.FOREIGN as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise ExportError(
                f"{self.experiment['name']} cannot be exported to {self.tool}: {reason}; choose another place (--where)"
            ) from error
