"""Trials and history of an experiment folder as data frames: columns, reading and writing.

``results.py`` documents the columns.
"""

import json
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from tune_hpc.errors import FolderError
from tune_hpc.storage.checksum import load_json
from tune_hpc.storage.experiment_folder import ExperimentFolder, check_num_lines
from tune_hpc.storage.trial_file import CONFIG, read_table, to_row, write_parquet_table

STATUSES = ("finished", "stopped", "diverged", "failed", "disturbed", "running")
IDENTITY = ("experiment", "trial_id", "status", "stop_reason", "error")
MEASURES = (
    "steps_run", "setup_s", "train_s", "eval_s", "samples_per_s", "num_fused", "attempt", "host", "device", "ended_at",
)  # fmt: skip
#: Measures that only the built-in trainable has; other trainables may use the names.
BUILT_IN_MEASURES = ("setup_s", "eval_s", "samples_per_s", "device")
#: Columns that follow from the reported accuracies.
DERIVED = ("best_test_accuracy", "best_step", "best_valid_accuracy", "selected_step", "selected_test_accuracy")
#: Columns of the tables of the analysis, which no parameter and no metric may have.
TABLE_COLUMNS = (
    "configuration", "num_seeds", "num_diverged", "num_failed", "num_configurations", "frequency", "search",
)  # fmt: skip
METRICS = ("train_loss", "valid_loss", "valid_accuracy", "test_loss", "test_accuracy", *DERIVED)
#: Metrics on training images after the last step, if the key ``num_fit_images`` requests them.
FIT_METRICS = ("fit_loss", "fit_accuracy")


#: Entry of the metadata of a Parquet file: columns with values of several types.
_MIXED = b"tune_hpc.mixed"
#: Entries of experiment.json that the analysis reads, with their types.
_ENTRIES = {
    "name": str, "metric": str, "mode": str, "config_keys": list, "seeds": list, "published": list, "claims": list,
    "figures": list, "tables": list, "metrics": dict, "provenance": dict, "num_lines": dict, "position": int,
    "num_trials": int, "space": dict | None,
}  # fmt: skip


class LazyHistory:
    """The history of an experiment, concatenated for the requested trials only.

    Args:
        frame: History of the trials in history.parquet: ``trial_id``, ``step``, one column per metric.
        tables: History of each trial with a file of its own: ``step``, one column per metric.
    """

    def __init__(self, frame: pd.DataFrame, tables: Mapping[str, pa.Table]) -> None:
        self._frames = [frame] if len(frame) or not tables else []
        self._tables = tables

    @cached_property
    def columns(self) -> list[str]:
        """``trial_id``, ``step`` and all metrics, in the order of their first appearance."""
        names = [str(name) for frame in self._frames for name in frame] or ["trial_id"]
        return list(dict.fromkeys([*names, *(name for table in self._tables.values() for name in table.column_names)]))

    @cached_property
    def num_bytes(self) -> int:
        """Approximate memory in bytes; eight bytes per value of a table, whose own count is slow."""
        frames = sum(int(frame.memory_usage(deep=True).sum()) for frame in self._frames)
        return frames + sum(8 * table.num_rows * table.num_columns for table in self._tables.values())

    def trials_with(self, metric: str) -> set[str]:
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

    def frame(self, trials: Collection[str] | None = None) -> pd.DataFrame:
        """Return the history of some trials, or of all: ``columns``, one row per trial and step."""
        frames, tables = list(self._frames), dict(self._tables)
        if trials is not None:
            selected = set(trials)
            frames = [frame[frame["trial_id"].isin(selected)] for frame in frames]
            tables = {trial_id: table for trial_id, table in tables.items() if trial_id in selected}
        if not frames and not tables:
            tables = {trial_id: table.slice(length=0) for trial_id, table in self._tables.items()}
        if tables:
            # Arrow tables are concatenated ten times as fast as thousands of small data frames.
            joined = [_with_trial_id(trial_id, table) for trial_id, table in tables.items()]
            frames.append(pa.concat_tables(joined, promote_options="permissive").to_pandas())
        df = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
        return df if list(df) == self.columns else df.reindex(columns=self.columns)


def _with_trial_id(trial_id: str, table: pa.Table) -> pa.Table:
    trial_ids = pa.repeat(pa.scalar(trial_id, pa.large_string()), len(table))
    return table.replace_schema_metadata(None).add_column(0, "trial_id", trial_ids)


def trials_frame(rows: Iterable[Mapping[str, Any]], config_keys: Sequence[str]) -> pd.DataFrame:
    """Return rows as the trials frame, with columns in the documented order, sorted by trial."""
    df = pd.DataFrame(list(rows))
    first = [*IDENTITY, *config_keys]
    extra = [name for name in df if name not in {*first, *METRICS, *MEASURES, CONFIG}]
    ordered = [*first, *(name for name in METRICS if name in df), *extra, *MEASURES]
    if CONFIG in df:
        ordered.append(CONFIG)
    df = df.reindex(columns=[*dict.fromkeys(ordered)])
    # pandas infers no type for a column without values.
    empty = df.columns[df.isna().all()]
    df = df.astype({name: "str" if name in {*IDENTITY, "host", "device", "ended_at"} else "float64" for name in empty})
    for name in _mixed_columns(df):
        df[name] = df[name].map(lambda value: json.dumps(value) if isinstance(value, list | dict) else value)
        df[name] = _as_category(df[name]) if name in config_keys else _as_text(df[name])
    df["status"] = df["status"].astype(pd.CategoricalDtype(list(STATUSES)))
    return df.sort_values("trial_id", kind="stable", ignore_index=True)


def _mixed_columns(df: pd.DataFrame) -> list[str]:
    """Return the columns with values of several types, which Parquet cannot store."""
    objects = {str(name): df[name] for name in df if name != "status" and not pd.api.types.is_string_dtype(df[name])}
    values = {
        name: column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
        for name, column in objects.items()
        if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_object_dtype(column)
    }
    return [name for name, some in values.items() if pd.api.types.infer_dtype(some, skipna=True).startswith("mixed")]


def _as_category(column: pd.Series) -> pd.Series:
    """Return values of several types as a category, which can be sorted and grouped; 1 and true become texts."""
    known = column.dropna()
    values = known.unique()
    if len(values) < len({(isinstance(value, bool), value) for value in known}):
        return _as_text(column)
    return column.astype(pd.CategoricalDtype(list(values)))


def _as_text(column: pd.Series) -> pd.Series:
    return column.map(str, na_action="ignore").astype("str")


def write_parquet(df: pd.DataFrame, path: Path) -> None:
    """Write a frame; columns with values of several types become JSON texts, which ``read_parquet`` reads back."""
    mixed = _mixed_columns(df)
    texts = df.assign(
        **{name: df[name].astype(object).map(json.dumps, na_action="ignore").astype("str") for name in mixed}
    )
    table = pa.Table.from_pandas(texts, preserve_index=False)
    write_parquet_table(path, table, {_MIXED: json.dumps(mixed).encode()} if mixed else {})


def read_parquet(path: Path, required: Collection[str] = ()) -> pd.DataFrame:
    """Return a frame of ``write_parquet`` with some required columns.

    Raises:
        FolderError: The file is damaged, or has columns that ``write_parquet`` does not write.
    """
    table = read_table(path)
    _check_columns(path, table, set(required))
    df = table.to_pandas()
    try:
        for name in json.loads((table.schema.metadata or {}).get(_MIXED, b"[]")):
            df[name] = _as_category(df[name].astype(object).map(json.loads, na_action="ignore"))
    except (ValueError, LookupError, TypeError) as error:
        raise FolderError(
            f"{path} has values that are not readable as JSON: {error}; restore it from a copy"
        ) from error
    return df


def write_frames(folder: ExperimentFolder, trials: pd.DataFrame, history: pd.DataFrame) -> None:
    """Write history.parquet and trials.parquet.

    The trials are last: their files are read until trials.parquet has their ends.
    """
    folder.storage.write_atomic(folder.history_file, lambda path: write_parquet(history, path))
    folder.storage.write_atomic(folder.trials_file, lambda path: write_parquet(trials, path))


def reopen_failed_trials(folder: ExperimentFolder) -> None:
    """Give failed trials the status of interrupted ones, so that they run again; their logs stay."""
    changes = {"status": "running", "stop_reason": None, "error": None}
    trials, history = read_frames(folder)
    if (has_failed := trials["status"] == "failed").any():
        for name, value in changes.items():
            trials[name] = trials[name].where(~has_failed, value)
        write_frames(folder, trials, history)
    for trial_id in folder.trial_ids():
        row = folder.read_row(trial_id)
        if row is not None and row["status"] == "failed":
            folder.update_status(trial_id, changes)


def read_folder(
    folder: ExperimentFolder,
    read_trial: Callable[[str], tuple[dict[str, Any], pa.Table]] | None = None,
    *,
    skip_damaged: bool = False,
) -> tuple[dict[str, Any], pd.DataFrame, LazyHistory]:
    """Read the contents of ``Results``: experiment.json, the trials and their history.

    Args:
        folder: An experiment folder.
        read_trial: Function that returns row and history in the trial file of a trial; by default, it reads the file.
        skip_damaged: Whether to omit trials whose files cannot be read, and the history if history.parquet cannot, with
            a warning for each.

    Raises:
        FolderError: There is no experiment, or a file cannot be read.
    """
    experiment = folder.read()
    if missing := {"metric", "mode", "config_keys"}.difference(experiment):
        raise FolderError(
            f"{folder.experiment_file} describes no experiment: it has no {', '.join(sorted(missing))}; "
            "restore it from a copy"
        )
    wrong = [name for name in _ENTRIES if name in experiment and not isinstance(experiment[name], _ENTRIES[name])]
    provenance = experiment.get("provenance", {})
    if not wrong and not (
        isinstance(provenance.get("continued", []), list) and isinstance(provenance.get("wall_s", 0.0), int | float)
    ):
        wrong.append("provenance")
    if wrong or experiment["mode"] not in ("min", "max"):
        wrong.append("mode")
        raise FolderError(f"{folder.experiment_file} is damaged: {wrong[0]}; restore it from a copy")
    is_complete = experiment.get("state") == "finished" and not folder.trials.exists()
    for path in (folder.trials_file, folder.history_file):
        if is_complete and experiment.get("num_trials") and not path.is_file():
            raise FolderError(f"{path} of a finished search is missing; restore it from a copy")
    keys = experiment["config_keys"]
    read_trial = read_trial or (lambda trial_id: read_trial_table(folder.trial_file(trial_id)))
    while True:
        trial_ids = folder.trial_ids()
        trials, history = read_frames(folder, skip_damaged=skip_damaged)
        # The file of a trial that still ran when the frames were written is newer than its row in the frame.
        ended = set(trials.loc[trials["status"] != "running", "trial_id"])
        try:
            files = {}
            for trial_id in (one for one in trial_ids if one not in ended):
                with _skipping(skip_damaged):
                    files[trial_id] = read_trial(trial_id)
            break
        except FolderError:
            # A search that ends moves its trial files into the frames: read these again.
            if all(folder.trial_file(trial_id).exists() for trial_id in trial_ids):
                raise
    if not files:
        return experiment, trials if len(trials) else trials_frame([], keys), LazyHistory(history, {})
    framed = _without(trials, files).to_dict("records")
    rows = [{str(name): value for name, value in row.items()} for row in framed] + [row for row, _ in files.values()]
    tables = {trial_id: table for trial_id, (_, table) in files.items()}
    return experiment, trials_frame(rows, keys), LazyHistory(_without(history, files), tables)


def _without(df: pd.DataFrame, trials: Collection[str]) -> pd.DataFrame:
    return df[~df["trial_id"].isin(trials)] if len(df) else df


def read_trial_table(path: Path) -> tuple[dict[str, Any], pa.Table]:
    """Return the row and the history in a trial file."""
    table = read_table(path)
    row = to_row(path, table)
    if row["trial_id"] != path.name.partition(".")[0] or row.get("status") not in STATUSES:
        raise FolderError(f"{path} has the row of another trial, or no status; remove it")
    _check_columns(path, table, {"step"})
    _check_configs(path, [row.get(CONFIG)])
    return row, table


@contextmanager
def _skipping(is_active: bool) -> Iterator[None]:
    """Convert the error of a file to a warning."""
    try:
        yield
    except FolderError as error:
        if not is_active:
            raise
        warnings.warn(f"skipped: {error}", stacklevel=2)


def read_frames(folder: ExperimentFolder, *, skip_damaged: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the contents of trials.parquet and history.parquet; empty frames if they are missing."""
    history = pd.DataFrame({"trial_id": pd.Series(dtype="str"), "step": []})
    if not folder.trials_file.is_file():
        return pd.DataFrame({name: pd.Series(dtype="str") for name in ("trial_id", "status")}), history
    trials = read_parquet(folder.trials_file, {"trial_id", "status"})
    if trials["trial_id"].duplicated().any() or not trials["status"].isin(STATUSES).all():
        raise FolderError(f"{folder.trials_file} has a trial twice, or an unknown status; restore it from a copy")
    _check_configs(folder.trials_file, trials[CONFIG].dropna() if CONFIG in trials else ())
    if folder.history_file.is_file():
        with _skipping(skip_damaged):
            history = read_parquet(folder.history_file, {"trial_id", "step"})
    return trials.astype({"status": pd.CategoricalDtype(list(STATUSES))}), history


def _check_columns(path: Path, table: pa.Table, required: set[str]) -> None:
    """Raise if a column is missing, given twice or of another type than a search writes; a history has numbers."""
    if missing := required.difference(table.column_names):
        raise FolderError(f"{path} has no column {', '.join(sorted(missing))}; restore it from a copy")
    kinds = {field.name: _kind(field.type) for field in table.schema}
    wrong = [name for name, kind in kinds.items() if kind == "other"]
    texts = required - {"step"}
    if "step" in required:
        wrong += [name for name, kind in kinds.items() if name not in texts and kind not in ("number", "null")]
    if len(table):
        wrong += [name for name in required if table[name].null_count or kinds[name] == "null"]
        wrong += [name for name in texts if kinds[name] != "text"]
    if wrong or len(kinds) < table.num_columns:
        raise FolderError(
            f"{path} has a column that no search writes ({wrong[0] if wrong else 'twice'}); restore it from a copy"
        )


def _check_configs(path: Path, configs: Iterable[Any]) -> None:
    """Raise if a configuration that is there is no JSON object."""
    for text in configs:
        try:
            is_valid = text is None or isinstance(json.loads(text), dict)
        except (ValueError, TypeError):
            is_valid = False
        if not is_valid:
            raise FolderError(
                f"{path} has a configuration that is no JSON object: {text!r:.100}; restore it from a copy"
            )


def _kind(kind: pa.DataType) -> str:
    """Return the kind of values of a column: number, truth, text, null or other."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    return "truth" if pa.types.is_boolean(kind) else "null" if pa.types.is_null(kind) else "other"


def rungs_frame(experiment: Mapping[str, Any], file: Path) -> pd.DataFrame:
    """Return rungs.jsonl of a search; see ``Results.rungs``."""
    num_seeds = max(1, len(experiment.get("seeds") or ()))
    aliases = {"came": "reached", "goes on": "promoted"}  # quotation of files of earlier versions
    with _json_lines(experiment, file) as lines:
        events = [(aliases.get(line["event"], line["event"]), line) for line in lines]
        promoted = {(line["configuration"], line["rung"] - 1) for event, line in events if event == "promoted"}
        rows = [
            (
                line["rung"] + 1,
                f"t{line['configuration'] * num_seeds:05d}",
                line["steps"],
                line["value"],
                (line["configuration"], line["rung"]) in promoted,
            )
            for event, line in events
            if event == "reached"
        ]
    return pd.DataFrame(rows, columns=["rung", "trial_id", "step", "value", "is_promoted"])


def generations_frame(experiment: Mapping[str, Any], file: Path) -> pd.DataFrame:
    """Return population.jsonl as a frame; see ``Results.generations``."""
    with _json_lines(experiment, file) as lines:
        rows = [
            {"generation": line["generation"], "trial_id": trial_id}
            | {name: member[name] for name in ("copied_from", "value")}
            | member["config"]
            for line in lines
            for trial_id, member in line["members"].items()
        ]
    return pd.DataFrame(rows)


@contextmanager
def _json_lines(experiment: Mapping[str, Any], file: Path) -> Iterator[list[dict[str, Any]]]:
    """Provide the lines of a file; an error of their content becomes ``FolderError``."""
    try:
        # A last line without a line break is still being written.
        complete, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
        lines = [load_json(line) for line in complete.splitlines()]
        check_num_lines(experiment, file, len(lines))
        yield lines
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"{file} cannot be read: {error}; restore it from a copy") from error
