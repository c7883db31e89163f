"""Export of trials as MLflow runs, one for each trial that has ended.

Parameters of a run are the configuration; metrics are the thinned history and the numbers of the trial's row.
Characters that MLflow does not allow in their names become ``_``. A trial
that a scheduler stopped is ``KILLED``, one that diverged or failed ``FAILED``; the tag ``tune_hpc.status`` is exact.
The tags ``tune_hpc.search`` and ``tune_hpc.trial_id`` identify exported trials. A run that an interrupted export left
unfinished is deleted and written again.
"""

import logging
import os
import posixpath
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from tune_hpc.analysis.frames import IDENTITY
from tune_hpc.export.exporter import Exporter, points, search_id
from tune_hpc.storage.experiment_folder import ExperimentFolder

#: Maximum number of points of a metric.
MAX_POINTS = 1000
#: MLflow's limits of one call.
MAX_METRICS, MAX_PARAMS, MAX_RUNS = 1000, 100, 1000
#: MLflow's limit of the length of a name, less some characters that make it unique.
MAX_NAME = 240

STATUSES = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED", "failed": "FAILED"}


class MlflowExporter(Exporter):
    """Exporter to an MLflow tracking URI; by default that of the environment, or an SQLite file in the folder."""

    package: ClassVar[str] = "mlflow"
    remedy: ClassVar[str] = "install tune_hpc with its extra [mlflow]"
    viewer: ClassVar[str] = "mlflow ui --backend-store-uri"

    def __init__(self, folder: ExperimentFolder, experiment: Mapping[str, Any], uri: str | None) -> None:
        # MLflow is an optional package.
        import mlflow

        # Alembic logs every table of a new file.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.mlflow.absolute()}"
        self.num_exported = 0
        self._search = search_id(experiment)
        self._client = mlflow.MlflowClient(tracking_uri=self.uri)
        name = str(experiment["name"])
        known = self._client.get_experiment_by_name(name)
        self._experiment = known.experiment_id if known else self._client.create_experiment(name)
        self._exported = set(self._find_exported())

    @classmethod
    def expected_errors(cls) -> tuple[type[Exception], ...]:
        """Return the exceptions that an unusable destination raises."""
        from mlflow.exceptions import MlflowException

        return OSError, MlflowException

    def _find_exported(self) -> Iterator[str]:
        """Yield the identifiers of exported trials; delete unfinished runs."""
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`tune_hpc.search` = '{self._search}'", max_results=MAX_RUNS, page_token=token
            )
            for run in page:
                if run.info.status == "RUNNING":
                    self._client.delete_run(run.info.run_id)
                else:
                    yield run.data.tags["tune_hpc.trial_id"]
            token = page.token
            if not token:
                return

    def add(self, row: Mapping[str, Any], config: Mapping[str, Any], history: pd.DataFrame) -> None:
        """Log a trial that has ended."""
        from mlflow.entities import Metric, Param

        trial_id, status = str(row["trial_id"]), str(row["status"])
        if status not in STATUSES or trial_id in self._exported:
            return
        duration_s = sum(float(row.get(name, 0)) for name in ("setup_s", "train_s", "eval_s"))
        ended_at = row.get("ended_at")
        ended_s = datetime.fromisoformat(ended_at).timestamp() if isinstance(ended_at, str) else time.time()
        end_ms = int(ended_s * 1000)
        tags = {"search": self._search, "trial_id": trial_id, "status": status}
        tags |= {name: str(row[name]) for name in ("stop_reason", "error", "host", "device") if name in row}
        run = self._client.create_run(
            self._experiment,
            start_time=end_ms - int(duration_s * 1000),
            tags={f"tune_hpc.{name}": value for name, value in tags.items()},
            run_name=trial_id,
        ).info.run_id
        names = _valid_names(config)
        params = [Param(names[name], _as_text(value)) for name, value in config.items()]
        for first in range(0, len(params), MAX_PARAMS):
            self._client.log_batch(run, params=params[first : first + MAX_PARAMS])
        names = _valid_names([*history.columns, *row])
        metrics = [Metric(names[name], value, end_ms, step) for name, value, step in _metrics(row, config, history)]
        for first in range(0, len(metrics), MAX_METRICS):
            self._client.log_batch(run, metrics=metrics[first : first + MAX_METRICS])
        self._client.set_terminated(run, STATUSES[status], end_time=end_ms)
        self._exported.add(trial_id)
        self.num_exported += 1


def _valid_names(names: Iterable[str]) -> dict[str, str]:
    """Return a different name that MLflow accepts for each name; an acceptable name stays as it is."""
    valid: dict[str, str] = {}
    for name in sorted(set(names), key=lambda name: (_accept(name) != name, name)):
        changed = _accept(name)
        while changed in valid.values():
            changed += "_"
        valid[name] = changed
    return valid


def _accept(name: str) -> str:
    """Return a name with allowed characters, which is also the normal form of a relative path."""
    changed = re.sub(r"[^/\w.\- :]", "_", name)[:MAX_NAME]
    is_path = posixpath.normpath(changed) == changed and not changed.startswith(("/", ".."))
    return changed if is_path and changed != "." else re.sub(r"^\.+|/", "_", changed)


def _metrics(
    row: Mapping[str, Any], config: Mapping[str, Any], history: pd.DataFrame
) -> Iterator[tuple[str, float, int]]:
    """Yield name, value and step of each metric."""
    for column in history.columns.drop("step"):
        yield from ((column, value, step) for step, value in points(history, column, MAX_POINTS) if np.isfinite(value))
    for name, value in row.items():
        if name not in {*config, *IDENTITY, *history} and isinstance(value, int | float) and np.isfinite(value):
            yield name, float(value), int(row.get("steps_run", 0))


def _as_text(value: Any) -> str:
    """Return a parameter as text; a column with missing values stores whole numbers as floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
