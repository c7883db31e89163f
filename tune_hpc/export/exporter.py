"""What every sink has in common: a sink takes trials in for one tool (exports.py)."""

import math
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd

from tune_hpc.storage.experiment_folder import ExperimentFolder


class Exporter(Protocol):
    """What knows one tool; made with an experiment's folder, its experiment.json, and a place or ``None``.

    Attributes:
        FOREIGN: What it raises where its place cannot be written to.
        place: Where it writes, in the tool's own terms.
        num_exported: How many trials have ended and were not there before.
    """

    FOREIGN: tuple[type[Exception], ...]
    place: str
    num_exported: int

    def take(self, row: Mapping[str, Any], config: Mapping[str, Any], history: pd.DataFrame) -> None:
        """Take in a trial: once when it has ended, and before that whenever it has reported more.

        Args:
            row: Its columns of the trials frame that have a value.
            config: Those that are its configuration.
            history: ``step``, and a column for each metric.
        """

    def flush(self) -> None:
        """Let the tool see all that was taken in."""


def search_id(experiment: Mapping[str, Any]) -> str:
    """Return what tells a search from others of the same name: where and when it began."""
    origin = experiment.get("provenance") or {}
    host = (origin.get("machine") or {}).get("host", "")
    return f"{experiment['name']} {host} {origin.get('started', '')}".strip()


def default_place(tool: str, home: ExperimentFolder) -> str:
    """Return where a tool finds a search unless told otherwise."""
    if tool == "mlflow":
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.mlflow.absolute()}"
    return str(home.tensorboard if tool == "tensorboard" else home.optuna_journal)


def points(
    history: pd.DataFrame, column: str, most: int, num_steps: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return where and with which values a metric was taken, thinned evenly.

    Args:
        history: One trial's.
        column: The metric.
        most: How many points there are to be at most, or one more.
        num_steps: The last step of a trial that goes on. It has as many points as the same part of a whole one will,
            and its latest is left out where it falls between two of these.

    Returns:
        Steps and values; missing values are left out.
    """
    values = history[column].to_numpy(float)
    steps = history["step"].to_numpy()
    taken = np.flatnonzero(~np.isnan(values))
    num_expected = len(taken)
    if isinstance(num_steps, int) and len(taken) and 0 < steps[taken[-1]] < num_steps:
        num_expected = round(len(taken) * num_steps / steps[taken[-1]])
    stride = max(1, math.ceil(num_expected / most))
    chosen = taken[::stride]
    if num_steps is None and len(taken) and chosen[-1] != taken[-1]:
        chosen = np.append(chosen, taken[-1])
    return steps[chosen].astype(int), values[chosen]
