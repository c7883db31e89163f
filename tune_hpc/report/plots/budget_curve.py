"""Best metric against the number of configurations, and time to a target."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from tune_hpc.analysis.aggregation import filter_trials
from tune_hpc.analysis.budget import ADAPTIVE_SEARCHERS, budget_curve, time_to_target
from tune_hpc.analysis.formatting import axis_label, describe_metric, display_name
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots.layout import CaptionedFigure, figure_title, format_ticks, label_text, line_style, new_grid
from tune_hpc.report.plots.series import best_values, best_values_note, tables_by_metric

#: Points of a budget curve at most.
_MAX_POINTS = 60
#: Ratio of times beyond which their axis is logarithmic.
_WIDE_RATIO = 200
#: Steps of a line at most for which it has markers.
_MAX_MARKERS = 12


def _budget_table(results: Results, metric: str, where: Mapping[str, Any]) -> pd.DataFrame:
    """Return ``analysis.budget_curve``; empty without two points."""
    try:
        trials = filter_trials(results, where)
        budgets = np.geomspace(1, max(len(trials.trials), 1), _MAX_POINTS).round()
        table = budget_curve(trials, sorted({int(budget) for budget in budgets}), metric)
    except UnknownNameError:
        return pd.DataFrame()
    return table if table["mean"].notna().sum() > 1 else pd.DataFrame()


def draw_budget(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw the best metric that a smaller search finds, a panel per metric."""
    tables = tables_by_metric(specification, lambda metric: _budget_table(results, metric, where))
    if not tables:
        return []
    is_learning = results.experiment.get("searcher") in ADAPTIVE_SEARCHERS
    sheet = new_grid(figure_title(results, specification, where), len(tables))
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        x, mean = table["num_configurations"].to_numpy(float), table["mean"].to_numpy(float)
        style = {**line_style(0), "marker": "none"}
        if is_learning:
            ax.step(x, mean, where="post", **style)
        else:
            ax.fill_between(x, table["low"], table["high"], color=style["color"], alpha=0.16, linewidth=0)
            ax.plot(x, mean, **style)
        if x[-1] >= 50:
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if x[-1] < 1000 else (1,)))
            format_ticks(ax.xaxis)
            ax.xaxis.set_minor_locator(NullLocator())
        else:
            ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        sheet.set_labels(ax, "configurations tried", axis_label(metric))
    if is_learning:
        sheet.add_notes("Line: the best so far, in the order in which the searcher tried them.")
    else:
        sheet.add_notes("Line: the best of so many of them, on average over every order; band: 90 % of the orders.")
    first = next(iter(tables.values()))
    lost = first["prob_all_diverged"].to_numpy(float)
    if lost.max() > 0:
        budget = first["num_configurations"].iloc[int(lost.argmax())]
        noun = "configuration" if budget == 1 else "configurations"
        sheet.add_notes(f"With {budget} {noun} nothing but divergence in {lost.max():.0%} of the orders.")
    if results.metric not in tables:
        sheet.add_notes(f"The best by {display_name(results.metric)}.")
    return [sheet]


def _target_table(
    results: Results, metric: str, target: float | None, line: str | None, where: Mapping[str, Any]
) -> pd.DataFrame:
    """Return ``analysis.time_to_target`` with ``line``; empty unless one of several configurations reached it."""
    if target is None:
        return pd.DataFrame()
    try:
        table = time_to_target(filter_trials(results, where), float(target), metric)
    except UnknownNameError:
        return pd.DataFrame()
    table = table[table["num_seeds"] > 0].assign(line=table.get(line, ""))
    has_data = len(table) > 1 and np.isfinite(table["reached_step"]).any()
    return table if has_data else pd.DataFrame()


def draw_target(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw the fraction of configurations that reached a target, against steps and seconds; a line per value."""
    (metric,), target, line = specification["metrics"], specification.get("target"), specification.get("line")
    table = _target_table(results, metric, target, line, where)
    if table.empty:
        return []
    values = [value for value in best_values(results, line) if (table["line"] == value).any()] or [""]
    axis_labels = {"reached_step": "steps until then", "reached_s": "seconds of training until then"}
    panels = {name: label for name, label in axis_labels.items() if np.isfinite(table[name]).any()}
    legend = [(_label(value, table[table["line"] == value]), line_style(index)) for index, value in enumerate(values)]
    title = figure_title(results, specification, where)
    sheet = new_grid(title, len(panels), legend, line if line in table else None)
    for ax, (name, label) in zip(sheet.axes, panels.items(), strict=True):
        for index, value in enumerate(values):
            _draw_reached(ax, table.loc[table["line"] == value, name], line_style(index))
        known = table.loc[np.isfinite(table[name]), name]
        if known.min() > 0 and known.max() > _WIDE_RATIO * known.min():
            ax.set_xscale("log")
        else:
            ax.set_xlim(0, known.max() * 1.05 or 1.0)
            ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        format_ticks(ax.xaxis, 3)
        ax.set_ylim(-0.03, 1.03)
        sheet.set_labels(ax, label, "fraction reached")
    sheet.add_notes(
        f"Target: {describe_metric(float(target or 0.0), metric)}. A configuration counts from when the median of its "
        "seeds has reached it."
    )
    if num_missed := int((~np.isfinite(table["reached_step"])).sum()):
        sheet.add_notes(f"{num_missed} of {len(table)} configurations never did.")
    if line in table:
        sheet.add_notes(best_values_note(results, line, values))
    return [sheet]


def _label(value: Any, table: pd.DataFrame) -> str:
    """Return a line's label: its value, and how many of its configurations missed the target."""
    num_missed = int((~np.isfinite(table["reached_step"])).sum())
    text = f"{num_missed} of {len(table)} missed" if num_missed else f"all {len(table)} reached"
    return f"{label_text(value)} ({text})" if value != "" else text


def _draw_reached(ax: Axes, column: pd.Series, style: Mapping[str, Any]) -> None:
    """Draw the growing fraction of configurations that reached the target."""
    times = np.sort(column[np.isfinite(column)].to_numpy(float))
    if not len(times):
        return  # matplotlib's layout would count an empty line at the corner of the figure.
    fraction = np.arange(1, len(times) + 1) / len(column)
    # A step ends where the fraction is reached; the last one is the end of the line.
    x, y = np.repeat(times, 2), np.concatenate([[0.0], np.repeat(fraction, 2)])[: 2 * len(times)]
    markers: Any = slice(1, None, 2) if len(times) <= _MAX_MARKERS else []
    ax.plot(x, y, markersize=4, markevery=markers, clip_on=False, **style)
