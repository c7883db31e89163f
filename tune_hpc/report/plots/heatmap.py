"""Heat maps: a metric over two parameters, as colours and as numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Patch, Rectangle

from tune_hpc.analysis.formatting import axis_label, display_name
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots import curves
from tune_hpc.report.plots.axes import CHARACTER, WIDTH, categorical_ticks, label_text
from tune_hpc.report.plots.heatmap_data import DIVERGED, MEASURED, NO_VALUE, heat_table, tied_with_best
from tune_hpc.report.plots.layout import (
    EDGE,
    FigureLayout,
    colour_bar_width,
    figure_title,
    legend_height,
    new_figure,
    wrap_text,
)

#: More columns or rows than this leave no room for a cell; the best are kept.
MOST_COLUMNS, MOST_ROWS = 24, 30
#: Inches of a row; below the cells; above them.
_ROW, _BOTTOM, _TOP = 0.27, 0.46, 0.08
#: Inches: a colour bar that is shorter has no room for its label.
_LEAST_HEIGHT = 1.35
#: Inches of a character of 7 points, and the smallest letters that can be read.
_SMALL, _LEAST_POINTS = 0.058, 5.0
_LOOKS: dict[str, dict[str, Any]] = {
    DIVERGED: {"facecolor": "#f3f3f3", "edgecolor": "#8a8a8a", "hatch": "//////", "linewidth": 0.0},
    NO_VALUE: {"facecolor": "white", "edgecolor": "#a5a5a5", "hatch": "....", "linewidth": 0.0},
}
_BEST: dict[str, Any] = {"facecolor": "none", "edgecolor": "#D55E00", "linewidth": 2.0}
_TIED: dict[str, Any] = {**_BEST, "linewidth": 1.2, "linestyle": (0, (2.5, 1.5))}


def draw(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw one heat map: a panel per metric, below one another; no sheet where nothing was measured."""
    x, y = str(specification.get("parameter")), str(specification.get("line"))
    tables = {metric: heat_table(results, metric, x, y, where) for metric in specification["metrics"]}
    tables = {metric: table for metric, table in tables.items() if len(table)}
    if not tables:
        return []
    columns = curves.shown_lines(results, x, MOST_COLUMNS)
    rows = curves.shown_lines(results, y, MOST_ROWS)
    tables = {metric: table[table["x"].isin(columns) & table["y"].isin(rows)] for metric, table in tables.items()}
    tables = {metric: own.assign(is_tied=tied_with_best(results, metric, own)) for metric, own in tables.items()}
    everything = pd.concat(tables.values())
    columns = [value for value in columns if (everything["x"] == value).any()]
    rows = [value for value in rows if (everything["y"] == value).any()]

    labels = [label_text(value) for value in rows]
    height = max(len(rows) * _ROW, _LEAST_HEIGHT)
    name = wrap_text(axis_label(y), height)
    left = EDGE + 0.12 + 0.14 * len(name.split("\n")) + max(map(len, labels)) * CHARACTER + 0.1
    width = WIDTH - left - colour_bar_width(tables, height)
    extra = categorical_ticks(columns, width)[2]
    handles, names = _legend(everything)
    panel = _TOP + height + _BOTTOM + extra
    sheet = new_figure(
        figure_title(results, specification, where), panel * len(tables), legend_height(names) if names else 0.0
    )
    if names:
        sheet.legend(handles, names)
    for number, (metric, table) in enumerate(tables.items()):
        ax = sheet.panel(left, number * panel + _TOP, width, height)
        sheet.notes.update(dict.fromkeys(draw_heat(sheet, ax, table, metric, columns, rows, results)))
        ticks, lean, _ = categorical_ticks(columns, width)
        ax.set_xticks(range(len(columns)), ticks, rotation=lean, ha="right" if lean else "center")
        if lean:
            for label in ax.get_xticklabels():
                label.set_rotation_mode("anchor")
        ax.set_yticks(range(len(rows)), labels)
        ax.set_xlabel(axis_label(x))
        ax.set_ylabel(name, va="top")
        ax.yaxis.set_label_coords((EDGE - left) / width, 0.5)
    for name, shown in ((x, columns), (y, rows)):
        if len(shown) < len(curves.values_of(results, name)):
            sheet.notes[f"The best {len(shown)} values of {display_name(name)} are shown."] = None
    return [sheet]


def _legend(table: pd.DataFrame) -> tuple[list[Patch], list[str]]:
    """Return what the frames and the hatches mean, as far as there are any."""
    handles, names = [], []
    if table["is_best"].any():
        handles.append(Patch(**_BEST))
        names.append("best")
    if table["is_tied"].any():
        handles.append(Patch(**_TIED))
        names.append("not told from the best")
    for state, look in _LOOKS.items():
        if (table["state"] == state).any():
            handles.append(Patch(**look))
            names.append(state)
    return handles, names


def draw_heat(
    sheet: FigureLayout, ax: Axes, table: pd.DataFrame, metric: str, columns: Sequence[Any], rows: Sequence[Any],
    results: Results,
) -> list[str]:  # fmt: skip
    """Draw the cells of one metric, their numbers and the colour bar.

    Returns:
        Notes for the caption.
    """
    is_low = results.is_lower_better(metric)
    place = {value: index for index, value in enumerate(columns)}
    level = {value: index for index, value in enumerate(rows)}
    table = table.assign(column=table["x"].map(place).astype(int), row=table["y"].map(level).astype(int))
    values = np.full((len(rows), len(columns)), np.nan)
    values[table["row"], table["column"]] = table["value"]
    norm, extend = _norm(values[np.isfinite(values)], is_low and "accuracy" not in metric)
    # Dark is good, whichever way the metric goes, as in parallel coordinates.
    colours = ScalarMappable(norm, mpl.colormaps["cividis" if is_low else "cividis_r"])
    ax.grid(False)
    ax.pcolormesh(
        np.arange(len(columns) + 1) - 0.5, np.arange(len(rows) + 1) - 0.5, np.ma.masked_invalid(values),
        norm=norm, cmap=colours.cmap, edgecolors="white", linewidth=0.8,
    )  # fmt: skip
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    notes = [
        f"Cell: {display_name(metric)}, mean over seeds." if _has_seeds(results) else f"Cell: {display_name(metric)}."
    ]
    notes.append("Darker is better.")
    digits = _digits(values)
    texts = {index: _text(row.value, metric, digits) + "*" * bool(row.is_partial) for index, row in _measured(table)}
    points = _points(texts.values(), ax, len(columns))
    one: Any
    for one in table.itertuples():
        corner = (one.column - 0.5, one.row - 0.5)
        if one.state in _LOOKS:
            ax.add_patch(Rectangle((corner[0] + 0.03, corner[1] + 0.04), 0.94, 0.92, **_LOOKS[one.state]))
        elif points:
            colour = "black" if _is_bright(colours.to_rgba(one.value)) else "white"
            ax.text(
                one.column, one.row + 0.02, texts[one.Index], ha="center", va="center", size=points, color=colour,
                weight="bold" if one.is_best else "normal",
            )  # fmt: skip
        if one.is_best:
            ax.add_patch(Rectangle(corner, 1, 1, **_BEST, zorder=4, clip_on=False))
            notes.append("Framed: the best cell.")
        if one.is_tied:
            inner = (corner[0] + 0.02, corner[1] + 0.03)
            ax.add_patch(Rectangle(inner, 0.96, 0.94, **_TIED, zorder=3))
            notes.append("Dashed: cells that the seeds cannot tell from it (95 %, each by itself).")
    sheet.colour_bar(ax, colours, metric, extend)
    if (table["num_configurations"] > 1).any():
        notes.append("Where other parameters vary, too, a cell is the best configuration's.")
    if table["is_partial"].any():
        notes.append("*: mean of the seeds that did not diverge.")
    for state, said in ((DIVERGED, "Striped: diverged"), (NO_VALUE, "Dotted: no trial there gave a value")):
        if lost := int((table["state"] == state).sum()):
            notes.append(f"{said} ({lost} of {len(table)} cells).")
    if not points:
        notes.append("There is no room for numbers.")
    if extend != "neither":
        notes.append(f"The colours end at {norm.vmax:.3g}; the highest value is {np.nanmax(values):.3g}.")
    return notes


def _has_seeds(results: Results) -> bool:
    return "seed" in results.trials and len(results.trials["seed"].drop_duplicates()) > 1


def _measured(table: pd.DataFrame) -> Any:
    own = table[table["state"] == MEASURED]
    return zip(own.index, own.itertuples(), strict=True)


def _digits(values: np.ndarray) -> int:
    """Return how many decimals of an accuracy tell cells apart: a range of less than 0.03 takes a fourth."""
    return 4 if np.nanmax(values) - np.nanmin(values) < 0.03 else 3


def _text(value: float, metric: str, digits: int) -> str:
    """Return a number that fits into a cell."""
    if "accuracy" in metric:
        return f"{value:.{digits}f}"
    return (
        f"{value:.0f}"
        if 1000 <= abs(value) < 1e5
        else f"{value:#.3g}".replace("e+0", "e").replace("e-0", "e-").rstrip(".")
    )


def _points(texts: Any, ax: Axes, num_columns: int) -> float:
    """Return the size of letters at which every number fits; 0: none that can be read."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    cell = ax.get_window_extent().width / figure.dpi / num_columns - 0.06
    points = min(7.0 * cell / (max(map(len, texts), default=1) * _SMALL), 7.5)
    return points if points >= _LEAST_POINTS else 0.0


def _norm(values: np.ndarray, may_explode: bool) -> tuple[Normalize, str]:
    """Return the range of the colours; a few values that exploded must not make all others one colour."""
    low, high = float(values.min()), float(values.max())
    if may_explode and low >= 0 and high > 8 * (usual := float(np.median(values))) > 0:
        return Normalize(low, 2 * usual), "max"
    if low == high:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    return Normalize(low, high), "neither"


def _is_bright(colour: Any) -> bool:
    """Return whether black reads better on a colour than white does (WCAG's relative luminance)."""
    channels = np.asarray(colour[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return bool(linear @ [0.2126, 0.7152, 0.0722] > 0.179)
