"""Read and write one trial's file: its row and its history, in one Parquet file.

The row of a trial has each parameter as a column, and the whole configuration as JSON in the column ``config``. Columns
have one type for all trials, and lists as text. The JSON keeps every value with its type.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tune_hpc.errors import FolderError
from tune_hpc.storage.checksum import PARQUET_ENTRY, check_parquet, seal_parquet

_ROW = b"tune_hpc.trial"
#: Column of the configuration as JSON.
CONFIG = "config"

#: Maximum number of characters of an error in a row.
MAX_ERROR = 500
#: Control sequences of terminals, with their parameters (ECMA-48: CSI, OSC).
_ESCAPE_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
#: Size from which several threads read a Parquet file.
MANY_BYTES = 1_000_000


def config_to_row(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a configuration: each parameter, and ``config``."""
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in config.items()}
    return {**{name: to_jsonable(value) for name, value in plain.items()}, CONFIG: json.dumps(plain, default=str)}


def row_to_config(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the configuration of a row, with the types of its values.

    Rows of early releases have no ``config``: all their columns are returned.
    """
    if isinstance(text := row.get(CONFIG), str):
        return dict(json.loads(text))
    return {str(name): value.item() if isinstance(value, np.generic) else value for name, value in row.items()}


def now(timespec: str = "seconds") -> str:
    """Return the current time in UTC, by default to the second (ISO 8601)."""
    return datetime.now(UTC).isoformat(timespec=timespec)


def to_error_text(text: str) -> str:
    """Return an error for the row of a trial: in one line, without control characters, and of limited length."""
    line = " ".join(_CONTROL.sub(" ", _ESCAPE_SEQUENCE.sub("", _to_unicode(text))).split())
    if len(line) <= MAX_ERROR:
        return line
    return f"{line[:MAX_ERROR]}... ({len(line)} characters, in the log of the trial)"


def to_jsonable(value: Any) -> Any:
    """Return a value that JSON and Parquet accept; of other values, their JSON or text."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # A number of NumPy or PyTorch.
    if isinstance(value, str):
        return _to_unicode(value)
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return str(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    try:
        return json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):
        return _to_unicode(repr(value))


def _to_unicode(text: str) -> str:
    """Replace halves of surrogate pairs, as in file names that are not UTF-8; files cannot contain them."""
    return text.encode("utf-8", "backslashreplace").decode()


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

    def unknown_metrics(self) -> set[str]:
        """Return the metrics whose last reported value is NaN; the history does not distinguish it from no report."""
        last = {name: values[-1] for _, metrics in self.blocks for name, values in metrics.items() if len(values)}
        return {name for name, value in last.items() if np.isnan(value)}

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
    write_parquet_table(path, pa.Table.from_pandas(history, preserve_index=False), {_ROW: json.dumps(row).encode()})


def write_parquet_table(path: Path, table: pa.Table, metadata: Mapping[bytes, bytes]) -> None:
    """Write a Parquet file with additional metadata and its checksum."""
    metadata = {**(table.schema.metadata or {}), **metadata, **PARQUET_ENTRY}
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), buffer)
    path.write_bytes(seal_parquet(buffer.getvalue().to_pybytes()))


def to_row(path: Path, table: pa.Table) -> dict[str, Any]:
    """Return the row in the metadata of a trial file.

    Raises:
        FolderError: there is none.
    """
    row = json.loads((table.schema.metadata or {}).get(_ROW, b"{}"))
    if not isinstance(row, dict) or "trial_id" not in row:
        raise FolderError(f"{path} is not a trial file: its row is missing; remove it")
    return dict(row)


def read_table(path: Path) -> pa.Table:
    """Return the contents of a Parquet file.

    Raises:
        FolderError: the file is missing or damaged.
    """
    try:
        data = path.read_bytes()
        check_parquet(data)
        # From memory, and for small files with one thread: four times as fast, without a search for partitions.
        return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=len(data) > MANY_BYTES)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FolderError(
            f"{path} is not readable as Parquet ({reason}); restore it from a copy, or load the rest with "
            "load(folder, skip_damaged=True)"
        ) from error
