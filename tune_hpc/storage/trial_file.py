"""Read and write one trial's file: its row and its history, in one Parquet file."""

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

_ROW = b"tune_hpc.trial"

#: Size from which several threads read a Parquet file.
MANY_BYTES = 1_000_000


@dataclass
class TrialFileWriter:
    """Row and history of a running trial.

    Attributes:
        row: The columns so far.
        blocks: ``(steps, {metric: values})`` in the order of arrival.
    """

    row: dict[str, Any]
    blocks: list[tuple[np.ndarray, dict[str, np.ndarray]]] = field(default_factory=list)

    def add(self, step: int | Sequence[int] | np.ndarray, metrics: Mapping[str, Any]) -> None:
        """Add metrics at one step, or arrays of metrics at an array of steps of the same length."""
        steps = np.atleast_1d(np.asarray(step, dtype=np.int64))
        self.blocks.append((steps, {name: np.atleast_1d(np.asarray(v, dtype=float)) for name, v in metrics.items()}))

    def history(self) -> pd.DataFrame:
        """Return one row per step, with the columns ``step`` and each metric."""
        names = list(dict.fromkeys(name for _, metrics in self.blocks for name in metrics))
        steps = np.unique(np.concatenate([steps for steps, _ in self.blocks] or [np.empty(0, np.int64)]))
        columns = {name: np.full(len(steps), np.nan) for name in names}
        for block_steps, metrics in self.blocks:
            rows = np.searchsorted(steps, block_steps)
            for name, values in metrics.items():
                columns[name][rows] = values
        return pd.DataFrame({"step": steps, **columns})


def summarise(history: pd.DataFrame) -> dict[str, float]:
    """Return the last value of each metric, and the best test and validation accuracies with their steps.

    Args:
        history: One trial's ``step`` and metric columns.
    """
    summary: dict[str, float] = {}
    for name in history.columns.drop("step"):
        values = history[name].to_numpy()
        values = values[~np.isnan(values)]
        if len(values):
            summary[name] = float(values[-1])
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


def write_table(path: Path, row: Mapping[str, Any], history: pd.DataFrame) -> None:
    """Write row and history to a Parquet file; the row is JSON in the metadata of its schema."""
    table = pa.Table.from_pandas(history, preserve_index=False)
    pq.write_table(
        table.replace_schema_metadata({**(table.schema.metadata or {}), _ROW: json.dumps(row).encode()}), path
    )


def to_row(path: Path, table: pa.Table) -> dict[str, Any]:
    """Return the row in the metadata of a trial file.

    Raises:
        FolderError: there is none.
    """
    row = json.loads((table.schema.metadata or {}).get(_ROW, b"{}"))
    if "trial_id" not in row:
        raise FolderError(f"{path} is not a trial file: its row is missing; remove it")
    return dict(row)


def read_table(path: Path) -> pa.Table:
    """Return the contents of a Parquet file.

    Raises:
        FolderError: the file is missing or damaged.
    """
    try:
        if path.stat().st_size > MANY_BYTES:
            with pq.ParquetFile(path) as file:
                return file.read()
        # Four times as fast for small files: one thread, from memory, no search for partitions.
        return pq.ParquetFile(pa.BufferReader(path.read_bytes())).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FolderError(f"{path} is not readable as Parquet ({reason}); restore it from a copy") from error
