"""A search as an experiment of MLflow's: a run for each trial that has ended.

Parameters are the configuration, metrics the history, thinned, and the numbers of the trial's row. A trial that a
scheduler stopped is ``KILLED``, one that diverged or failed ``FAILED``; the tag ``tune_hpc.status`` has our own word.
The tags ``tune_hpc.search`` and ``tune_hpc.trial_id`` tell which trials are there. A run that was being written when
an export was cut off is deleted and written anew.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from tune_hpc.analysis.results import IDENTITY
from tune_hpc.export.exporter import default_place, points, search_id
from tune_hpc.storage.experiment_folder import ExperimentFolder

#: Points of a metric that a run has at most.
MAX_POINTS = 1000
#: MLflow's own limits on one call.
MAX_METRICS, MAX_PARAMS = 1000, 100
#: Runs that are asked for at a time, to find those that are there.
PAGE = 1000

STATUSES = {"finished": "FINISHED", "stopped": "KILLED", "diverged": "FAILED", "failed": "FAILED"}

T = TypeVar("T")


class MlflowExporter:
    """Logs runs to a tracking server, or to a file.

    Args:
        home: The experiment's folder.
        experiment: Its experiment.json.
        place: A tracking URI; by default the environment's, else a file of SQLite in the folder.
    """

    FOREIGN = (OSError, MlflowException)

    def __init__(self, home: ExperimentFolder, experiment: Mapping[str, Any], place: str | None) -> None:
        # It tells of every table of a new file.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.place = place or default_place("mlflow", home)
        self.num_exported = 0
        self._search = search_id(experiment)
        self._client = mlflow.MlflowClient(tracking_uri=self.place)
        name = str(experiment["name"])
        known = self._client.get_experiment_by_name(name)
        self._experiment = known.experiment_id if known else self._client.create_experiment(name)
        self._known = set(self._find_whole())

    def _find_whole(self) -> Iterator[str]:
        """Yield the ids of the trials that are there; delete what is there of others."""
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`tune_hpc.search` = '{self._search}'", max_results=PAGE, page_token=token
            )
            for run in page:
                if run.info.status == "RUNNING":
                    self._client.delete_run(run.info.run_id)
                else:
                    yield run.data.tags["tune_hpc.trial_id"]
            token = page.token
            if not token:
                return

    def take(self, row: Mapping[str, Any], config: Mapping[str, Any], history: pd.DataFrame) -> None:
        """Log a trial that has ended."""
        trial_id, status = str(row["trial_id"]), str(row["status"])
        if status not in STATUSES or trial_id in self._known:
            return
        took_s = sum(float(row.get(name, 0)) for name in ("setup_s", "train_s", "eval_s"))
        ended = int(time.time() * 1000)
        tags = {"tune_hpc.search": self._search, "tune_hpc.trial_id": trial_id, "tune_hpc.status": status}
        tags |= {
            f"tune_hpc.{name}": str(row[name]) for name in ("stop_reason", "error", "host", "device") if name in row
        }
        run = self._client.create_run(
            self._experiment, start_time=ended - int(took_s * 1000), tags=tags, run_name=trial_id
        ).info.run_id
        params = [Param(name, _text(value)) for name, value in config.items()]
        for some in _batches(params, MAX_PARAMS):
            self._client.log_batch(run, params=some)
        for batch in _batches(_metrics(row, config, history, ended), MAX_METRICS):
            self._client.log_batch(run, metrics=batch)
        self._client.set_terminated(run, STATUSES[status], end_time=ended)
        self._known.add(trial_id)
        self.num_exported += 1

    def flush(self) -> None:
        """Do nothing: MLflow keeps a run when it is logged."""


def _metrics(row: Mapping[str, Any], config: Mapping[str, Any], history: pd.DataFrame, moment_ms: int) -> list[Metric]:
    metrics = []
    for column in history.columns.drop("step"):
        steps, values = points(history, column, MAX_POINTS)
        is_finite = np.isfinite(values)
        metrics += [
            Metric(column, value, moment_ms, step)
            for step, value in zip(steps[is_finite].tolist(), values[is_finite].tolist(), strict=True)
        ]
    last_step = int(row.get("steps_run", 0))
    for name, value in row.items():
        if name not in {*config, *IDENTITY, *history} and isinstance(value, int | float) and np.isfinite(value):
            metrics.append(Metric(name, float(value), moment_ms, last_step))
    return metrics


def _text(value: Any) -> str:
    """Return a parameter as text: alike whether or not a missing value elsewhere has made its column one of floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
