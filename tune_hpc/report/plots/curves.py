"""Learning curves: metrics of the history against optimizer steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tune_hpc.analysis.aggregation import numeric_column, row_mask, trial_values
from tune_hpc.analysis.formatting import axis_label, display_name, format_config
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots.axes import clip_error_bars, label_text, line_style, set_log_y
from tune_hpc.report.plots.layout import CaptionedFigure, figure_title, new_grid
from tune_hpc.report.plots.series import (
    COLUMNS,
    MAX_LINES,
    best_values,
    best_values_note,
    free_parameters,
    mean_and_ci,
)

#: Buckets along a curve; each keeps its lowest and its highest point.
NUM_BUCKETS = 300


def curve_lines(results: Results, line: str | None, where: Mapping[str, Any], values: Sequence[Any]) -> pd.DataFrame:
    """Return the line of each trial.

    Args:
        results: Any results.
        line: Parameter with one line per value; without it each configuration has a line, the best first.
        where: Parameter and value of the page.
        values: Values of ``line`` to draw.

    Returns:
        ``trial_id`` and ``line``. If other parameters vary, a line is the configuration with the best mean metric.
    """
    mask = row_mask(results.trials, where)
    trials = results.trials[mask]
    free = free_parameters(results, [line, *where])
    df = trials[["trial_id"]].assign(
        score=trial_values(results, [results.metric]).loc[mask, results.metric],
        line=trials[line]
        if line
        else [format_config(dict(zip(free, row, strict=True))) for row in trials[free].itertuples(index=False)],
    )
    if line:
        is_selected = [row_mask(df, {"line": value}) for value in values]
        df = df[np.logical_or.reduce(is_selected)] if is_selected else df.iloc[:0]
    if free:
        df["configuration"] = trials.groupby(free, dropna=False, sort=False).ngroup()
        # A configuration without a score (diverged, running) is last, but has a curve.
        mean = df.groupby(["line", "configuration"], sort=False)["score"].mean().reset_index()
        lower_is_better = results.experiment["mode"] == "min"
        mean = mean.sort_values("score", ascending=lower_is_better, kind="stable", na_position="last")
        best = mean.drop_duplicates("line") if line else mean.head(MAX_LINES)
        df = df.merge(best[["line", "configuration"]], on=["line", "configuration"])
    return df[["trial_id", "line"]].reset_index(drop=True)


def curve_table(results: Results, metric: str, lines: pd.DataFrame, last_step: int | None = None) -> pd.DataFrame:
    """Return a metric of the history against steps.

    Args:
        results: Any results.
        metric: Column of the history.
        lines: Result of ``curve_lines``.
        last_step: Last step of the curves; the default is all steps.

    Returns:
        Columns of ``series.COLUMNS``; mean and interval are over the trials of a line. Empty without finite values.
    """
    history = results.history
    if metric not in history or lines.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    history = history[history["trial_id"].isin(lines["trial_id"])]
    if last_step is not None:
        history = history[history["step"] <= last_step]
    df = pd.DataFrame({"trial_id": history["trial_id"], "x": history["step"], "value": numeric_column(history, metric)})
    return mean_and_ci(df.dropna(subset=["value"]).merge(lines, on="trial_id"))


def draw(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw learning curves, a panel per metric with data."""
    parameter = specification.get("line")
    values = best_values(results, parameter)
    members = curve_lines(results, parameter, where, values)
    lines = values if parameter else list(dict.fromkeys(members["line"]))
    tables = {
        metric: curve_table(results, metric, members, specification.get("last_step"))
        for metric in specification["metrics"]
    }
    tables = {metric: table for metric, table in tables.items() if len(table)}
    if not tables:
        return []
    present = [value for value in lines if any((table["line"] == value).any() for table in tables.values())]
    labels = [label_text(value) + _diverged(results, parameter, where, value) for value in present]
    handles = [Line2D([], [], **line_style(lines.index(value))) for value in present]
    sheet = new_grid(
        figure_title(results, specification, where),
        len(tables),
        handles if labels != [""] else [],
        labels,
        display_name(parameter) if parameter else None,
    )
    sheet.add_notes(best_values_note(results, parameter, values))
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        sheet.add_notes(*draw_curves(ax, table, lines, log_y=bool(specification.get("log_y"))))
        num_ticks = 4 if len(tables) > 1 and table["x"].max() >= 10_000 else 6
        ax.xaxis.set_major_locator(MaxNLocator(num_ticks, integer=True, steps=[1, 2, 2.5, 5, 10]))
        sheet.set_labels(ax, axis_label("step"), axis_label(metric))
    return [sheet]


def _diverged(results: Results, line: str | None, where: Mapping[str, Any], value: Any) -> str:
    """Return the number of a line's trials that diverged, for its label."""
    if line is None:
        return ""
    status = results.trials.loc[row_mask(results.trials, {**where, line: value}), "status"]
    num_diverged = int((status == "diverged").sum())
    if not num_diverged:
        return ""
    return " (diverged)" if num_diverged == len(status) else f" ({num_diverged} of {len(status)} diverged)"


def draw_curves(ax: Axes, table: pd.DataFrame, lines: Sequence[Any], *, log_y: bool = False) -> list[str]:
    """Draw curves with their bands.

    Args:
        ax: The panel.
        table: Result of ``curve_table``.
        lines: All lines of the figure, in the order of their styles.
        log_y: Make the axis logarithmic if no value is negative; exact zeros lie on its lower edge.

    Returns:
        Sentences for the caption.
    """
    notes: list[str] = []
    positive = table.loc[table["mean"] > 0, "mean"]
    log_y = log_y and bool((table["mean"] >= 0).all()) and len(positive) > 0
    floor = positive.min() / 10 if log_y else -np.inf
    for index, line in enumerate(lines):
        points = table[table["line"] == line]
        if points.empty:
            continue
        indices = downsample(points["mean"].to_numpy(float))
        x, mean, low, high = (points[name].to_numpy(float)[indices] for name in ("x", "mean", "low", "high"))
        style = line_style(index)
        if (points["num_trials"] > 1).any():
            notes.append("Line: mean over seeds.")
        if (points["high"] > points["low"]).any():
            notes.append("Band: 95 % interval of the mean (Student's).")
            band = np.maximum(low, floor), np.maximum(high, floor)
            ax.fill_between(x, *band, color=style["color"], alpha=0.16, linewidth=0)
        ax.plot(x, np.maximum(mean, floor), markevery=_marker_indices(x, index), zorder=3, **style)
    if log_y:
        set_log_y(ax)
        if (table["mean"] <= 0).any():
            ax.set_ylim(bottom=floor)
            notes.append("Exact zeros lie on the lower edge.")
    if table["x"].min() == table["x"].max():
        ax.set_xlim(table["x"].min() - 1, table["x"].max() + 1)
    if top := _y_cutoff(table, log_y):
        ax.set_ylim(floor if log_y else table["mean"].min() - 0.06 * top, top)
        notes.append(f"Cut at the top; the highest value is {table['mean'].max():.3g}.")
    elif not log_y and clip_error_bars(ax, table):
        notes.append("Bands far wider than the lines' range are cut.")
    return notes


def _marker_indices(x: np.ndarray, index: int) -> list[int]:
    """Return the points of a curve with markers: seven along the axis, shifted from those of its neighbours."""
    if len(x) <= 8:
        return list(range(len(x)))
    positions = x[0] + (np.arange(7) + 0.05 + index % 5 * 0.19) / 7 * (x[-1] - x[0])
    return sorted({int(position) for position in np.searchsorted(x, positions).clip(max=len(x) - 1)})


def _y_cutoff(table: pd.DataFrame, log_y: bool) -> float | None:
    """Return the upper end of the axis if a few exploding lines would flatten all others."""
    highest = table.groupby("line", sort=False)["mean"].max()
    median = highest.median()
    if len(highest) < 3 or table["mean"].min() < 0 or highest.max() <= median * (1e4 if log_y else 8):
        return None
    return float(median * (100 if log_y else 2))


def downsample(values: np.ndarray, num_buckets: int = NUM_BUCKETS) -> np.ndarray:
    """Return the indices of points that draw the same line: both ends, the lowest and highest of each bucket.

    Unlike every n-th point, extremes preserve the height of an oscillation.
    """
    n = len(values)
    if n <= 2 * num_buckets:
        return np.arange(n)
    size = -(-n // num_buckets)
    padded = np.concatenate([values, np.full(-n % size, values[-1])]).reshape(-1, size)
    starts = np.arange(len(padded)) * size
    indices = np.concatenate([[0, n - 1], starts + padded.argmin(axis=1), starts + padded.argmax(axis=1)])
    return np.unique(np.minimum(indices, n - 1))
