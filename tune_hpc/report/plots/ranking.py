"""Figures with named rows: ranking of a parameter's values, and importance of parameters."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tune_hpc.analysis.comparison import Comparison
from tune_hpc.analysis.formatting import axis_label, display_name, format_number
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots.axes import format_ticks, label_text, set_metric_axis
from tune_hpc.report.plots.layout import CaptionedFigure, figure_title, new_figure

#: Rows of a figure at most; the best stay.
MAX_ROWS = 30
#: Inches of a row, and of the labels of the horizontal axis.
_ROW_HEIGHT, _AXIS_HEIGHT = 0.24, 0.55
#: Characters of a row's name.
_MAX_NAME = 40
_COLOUR, _GREY = "#0072B2", "#7f7f7f"
_MARKER: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 6, "markeredgewidth": 1.2, "color": _COLOUR
}  # fmt: skip
_BEST, _WORSE, _INCONCLUSIVE = "best, or tied with it", "worse than one of the best", "inconclusive"
_STYLES: dict[str, dict[str, Any]] = {
    _BEST: _MARKER | {"markerfacecolor": _COLOUR},
    _WORSE: _MARKER | {"markerfacecolor": "white"},
    _INCONCLUSIVE: _MARKER | {"color": _GREY, "markerfacecolor": _GREY, "marker": "s", "markersize": 5},
}


def draw_ranking(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw the values of a parameter, the best first, with their intervals: a figure per metric."""
    sheets = []
    for metric in specification["metrics"]:
        try:
            comparison = results.compare(str(specification["line"]), metric, where=where)
        except UnknownNameError:
            continue
        if len(comparison.values) > 1:
            sheets.append(draw_comparison(comparison, figure_title(results, specification, where)))
    return sheets


def ranking_table(comparison: Comparison) -> pd.DataFrame:
    """Return the best values of a comparison in order, with ``style``: the label of their marker."""
    table = comparison.values.sort_values("mean", ascending=comparison.lower_is_better, kind="stable").head(MAX_ROWS)
    rank = table["rank"]
    return table.assign(style=np.where(rank.isna(), _INCONCLUSIVE, np.where(rank.eq(1).fillna(False), _BEST, _WORSE)))


def draw_comparison(comparison: Comparison, title: str) -> CaptionedFigure:
    """Draw a row per value with its mean and interval; the marker is filled if the value is among the best."""
    table = ranking_table(comparison)
    names = [label_text(value) for value in table[comparison.parameter]]
    sheet, ax = _named_rows(title, names, display_name(comparison.parameter))
    labels = [label for label in _STYLES if (table["style"] == label).any()]
    sheet.add_legend([Line2D([], [], **_STYLES[label]) for label in labels], labels)
    row: Any
    for level, row in enumerate(table.itertuples()):
        style = _STYLES[row.style]
        if not np.isnan(row.low):
            ax.hlines(level, row.low, row.high, color=style["color"], linewidth=2.2, alpha=0.5)
        ax.plot(row.mean, level, zorder=3, **style)
    set_metric_axis(ax, table["mean"])
    if ax.get_xscale() == "linear":
        _limit_intervals(ax, table)
    ax.set_xlabel(axis_label(comparison.metric))
    if table["low"].notna().any():
        confidence = format_number(100 * comparison.confidence)
        sheet.add_notes(f"Bar: {confidence} % interval of the mean over seeds (Student's).")
    if int(table["num_configurations"].max()) > 1:
        sheet.add_notes("A value stands with the best of its configurations.")
    if len(table) < len(comparison.values):
        sheet.add_notes(f"The best {len(table)} of {len(comparison.values)} are shown.")
    return sheet


def _limit_intervals(ax: Axes, table: pd.DataFrame) -> None:
    """Limit the horizontal axis to the means if intervals are much wider, as those of two seeds are."""
    low, high = float(table["mean"].min()), float(table["mean"].max())
    span = (high - low) or abs(high) * 0.05 or 1.0
    left = max(float(table["low"].fillna(low).min()), low - span)
    right = min(float(table["high"].fillna(high).max()), high + span)
    ax.set_xlim(min(left, low) - 0.05 * span, max(right, high) + 0.05 * span)


def draw_importance(
    results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]
) -> list[CaptionedFigure]:
    """Draw the importance of parameters as bars: the specification's ``table`` (``parameter``, ``importance``)."""
    table = specification["table"].head(MAX_ROWS)
    if len(table) < 2:
        return []
    names = [display_name(str(name)) for name in table["parameter"]]
    sheet, ax = _named_rows(figure_title(results, specification, where), names, "parameter")
    ax.barh(range(len(table)), table["importance"], height=0.62, color=_COLOUR)
    for level, value in enumerate(table["importance"]):
        ax.annotate(f"{100 * value:.0f} %", (value, level), (3, 0), textcoords="offset points", va="center", size=7.5)
    ax.set_xlim(0, float(table["importance"].max()) * 1.12)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    format_ticks(ax.xaxis, 3)
    ax.set_xlabel("importance (fraction; all add up to 1)")
    sheet.add_notes("Important: the best configurations have other values of it than all (PED-ANOVA).")
    return [sheet]


def _named_rows(title: str, names: Sequence[str], label: str) -> tuple[CaptionedFigure, Axes]:
    """Return a figure with one panel that has a named row at each whole number, the first on top."""
    labels = [name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…" for name in names]
    sheet = new_figure(title, [max(len(labels), 4) * _ROW_HEIGHT + _AXIS_HEIGHT])
    ax = sheet.axes[0]
    ax.set_yticks(range(len(labels)), labels)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(False, axis="y")
    sheet.set_labels(ax, "", label)
    return sheet, ax
