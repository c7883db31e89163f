"""Trials and history of an experiment folder as data frames: columns, reading and writing."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder, write_atomic
from tune_hpc.storage.trial_file import read_table, to_row

STATUSES = ("finished", "stopped", "diverged", "failed", "running")
IDENTITY = ("experiment", "trial_id", "status", "stop_reason", "error")
MEASURES = ("steps_run", "setup_s", "train_s", "eval_s", "samples_per_s", "num_fused", "attempt", "host", "device")
METRICS = (
    "train_loss", "valid_loss", "valid_accuracy", "test_loss", "test_accuracy",
    "best_test_accuracy", "best_step", "best_valid_accuracy", "selected_step", "selected_test_accuracy",
)  # fmt: skip


def write_frames(folder: ExperimentFolder, trials: pd.DataFrame, history: pd.DataFrame) -> None:
    """Write trials.parquet and history.parquet."""
    write_atomic(folder.trials_file, lambda path: trials.to_parquet(path, index=False))
    write_atomic(folder.history_file, lambda path: history.to_parquet(path, index=False))


def trials_frame(rows: Iterable[Mapping[str, Any]], config_keys: Sequence[str]) -> pd.DataFrame:
    """Return rows as the trials frame: columns in the documented order, ordered by trial."""
    df = pd.DataFrame(list(rows))
    first = [*IDENTITY, *config_keys]
    extra = [name for name in df if name not in {*first, *METRICS, *MEASURES}]
    ordered = [*first, *(name for name in METRICS if name in df), *extra, *MEASURES]
    df = df.reindex(columns=[*dict.fromkeys(ordered)])
    # A column without a value has no type of its own; the documented one must not depend on luck.
    empty = df.columns[df.isna().all()]
    df = df.astype({name: "str" if name in {*IDENTITY, "host", "device"} else "float64" for name in empty})
    for name in [str(name) for name in df if pd.api.types.is_object_dtype(df[name])]:
        # Parquet holds one type a column, and a grouping needs values that hash: a user's list, or 3 beside "auto",
        # is kept as its text.
        if pd.api.types.infer_dtype(df[name], skipna=True).startswith("mixed"):
            df[name] = df[name].map(str, na_action="ignore").astype("str")
    df["status"] = df["status"].astype(pd.CategoricalDtype(list(STATUSES)))
    return df.sort_values("trial_id", kind="stable", ignore_index=True)


def read_trial_table(part: Path) -> tuple[dict[str, Any], pa.Table]:
    """Return the row and the history of the trial that a part tells of.

    Raises:
        FolderError: the file is gone, or cannot be read.
    """
    table = read_table(part)
    return to_row(part, table), table


class LazyHistory:
    """What trials reported, in long form once somebody asks: whoever looks at a few curves need not join them all.

    Args:
        frame: Of trials whose histories are in one frame already: ``trial_id``, ``step``, one column per metric.
        tables: Of the others, by trial: ``step``, one column per metric.
    """

    def __init__(self, frame: pd.DataFrame, tables: Mapping[str, pa.Table]) -> None:
        self._frames = [frame] if len(frame) or not tables else []
        self._tables = tables

    @cached_property
    def columns(self) -> list[str]:
        """``trial_id``, ``step`` and every metric, as they were reported first."""
        told = [str(name) for frame in self._frames for name in frame] or ["trial_id"]
        return list(dict.fromkeys([*told, *(name for table in self._tables.values() for name in table.column_names)]))

    @cached_property
    def num_bytes(self) -> int:
        """The memory that they take, about."""
        frames = sum(int(frame.memory_usage(deep=True).sum()) for frame in self._frames)
        # Of eight bytes each; to ask every table would take longer than to read a few of them anew.
        return frames + sum(8 * table.num_rows * table.num_columns for table in self._tables.values())

    def taken(self, metric: str) -> set[str]:
        """Return the trials that reported a metric."""
        trials = {
            trial_id
            for trial_id, table in self._tables.items()
            if metric in table.column_names and table[metric].null_count < len(table)
        }
        for frame in self._frames:
            if metric in frame:
                trials.update(frame.loc[frame[metric].notna(), "trial_id"].unique())
        return trials

    def of(self, trials: Collection[str] | None = None) -> pd.DataFrame:
        """Return the histories of some trials, or of all: ``columns``, one row per trial and step."""
        frames, tables = list(self._frames), dict(self._tables)
        if trials is not None:
            chosen = set(trials)
            frames = [frame[frame["trial_id"].isin(chosen)] for frame in frames]
            tables = {trial_id: table for trial_id, table in tables.items() if trial_id in chosen}
        if not frames and not tables:
            tables = {trial_id: table.slice(length=0) for trial_id, table in self._tables.items()}
        if tables:
            # Joined as Arrow tables and converted once: thousands of small data frames would take ten times as long.
            joined = [_named(trial_id, table) for trial_id, table in tables.items()]
            frames.append(pa.concat_tables(joined, promote_options="permissive").to_pandas())
        df = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
        return df if list(df) == self.columns else df.reindex(columns=self.columns)


def _named(trial_id: str, table: pa.Table) -> pa.Table:
    trial_ids = pa.repeat(pa.scalar(trial_id, pa.large_string()), len(table))
    return table.replace_schema_metadata(None).add_column(0, "trial_id", trial_ids)


def read_folder(
    folder: ExperimentFolder, read_trial: Callable[[str], tuple[dict[str, Any], pa.Table]] | None = None
) -> tuple[dict[str, Any], pd.DataFrame, LazyHistory]:
    """Read what ``Results`` are made of: the experiment, its trials, what these reported.

    Args:
        folder: Of the experiment.
        read_trial: Returns the row and the history of a trial that has a file of its own; by default read from that.
            Whoever reads a folder again and again remembers those it has read.

    Raises:
        FolderError: no experiment there, or a file that cannot be read.
    """
    experiment = folder.read()
    if missing := {"metric", "mode", "config_keys"}.difference(experiment):
        raise FolderError(
            f"{folder.experiment_file} describes no experiment: it has no {', '.join(sorted(missing))}; "
            "restore it from a copy"
        )
    keys = experiment["config_keys"]
    read_trial = read_trial or (lambda trial_id: read_trial_table(folder.part(trial_id)))
    while True:
        with_parts = folder.trial_ids()
        trials, history = read_frames(folder)
        # A trial that still ran when the frames were written is told by its part, written when it ended.
        done = set(trials.loc[trials["status"] != "running", "trial_id"])
        try:
            parts = {trial_id: read_trial(trial_id) for trial_id in with_parts if trial_id not in done}
            break
        except FolderError:
            # What has gone since it was listed has gone into the frames, for the search has ended: look there.
            if all(folder.part(trial_id).exists() for trial_id in with_parts):
                raise
    if not parts:
        return experiment, trials if len(trials) else trials_frame([], keys), LazyHistory(history, {})
    kept = _without(trials, parts).to_dict("records")
    rows = [{str(name): value for name, value in row.items()} for row in kept]
    rows += [row for row, _ in parts.values()]
    tables = {trial_id: table for trial_id, (_, table) in parts.items()}
    return experiment, trials_frame(rows, keys), LazyHistory(_without(history, parts), tables)


def _without(df: pd.DataFrame, trials: Collection[str]) -> pd.DataFrame:
    return df[~df["trial_id"].isin(trials)] if len(df) else df


def read_frames(folder: ExperimentFolder) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what trials.parquet and history.parquet hold; empty frames where they are missing.

    Raises:
        FolderError: one cannot be read.
    """
    history = pd.DataFrame({"trial_id": pd.Series(dtype="str"), "step": []})
    if not folder.trials_file.is_file():
        return pd.DataFrame({name: pd.Series(dtype="str") for name in ("trial_id", "status")}), history
    trials = _frame(folder.trials_file, {"trial_id", "status"}).astype({"status": pd.CategoricalDtype(list(STATUSES))})
    return trials, _frame(folder.history_file, {"trial_id", "step"}) if folder.history_file.is_file() else history


def _frame(path: Path, needed: set[str]) -> pd.DataFrame:
    df = read_table(path).to_pandas()
    if missing := needed.difference(df):
        raise FolderError(f"{path} has no column {', '.join(sorted(missing))}; restore it from a copy")
    return df


def rungs_frame(file: Path, num_seeds: int) -> pd.DataFrame:
    """Return who came to which rung; see ``Results.rungs``.

    Args:
        file: rungs.jsonl.
        num_seeds: How many trials a configuration has.

    Raises:
        FolderError: it cannot be read.
    """

    def read(lines: list[dict[str, Any]]) -> pd.DataFrame:
        went_on = {
            (line["configuration"], line["rung"] - 1) for line in lines if line["event"] in ("promoted", "goes on")
        }
        rows = [
            {
                "rung": line["rung"] + 1,
                "trial_id": f"t{line['configuration'] * num_seeds:05d}",
                "step": line["steps"],
                "value": line["value"],
                "goes_on": (line["configuration"], line["rung"]) in went_on,
            }
            for line in lines
            if line["event"] in ("reached", "came")
        ]
        return pd.DataFrame(rows, columns=["rung", "trial_id", "step", "value", "goes_on"])

    return _read(file, read)


def generations_frame(file: Path) -> pd.DataFrame:
    """Return what each member of a population was in each generation but the first; see ``Results.generations``.

    Args:
        file: population.jsonl.

    Raises:
        FolderError: it cannot be read.
    """

    def read(lines: list[dict[str, Any]]) -> pd.DataFrame:
        rows = [
            {
                "generation": line["generation"],
                "trial_id": trial_id,
                **{name: member[name] for name in ("copied_from", "value")},
                **member["config"],
            }
            for line in lines
            for trial_id, member in line["members"].items()
        ]
        return pd.DataFrame(rows)

    return _read(file, read)


def _read(file: Path, read: Callable[[list[dict[str, Any]]], pd.DataFrame]) -> pd.DataFrame:
    try:
        # A last line without an end is being written.
        whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
        return read([json.loads(line) for line in whole.splitlines()])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{file} cannot be read: {error}; restore it from a copy") from error
