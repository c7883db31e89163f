"""Figures with named rows: ranking of a parameter's values, importance of parameters, and published numbers."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tune_hpc.analysis.comparison import Comparison
from tune_hpc.analysis.formatting import axis_label, display_name, format_number
from tune_hpc.analysis.published import AGREES, DIFFERS, INCONCLUSIVE, NOT_COMPARABLE, compare_to_published
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots.layout import (
    CaptionedFigure,
    figure_title,
    format_ticks,
    label_text,
    new_figure,
    published_style,
    set_metric_axis,
)

#: Rows of a figure at most: of a ranking, the best stay; published numbers make several figures.
MAX_ROWS, _MAX_PUBLISHED = 30, 20
#: Inches of a row, of a line of a published row's name, and of the labels of the horizontal axis.
_ROW_HEIGHT, _LINE_HEIGHT, _AXIS_HEIGHT = 0.24, 0.2, 0.55
#: Characters of a row's name, and of a published row's name beyond which it takes several lines.
_MAX_NAME, _MAX_LINE = 40, 34
_COLOUR, _BAR_COLOUR = "#0072B2", "#56B4E9"
_MARKER: dict[str, Any] = {
    "linestyle": "none", "marker": "o", "markersize": 6, "markeredgewidth": 1.2, "color": _COLOUR
}  # fmt: skip
_BEST, _WORSE, _UNCERTAIN = "best, or tied with it", "worse than one of the best", "inconclusive"
_RANKS: dict[str, dict[str, Any]] = {
    _BEST: _MARKER | {"markerfacecolor": _COLOUR},
    _WORSE: _MARKER | {"markerfacecolor": "white"},
    _UNCERTAIN: _MARKER | {"color": "#7f7f7f", "markerfacecolor": "#7f7f7f", "marker": "s", "markersize": 5},
}
_SMALL = _MARKER | {"markersize": 5.5, "markeredgewidth": 1.1}
_VERDICTS: dict[str, dict[str, Any]] = {
    AGREES: _SMALL | {"markerfacecolor": _COLOUR},
    DIFFERS: _SMALL | {"markerfacecolor": "white"},
    INCONCLUSIVE: _SMALL | {"fillstyle": "left", "markerfacecoloralt": "white"},
    NOT_COMPARABLE: _SMALL | {"color": "#9a9a9a", "markerfacecolor": "#9a9a9a", "marker": "s", "markersize": 4.5},
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


def draw_comparison(comparison: Comparison, title: str) -> CaptionedFigure:
    """Draw a row per value with its mean and interval; the marker is filled if the value is among the best."""
    table = comparison.values.sort_values("mean", ascending=comparison.lower_is_better, kind="stable").head(MAX_ROWS)
    rank = table["rank"]
    style = np.where(rank.isna(), _UNCERTAIN, np.where(rank.eq(1).fillna(False), _BEST, _WORSE))
    names = [label_text(value) for value in table[comparison.column]]
    sheet, ax = _new_rows(title, names, display_name(comparison.parameter))
    sheet.add_legend([(label, _RANKS[label]) for label in _RANKS if label in style])
    _draw_means(ax, table.assign(style=style, level=range(len(table))), _RANKS)
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


def _draw_means(ax: Axes, table: pd.DataFrame, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw ``mean`` with its interval at the ``level`` of each row, in the style of ``style``."""
    row: Any
    for row in table[table["mean"].notna()].itertuples():
        style = styles[row.style]
        if not np.isnan(row.low):
            ax.hlines(row.level, row.low, row.high, color=style["color"], linewidth=2.2, alpha=0.5)
        ax.plot(row.mean, row.level, zorder=3, **style)


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
    """Draw the importance of parameters as bars with intervals: the specification's ``table`` (``importance``)."""
    table = specification["table"].head(MAX_ROWS)
    if len(table) < 2:
        return []
    names = [display_name(str(name)) for name in table["parameter"]]
    sheet, ax = _new_rows(figure_title(results, specification, where), names, "parameter")
    ax.barh(range(len(table)), table["importance"], height=0.62, color=_BAR_COLOUR)
    ax.hlines(range(len(table)), table["low"], table["high"], color="black", linewidth=1.2)
    for level, row in enumerate(table.to_dict("records")):
        end = (max(row["importance"], row["high"]), level)
        text = f"{100 * row['importance']:.0f} %"
        ax.annotate(text, end, (4, 0), textcoords="offset points", va="center", size=7.5)
    ax.set_xlim(0, float(table[["importance", "high"]].max(axis=None)) * 1.12)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    format_ticks(ax.xaxis, 3)
    ax.set_xlabel("importance (fraction; all add up to 1)")
    sheet.add_notes("Important: the best configurations have other values of it than all (PED-ANOVA, by ranks).")
    sheet.add_notes(f"Line: 95 % bootstrap interval over {table['resampled'].iloc[0]}.")
    return [sheet]


def _new_rows(title: str, names: Sequence[str], label: str) -> tuple[CaptionedFigure, Axes]:
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


def _published_tables(
    results: Results, metrics: Sequence[str], where: Mapping[str, Any]
) -> list[dict[str, pd.DataFrame]]:
    """Return the rows of ``compare_to_published`` by metric (all without ``metrics``), at most 20 for each figure.

    Metrics without a measurement are absent. Two or three metrics with the same rows share their figures.
    """
    conditions = [published["where"] for published in results.experiment.get("published") or ()]
    is_on_page = [all(one.get(name) == value for name, value in where.items()) for one in conditions]
    df = compare_to_published(results).loc[np.array(is_on_page, dtype=bool)]
    by_metric = {metric: df[df["metric"] == metric] for metric in list(metrics) or df["metric"].unique()}
    tables = {metric: table for metric, table in by_metric.items() if table["measured"].notna().any()}
    if sum(map(len, tables.values())) <= _MAX_PUBLISHED:
        return [tables] if tables else []
    groups = [tables] if _has_shared_rows(tables) else [{metric: table} for metric, table in tables.items()]
    return [
        {metric: table.iloc[rows] for metric, table in group.items()}
        for group in groups
        for rows in _split(max(map(len, group.values())))
    ]


def _has_shared_rows(tables: Mapping[str, pd.DataFrame]) -> bool:
    """Return whether two or three metrics have the same rows, and thus stand side by side."""
    rows = [list(table["where"]) for table in tables.values()]
    return len(rows) in (2, 3) and all(part == rows[0] for part in rows)


def _split(num_rows: int) -> list[slice]:
    """Return the rows of each figure, as even as possible."""
    num_figures = -(-num_rows // _MAX_PUBLISHED)
    ends = [round(number * num_rows / num_figures) for number in range(num_figures + 1)]
    return [slice(*ends[number : number + 2]) for number in range(num_figures)]


def draw_published(
    results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]
) -> list[CaptionedFigure]:
    """Draw published and measured numbers; metrics with the same rows stand side by side, others below one another."""
    parts = _published_tables(results, specification["metrics"], where)
    title = figure_title(results, specification, where, is_compared=True)
    return [
        _draw_part(title + (f" ({number} of {len(parts)})" if len(parts) > 1 else ""), tables)
        for number, tables in enumerate(parts, 1)
    ]


def _draw_part(title: str, tables: Mapping[str, pd.DataFrame]) -> CaptionedFigure:
    names = {metric: [_row_name(text) for text in table["where"]] for metric, table in tables.items()}
    heights = [_AXIS_HEIGHT + _LINE_HEIGHT * sum(name.count("\n") + 1 for name in texts) for texts in names.values()]
    is_shared = _has_shared_rows(tables)
    num_columns = len(tables) if is_shared else 1
    sheet = new_figure(title, heights[:1] if is_shared else heights, num_columns)
    rows = pd.concat(tables.values())
    measured = set(rows.loc[rows["measured"].notna(), "verdict"])
    verdicts = [(f"measured: {verdict}", style) for verdict, style in _VERDICTS.items() if verdict in measured]
    sheet.add_legend([("published", published_style()), *verdicts])
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        _draw_rows(ax, table, names[metric], num_ticks=10 // num_columns)
        if ax is not sheet.axes[0] and is_shared:
            ax.tick_params(labelleft=False)
        ax.set_xlabel(textwrap.fill(axis_label(metric), 60 // num_columns))
    sheet.add_notes(*_published_notes(rows))
    return sheet


def _row_name(text: str) -> str:
    """Return a row's name; each condition of a long name has its line."""
    text = label_text(text)
    return text if len(text) <= _MAX_LINE else text.replace(", ", ",\n")


def _draw_rows(ax: Axes, table: pd.DataFrame, names: Sequence[str], num_ticks: int) -> None:
    """Draw measured means with their zones of agreement and published numbers as diamonds, one row each."""
    num_lines = np.array([name.count("\n") + 1 for name in names])
    levels = num_lines.cumsum() - num_lines / 2
    _draw_means(
        ax,
        table.assign(
            mean=table["measured"], low=table["zone_low"], high=table["zone_high"], style=table["verdict"], level=levels
        ),
        _VERDICTS,
    )
    ax.plot(table["published"], levels, zorder=4, **published_style())
    ax.set_ylim(num_lines.sum() + 0.15, -0.15)
    ax.set_yticks(levels, names)
    ax.tick_params(axis="y", length=0)
    set_metric_axis(ax, pd.concat([table["published"], table["measured"]]), num_ticks)
    ax.margins(x=0.06)


def _published_notes(table: pd.DataFrame) -> Iterable[str]:
    if table["zone_low"].notna().any():
        yield (
            "Bar: published numbers that would agree, the 95 % prediction interval of one more run widened by half of "
            "the last digit."
        )
    counts = table["verdict"].value_counts()
    plural = {AGREES: "agree", DIFFERS: "differ"}
    verdicts = [
        f"{counts[verdict]} {plural.get(verdict, verdict) if counts[verdict] > 1 else verdict}"
        for verdict in _VERDICTS
        if verdict in counts
    ]
    if verdicts:
        yield f"Of {len(table)} published numbers: {', '.join(verdicts)}."
    if num_missing := int(table["measured"].isna().sum()):
        yield f"Without a measurement: {num_missing}."
