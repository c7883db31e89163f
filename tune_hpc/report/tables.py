"""Tables of one experiment: pure functions from ``Results`` to a data frame, and how a frame is written down.

Frames keep full precision and the columns' own names (CSV); ``to_markdown`` rounds for reading.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import aggregate_seeds, is_crossed_design, is_scaling, sort_configurations
from tune_hpc.analysis.budget import MIN_CONFIGURATIONS, budget_curve
from tune_hpc.analysis.claims import check_claims
from tune_hpc.analysis.comparison import INCONCLUSIVE, Comparison
from tune_hpc.analysis.formatting import format_table, format_value, unique_slug
from tune_hpc.analysis.frames import METRICS
from tune_hpc.analysis.interactions import interactions
from tune_hpc.analysis.published import compare_to_published
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.selection_bias import special_cases
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.scaling_tables import cost_pareto_front, min_efficient_width, predicted_against_measured
from tune_hpc.storage.experiment_folder import write_atomic

#: Titles of tables that a report also draws conclusions from.
PUBLISHED = "Published against measured"
CLAIMS = "Published sentences, checked"
SPECIAL_CASES = "Optimizers beside their special cases"
IMPORTANCE = "Which parameters decide"
#: A table with its title and the stem of its files.
TitledTable = tuple[str, str, pd.DataFrame]


def best_per(results: Results, parameter: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Return, for each value of a parameter, the configuration with the best mean metric.

    Args:
        results: Any results.
        parameter: A configuration column.
        metrics: Columns of the trials to show beside the experiment's metric.

    Returns:
        ``parameter``, the other parameters that vary, the metrics with their deviations, ``num_seeds``,
        ``num_diverged`` (trials at this value of the parameter). A value at which nothing finished has missing values.
    """
    shown = list(dict.fromkeys(metrics)) or [results.metric]
    configurations = aggregate_seeds(results, [*shown, results.metric])
    others = [name for name in results.varied_parameters if name not in {parameter, "seed"}]
    measured = [column for metric in shown for column in (metric, f"{metric}_deviation")]
    columns = [parameter, *others, *measured, "num_seeds", "num_diverged"]
    if parameter not in configurations:
        return pd.DataFrame(columns=columns)
    best = sort_configurations(results, configurations).drop_duplicates(parameter)
    every = configurations[[parameter]].drop_duplicates()
    df = every.merge(best.drop(columns="num_diverged"), on=parameter, how="left")
    diverged = configurations.groupby(parameter, dropna=False)["num_diverged"].sum()
    df = df.merge(diverged.reset_index(), on=parameter, how="left").reindex(columns=columns)
    df["num_seeds"] = df["num_seeds"].fillna(0).astype("int64")
    return _measuring(_in_order(df, parameter), {metric: metric for metric in shown})


def pivot(results: Results, rows: str, columns: str | None, metric: str) -> pd.DataFrame:
    """Return the mean of a metric over all trials by one or two parameters.

    Returns:
        The values of ``rows`` in a column of that name, then one column per value of ``columns`` (or one named
        ``metric``); missing where nothing finished. Empty where the two were not crossed: their values were drawn.
    """
    configurations = aggregate_seeds(results, [metric])
    if rows not in configurations or (columns and columns not in configurations):
        return pd.DataFrame(columns=[rows])
    if not columns or columns == rows:
        df = _in_order(configurations.groupby(rows, sort=False)[metric].mean().reset_index(), rows)
        return _measuring(df, {metric: metric})
    if not is_crossed_design(configurations, rows, columns):
        return pd.DataFrame(columns=[rows])
    wide = configurations.pivot_table(metric, rows, columns, dropna=False, sort=False)
    ordered = _in_order(pd.DataFrame({columns: wide.columns}), columns)[columns]
    wide = wide[list(ordered)].set_axis([f"{columns} {format_value(value)}" for value in ordered], axis="columns")
    return _measuring(_in_order(wide.reset_index(), rows), {name: metric for name in wide})


def metrics_at_steps(results: Results, steps: Sequence[int], metrics: Sequence[str]) -> pd.DataFrame:
    """Return metrics of each trial at some steps.

    Returns:
        ``trial_id`` (only where no configuration differs), the varying configuration, ``step``, the metrics (the value
        at that step, or the last one before it), ``taken_at`` (where that was, by the last metric taken). Missing after
        the end of a trial that diverged: its last value says nothing about later steps.
    """
    trials, history = results.trials, results.history
    shown = results.varied_parameters or ["trial_id"]
    wanted = trials[[*dict.fromkeys(["trial_id", "status", *shown])]].merge(
        pd.DataFrame({"step": np.asarray(sorted(set(steps)), dtype=np.int64)}), how="cross"
    )
    wanted = wanted.assign(row=range(len(wanted)), taken_at=np.nan).sort_values("step", kind="stable")
    for metric in metrics:
        taken = pd.DataFrame({"trial_id": pd.Series(dtype="str"), "at": pd.Series(dtype="int64"), metric: []})
        if metric in history and len(history):
            taken = history.loc[history[metric].notna(), ["trial_id", "step", metric]].rename(columns={"step": "at"})
        # Ids from an empty frame have no type of their own; merge_asof insists on equal ones.
        taken = taken.astype({"trial_id": wanted["trial_id"].dtype, "at": "int64"}).sort_values("at", kind="stable")
        wanted = pd.merge_asof(wanted, taken, left_on="step", right_on="at", by="trial_id")
        wanted["taken_at"] = wanted[["taken_at", "at"]].max(axis="columns")
        wanted = wanted.drop(columns="at")
    over = (wanted["status"] == "diverged") & (wanted["taken_at"] < wanted["step"])
    wanted.loc[over, list(metrics)] = np.nan
    df = wanted.sort_values("row")[[*shown, "step", *metrics, "taken_at"]].reset_index(drop=True)
    return _measuring(df, {metric: metric for metric in metrics})


def best_trials(results: Results, n: int = 10, metric: str | None = None) -> pd.DataFrame:
    """Return the best ``n`` trials: ``trial_id``, what varies, the metrics taken, steps and training time.

    Args:
        results: Any results.
        n: Number of rows at most.
        metric: What ranks them, shown first; by default the experiment's metric.

    Raises:
        UnknownNameError: no such column of numbers.
    """
    if metric is None and results.metric not in results.trials:
        return pd.DataFrame(columns=["trial_id"])
    metric = metric or results.metric
    top = results.top(n, metric)
    taken = [name for name in METRICS if name in top and top[name].notna().any()]
    extra = [name for name in taken if not name.endswith("_step")]
    columns = ["trial_id", *results.varied_parameters, metric, *extra, "steps_run", "train_s"]
    return top[[name for name in dict.fromkeys(columns) if name in top]].reset_index(drop=True)


def trials_table(results: Results, columns: Sequence[str]) -> pd.DataFrame:
    """Return every trial: what varies (``trial_id`` where nothing does) and those of ``columns`` that there are."""
    shown = [*(results.varied_parameters or ["trial_id"]), *columns]
    df = results.trials[[name for name in dict.fromkeys(shown) if name in results.trials]].copy()
    return _measuring(df, {name: name for name in columns})


def trials_with_status(results: Results, status: str) -> pd.DataFrame:
    """Return the trials of one status with what varies and why: ``error`` of failed ones, else ``stop_reason``."""
    reason = "error" if status == "failed" else "stop_reason"
    columns = [name for name in ("trial_id", *results.varied_parameters, "steps_run", reason) if name in results.trials]
    return results.trials.loc[results.trials["status"] == status, columns].reset_index(drop=True)


def status_table(results: Results) -> pd.DataFrame:
    """Return how many trials have each ``status``, as ``num_trials``."""
    counted = results.counts()
    return pd.DataFrame({"status": list(counted), "num_trials": list(counted.values())})


def search_space_table(results: Results) -> pd.DataFrame:
    """Return what varied: ``parameter``, ``num_values``, ``values`` (all, or the range of many numbers)."""
    rows = []
    for name in results.varied_parameters:
        values = results.trials[name].drop_duplicates().dropna()
        is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        ordered = values.sort_values() if is_number else values
        text = ", ".join(map(format_value, ordered))
        if is_number and len(ordered) > 12:
            text = f"{format_value(ordered.iloc[0])} to {format_value(ordered.iloc[-1])}"
        rows.append({"parameter": name, "num_values": len(values), "values": text})
    return pd.DataFrame(rows, columns=["parameter", "num_values", "values"])


def report_tables(results: Results, importance: pd.DataFrame | None = None) -> list[TitledTable]:
    """Return every table that the experiment declares, and the standard ones, with titles and file stems.

    Args:
        results: Any results.
        importance: Which parameters decide, where that is at hand: ``parameter``, ``importance``.
    """
    made: list[tuple[str, pd.DataFrame]] = []
    if results.experiment.get("published"):
        made.append((PUBLISHED, compare_to_published(results)))
    if results.experiment.get("claims"):
        made.append((CLAIMS, check_claims(results)))
    for table in results.experiment.get("tables") or ():
        made.append((table["title"], _declared(results, table)))
    made.append(("Best trials", best_trials(results)))
    if importance is not None:
        made.append((IMPORTANCE, importance))
    made += _scaled(results) if is_scaling(results) else _searched(results)
    for status in ("failed", "diverged"):
        if status in results.counts():
            made.append((f"{status.capitalize()} trials", trials_with_status(results, status)))
    made.append(("Trials by status", status_table(results)))
    taken: set[str] = set()
    return [(title, unique_slug(title, taken), df) for title, df in made]


def _searched(results: Results) -> list[tuple[str, pd.DataFrame]]:
    """Return what tells of the search itself, as far as its trials do."""
    made: list[tuple[str, pd.DataFrame]] = []
    for title, analysis, tells in (
        (
            "What fewer configurations would have found",
            budget_curve,
            lambda df: df["num_configurations"] >= MIN_CONFIGURATIONS,
        ),
        (SPECIAL_CASES, special_cases, lambda df: df["verdict"] != INCONCLUSIVE),
        ("What two parameters do together", interactions, lambda df: df["note"] == ""),
    ):
        try:
            df = analysis(results)
        except UnknownNameError:
            continue
        if tells(df).any():
            shown = df.drop(columns="note", errors="ignore")
            made.append(
                (title, _measuring(shown, dict.fromkeys(("mean", "difference", "low", "high"), results.metric)))
            )
    return made


def _scaled(results: Results) -> list[tuple[str, pd.DataFrame]]:
    """Return what a scaling measurement says beyond what it timed."""
    made: list[tuple[str, pd.DataFrame]] = []
    for title, analysis in (
        ("The model against the clock", predicted_against_measured),
        ("From which width on the workers keep their speed", min_efficient_width),
        ("Time and what it costs", cost_pareto_front),
    ):
        try:
            made.append((title, analysis(results)))
        except UnknownNameError:
            continue
    return made


def _declared(results: Results, table: Mapping[str, Any]) -> pd.DataFrame:
    metrics = list(table["metrics"])
    if table["kind"] == "best_per":
        return best_per(results, table["rows"], metrics)
    if table["kind"] == "pivot":
        return pivot(results, table["rows"], table.get("columns"), metrics[0])
    if table["kind"] == "trials":
        return trials_table(results, metrics)
    return metrics_at_steps(results, table.get("steps") or (), metrics)


def _measuring(df: pd.DataFrame, metric_of: Mapping[Any, str]) -> pd.DataFrame:
    """Note which metric a column holds, for those who write its numbers."""
    df.attrs["metric_of"] = {str(column): metric for column, metric in metric_of.items()}
    return df


def _in_order(df: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return rows by rising number; names stay in the order in which trials were asked for."""
    if pd.api.types.is_numeric_dtype(df[column]):
        df = df.sort_values(column, kind="stable")
    return df.reset_index(drop=True)


def to_markdown(df: pd.DataFrame) -> str:
    """Return a table as Markdown: numbers rounded for reading, columns without a value left out."""
    text = format_table(df)
    aligned = ["left" if wordy else "right" for wordy in text.attrs["wordy"]]
    escaped = text.map(_markdown_text).rename(columns=_markdown_text)
    return str(escaped.to_markdown(index=False, disable_numparse=True, colalign=aligned or None))


def values_table(ranking: Comparison) -> pd.DataFrame:
    """Return the values of a ranking, without what says nothing."""
    df = ranking.values.drop(columns=["is_tied_for_best"])
    for name in ("num_configurations", "num_diverged"):
        if df[name].max() <= (name == "num_configurations"):
            df = df.drop(columns=name)
    return _measuring(df, dict.fromkeys(("mean", "deviation", "low", "high"), ranking.metric))


def pairs_table(ranking: Comparison) -> pd.DataFrame:
    """Return what a ranking says of each pair of values."""
    df = ranking.pairs[["first", "second", "difference", "low", "high", "p_corrected", "num_pairs", "verdict"]]
    return _measuring(df.copy(), dict.fromkeys(("difference", "low", "high"), ranking.metric))


def _markdown_text(text: str) -> str:
    for raw, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        text = text.replace(raw, safe)
    return " ".join(text.split())


def write_tables(results: Results, folder: Path, made: Sequence[TitledTable] | None = None) -> list[Path]:
    """Write every declared table as ``tables/SLUG.md`` and ``tables/SLUG.csv``.

    Args:
        results: Any results.
        folder: The experiment folder.
        made: What ``report_tables`` returned, where it is at hand.

    Returns:
        The files written.

    Raises:
        FolderError: the folder cannot be written.
    """
    files = []
    for title, stem, df in report_tables(results) if made is None else made:
        markdown, csv = folder / "tables" / f"{stem}.md", folder / "tables" / f"{stem}.csv"
        source = format_table(df).attrs["source"]
        text = f"# {_markdown_text(title)}\n\n{to_markdown(df)}\n"
        text += f"\nSource: {_markdown_text(source)}.\n" if source else ""
        write_atomic(markdown, lambda path, text=text: path.write_text(text, encoding="utf-8"))  # type: ignore[misc]
        write_atomic(csv, lambda path, df=df: df.to_csv(path, index=False))  # type: ignore[misc]
        files += [markdown, csv]
    return files
