"""Figures of a scaling measurement: speed-up, parts of a step, cost, and predictions for other links and widths."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from tune_hpc.analysis.aggregation import row_mask
from tune_hpc.analysis.formatting import axis_label, display_name, format_number
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.speedup import RATIOS, is_oversubscribed
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots.layout import (
    IDEAL,
    CaptionedFigure,
    clip_error_bars,
    figure_title,
    label_text,
    line_style,
    new_grid,
    set_plain_ticks,
)
from tune_hpc.report.plots.response import response_tables
from tune_hpc.report.plots.series import best_values
from tune_hpc.report.scaling_tables import baseline_trials, cost_pareto_front
from tune_hpc.scaling.step_time_model import MEASURED_LINK

#: Efficiency worth having more workers for.
_MIN_EFFICIENCY = 0.8
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
#: Ratio of the positions of neighbouring lines.
_SHIFT = 1.02
_WITHOUT_LOSS = "if nothing were lost"


def draw_stack(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw parts on top of one another, a bar per value of a parameter without other varying parameters."""
    parameter = str(specification["parameter"])
    tables = response_tables(results, {**specification, "line": None}, where)
    if not tables or any(table["x"].duplicated().any() for table in tables.values()):
        return []
    means = pd.DataFrame({metric: table.set_index("x")["mean"] for metric, table in tables.items()})
    means = means.sort_index().fillna(0.0)
    colours = [_PART_COLOURS[number % len(_PART_COLOURS)] for number in range(len(tables))]
    legend = [(display_name(name), Patch(facecolor=colour)) for name, colour in zip(tables, colours, strict=True)]
    sheet = new_grid(figure_title(results, specification, where), 1, legend[::-1])
    ax = sheet.axes[0]
    bottom = np.zeros(len(means))
    for colour, metric in zip(colours, tables, strict=True):
        ax.bar(range(len(means)), means[metric], bottom=bottom, width=0.62, color=colour)
        bottom = bottom + means[metric].to_numpy(float)
    for position, total in enumerate(bottom):
        ax.annotate(
            format_number(total, 3), (position, total), (0, 2), textcoords="offset points", ha="center", size=7.5
        )
    ax.set_ylim(0, bottom.max() * 1.1 or 1.0)
    ax.set_xticks(range(len(means)), [label_text(value) for value in means.index])
    ax.grid(False, axis="x")
    sheet.set_labels(ax, axis_label(parameter), str(specification.get("unit") or "seconds a step"))
    has_repeats = any((table["num_trials"] > 1).any() for table in tables.values())
    sheet.add_notes("Bar: means over the repeats." * has_repeats, _oversubscription_note(results, parameter))
    return [sheet]


def draw_speedup(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw measured metrics against workers, a panel per metric, beside the ideal and the predictions."""
    parameter, line = str(specification["parameter"]), specification.get("line")
    tables = response_tables(results, specification, where)
    if not tables:
        return []
    lines = best_values(results, line) if line else ["measured"]
    legend = [(label_text(value), line_style(number)) for number, value in enumerate(lines)]
    predicted = _predicted_table(results, line, where, list(tables), len(lines))
    if len(predicted):
        legend.append(("predicted", _PREDICTED | {"color": "#444444"}))
    if set(_IDEALS) & set(tables):
        legend.append((_WITHOUT_LOSS, IDEAL))
    sheet = new_grid(figure_title(results, specification, where), len(tables), legend, line)
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        workers = sorted(table["x"].unique())
        ideal = _IDEALS[metric](workers) if metric in _IDEALS else np.array([])
        if len(ideal):
            ax.plot(workers, ideal, **IDEAL)
        for number, value in enumerate(lines):
            points = table[table["line"] == value]
            style = line_style(number)
            # Side by side, so that intervals do not cover each other.
            shift = _SHIFT ** (number - (len(lines) - 1) / 2)
            x = points["x"] * shift
            ax.vlines(x, points["low"], points["high"], color=style["color"], linewidth=0.9, alpha=0.7)
            ax.plot(x, points["mean"], zorder=3, **style)
            if len(predicted):
                crosses = predicted if line is None else predicted[predicted[line] == value]
                ax.plot(crosses["workers"] * shift, crosses[metric], **_PREDICTED, color=style["color"], zorder=4)
        _set_workers_axis(ax, workers)
        if clip_error_bars(ax, table, ideal):
            sheet.add_notes("Bars far longer than the points' range are cut.")
        ax.set_ylim(bottom=0)
        sheet.set_labels(ax, axis_label(parameter), axis_label(metric))
    if any((table["high"] > table["low"]).any() for table in tables.values()):
        sheet.add_notes("Point: geometric mean over the repeats; bar: its 95 % interval (Student's, log scale).")
    if len(predicted):
        sheet.add_notes("Cross: predicted by the model from probes, none of which is a step of several workers.")
    sheet.add_notes(_oversubscription_note(results, parameter))
    return [sheet]


def _set_workers_axis(ax: Axes, workers: Sequence[Any]) -> None:
    if workers[-1] > 2 * workers[0]:
        ax.set_xscale("log", base=2)
    set_plain_ticks(ax.xaxis, workers)


def _predictions(results: Results, where: Mapping[str, Any]) -> pd.DataFrame:
    """Return the predictions of a page; none for a page of a parameter that they lack."""
    rows = results.experiment.get("predictions")
    df = pd.DataFrame(rows or [], columns=None if rows else ["link", "workers", "mode", "width", "batch_size"])
    return df[row_mask(df, where)]


def _predicted_table(
    results: Results, line: str | None, where: Mapping[str, Any], metrics: Sequence[str], num_lines: int
) -> pd.DataFrame:
    """Return the predicted steps of several workers on this machine; empty unless each point has one prediction."""
    df = _predictions(results, where)
    df = df[(df["link"] == MEASURED_LINK) & (df["workers"] > 1)]
    has_columns = {*metrics, *([line] if line else [])} <= set(df)
    return df if has_columns and df.groupby("workers").size().max() <= num_lines else pd.DataFrame()


def _oversubscription_note(results: Results, parameter: str) -> str:
    """Return a sentence with the values at which workers shared cores or devices."""
    shared = results.trials.loc[is_oversubscribed(results.trials), parameter]
    values = ", ".join(label_text(value) for value in sorted(shared.unique()))
    return f"With {display_name(parameter)} {values} they share cores or GPUs." if values else ""


def draw_links(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw predicted speed-up and efficiency of more workers, a line per link, beside the measured ones.

    There is no figure of predictions for several modes, widths or batch sizes.
    """
    table = _predictions(results, where)
    table = table[table["link"] != MEASURED_LINK]
    if len(table[["mode", "width", "batch_size"]].drop_duplicates()) != 1:
        return []
    measured = _measured_points(results, where, ["workers"])
    styles = _link_styles(table)
    legend = [*styles.items(), ("measured", _MEASURED), (_WITHOUT_LOSS, IDEAL)]
    sheet = new_grid(figure_title(results, specification, where), len(_IDEALS), legend)
    workers = sorted(table["workers"].unique())
    for ax, metric in zip(sheet.axes, _IDEALS, strict=True):
        ax.plot(workers, _IDEALS[metric](workers), **IDEAL)
        _draw_predicted(ax, table, measured, "workers", metric, styles)
        _set_workers_axis(ax, workers)
        if metric == "speedup":
            ax.set_yscale("log", base=2)
            set_plain_ticks(ax.yaxis)
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
    workers = sorted(curves["workers"].unique())
    measured = _measured_points(results, where, ["workers", "width"])
    styles = {link: style | {"marker": ""} for link, style in _link_styles(curves).items()}
    legend = [*styles.items(), ("measured", _MEASURED), (f"{_MIN_EFFICIENCY:.0%}", IDEAL)]
    sheet = new_grid(figure_title(results, specification, where), len(workers), legend)
    for ax, num_workers in zip(sheet.axes, workers, strict=True):
        lines, stars = (table[table["workers"] == num_workers] for table in (curves, measured))
        _draw_predicted(ax, lines, stars, "width", "efficiency", styles)
        ax.axhline(_MIN_EFFICIENCY, **IDEAL)
        ax.set_xscale("log", base=2)
        set_plain_ticks(ax.xaxis)
        ax.set_ylim(0, 1.05)
        sheet.set_labels(ax, axis_label("width"), "efficiency (predicted)")
        ax.annotate(f"{num_workers} workers", (0.04, 0.06), xycoords="axes fraction", weight="bold", fontsize=8)
    sheet.add_notes("Predicted, not measured, but for the stars.")
    return [sheet]


def _measured_points(results: Results, where: Mapping[str, Any], keys: list[str]) -> pd.DataFrame:
    """Return measured speed-up and efficiency of a page: geometric means over the repeats."""
    trials = baseline_trials(results)
    logs = trials.loc[row_mask(trials, where)].set_index(keys)[list(RATIOS)].apply(np.log)
    return logs.groupby(keys).mean().apply(np.exp).reset_index()


def _link_styles(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {
        link: line_style(number) | {"markerfacecolor": "white", "markersize": 4}
        for number, link in enumerate(dict.fromkeys(table["link"]))
    }


def _draw_predicted(
    ax: Axes, table: pd.DataFrame, measured: pd.DataFrame, x: str, y: str, styles: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draw a line of predictions per link, and stars for measured values."""
    for link, style in styles.items():
        line = table[table["link"] == link]
        ax.plot(line[x], line[y], **style)
    ax.plot(measured[x], measured[y], zorder=4, **_MEASURED)


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
    legend = [(label_text(value), style) for value, style in zip(lines, styles, strict=False)]
    legend.append(("no other is better in both", IDEAL))
    sheet = new_grid(figure_title(results, specification, where), 1, legend, line)
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
