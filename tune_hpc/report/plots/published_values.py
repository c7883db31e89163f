"""Published numbers beside measured ones, a row each: what was printed, what came out, and the verdict."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tune_hpc.analysis.formatting import axis_label, format_number
from tune_hpc.analysis.published import AGREES, DIFFERS, INCONCLUSIVE, NOT_COMPARABLE, compare_to_published
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots.axes import CHARACTER, WIDTH, published_style
from tune_hpc.report.plots.layout import EDGE, FigureLayout, figure_title, legend_height, new_figure, wrap_text

MOST_ROWS = 20
#: A longer name of a row is broken into lines.
_LONGEST = 34
#: Inches of a row's line; below the rows; above them; between two panels side by side.
_ROW, _BOTTOM, _TOP, _BETWEEN = 0.2, 0.48, 0.06, 0.25
_COLOUR, _GREY = "#0072B2", "#9a9a9a"
_MEASURED: dict[str, Any] = {
    "linestyle": "none",
    "marker": "o",
    "markersize": 5.5,
    "markeredgewidth": 1.1,
    "color": _COLOUR,
}
_LOOKS: dict[str, dict[str, Any]] = {
    AGREES: {"markerfacecolor": _COLOUR},
    DIFFERS: {"markerfacecolor": "white"},
    INCONCLUSIVE: {"fillstyle": "left", "markerfacecoloralt": "white"},
    NOT_COMPARABLE: {"color": _GREY, "markerfacecolor": _GREY, "marker": "s", "markersize": 4.5},
}


def draw(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw published numbers against measured ones, at most 20 rows a sheet; none where nothing was measured.

    Metrics with the same rows stand side by side, others below one another.
    """
    told = [one["where"] for one in results.experiment.get("published") or ()]
    is_here = [all(one.get(name) == value for name, value in where.items()) for one in told]
    found = compare_to_published(results).loc[np.array(is_here, dtype=bool)]
    wanted = list(specification["metrics"]) or list(found["metric"].drop_duplicates())
    found = found[found["metric"].isin(wanted)]
    by_metric = {metric: found[found["metric"] == metric] for metric in wanted}
    tables = {metric: table for metric, table in by_metric.items() if table["measured"].notna().any()}
    if not tables:
        return []
    rows = [list(table["where"]) for table in tables.values()]
    is_shared = len(rows) in (2, 3) and all(own == rows[0] for own in rows)
    if is_shared or len(rows) == 1:
        parts = [
            {metric: table.iloc[start:end] for metric, table in tables.items()} for start, end in _spans(len(rows[0]))
        ]
    elif sum(map(len, rows)) <= MOST_ROWS:
        parts = [tables]
    else:
        parts = [
            {metric: table.iloc[start:end]} for metric, table in tables.items() for start, end in _spans(len(table))
        ]
    title = figure_title(results, specification, where, compared=True)
    return [
        _sheet(title + (f" ({number} of {len(parts)})" if len(parts) > 1 else ""), part, is_shared)
        for number, part in enumerate(parts, 1)
    ]


def _spans(num_rows: int) -> list[tuple[int, int]]:
    """Return where each of several sheets begins and ends, as even as can be."""
    num_sheets = -(-num_rows // MOST_ROWS)
    ends = [round(number * num_rows / num_sheets) for number in range(num_sheets + 1)]
    return list(pairwise(ends))


def _sheet(title: str, tables: Mapping[str, pd.DataFrame], is_shared: bool) -> FigureLayout:
    names = {metric: [_name(text) for text in table["where"]] for metric, table in tables.items()}
    every = [line for own in names.values() for name in own for line in name.split("\n")]
    left = EDGE + max(map(len, every)) * CHARACTER + 0.12
    heights = {metric: 0.06 + _ROW * sum(name.count("\n") + 1 for name in own) for metric, own in names.items()}
    panels = [_TOP + height + _BOTTOM for height in heights.values()]
    columns = len(tables) if is_shared else 1
    width = (WIDTH - left - 0.2 - _BETWEEN * (columns - 1)) / columns
    handles, labels = _legend(pd.concat(tables.values()))
    sheet = new_figure(title, panels[0] if is_shared else sum(panels), legend_height(labels))
    sheet.legend(handles, labels)
    below = 0.0
    for number, (metric, table) in enumerate(tables.items()):
        x = left + (width + _BETWEEN) * number * is_shared
        ax = sheet.panel(x, below + _TOP, width, heights[metric])
        draw_published(ax, table, names[metric])
        if is_shared and number:
            ax.tick_params(labelleft=False)
        ax.set_xlabel(wrap_text(axis_label(metric), width))
        below += 0 if is_shared else panels[number]
    sheet.notes.update(dict.fromkeys(_notes(pd.concat(tables.values()))))
    return sheet


def _name(text: str) -> str:
    """Return a row's name, its conditions on lines of their own where it is long."""
    text = text.replace("_", " ").replace("$", r"\$")
    return text if len(text) <= _LONGEST else text.replace(", ", ",\n")


def _legend(table: pd.DataFrame) -> tuple[list[Line2D], list[str]]:
    handles, labels = [Line2D([], [], **published_style("#444444"))], ["published"]
    for verdict in _LOOKS:
        if ((table["verdict"] == verdict) & table["measured"].notna()).any():
            handles.append(Line2D([], [], **_MEASURED | _LOOKS[verdict]))
            labels.append(f"measured: {verdict}")
    return handles, labels


def draw_published(ax: Axes, table: pd.DataFrame, names: list[str]) -> None:
    """Draw the rows of one metric: ours with its interval, and the published number as a diamond."""
    y, start = [], 0.0
    for name in names:
        lines = name.count("\n") + 1
        y.append(start + lines / 2)
        start += lines
    levels = pd.Series(y, index=table.index)
    for verdict, look in _LOOKS.items():
        own = table[(table["verdict"] == verdict) & table["measured"].notna()]
        if len(own):
            style = _MEASURED | look
            known = own.dropna(subset=["low", "high"])
            ax.hlines(levels[known.index], known["low"], known["high"], color=style["color"], linewidth=2.2, alpha=0.5)
            ax.plot(own["measured"], levels[own.index], zorder=3, **style)
    ax.plot(table["published"], levels, zorder=4, **published_style("#444444"))
    ax.set_ylim(start + 0.15, -0.15)
    ax.set_yticks(y, names)
    ax.tick_params(axis="y", length=0)
    told = pd.concat([table["published"], table["measured"]]).dropna()
    if told.min() > 0 and told.max() / told.min() >= 100:
        ax.set_xscale("log")
    else:
        ax.set_xmargin(0.06)
        figure = ax.get_figure(root=True)
        assert figure is not None
        inches = ax.get_window_extent().width / figure.dpi
        ax.xaxis.set_major_locator(MaxNLocator(max(int(inches / 0.45), 3), steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value, 4)))
    ax.margins(x=0.06)


def _counted(verdict: str, number: int) -> str:
    """Return a verdict as it is said of several: they agree."""
    return verdict.removesuffix("s") if number != 1 and verdict in (AGREES, DIFFERS) else verdict


def _notes(table: pd.DataFrame) -> list[str]:
    notes = []
    if table["low"].notna().any():
        notes.append(
            "Bar: 95 % interval of our mean over seeds (Student's). A published number is one run: it agrees where one "
            "more run of ours could have given it, which spreads wider than the mean."
        )
    counted = table["verdict"].value_counts()
    told = [
        f"{counted[verdict]} {_counted(verdict, counted[verdict])}" for verdict in _LOOKS if counted.get(verdict, 0)
    ]
    notes.append(f"Of {len(table)} published numbers: {', '.join(told)}." if told else "")
    if lost := int(table["measured"].isna().sum()):
        notes.append(f"Without a measurement: {lost}.")
    return [note for note in notes if note]
