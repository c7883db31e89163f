"""Published numbers beside measured ones: one row each, with the verdict."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from tune_hpc.analysis.formatting import axis_label
from tune_hpc.analysis.published import AGREES, DIFFERS, INCONCLUSIVE, NOT_COMPARABLE, compare_to_published
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots.axes import published_style, set_metric_axis
from tune_hpc.report.plots.layout import CaptionedFigure, figure_title, new_figure

#: Rows of a figure at most.
_MAX_ROWS = 20
#: Characters of a row's name beyond which it takes several lines.
_MAX_CHARACTERS = 34
#: Inches of a line of a row's name, and of the labels of the horizontal axis.
_LINE_HEIGHT, _AXIS_HEIGHT = 0.2, 0.55
_COLOUR, _GREY = "#0072B2", "#9a9a9a"
_MARKER: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 5.5, "markeredgewidth": 1.1, "color": _COLOUR
}  # fmt: skip
_STYLES: dict[str, dict[str, Any]] = {
    AGREES: _MARKER | {"markerfacecolor": _COLOUR},
    DIFFERS: _MARKER | {"markerfacecolor": "white"},
    INCONCLUSIVE: _MARKER | {"fillstyle": "left", "markerfacecoloralt": "white"},
    NOT_COMPARABLE: _MARKER | {"color": _GREY, "markerfacecolor": _GREY, "marker": "s", "markersize": 4.5},
}


def published_tables(
    results: Results, metrics: Sequence[str], where: Mapping[str, Any]
) -> list[dict[str, pd.DataFrame]]:
    """Return the comparison with published numbers, split into figures.

    Args:
        results: Any results.
        metrics: Metrics to compare; the default is all published ones.
        where: Parameter and value of the page.

    Returns:
        For each figure its metrics with their rows of ``compare_to_published``, at most 20 rows. Metrics without a
        measurement are absent. Two or three metrics with the same rows share their figures.
    """
    conditions = [published["where"] for published in results.experiment.get("published") or ()]
    is_on_page = [all(one.get(name) == value for name, value in where.items()) for one in conditions]
    df = compare_to_published(results).loc[np.array(is_on_page, dtype=bool)]
    by_metric = {metric: df[df["metric"] == metric] for metric in list(metrics) or df["metric"].unique()}
    tables = {metric: table for metric, table in by_metric.items() if table["measured"].notna().any()}
    if sum(map(len, tables.values())) <= _MAX_ROWS:
        return [tables] if tables else []
    if has_shared_rows(tables):
        num_rows = max(map(len, tables.values()))
        return [{metric: table.iloc[rows] for metric, table in tables.items()} for rows in _split(num_rows)]
    return [{metric: table.iloc[rows]} for metric, table in tables.items() for rows in _split(len(table))]


def has_shared_rows(tables: Mapping[str, pd.DataFrame]) -> bool:
    """Return whether two or three metrics have the same rows, and thus stand side by side."""
    rows = [list(table["where"]) for table in tables.values()]
    return len(rows) in (2, 3) and all(part == rows[0] for part in rows)


def _split(num_rows: int) -> list[slice]:
    """Return the rows of each figure, as even as possible."""
    num_figures = -(-num_rows // _MAX_ROWS)
    ends = [round(number * num_rows / num_figures) for number in range(num_figures + 1)]
    return [slice(*ends[number : number + 2]) for number in range(num_figures)]


def draw(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw published and measured numbers; metrics with the same rows stand side by side, others below one another."""
    parts = published_tables(results, specification["metrics"], where)
    title = figure_title(results, specification, where, is_compared=True)
    return [
        _draw_part(title + (f" ({number} of {len(parts)})" if len(parts) > 1 else ""), tables)
        for number, tables in enumerate(parts, 1)
    ]


def _draw_part(title: str, tables: Mapping[str, pd.DataFrame]) -> CaptionedFigure:
    names = {metric: [_row_name(text) for text in table["where"]] for metric, table in tables.items()}
    heights = [_AXIS_HEIGHT + _LINE_HEIGHT * sum(name.count("\n") + 1 for name in texts) for texts in names.values()]
    is_shared = has_shared_rows(tables)
    num_columns = len(tables) if is_shared else 1
    sheet = new_figure(title, heights[:1] if is_shared else heights, num_columns)
    rows = pd.concat(tables.values())
    measured = rows.loc[rows["measured"].notna(), "verdict"]
    verdicts = [verdict for verdict in _STYLES if (measured == verdict).any()]
    handles = [Line2D([], [], **style) for style in (published_style(), *(_STYLES[name] for name in verdicts))]
    sheet.add_legend(handles, ["published", *(f"measured: {verdict}" for verdict in verdicts)])
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        _draw_rows(ax, table, names[metric], num_ticks=10 // num_columns)
        if ax is not sheet.axes[0] and is_shared:
            ax.tick_params(labelleft=False)
        ax.set_xlabel(textwrap.fill(axis_label(metric), 60 // num_columns))
    sheet.add_notes(*_notes(rows))
    return sheet


def _row_name(text: str) -> str:
    """Return a row's name; each condition of a long name has its line."""
    text = text.replace("_", " ").replace("$", r"\$")
    return text if len(text) <= _MAX_CHARACTERS else text.replace(", ", ",\n")


def _draw_rows(ax: Axes, table: pd.DataFrame, names: Sequence[str], num_ticks: int) -> None:
    """Draw measured means with their intervals and published numbers as diamonds, one row each."""
    num_lines = np.array([name.count("\n") + 1 for name in names])
    levels = pd.Series(num_lines.cumsum() - num_lines / 2, index=table.index)
    for verdict, style in _STYLES.items():
        rows = table[(table["verdict"] == verdict) & table["measured"].notna()]
        intervals = rows.dropna(subset=["low", "high"])
        ax.hlines(
            levels[intervals.index], intervals["low"], intervals["high"], color=style["color"], linewidth=2.2, alpha=0.5
        )
        ax.plot(rows["measured"], levels[rows.index], zorder=3, **style)
    ax.plot(table["published"], levels, zorder=4, **published_style())
    ax.set_ylim(num_lines.sum() + 0.15, -0.15)
    ax.set_yticks(levels, names)
    ax.tick_params(axis="y", length=0)
    set_metric_axis(ax, pd.concat([table["published"], table["measured"]]), num_ticks)
    ax.margins(x=0.06)


def _notes(table: pd.DataFrame) -> Iterable[str]:
    """Yield the sentences of the caption."""
    if table["low"].notna().any():
        yield (
            "Bar: 95 % interval of our mean over seeds (Student's). A published number is one run: it agrees if it "
            "lies in the prediction interval of one more of our runs, which is wider."
        )
    counts = table["verdict"].value_counts()
    plural = {AGREES: "agree", DIFFERS: "differ"}
    verdicts = [
        f"{counts[verdict]} {plural.get(verdict, verdict) if counts[verdict] > 1 else verdict}"
        for verdict in _STYLES
        if verdict in counts
    ]
    if verdicts:
        yield f"Of {len(table)} published numbers: {', '.join(verdicts)}."
    if num_missing := int(table["measured"].isna().sum()):
        yield f"Without a measurement: {num_missing}."
