"""Response plots: metrics of the trials against one parameter."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from tune_hpc.analysis.aggregation import COMPLETED, numeric_column, row_mask
from tune_hpc.analysis.formatting import axis_label
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.speedup import RATIOS
from tune_hpc.report.plots import series
from tune_hpc.report.plots.layout import (
    CaptionedFigure,
    clip_error_bars,
    figure_title,
    is_categorical,
    label_text,
    line_style,
    new_grid,
    published_style,
    set_category_ticks,
    set_number_ticks,
)

#: Points of a panel beyond which they are pixels in SVG, too; as vectors they take megabytes.
_MAX_VECTOR_POINTS = 5000
#: The line of a figure without a parameter for lines.
_MEASURED = "measured"


def response_table(
    results: Results, metric: str, parameter: str, line: str | None, where: Mapping[str, Any]
) -> pd.DataFrame:
    """Return a metric of the trials against one parameter; ``line`` has one line per value, ``where`` is the page.

    One row per configuration: ``series.COLUMNS`` with mean and interval over seeds, and ``is_joined``, whether the
    points of the line differ in ``x`` only.
    """
    trials = results.trials
    if metric not in trials or parameter not in trials:
        return pd.DataFrame(columns=[*series.COLUMNS, "is_joined"])
    trials = trials[row_mask(trials, where) & trials["status"].isin(COMPLETED)]
    free = series.free_parameters(results, [parameter, line, *where])
    df = pd.DataFrame({"x": trials[parameter], "value": numeric_column(trials, metric)})
    df["line"] = trials[line] if line else _MEASURED
    df["configuration"] = trials.groupby(free, dropna=False).ngroup() if free else 0
    df = df.dropna(subset=["x", "value", "line"])
    num_configurations = df.groupby("line")["configuration"].nunique()
    table = series.mean_and_ci(df, "configuration", is_ratio=metric in RATIOS)
    return table.assign(is_joined=table["line"].map(num_configurations) == 1)


def response_tables(
    results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]
) -> dict[str, pd.DataFrame]:
    """Return ``response_table`` of each metric with data."""
    parameter, line = str(specification.get("parameter")), specification.get("line")
    return series.tables_by_metric(
        specification, lambda metric: response_table(results, metric, parameter, line, where)
    )


def _published_table(
    results: Results, metric: str, parameter: str, line: str | None, where: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the published numbers of a response: ``line``, ``x``, ``mean``."""
    rows = []
    for published in results.experiment.get("published") or ():
        conditions = published["where"]
        is_other_page = any(conditions.get(name, value) != value for name, value in where.items())
        if published["metric"] != metric or is_other_page or (line is not None and line not in conditions):
            continue
        best = list(published.get("best_values") or ()) if published.get("best_over") == parameter else []
        rows += [
            {"line": conditions[line] if line else _MEASURED, "x": x, "mean": float(published["value"])}
            for x in best or [conditions.get(parameter)]
            if x is not None
        ]
    return pd.DataFrame(rows, columns=["line", "x", "mean"])


def draw(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw metrics against one parameter, a panel per metric with data, beside published numbers."""
    line, parameter = specification.get("line"), str(specification.get("parameter"))
    lines = series.best_values(results, line) if line else [_MEASURED]
    tables = response_tables(results, specification, where)
    if not tables:
        return []
    source = specification.get("published")
    published = _published_table(results, source, parameter, line, where) if source else pd.DataFrame()
    present = [value for value in lines if any((table["line"] == value).any() for table in tables.values())]
    legend = [(label_text(value), line_style(lines.index(value))) for value in present]
    if len(published):
        legend.append(("published, another machine" if str(source).endswith("_s") else "published", published_style()))
    title = figure_title(results, specification, where, is_compared=len(published) > 0)
    is_labelled = [label for label, _ in legend] != [_MEASURED]
    sheet = new_grid(title, len(tables), legend if is_labelled else (), line)
    sheet.add_notes(series.best_values_note(results, line, lines))
    values = series.values_of(results, parameter)
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        reference = published if len(published) and (metric == source or len(tables) == 1) else None
        if reference is not None and not is_categorical(values):
            values = sorted({*values, *reference["x"]})
        sheet.add_notes(*_draw_response(ax, table, lines, reference, values))
        inches = 2.3 if len(tables) > 1 else 4.6
        if is_categorical(values):
            set_category_ticks(ax, values, inches)
        else:
            numbers = sorted(map(float, values))
            set_number_ticks(ax, numbers, inches, log_x=bool(specification.get("log_x")))
        if reference is not None and metric.endswith("_s"):
            sheet.add_notes("The published seconds are another machine's.")
        sheet.set_labels(ax, axis_label(parameter), axis_label(metric))
    return [sheet]


def _draw_response(
    ax: Axes, table: pd.DataFrame, lines: Sequence[Any], published: pd.DataFrame | None, values: Sequence[Any]
) -> list[str]:
    """Draw points with their intervals in the styles of ``lines``, and published numbers as hollow diamonds.

    ``values`` are those of the parameter; names stand at whole numbers. Returns sentences for the caption.
    """
    notes: list[str] = []
    has_names = is_categorical(values)
    is_dense = len(table) > _MAX_VECTOR_POINTS
    positions = {value: index if has_names else float(value) for index, value in enumerate(values)}
    for index, line in enumerate(lines):
        points = table[table["line"] == line]
        x = points["x"].map(positions).to_numpy(float)
        style = line_style(index)
        # A line through points that differ in other parameters has no meaning.
        if has_names or not points["is_joined"].all():
            style["linestyle"] = "none"
        if (points["num_trials"] > 1).any():
            notes.append("Point: mean over seeds.")
        if (points["high"] > points["low"]).any():
            notes.append("Bar: 95 % interval of the mean (Student's).")
            ax.vlines(
                x, points["low"], points["high"], color=style["color"], linewidth=0.9, alpha=0.7, rasterized=is_dense
            )
        ax.plot(x, points["mean"], zorder=3, rasterized=is_dense, **style)
        if published is not None:
            numbers = published[published["line"] == line]
            x = np.array([positions.get(value, np.nan) for value in numbers["x"]], dtype=float)
            ax.plot(x, numbers["mean"], zorder=4, **published_style(style["color"]))
    if len(table) and clip_error_bars(ax, table, () if published is None else published["mean"]):
        notes.append("Bars far longer than the points' range are cut.")
    return notes
