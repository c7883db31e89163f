"""Figures of what a scaling measurement says beyond what it timed: more workers on other links, and cost."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from tune_hpc.analysis.formatting import axis_label, display_name, format_number
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots.axes import label_text, line_style
from tune_hpc.report.plots.curves import row_mask, shown_lines
from tune_hpc.report.plots.layout import FigureLayout, figure_title, label_y, new_grid
from tune_hpc.report.plots.scaling import IDEAL, number_workers
from tune_hpc.report.scaling_tables import MEASURED_LINK, baseline_rows, cost_pareto_front, network_widths, predictions

_MEASURED: dict[str, Any] = {"color": "black", "marker": "*", "markersize": 9, "linestyle": "none"}
#: What is worth having more workers for.
AIM = 0.8
#: Metrics of a prediction, each with a panel.
_METRICS = ("speedup", "efficiency")


def draw_links(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw what the model says of more workers, a line for each link, beside what was measured here."""
    try:
        said = predictions(results)
    except UnknownNameError:
        return []
    own = {name: value for name, value in where.items() if name in said}
    said = said[(said["link"] != MEASURED_LINK) & row_mask(said, own)]
    if len(own) < len(where) or said.empty or said[["mode", "width", "batch_size"]].drop_duplicates().shape[0] > 1:
        return []
    measured = baseline_rows(results)
    measured = measured.assign(width=network_widths(measured))
    measured = measured[row_mask(measured, own)].groupby("workers")[list(_METRICS)].mean()
    links = list(dict.fromkeys(said["link"]))
    handles = [Line2D([], [], **_style(number)) for number in range(len(links))]
    handles += [Line2D([], [], **_MEASURED), Line2D([], [], **IDEAL)]
    title = figure_title(results, specification, where)
    sheet = new_grid(title, len(_METRICS), handles, [*links, "measured", "if nothing were lost"], None, 0.0)
    numbers = sorted(said["workers"].unique())
    for ax, metric in zip(sheet.axes, _METRICS, strict=True):
        ax.plot(numbers, numbers if metric == "speedup" else [1] * len(numbers), **IDEAL)
        for number, link in enumerate(links):
            line = said[said["link"] == link]
            ax.plot(line["workers"], line[metric], **_style(number))
        ax.plot(measured.index, measured[metric], zorder=4, **_MEASURED)
        number_workers(ax, numbers)
        if metric == "speedup":
            ax.set_yscale("log", base=2)
            ax.yaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
        else:
            ax.set_ylim(0, 1.05)
        ax.set_xlabel(axis_label("workers"))
        label_y(ax, f"{display_name(metric)} (predicted)")
    sheet.notes[
        "Predicted, not measured, but for the stars: workers that each compute as one alone does here, links at their "
        "published rates, nothing hidden behind the backward pass."
    ] = None
    return [sheet]


def draw_widths(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw what the model says workers keep of their speed, against the network's width: a panel for each number."""
    curves = pd.DataFrame(results.experiment.get("width_curves") or [])
    if curves.empty or where:
        return []
    links, numbers = list(dict.fromkeys(curves["link"])), sorted(curves["workers"].unique())
    measured = baseline_rows(results)
    measured = (
        measured.assign(width=network_widths(measured)).groupby(["workers", "width"])["efficiency"].mean().reset_index()
    )
    handles = [Line2D([], [], **_style(number) | {"marker": ""}) for number in range(len(links))]
    handles += [Line2D([], [], **_MEASURED), Line2D([], [], **IDEAL)]
    labels = [*links, "measured", f"{AIM:.0%}"]
    sheet = new_grid(figure_title(results, specification, where), len(numbers), handles, labels, None, 0.0)
    for ax, workers in zip(sheet.axes, numbers, strict=True):
        for number, link in enumerate(links):
            line = curves[(curves["link"] == link) & (curves["workers"] == workers)]
            ax.plot(line["width"], line["efficiency"], **_style(number) | {"marker": ""})
        own = measured[measured["workers"] == workers]
        ax.plot(own["width"], own["efficiency"], zorder=4, **_MEASURED)
        ax.axhline(AIM, **IDEAL)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
        ax.set_ylim(0, 1.05)
        ax.set_xlabel(axis_label("width"))
        label_y(ax, "efficiency (predicted)")
        ax.annotate(f"{workers} workers", (0.04, 0.06), xycoords="axes fraction", weight="bold", fontsize=8)
    sheet.notes["Predicted, not measured, but for the stars."] = None
    return [sheet]


def _style(number: int) -> dict[str, Any]:
    return line_style(number) | {"markerfacecolor": "white", "markersize": 4}


def draw_cost(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw the seconds of a training against those of all its workers, and what no other choice beats."""
    try:
        table = cost_pareto_front(results)
    except UnknownNameError:
        return []
    table = table[row_mask(table, where)]
    line = specification.get("line")
    if len(table) < 2 or "workers" not in table:
        return []
    shown = shown_lines(results, line) if line else ["measured"]
    front = table[table["is_efficient"]].sort_values("worker_s")
    handles = [Line2D([], [], **_points(number)) for number in range(len(shown))] if line else []
    handles.append(Line2D([], [], **IDEAL))
    labels = [*(label_text(value) for value in shown if line), "no other is better in both"]
    sheet = new_grid(
        figure_title(results, specification, where), 1, handles, labels, display_name(line) if line else None, 0.0
    )
    ax = sheet.axes[0]
    ax.plot(front["worker_s"], front["train_s"], **IDEAL)
    for number, value in enumerate(shown):
        own: pd.DataFrame = table[table[line] == value] if line else table
        ax.plot(own["worker_s"], own["train_s"], zorder=3, **_points(number))
    # What so many workers take together is so many times what each takes: their points are on a ray.
    for number in sorted(table["workers"].unique()):
        most = table.loc[table["workers"] == number, "train_s"].max()
        ax.plot([0, number * most], [0, most], color="#cccccc", linewidth=0.7, zorder=1)
        at = (number * most, most)
        ax.annotate(label_text(number), at, (4, 5), textcoords="offset points", fontsize=7.5, color="#555555")
    ax.set_xlim(0, table["worker_s"].max() * 1.08)
    ax.set_ylim(0, table["train_s"].max() * 1.12)
    ax.set_xlabel("seconds of all workers together")
    label_y(ax, axis_label("train_s"))
    told = "On each ray are as many workers as its number says; below takes less time, further left less cost."
    sheet.notes[told] = None
    return [sheet]


def _points(number: int) -> dict[str, Any]:
    return line_style(number) | {"linestyle": "none", "markersize": 6}
