"""Figures of a scaling measurement: where a step's time goes, and what more workers give."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from tune_hpc.analysis.aggregation import row_mask
from tune_hpc.analysis.formatting import axis_label, display_name, format_number
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots import curves
from tune_hpc.report.plots.axes import clip_error_bars, label_text, line_style
from tune_hpc.report.plots.layout import FigureLayout, figure_title, label_y, new_grid
from tune_hpc.report.scaling_tables import MEASURED_LINK, predictions

#: Dark to bright, so that parts are told apart in grey, too.
_PARTS = ("#0072B2", "#E69F00", "#BBBBBB", "#009E73", "#CC79A7")
IDEAL: dict[str, Any] = {"color": "#7f7f7f", "linewidth": 1.0, "linestyle": (0, (2, 2))}
_PREDICTED: dict[str, Any] = {
    "clip_on": False, "linestyle": "none", "marker": "x", "markersize": 7, "markeredgewidth": 1.4
}  # fmt: skip
#: What each of these would be if no work were lost, by the numbers of workers.
_IDEALS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"speedup": np.copy, "efficiency": np.ones_like}


def draw_stack(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw parts on top of one another, a bar for each value of a parameter: their means over the repeats."""
    parameter = str(specification["parameter"])
    parts = {
        metric: curves.response_table(results, metric, parameter, None, where) for metric in specification["metrics"]
    }
    parts = {metric: table for metric, table in parts.items() if len(table)}
    values = sorted({value for table in parts.values() for value in table["x"]})
    if not parts or any(table["x"].duplicated().any() for table in parts.values()):
        return []
    means = pd.DataFrame({metric: table.set_index("x")["mean"] for metric, table in parts.items()}).reindex(values)
    labels = [display_name(metric) for metric in parts]
    handles = [Patch(facecolor=_PARTS[number % len(_PARTS)]) for number in range(len(parts))]
    sheet = new_grid(figure_title(results, specification, where), 1, handles[::-1], labels[::-1], None, 0.0)
    ax = sheet.axes[0]
    bottom = np.zeros(len(values))
    for number, (_, own) in enumerate(means.items()):
        height = own.fillna(0).to_numpy(float)
        ax.bar(range(len(values)), height, bottom=bottom, width=0.62, color=_PARTS[number % len(_PARTS)])
        bottom = bottom + height
    for place, total in enumerate(bottom):
        ax.annotate(format_number(total, 3), (place, total), (0, 2), textcoords="offset points", ha="center", size=7.5)
    ax.set_ylim(0, bottom.max() * 1.1 or 1.0)
    ax.set_xticks(range(len(values)), [label_text(value) for value in values])
    ax.grid(False, axis="x")
    ax.set_xlabel(axis_label(parameter))
    label_y(ax, str(specification.get("unit") or "seconds a step"))
    if any((table["num_trials"] > 1).any() for table in parts.values()):
        sheet.notes["Bar: means over the repeats."] = None
    sheet.notes.update(dict.fromkeys(_crowded(results, parameter)))
    return [sheet]


def draw_speedup(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw what more workers give, a panel per metric, beside what they would if no work were lost."""
    parameter, line = str(specification["parameter"]), specification.get("line")
    tables = {
        metric: curves.response_table(results, metric, parameter, line, where) for metric in specification["metrics"]
    }
    tables = {metric: table for metric, table in tables.items() if len(table)}
    if not tables:
        return []
    shown = curves.shown_lines(results, line) if line else ["measured"]
    handles = [Line2D([], [], **line_style(number)) for number in range(len(shown))]
    labels = [label_text(value) for value in shown]
    said = _predicted(results, line, where, list(tables), len(shown))
    if len(said):
        handles.append(Line2D([], [], **_PREDICTED | {"color": "#444444"}))
        labels.append("predicted")
    if any(metric in _IDEALS for metric in tables):
        handles.append(Line2D([], [], **IDEAL))
        labels.append("if nothing were lost")
    sheet = new_grid(
        figure_title(results, specification, where),
        len(tables),
        handles,
        labels,
        display_name(line) if line else None,
        0.0,
    )
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        values = sorted(table["x"].unique())
        if metric in _IDEALS:
            ax.plot(values, _IDEALS[metric](np.array(values, dtype=float)), **IDEAL)
        for number, value in enumerate(shown):
            own = table[table["line"] == value]
            style = line_style(number)
            ax.vlines(own["x"], own["low"], own["high"], color=style["color"], linewidth=0.9, alpha=0.7)
            ax.plot(own["x"], own["mean"], zorder=3, **style)
            if len(said):
                foretold = said if line is None else said[said[line] == value]
                ax.plot(foretold["workers"], foretold[metric], **_PREDICTED | {"color": style["color"]}, zorder=4)
        number_workers(ax, values)
        if clip_error_bars(ax, table, _IDEALS[metric](np.array(values, dtype=float)) if metric in _IDEALS else ()):
            sheet.notes["Bars far longer than the points' range are cut."] = None
        ax.set_ylim(bottom=0)
        ax.set_xlabel(axis_label(parameter))
        label_y(ax, axis_label(metric))
    if any((table["high"] > table["low"]).any() for table in tables.values()):
        sheet.notes["Point: mean over the repeats; bar: its 95 % interval (Student's)."] = None
    if len(said):
        sheet.notes["Cross: what the model says from probes, none of which is a step of several workers."] = None
    sheet.notes.update(dict.fromkeys(_crowded(results, parameter)))
    return [sheet]


def _predicted(
    results: Results, line: str | None, where: Mapping[str, Any], metrics: list[str], num_lines: int
) -> pd.DataFrame:
    """Return what the model says of the measured steps of several workers, where it is one thing for each point."""
    try:
        said = predictions(results)
    except UnknownNameError:
        return pd.DataFrame()
    own = {name: value for name, value in where.items() if name in said}
    said = said[(said["link"] == MEASURED_LINK) & (said["workers"] > 1) & row_mask(said, own)]
    is_told = len(own) == len(where) and set(metrics) <= set(said) and (line is None or line in said)
    most = said.groupby("workers").size().max() if len(said) else 0
    return said if is_told and most <= num_lines else pd.DataFrame()


def number_workers(ax: Axes, values: list[Any]) -> None:
    """Put numbers of workers, which double, at equal distances."""
    if values[-1] > 2 * values[0]:
        ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))


def _crowded(results: Results, parameter: str) -> list[str]:
    """Say at which values workers shared cores or devices."""
    trials = results.trials
    if "oversubscribed" not in trials or not trials["oversubscribed"].fillna(False).any():
        return []
    shared = sorted(trials.loc[trials["oversubscribed"].fillna(False).astype(bool), parameter].unique())
    told = ", ".join(label_text(value) for value in shared)
    return [f"With {display_name(parameter)} {told} they share cores or GPUs."]
