"""A trial's own file, its part: one row and its history, from its first report until the search has ended."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import write_atomic
from tune_hpc.storage.filesystem import pull

_ROW = b"tune_hpc.trial"

#: From this size on a Parquet file is read by several threads.
MANY_BYTES = 1_000_000


@dataclass
class TrialFileWriter:
    """One trial while it is being written down: blocks of metrics, then a row.

    Attributes:
        row: The columns that are known so far.
        blocks: ``(steps, {metric: values})`` in the order of arrival.
    """

    row: dict[str, Any]
    blocks: list[tuple[np.ndarray, dict[str, np.ndarray]]] = field(default_factory=list)

    def add(self, step: int | Sequence[int] | np.ndarray, metrics: Mapping[str, Any]) -> None:
        """Note metrics at one step, or arrays of metrics at an array of steps."""
        steps = np.atleast_1d(np.asarray(step, dtype=np.int64))
        self.blocks.append((steps, {name: np.atleast_1d(np.asarray(v, dtype=float)) for name, v in metrics.items()}))

    def history(self) -> pd.DataFrame:
        """Return the metrics so far, one row per step: ``step`` and one column per metric."""
        names = list(dict.fromkeys(name for _, metrics in self.blocks for name in metrics))
        steps = np.unique(np.concatenate([steps for steps, _ in self.blocks] or [np.empty(0, np.int64)]))
        columns = {name: np.full(len(steps), np.nan) for name in names}
        for block_steps, metrics in self.blocks:
            rows = np.searchsorted(steps, block_steps)
            for name, values in metrics.items():
                columns[name][rows] = values
        return pd.DataFrame({"step": steps, **columns})


def summarise(history: pd.DataFrame) -> dict[str, float]:
    """Return the last value of each metric, and the best ones under both protocols.

    Args:
        history: One trial's ``step`` and metric columns.
    """
    summary: dict[str, float] = {}
    for name in history.columns.drop("step"):
        taken = history[name].to_numpy()
        taken = taken[~np.isnan(taken)]
        if len(taken):
            summary[name] = float(taken[-1])
    for chosen_on, accuracy, step in (
        ("test_accuracy", "best_test_accuracy", "best_step"),
        ("valid_accuracy", "best_valid_accuracy", "selected_step"),
    ):
        if chosen_on in summary:
            row = history.iloc[int(np.nanargmax(history[chosen_on].to_numpy(float)))]
            summary |= {accuracy: float(row[chosen_on]), step: int(row["step"])}
            if chosen_on == "valid_accuracy" and "test_accuracy" in summary:
                summary["selected_test_accuracy"] = float(row["test_accuracy"])
    return summary


def write_trial(path: Path, row: Mapping[str, Any], history: pd.DataFrame) -> None:
    """Write one trial, row and history, as one Parquet file."""
    table = pa.Table.from_pandas(history, preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _ROW: json.dumps(row).encode()})
    write_atomic(path, lambda temporary: pq.write_table(table, temporary))


def read_trial(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the row and the history of the trial that a part tells of.

    Raises:
        FolderError: the file is gone, or cannot be read.
    """
    table = read_table(path)
    return to_row(path, table), table.to_pandas()


def read_row(path: Path) -> dict[str, Any] | None:
    """Return the row of the trial that a part tells of; ``None`` where there is no part."""
    return to_row(path, read_table(path)) if pull(path) else None


def update_status(path: Path, changes: Mapping[str, Any]) -> None:
    """Change some columns of the row of a part."""
    table = read_table(path)
    row = to_row(path, table) | dict(changes)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _ROW: json.dumps(row).encode()})
    write_atomic(path, lambda temporary: pq.write_table(table, temporary))


def to_row(path: Path, table: pa.Table) -> dict[str, Any]:
    """Return the row that a part's table carries."""
    row = json.loads((table.schema.metadata or {}).get(_ROW, b"{}"))
    if "trial_id" not in row:
        raise FolderError(f"{path} is no trial's file: its row is missing; remove it")
    return dict(row)


def read_table(path: Path) -> pa.Table:
    """Return what a Parquet file holds.

    Raises:
        FolderError: it cannot be read.
    """
    try:
        if path.stat().st_size > MANY_BYTES:
            with pq.ParquetFile(path) as file:
                return file.read()
        # Without threads, without looking for partitions, and from memory: a quarter of the time.
        return pq.ParquetFile(pa.BufferReader(path.read_bytes())).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FolderError(f"{path} is not readable as Parquet ({reason}); restore it from a copy") from error
