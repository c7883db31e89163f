"""Figures of a scaling measurement: speed-up, parts of a step, cost, and predictions for other links and widths."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from tune_hpc.analysis.aggregation import row_mask
from tune_hpc.analysis.formatting import axis_label, display_name, format_number
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots.axes import IDEAL, clip_error_bars, label_text, line_style, set_log2_ticks
from tune_hpc.report.plots.layout import CaptionedFigure, figure_title, new_grid
from tune_hpc.report.plots.response import response_table
from tune_hpc.report.plots.series import best_values
from tune_hpc.report.scaling_tables import MEASURED_LINK, baseline_rows, cost_pareto_front, network_widths, predictions

#: Efficiency worth having more workers for.
MIN_EFFICIENCY = 0.8
#: Dark to bright, so that parts differ in grey, too.
_PART_COLOURS = ("#0072B2", "#E69F00", "#BBBBBB", "#009E73", "#CC79A7")
_MEASURED: dict[str, Any] = {"color": "black", "marker": "*", "markersize": 9, "linestyle": "none"}
_PREDICTED: dict[str, Any] = {
    "clip_on": False, "linestyle": "none", "marker": "x", "markersize": 7, "markeredgewidth": 1.4
}  # fmt: skip
#: Values without any loss, by the numbers of workers.
_IDEALS: dict[str, Callable[[Sequence[Any]], np.ndarray]] = {
    "speedup": lambda workers: np.array(workers, dtype=float),
    "efficiency": lambda workers: np.ones(len(workers)),
}
_WITHOUT_LOSS = "if nothing were lost"


def stack_table(
    results: Results, metrics: Sequence[str], parameter: str, where: Mapping[str, Any]
) -> tuple[pd.DataFrame, bool]:
    """Return the mean of each part by the parameter's value, and whether there are repeats.

    The frame has a column per metric with data and is empty if a value has several configurations.
    """
    tables = {metric: response_table(results, metric, parameter, None, where) for metric in metrics}
    tables = {metric: table for metric, table in tables.items() if len(table)}
    if not tables or any(table["x"].duplicated().any() for table in tables.values()):
        return pd.DataFrame(), False
    means = pd.DataFrame({metric: table.set_index("x")["mean"] for metric, table in tables.items()})
    return means.sort_index().fillna(0.0), any((table["num_trials"] > 1).any() for table in tables.values())


def draw_stack(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw parts on top of one another, a bar per value of a parameter."""
    parameter = str(specification["parameter"])
    means, has_repeats = stack_table(results, specification["metrics"], parameter, where)
    if means.empty:
        return []
    colours = [_PART_COLOURS[number % len(_PART_COLOURS)] for number in range(means.shape[1])]
    sheet = new_grid(
        figure_title(results, specification, where),
        1,
        [Patch(facecolor=colour) for colour in reversed(colours)],
        [display_name(str(metric)) for metric in reversed(means.columns)],
    )
    ax = sheet.axes[0]
    bottom = np.zeros(len(means))
    for colour, (_, column) in zip(colours, means.items(), strict=True):
        ax.bar(range(len(means)), column, bottom=bottom, width=0.62, color=colour)
        bottom = bottom + column.to_numpy(float)
    for position, total in enumerate(bottom):
        ax.annotate(
            format_number(total, 3), (position, total), (0, 2), textcoords="offset points", ha="center", size=7.5
        )
    ax.set_ylim(0, bottom.max() * 1.1 or 1.0)
    ax.set_xticks(range(len(means)), [label_text(value) for value in means.index])
    ax.grid(False, axis="x")
    sheet.set_labels(ax, axis_label(parameter), str(specification.get("unit") or "seconds a step"))
    sheet.add_notes("Bar: means over the repeats." * has_repeats, _oversubscription_note(results, parameter))
    return [sheet]


def draw_speedup(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw measured metrics against workers, a panel per metric, beside the ideal and the predictions."""
    parameter, line = str(specification["parameter"]), specification.get("line")
    tables = {metric: response_table(results, metric, parameter, line, where) for metric in specification["metrics"]}
    tables = {metric: table for metric, table in tables.items() if len(table)}
    if not tables:
        return []
    lines = best_values(results, line) if line else ["measured"]
    handles = [Line2D([], [], **line_style(number)) for number in range(len(lines))]
    labels = [label_text(value) for value in lines]
    predicted = predicted_table(results, line, where, list(tables), len(lines))
    if len(predicted):
        handles.append(Line2D([], [], **_PREDICTED, color="#444444"))
        labels.append("predicted")
    if set(_IDEALS) & set(tables):
        handles.append(Line2D([], [], **IDEAL))
        labels.append(_WITHOUT_LOSS)
    title = figure_title(results, specification, where)
    sheet = new_grid(title, len(tables), handles, labels, display_name(line) if line else None)
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        workers = sorted(table["x"].unique())
        ideal = _IDEALS[metric](workers) if metric in _IDEALS else np.array([])
        if len(ideal):
            ax.plot(workers, ideal, **IDEAL)
        for number, value in enumerate(lines):
            points = table[table["line"] == value]
            style = line_style(number)
            ax.vlines(points["x"], points["low"], points["high"], color=style["color"], linewidth=0.9, alpha=0.7)
            ax.plot(points["x"], points["mean"], zorder=3, **style)
            if len(predicted):
                crosses = predicted if line is None else predicted[predicted[line] == value]
                ax.plot(crosses["workers"], crosses[metric], **_PREDICTED, color=style["color"], zorder=4)
        if workers[-1] > 2 * workers[0]:
            ax.set_xscale("log", base=2)
        set_log2_ticks(ax.xaxis, workers)
        if clip_error_bars(ax, table, ideal):
            sheet.add_notes("Bars far longer than the points' range are cut.")
        ax.set_ylim(bottom=0)
        sheet.set_labels(ax, axis_label(parameter), axis_label(metric))
    if any((table["high"] > table["low"]).any() for table in tables.values()):
        sheet.add_notes("Point: mean over the repeats; bar: its 95 % interval (Student's).")
    if len(predicted):
        sheet.add_notes("Cross: predicted by the model from probes, none of which is a step of several workers.")
    sheet.add_notes(_oversubscription_note(results, parameter))
    return [sheet]


def predicted_table(
    results: Results, line: str | None, where: Mapping[str, Any], metrics: Sequence[str], num_lines: int
) -> pd.DataFrame:
    """Return the predicted steps of several workers on this machine; empty unless each point has one prediction."""
    try:
        df = predictions(results)
    except UnknownNameError:
        return pd.DataFrame()
    if not {*where, *metrics, *([line] if line else [])} <= set(df):
        return pd.DataFrame()
    df = df[(df["link"] == MEASURED_LINK) & (df["workers"] > 1) & row_mask(df, where)]
    return df if df.groupby("workers").size().max() <= num_lines else pd.DataFrame()


def _oversubscription_note(results: Results, parameter: str) -> str:
    """Return a sentence with the values at which workers shared cores or devices."""
    trials = results.trials
    if "oversubscribed" not in trials:
        return ""
    is_shared = trials["oversubscribed"].fillna(False).astype(bool)
    values = ", ".join(label_text(value) for value in sorted(trials.loc[is_shared, parameter].unique()))
    return f"With {display_name(parameter)} {values} they share cores or GPUs." if values else ""


def link_table(results: Results, where: Mapping[str, Any]) -> pd.DataFrame:
    """Return the predictions for other links; empty unless they are of one mode, width and batch size."""
    try:
        df = predictions(results)
    except UnknownNameError:
        return pd.DataFrame()
    if not set(where) <= set(df):
        return pd.DataFrame()
    df = df[(df["link"] != MEASURED_LINK) & row_mask(df, where)]
    return df if len(df[["mode", "width", "batch_size"]].drop_duplicates()) == 1 else pd.DataFrame()


def _measured(results: Results) -> pd.DataFrame:
    """Return the trials with default communication and the width of their network."""
    trials = baseline_rows(results)
    return trials.assign(width=network_widths(trials))


def draw_links(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw predicted speed-up and efficiency of more workers, a line per link, beside the measured ones."""
    table = link_table(results, where)
    if table.empty:
        return []
    measured = _measured(results)
    measured = measured[row_mask(measured, where)].groupby("workers")[list(_IDEALS)].mean()
    links = list(dict.fromkeys(table["link"]))
    handles = [Line2D([], [], **_link_style(number)) for number in range(len(links))]
    handles += [Line2D([], [], **_MEASURED), Line2D([], [], **IDEAL)]
    title = figure_title(results, specification, where)
    sheet = new_grid(title, len(_IDEALS), handles, [*links, "measured", _WITHOUT_LOSS])
    workers = sorted(table["workers"].unique())
    for ax, metric in zip(sheet.axes, _IDEALS, strict=True):
        ax.plot(workers, _IDEALS[metric](workers), **IDEAL)
        for number, link in enumerate(links):
            line = table[table["link"] == link]
            ax.plot(line["workers"], line[metric], **_link_style(number))
        ax.plot(measured.index, measured[metric], zorder=4, **_MEASURED)
        if workers[-1] > 2 * workers[0]:
            ax.set_xscale("log", base=2)
        set_log2_ticks(ax.xaxis, workers)
        if metric == "speedup":
            ax.set_yscale("log", base=2)
            set_log2_ticks(ax.yaxis)
        else:
            ax.set_ylim(0, 1.05)
        sheet.set_labels(ax, axis_label("workers"), f"{display_name(metric)} (predicted)")
    sheet.add_notes(
        "Predicted, not measured, but for the stars: workers that each compute as one alone does here, links at their "
        "published rates, nothing hidden behind the backward pass."
    )
    return [sheet]


def draw_widths(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw predicted efficiency against the network's width, a panel per number of workers."""
    curves = pd.DataFrame(results.experiment.get("width_curves") or [])
    if curves.empty or where:
        return []
    links, workers = list(dict.fromkeys(curves["link"])), sorted(curves["workers"].unique())
    measured = _measured(results).groupby(["workers", "width"])["efficiency"].mean().reset_index()
    handles = [Line2D([], [], **_link_style(number, "")) for number in range(len(links))]
    handles += [Line2D([], [], **_MEASURED), Line2D([], [], **IDEAL)]
    title = figure_title(results, specification, where)
    sheet = new_grid(title, len(workers), handles, [*links, "measured", f"{MIN_EFFICIENCY:.0%}"])
    for ax, num_workers in zip(sheet.axes, workers, strict=True):
        for number, link in enumerate(links):
            line = curves[(curves["link"] == link) & (curves["workers"] == num_workers)]
            ax.plot(line["width"], line["efficiency"], **_link_style(number, ""))
        points = measured[measured["workers"] == num_workers]
        ax.plot(points["width"], points["efficiency"], zorder=4, **_MEASURED)
        ax.axhline(MIN_EFFICIENCY, **IDEAL)
        ax.set_xscale("log", base=2)
        set_log2_ticks(ax.xaxis)
        ax.set_ylim(0, 1.05)
        sheet.set_labels(ax, axis_label("width"), "efficiency (predicted)")
        ax.annotate(f"{num_workers} workers", (0.04, 0.06), xycoords="axes fraction", weight="bold", fontsize=8)
    sheet.add_notes("Predicted, not measured, but for the stars.")
    return [sheet]


def _link_style(number: int, marker: str | None = None) -> dict[str, Any]:
    style = line_style(number) | {"markerfacecolor": "white", "markersize": 4}
    return style if marker is None else style | {"marker": marker}


def draw_cost(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw the seconds of a training against those of all its workers, with the Pareto front."""
    try:
        table = cost_pareto_front(results)
    except UnknownNameError:
        return []
    table = table[row_mask(table, where)]
    line = specification.get("line")
    if len(table) < 2 or "workers" not in table:
        return []
    styles = [line_style(number) | {"linestyle": "none", "markersize": 6} for number in range(10)]
    lines = best_values(results, line)
    handles = [Line2D([], [], **style) for style, _ in zip(styles, lines, strict=False)]
    handles.append(Line2D([], [], **IDEAL))
    sheet = new_grid(
        figure_title(results, specification, where),
        1,
        handles,
        [*(label_text(value) for value in lines), "no other is better in both"],
        display_name(line) if line else None,
    )
    ax = sheet.axes[0]
    front = table[table["is_efficient"]].sort_values("worker_s")
    ax.plot(front["worker_s"], front["train_s"], **IDEAL)
    groups = [table[table[line] == value] for value in lines] if line else [table]
    for style, points in zip(styles, groups, strict=False):
        ax.plot(points["worker_s"], points["train_s"], zorder=3, **style)
    # n workers together take n times the seconds of each: their points are on a ray.
    for number, longest in table.groupby("workers")["train_s"].max().items():
        end = (float(number) * longest, longest)  # type: ignore[arg-type]
        ax.plot([0, end[0]], [0, end[1]], color="#cccccc", linewidth=0.7, zorder=1)
        ax.annotate(label_text(number), end, (4, 5), textcoords="offset points", fontsize=7.5, color="#555555")
    ax.set_xlim(0, table["worker_s"].max() * 1.08)
    ax.set_ylim(0, table["train_s"].max() * 1.12)
    sheet.set_labels(ax, "seconds of all workers together", axis_label("train_s"))
    sheet.add_notes(
        "The number of a ray is that of its workers; lower points take less time, points further left cost less."
    )
    return [sheet]
