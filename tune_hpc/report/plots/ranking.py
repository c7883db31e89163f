"""Figures with a row for each value: what is better, and which parameters decide."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tune_hpc.analysis.comparison import Comparison
from tune_hpc.analysis.formatting import axis_label, display_name, format_number
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots.axes import CHARACTER, WIDTH, label_text
from tune_hpc.report.plots.layout import EDGE, FigureLayout, figure_title, legend_height, new_figure, wrap_text

#: More rows than this are no figure; the best are kept.
MOST_ROWS = 30
#: Inches of a row; below the rows; above them.
_ROW, _BOTTOM, _TOP = 0.24, 0.48, 0.06
_COLOUR, _GREY = "#0072B2", "#7f7f7f"
#: A longer name of a row is cut.
_LONGEST = 40
_MARK: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 6, "markeredgewidth": 1.2, "color": _COLOUR}
_LOOKS: dict[str, dict[str, Any]] = {
    "best, or not told from it": {"markerfacecolor": _COLOUR},
    "worse than one of the best": {"markerfacecolor": "white"},
    "nobody can tell": {"color": _GREY, "markerfacecolor": _GREY, "marker": "s", "markersize": 5},
}


def draw_ranking(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw the values of a parameter, the best first, with their intervals; a sheet for each metric."""
    made = []
    for metric in specification["metrics"]:
        try:
            ranking = results.compare(str(specification["line"]), metric, where=where)
        except UnknownNameError:
            continue
        if len(ranking.values) > 1:
            made.append(ranking_sheet(ranking, figure_title(results, specification, where)))
    return made


def ranking_sheet(ranking: Comparison, title: str) -> FigureLayout:
    """Draw a ranking: a row per value, its mean and its interval, filled where it is among the best."""
    table = ranking.values.sort_values("mean", ascending=ranking.lower_is_better, kind="stable").head(MOST_ROWS)
    looks = [_look(rank) for rank in table["rank"]]
    labels = [look for look in _LOOKS if look in looks]
    sheet, ax = _rows(
        title,
        [label_text(value) for value in table[ranking.parameter]],
        display_name(ranking.parameter),
        legend_height(labels),
    )
    sheet.legend([Line2D([], [], **_MARK | _LOOKS[look]) for look in labels], labels)
    for level, (row, look) in enumerate(zip(table.to_dict("records"), looks, strict=True)):
        style = _MARK | _LOOKS[look]
        if not np.isnan(row["low"]):
            ax.hlines(level, row["low"], row["high"], color=style["color"], linewidth=2.2, alpha=0.5)
        ax.plot(row["mean"], level, zorder=3, **style)
    means = table["mean"]
    if means.min() > 0 and means.max() / means.min() >= 100:
        ax.set_xscale("log")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        _hold(ax, table)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value, 4)))
    ax.set_xlabel(axis_label(ranking.metric))
    if table["low"].notna().any():
        sheet.notes[
            f"Bar: {format_number(100 * ranking.confidence)} % interval of the mean over seeds (Student's)."
        ] = None
    if int(table["num_configurations"].max()) > 1:
        sheet.notes["A value stands with the best of its configurations."] = None
    if len(table) < len(ranking.values):
        sheet.notes[f"The best {len(table)} of {len(ranking.values)} are shown."] = None
    return sheet


def _look(rank: Any) -> str:
    best, worse, unknown = _LOOKS
    return unknown if pd.isna(rank) else best if rank == 1 else worse


def _hold(ax: Axes, table: pd.DataFrame) -> None:
    """Keep means apart: two seeds make an interval many times as wide as all that they measured."""
    low, high = float(table["mean"].min()), float(table["mean"].max())
    span = (high - low) or abs(high) * 0.05 or 1.0
    left = max(float(table["low"].fillna(low).min()), low - span)
    right = min(float(table["high"].fillna(high).max()), high + span)
    ax.set_xlim(min(left, low) - 0.05 * span, max(right, high) + 0.05 * span)


def draw_importance(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw which parameters decide, as bars; ``specification`` brings its table, ``parameter`` and ``importance``."""
    table = specification["table"].head(MOST_ROWS)
    if len(table) < 2:
        return []
    names = [display_name(str(name)) for name in table["parameter"]]
    sheet, ax = _rows(figure_title(results, specification, where), names, "parameter", 0.0)
    ax.barh(range(len(table)), table["importance"], height=0.62, color=_COLOUR)
    for level, value in enumerate(table["importance"]):
        ax.annotate(f"{100 * value:.0f} %", (value, level), (3, 0), textcoords="offset points", va="center", size=7.5)
    ax.set_xlim(0, float(table["importance"].max()) * 1.12)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value, 3)))
    ax.set_xlabel("importance (fraction; all add up to 1)")
    sheet.notes["Important: the best configurations have other values of it than all (PED-ANOVA)."] = None
    return [sheet]


def _rows(title: str, names: list[str], label: str, below: float) -> tuple[FigureLayout, Axes]:
    """Return a sheet with one panel, a named row at each whole number, the first on top."""
    names = [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in names]
    height = max(len(names) * _ROW, 0.8)
    name = wrap_text(label, height)
    left = EDGE + 0.12 + 0.14 * len(name.split("\n")) + max(map(len, names)) * CHARACTER + 0.1
    width = WIDTH - left - 0.25
    sheet = new_figure(title, _TOP + height + _BOTTOM, below)
    ax = sheet.panel(left, _TOP, width, height)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_ylabel(name, va="top")
    ax.yaxis.set_label_coords((EDGE - left) / width, 0.5)
    ax.grid(False, axis="y")
    return sheet, ax
