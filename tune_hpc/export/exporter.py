"""Exporter interface, and what all exporters share."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import numpy as np
import pandas as pd

from tune_hpc.storage.experiment_folder import ExperimentFolder


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
) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a metric, evenly thinned and without missing values.

    Args:
        history: History of one trial.
        column: The metric.
        max_points: Maximum number of points, plus the last one.
        num_steps: Last step of a running trial. It gets the points that it will have as a finished trial; its latest
            value is one of them only by chance.
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
    return steps[indices].astype(int), values[indices]
