"""Tables of one experiment: functions from ``Results`` to a data frame, written as Markdown and CSV.

Frames and CSV files have full precision and the columns' names; ``to_markdown`` rounds for readers.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    aggregate_seeds,
    check_columns,
    configuration_numbers,
    is_crossed_design,
    is_scaling,
    searched_parameters,
    sort_configurations,
)
from tune_hpc.analysis.budget import MIN_CONFIGURATIONS, budget_curve
from tune_hpc.analysis.claims import check_claims
from tune_hpc.analysis.comparison import INCONCLUSIVE, Comparison
from tune_hpc.analysis.formatting import format_table, format_value, unique_slug
from tune_hpc.analysis.frame_query import csv_text
from tune_hpc.analysis.frames import IDENTITY, MEASURES
from tune_hpc.analysis.interactions import interactions
from tune_hpc.analysis.published import compare_to_published
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.special_cases import special_cases
from tune_hpc.analysis.speedup import serial_fractions, speedups
from tune_hpc.analysis.stability import MIN_RUNG, selection_frequencies
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.scaling_tables import cost_pareto_front, min_efficient_width, predicted_against_measured
from tune_hpc.storage.filesystem import Storage
from tune_hpc.storage.trial_file import CONFIG

#: Titles of tables that the report also uses for its findings and figures.
PUBLISHED = "Published and measured values"
CLAIMS = "Published statements, checked"
SPECIAL_CASES = "Optimizers and their special cases"
IMPORTANCE = "Parameter importance"
STATUSES = "Trials by status"
#: A table with its title and the stem of its files.
TitledTable = tuple[str, str, pd.DataFrame]


def best_per(results: Results, parameter: str, metrics: Sequence[str]) -> pd.DataFrame:
    """Return the configuration with the best mean metric for each value of a parameter.

    ``metrics`` are by default the experiment's metric.

    Returns:
        ``parameter``, the other varied parameters, the metrics with their deviations, ``num_seeds``, ``num_diverged``
        (trials with this value of the parameter); missing values if no trial finished.
    """
    metrics = list(dict.fromkeys(metrics)) or [results.metric]
    configurations = aggregate_seeds(results, [*metrics, results.metric])
    others = [name for name in searched_parameters(results) if name != parameter]
    measured = [column for metric in metrics for column in (metric, f"{metric}_deviation")]
    columns = [parameter, *others, *measured, "num_seeds", "num_diverged"]
    if parameter not in configurations:
        return pd.DataFrame(columns=columns)
    best = sort_configurations(results, configurations).drop_duplicates(parameter)
    values = configurations[[parameter]].drop_duplicates()
    df = values.merge(best.drop(columns="num_diverged"), on=parameter, how="left")
    num_diverged = configurations.groupby(parameter, dropna=False)["num_diverged"].sum().reset_index()
    df = df.merge(num_diverged, on=parameter, how="left").reindex(columns=columns)
    df["num_seeds"] = df["num_seeds"].fillna(0).astype("int64")
    return _with_metrics(_sorted(df, parameter), {metric: metric for metric in metrics})


def pivot(results: Results, rows: str, columns: str | None, metric: str) -> pd.DataFrame:
    """Return the mean of a metric over all trials by one or two parameters.

    Returns:
        The values of ``rows`` in a column of that name, then one column per value of ``columns`` (or a column
        ``metric``); missing if no trial finished. Empty if the parameters are not crossed, as in a random search.
    """
    configurations = aggregate_seeds(results, [metric])
    if rows not in configurations or (columns and columns not in configurations):
        return pd.DataFrame(columns=[rows])
    if not columns or columns == rows:
        df = _sorted(configurations.groupby(rows, sort=False)[metric].mean().reset_index(), rows)
        return _with_metrics(df, {metric: metric})
    if not is_crossed_design(configurations, rows, columns):
        return pd.DataFrame(columns=[rows])
    wide = configurations.pivot_table(metric, rows, columns, dropna=False, sort=False)
    values = _sorted(pd.DataFrame({columns: wide.columns}), columns)[columns]
    wide = wide[list(values)].set_axis([f"{columns} {format_value(value)}" for value in values], axis="columns")
    return _with_metrics(_sorted(wide.reset_index(), rows), dict.fromkeys(wide, metric))


def metrics_at_steps(results: Results, steps: Sequence[int], metrics: Sequence[str]) -> pd.DataFrame:
    """Return metrics of each trial at some steps.

    Returns:
        The varied parameters (``trial_id`` without any), ``step``, the metrics (the value at that step, or the last one
        before), ``taken_at`` (the step of that value). Missing after the last step of a diverged trial.
    """
    trials, history = results.trials, results.history
    parameters = results.varied_parameters or ["trial_id"]
    df = trials[[*dict.fromkeys(["trial_id", "status", *parameters])]].merge(
        pd.DataFrame({"step": np.asarray(sorted(set(steps)), dtype=np.int64)}), how="cross"
    )
    df = df.assign(row=range(len(df)), taken_at=np.nan).sort_values("step", kind="stable")
    for metric in metrics:
        measured = history.reindex(columns=["trial_id", "step", metric]).dropna(subset=[metric])
        measured = measured.rename(columns={"step": "at"})
        # merge_asof needs equal types, which an empty frame does not have.
        measured = measured.astype({"trial_id": df["trial_id"].dtype, "at": "int64"}).sort_values("at", kind="stable")
        df = pd.merge_asof(df, measured, left_on="step", right_on="at", by="trial_id")
        df["taken_at"] = df[["taken_at", "at"]].max(axis="columns")
        df = df.drop(columns="at")
    df.loc[(df["status"] == "diverged") & (df["taken_at"] < df["step"]), list(metrics)] = np.nan
    df = df.sort_values("row")[[*parameters, "step", *metrics, "taken_at"]].reset_index(drop=True)
    return _with_metrics(df, {metric: metric for metric in metrics})


def best_configurations(
    results: Results, n: int = 10, metric: str | None = None, mode: str | None = None
) -> pd.DataFrame:
    """Return the best ``n`` configurations: first trial, varied parameters, means of all metrics, and number of seeds.

    ``metric``, by default the experiment's metric, ranks them in the direction of ``mode`` and is the first one.

    Raises:
        UnknownNameError: There is no such numeric column, or its direction is unknown.
    """
    if metric is None and results.metric not in results.trials:
        return pd.DataFrame(columns=["trial_id"])
    metric = metric or results.metric
    metrics = list(dict.fromkeys([metric, *measured_metrics(results), "steps_run", "train_s"]))
    check_columns(results, [metric])
    best = sort_configurations(results, aggregate_seeds(results, metrics), metric, mode).head(n)
    first = results.trials["trial_id"].groupby(configuration_numbers(results)).first()
    seeds = ["num_seeds"] if (best["num_seeds"] > 1).any() else []
    columns = ["trial_id", *searched_parameters(results), *metrics, *seeds]
    return best.assign(trial_id=first.reindex(best.index))[columns].reset_index(drop=True)


def measured_metrics(results: Results) -> list[str]:
    """Return the metrics that trials reported, and the columns that follow from them, in the order of the frame."""
    trials = results.trials
    known = {*IDENTITY, *MEASURES, CONFIG, *results.config_columns}
    names = [str(name) for name in trials if name not in known and not str(name).endswith("_step")]
    return [name for name in names if pd.api.types.is_numeric_dtype(trials[name]) and trials[name].notna().any()]


def trials_table(results: Results, columns: Sequence[str]) -> pd.DataFrame:
    """Return every trial: its varied parameters (``trial_id`` without any) and the existing ones of ``columns``."""
    names = dict.fromkeys([*(results.varied_parameters or ["trial_id"]), *columns])
    df = results.trials[[name for name in names if name in results.trials]].copy()
    return _with_metrics(df, {name: name for name in columns})


def trials_with_status(results: Results, status: str) -> pd.DataFrame:
    """Return the trials of one status with ``error`` (if failed) or ``stop_reason``."""
    reason = "error" if status == "failed" else "stop_reason"
    names = ("trial_id", *results.varied_parameters, "steps_run", reason)
    columns = [name for name in names if name in results.trials]
    return results.trials.loc[results.trials["status"] == status, columns].reset_index(drop=True)


def status_table(results: Results) -> pd.DataFrame:
    """Return ``num_trials`` of each ``status``."""
    return pd.DataFrame(list(results.counts().items()), columns=["status", "num_trials"])


def search_space_table(results: Results) -> pd.DataFrame:
    """Return the varied parameters.

    Returns:
        Columns ``parameter``; ``domain``, as in ``loguniform(1e-04, 1)``; ``num_values`` and ``values`` of the trials:
        all, or the range of many numbers.
    """
    rows, space = [], results.experiment.get("space") or {}
    for name in results.varied_parameters:
        values = results.trials[name].drop_duplicates().dropna()
        is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        texts = [format_value(value) for value in (values.sort_values() if is_number else values)]
        is_long = is_number and len(texts) > 12
        shown = f"{texts[0]} to {texts[-1]}" if is_long else ", ".join(texts)
        rows.append((name, _domain(space.get(name)), len(values), shown))
    return pd.DataFrame(rows, columns=["parameter", "domain", "num_values", "values"])


def _domain(parameter: Any) -> str:
    """Return the domain of a parameter in experiment.json, without the values of a choice."""
    if not isinstance(parameter, Mapping):
        return ""
    ((kind, arguments),) = parameter.items()
    if kind == "cases":
        return "conditional"
    return kind if kind == "choice" else f"{kind}({', '.join(map(format_value, arguments))})"


def report_tables(results: Results, importance: pd.DataFrame | None = None) -> list[TitledTable]:
    """Return the experiment's declared tables and the standard ones, with the table of ``tune_hpc.importance``."""
    experiment, tables = results.experiment, []
    if experiment.get("published"):
        tables.append((PUBLISHED, compare_to_published(results)))
    if experiment.get("claims"):
        tables.append((CLAIMS, check_claims(results)))
    tables += [(table["title"], _specified(results, table)) for table in experiment.get("tables") or ()]
    if not is_scaling(results):
        tables.append(("Best configurations", best_configurations(results)))
    if importance is not None:
        tables.append((IMPORTANCE, _with_metrics(importance.copy(), dict.fromkeys(("low", "high"), "importance"))))
    tables += _analyses(results)
    for status in ("failed", "diverged", "disturbed"):
        if status in results.counts():
            tables.append((f"{status.capitalize()} trials", trials_with_status(results, status)))
    tables.append((STATUSES, status_table(results)))
    taken: set[str] = set()
    return [(title, unique_slug(title, taken), df) for title, df in tables]


def _analyses(results: Results) -> list[tuple[str, pd.DataFrame]]:
    """Return the analyses of a scaling measurement or of a search that its trials allow."""
    has_scheduler = results.experiment.get("scheduler", "none") != "none"
    analyses: dict[str, tuple[Callable[[Results], pd.DataFrame], Callable[[pd.DataFrame], Any]]] = {
        "Expected result with fewer configurations":
            (budget_curve, lambda df: df["num_configurations"] >= MIN_CONFIGURATIONS),
        "Best configuration over resampled seeds":
            (selection_frequencies, lambda df: bool(searched_parameters(results))),
        "Ranking at the rungs of asha":
            (Results.rung_correlation, lambda df: not has_scheduler and df["num_configurations"].min() >= MIN_RUNG),
        SPECIAL_CASES: (special_cases, lambda df: df["verdict"] != INCONCLUSIVE),
        "Interactions of two parameters": (interactions, lambda df: df["note"] == ""),
    }  # fmt: skip
    columns: tuple[str, ...] = ("mean", "difference", "low", "high", "margin")
    if is_scaling(results):
        analyses = {
            "Speed-up and efficiency": (speedups, lambda df: df["workers"] > 1),
            "Serial fraction": (serial_fractions, lambda df: True),
            "Predicted and measured step times": (predicted_against_measured, lambda df: True),
            "Minimum network width for efficient scaling": (min_efficient_width, lambda df: True),
            "Training time and cost": (cost_pareto_front, lambda df: True),
        }
        columns = ()
    tables = []
    for title, (analysis, is_informative) in analyses.items():
        try:
            df = analysis(results)
        except UnknownNameError:
            continue
        if np.any(is_informative(df)):
            df = df.drop(columns="note", errors="ignore")
            tables.append((title, _with_metrics(df, dict.fromkeys(columns, results.metric))))
    return tables


def _specified(results: Results, table: Mapping[str, Any]) -> pd.DataFrame:
    metrics = list(table["metrics"])
    if table["kind"] == "best_per":
        return best_per(results, table["rows"], metrics)
    if table["kind"] == "pivot":
        return pivot(results, table["rows"], table.get("columns"), metrics[0])
    if table["kind"] == "trials":
        return trials_table(results, metrics)
    return metrics_at_steps(results, table.get("steps") or (), metrics)


def _with_metrics(df: pd.DataFrame, metric_of: Mapping[Any, str]) -> pd.DataFrame:
    """Attach the metric of each column, which decides its number format."""
    df.attrs["metric_of"] = {str(column): metric for column, metric in metric_of.items()}
    return df


def _sorted(df: pd.DataFrame, column: str) -> pd.DataFrame:
    """Sort rows by number; names stay in the order of their first trials."""
    if pd.api.types.is_numeric_dtype(df[column]):
        df = df.sort_values(column, kind="stable")
    return df.reset_index(drop=True)


def values_table(comparison: Comparison) -> pd.DataFrame:
    """Return the values of a comparison without uninformative columns."""
    df = comparison.values.drop(columns=["is_tied_for_best", "may_be_best"])
    for name, trivial in (("num_configurations", 1), ("num_diverged", 0)):
        if df[name].max() <= trivial:
            df = df.drop(columns=name)
    return _with_metrics(
        df, dict.fromkeys(("mean", "deviation", "low", "high", "lead_low", "lead_high"), comparison.metric)
    )


def pairs_table(comparison: Comparison) -> pd.DataFrame:
    """Return the pairs of a comparison."""
    df = comparison.pairs[["first", "second", "difference", "low", "high", "p", "num_pairs", "verdict"]]
    return _with_metrics(df.copy(), dict.fromkeys(("difference", "low", "high"), comparison.metric))


def to_markdown(df: pd.DataFrame) -> str:
    """Return a table as Markdown: rounded numbers, without uninformative columns."""
    text = format_table(df)
    alignment = ["left" if is_text else "right" for is_text in text.attrs["is_text"]]
    escaped = text.map(_escape_markdown).rename(columns=_escape_markdown)
    return str(escaped.to_markdown(index=False, disable_numparse=True, colalign=alignment or None))


def _escape_markdown(text: str) -> str:
    return " ".join(html.escape(text, quote=False).replace("|", "\\|").split())


def write_tables(results: Results, folder: Path, tables: Sequence[TitledTable] | None = None) -> list[Path]:
    """Write every table (default: ``report_tables``) as ``tables/SLUG.md`` and ``.csv``; return the files.

    Raises:
        FolderError: The folder cannot be written.
    """
    storage, files = Storage(folder), []
    for title, stem, df in report_tables(results) if tables is None else tables:
        source = format_table(df).attrs["source"]
        text = f"# {_escape_markdown(title)}\n\n{to_markdown(df)}\n"
        text += f"\nSource: {_escape_markdown(source)}.\n" if source else ""
        for suffix, content in (("md", text), ("csv", csv_text(df))):
            files.append(storage.local_path(f"tables/{stem}.{suffix}"))
            storage.write_atomic(files[-1], content)
    return files
