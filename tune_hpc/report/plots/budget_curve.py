"""What a search would have found with fewer configurations, and how soon its configurations were good enough."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from tune_hpc.analysis.aggregation import filter_trials
from tune_hpc.analysis.budget import ADAPTIVE_SEARCHERS, budget_curve, time_to_target
from tune_hpc.analysis.formatting import axis_label, describe_metric, display_name, format_number
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots import curves
from tune_hpc.report.plots.axes import label_text, line_style
from tune_hpc.report.plots.layout import FigureLayout, figure_title, label_y, new_grid

#: At so many places a budget curve is computed, at most.
_MOST_BUDGETS = 60
#: A range of times as wide is drawn on a logarithmic axis; and a line of more steps has no markers.
_WIDE, _MOST_MARKED = 200, 12


def draw_budget(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw what fewer configurations would have found, a panel per metric; no sheet where that cannot be told."""
    tables = {}
    for metric in specification["metrics"]:
        try:
            own = filter_trials(results, where)
            table = budget_curve(own, _budgets(own), metric)
        except UnknownNameError:
            continue
        if table["mean"].notna().sum() > 1:
            tables[metric] = table
    if not tables:
        return []
    is_learning = results.experiment.get("searcher") in ADAPTIVE_SEARCHERS
    sheet = new_grid(figure_title(results, specification, where), len(tables), [], [], None, 0.0)
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
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
            ax.xaxis.set_minor_locator(NullLocator())
        else:
            ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
        ax.set_xlabel("configurations tried")
        label_y(ax, axis_label(metric))
    first = next(iter(tables.values()))
    if is_learning:
        sheet.notes["Line: the best so far, in the order in which the searcher tried them."] = None
    else:
        sheet.notes["Line: the best of so many of them, on average over every order; band: 90 % of the orders."] = None
    lost = first["prob_all_diverged"].to_numpy(float)
    if lost.max() > 0:
        budget = first["num_configurations"].iloc[int(lost.argmax())]
        noun = "configuration" if budget == 1 else "configurations"
        sheet.notes[f"With {budget} {noun} nothing but divergence in {lost.max():.0%} of the orders."] = None
    if results.metric not in tables:
        sheet.notes[f"The best by {display_name(results.metric)}."] = None
    return [sheet]


def _budgets(results: Results) -> list[int]:
    most = len(results.trials)
    return sorted({int(budget) for budget in np.geomspace(1, max(most, 1), _MOST_BUDGETS).round()})


def draw_target(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw which part of the configurations had reached a target by when, in steps and in seconds; a line per value.

    No sheet where no configuration reached it, or there is one only.
    """
    (metric,), target, line = specification["metrics"], specification.get("target"), specification.get("line")
    if target is None:
        return []
    try:
        table = time_to_target(filter_trials(results, where), float(target), metric)
    except UnknownNameError:
        return []
    table = table[table["num_seeds"] > 0].assign(line=table.get(line, ""))
    if len(table) < 2 or not np.isfinite(table["reached_step"]).any():
        return []
    shown = curves.shown_lines(results, line) if line in table else [""]
    shown = [value for value in shown if (table["line"] == value).any()]
    panels = {"reached_step": "optimizer steps until then", "reached_s": "seconds of training until then"}
    panels = {name: label for name, label in panels.items() if np.isfinite(table[name]).any()}
    labels = [_named(value, table[table["line"] == value]) for value in shown]
    handles = [Line2D([], [], **line_style(shown.index(value))) for value in shown]
    sheet = new_grid(
        figure_title(results, specification, where),
        len(panels),
        handles,
        labels,
        display_name(str(line)) if line in table else None,
        0.0,
    )
    for ax, (name, label) in zip(sheet.axes, panels.items(), strict=True):
        for index, value in enumerate(shown):
            _draw_reached(ax, table.loc[table["line"] == value, name], line_style(index))
        known = table[name][np.isfinite(table[name])]
        if known.min() > 0 and known.max() > _WIDE * known.min():
            ax.set_xscale("log")
        else:
            ax.set_xlim(0, known.max() * 1.05 or 1.0)
            ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value, 3)))
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel(label)
        label_y(ax, "fraction reached")
    aim = describe_metric(float(target), metric)
    sheet.notes[f"Target: {aim}. A configuration counts from when the median of its seeds has reached it."] = None
    missed = int((~np.isfinite(table["reached_step"])).sum())
    if missed:
        sheet.notes[f"{missed} of {len(table)} configurations never did."] = None
    if len(shown) < len(curves.values_of(results, line)):
        sheet.notes[f"The best {len(shown)} values of {display_name(str(line))} are shown."] = None
    return [sheet]


def _named(value: Any, own: pd.DataFrame) -> str:
    """Return a line's label: its value, and how many of its configurations missed the target."""
    missed = int((~np.isfinite(own["reached_step"])).sum())
    told = f"{missed} of {len(own)} missed" if missed else f"all {len(own)} reached"
    return f"{label_text(value)} ({told})" if value != "" else told


def _draw_reached(ax: Axes, column: pd.Series, style: Mapping[str, Any]) -> None:
    """Draw the rising part of the configurations that have reached the target."""
    times = np.sort(column[np.isfinite(column)].to_numpy(float))
    part = np.arange(1, len(times) + 1) / len(column)
    # Each step ends where the part is reached; beyond the last, nothing changes any more.
    x, y = np.repeat(times, 2), np.concatenate([[0.0], np.repeat(part, 2)])[: 2 * len(times)]
    every: Any = slice(1, None, 2) if len(times) <= _MOST_MARKED else []
    ax.plot(x, y, markersize=4, markevery=every, clip_on=False, **style)
