"""Learning curves: metrics of the history against steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tune_hpc.analysis.aggregation import numeric_column, row_mask, trial_values
from tune_hpc.analysis.formatting import axis_label, format_config
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots import series
from tune_hpc.report.plots.layout import (
    CaptionedFigure,
    clip_error_bars,
    figure_title,
    label_text,
    line_style,
    new_grid,
    set_log_y,
)

#: Buckets along a curve; each keeps its lowest and its highest point.
NUM_BUCKETS = 300

#: Number of parameters up to which a legend has whole configurations; beyond, it has the first trial of each.
MAX_NAMED = 12


def _curve_lines(results: Results, line: str | None, where: Mapping[str, Any], values: Sequence[Any]) -> pd.DataFrame:
    """Return ``trial_id`` and ``line``: the selected values of a parameter, or the best configurations without it.

    If other parameters vary, a line is the configuration with the best mean metric.
    """
    mask = row_mask(results.trials, where)
    trials = results.trials[mask]
    free = series.free_parameters(results, [line, *where])
    df = trials[["trial_id"]].assign(
        score=trial_values(results, [results.metric]).loc[mask, results.metric],
        line=trials[line]
        if line
        else trials.groupby(free, dropna=False)["trial_id"].transform("first")
        if len(free) > MAX_NAMED
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
        best = mean.drop_duplicates("line") if line else mean.head(series.MAX_LINES)
        df = df.merge(best[["line", "configuration"]], on=["line", "configuration"])
    return df[["trial_id", "line"]].reset_index(drop=True)


def _curve_table(results: Results, metric: str, lines: pd.DataFrame, last_step: int | None) -> pd.DataFrame:
    """Return a metric of the history against steps: ``series.COLUMNS``, over the trials of a line."""
    history = results.history
    if metric not in history or lines.empty:
        return pd.DataFrame(columns=list(series.COLUMNS))
    history = history[history["trial_id"].isin(lines["trial_id"])]
    if last_step is not None:
        history = history[history["step"] <= last_step]
    df = pd.DataFrame({"trial_id": history["trial_id"], "x": history["step"], "value": numeric_column(history, metric)})
    return series.mean_and_ci(df.dropna(subset=["value"]).merge(lines, on="trial_id"))


def draw(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw learning curves, a panel per metric with data."""
    parameter = specification.get("line")
    if parameter and parameter not in results.trials:
        return []
    values = series.best_values(results, parameter)
    members = _curve_lines(results, parameter, where, values)
    lines = values if parameter else list(dict.fromkeys(members["line"]))
    last_step = specification.get("last_step")
    tables = series.tables_by_metric(specification, lambda name: _curve_table(results, name, members, last_step))
    if not tables:
        return []
    present = [value for value in lines if any((table["line"] == value).any() for table in tables.values())]
    legend = [
        (label_text(value) + _diverged(results, parameter, where, value), line_style(lines.index(value)))
        for value in present
    ]
    is_labelled = [label for label, _ in legend] != [""]
    title = figure_title(results, specification, where)
    sheet = new_grid(title, len(tables), legend if is_labelled else (), parameter)
    sheet.add_notes(series.best_values_note(results, parameter, values))
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        sheet.add_notes(*_draw_curves(ax, table, lines, log_y=bool(specification.get("log_y"))))
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


def _draw_curves(ax: Axes, table: pd.DataFrame, lines: Sequence[Any], *, log_y: bool) -> list[str]:
    """Draw curves with their bands in the styles of ``lines``; return sentences for the caption.

    ``log_y`` makes the axis logarithmic if no value is negative; exact zeros lie on its lower edge.
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
