"""Heat maps: a metric over two parameters, as colours and as numbers."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Patch, Rectangle

from tune_hpc.analysis.aggregation import aggregate_seeds, is_crossed_design, row_mask, trial_values
from tune_hpc.analysis.formatting import axis_label, display_name
from tune_hpc.analysis.linear_model import all_differences
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots.layout import (
    CaptionedFigure,
    Legend,
    figure_title,
    label_text,
    new_figure,
    set_category_ticks,
)
from tune_hpc.report.plots.series import best_values, best_values_note, tables_by_metric

CONFIDENCE = 0.95
MEASURED, DIVERGED, NO_VALUE = "measured", "diverged", "no value"
_COLUMNS = ("x", "y", "value", "state", "is_partial", "num_configurations", "is_best", "configuration")
#: Columns and rows of a heat map at most; the best values stay.
_MAX_COLUMNS, _MAX_ROWS = 24, 30
#: Inches of a row, of the labels below them, and of the least panel: a shorter colour bar has no room for its label.
_ROW_HEIGHT, _AXIS_HEIGHT, _MIN_HEIGHT = 0.27, 0.6, 1.35
#: Points of a panel's width, width of a character relative to its size, and the smallest readable letters in points.
_PANEL_POINTS, _CHARACTER, _MIN_POINTS = 300, 0.62, 5.0
_STYLES: dict[str, dict[str, Any]] = {
    DIVERGED: {"facecolor": "#f3f3f3", "edgecolor": "#8a8a8a", "hatch": "//////", "linewidth": 0.0},
    NO_VALUE: {"facecolor": "white", "edgecolor": "#a5a5a5", "hatch": "....", "linewidth": 0.0},
}
_BEST: dict[str, Any] = {"facecolor": "none", "edgecolor": "#D55E00", "linewidth": 2.0}
_TIED: dict[str, Any] = {**_BEST, "linewidth": 1.2, "linestyle": (0, (2.5, 1.5))}


def heat_table(results: Results, metric: str, x: str, y: str, where: Mapping[str, Any]) -> pd.DataFrame:
    """Return a metric over two parameters, one row per cell of the full grid.

    Returns:
        ``x``, ``y``, ``value`` (mean over seeds), ``state``, ``is_partial`` (some seeds diverged; the mean is over the
        others), ``num_configurations`` (the cell is the best of them), ``is_best`` (best cell without a diverged seed)
        and ``configuration`` (row of ``aggregate_seeds``, or missing). ``state`` is ``measured``, ``diverged`` (trials,
        no value, and at least one diverged) or ``no value``. Empty without values, for a single cell, and for sampled
        parameters.
    """
    empty = pd.DataFrame(columns=list(_COLUMNS))
    df = aggregate_seeds(results, [metric])
    if x == y or {x, y} - (set(df) & set(results.trials)):
        return empty
    df = df[row_mask(df, where)].dropna(subset=[x, y])
    if not df[metric].notna().any() or len(df[[x, y]].drop_duplicates()) < 2 or not is_crossed_design(df, x, y):
        return empty
    lower_is_better = results.is_lower_better(metric)
    # In a cell, a configuration without diverged seeds precedes one with some.
    df = df.assign(has_lost=df["num_diverged"] > 0, has_none=df[metric].isna(), configuration=df.index)
    df = df.sort_values(["has_none", "has_lost", metric], ascending=[True, True, lower_is_better], kind="stable")
    grouped = df.groupby([x, y], sort=False)
    cells = grouped.head(1).set_index([x, y])
    cells = cells.assign(size=grouped.size(), diverged=grouped["num_diverged"].sum())
    grid = pd.MultiIndex.from_product([df[x].unique(), df[y].unique()], names=["x", "y"])
    cells = cells.rename_axis(index=["x", "y"]).reindex(grid)
    value = cells[metric].astype(float)
    table = pd.DataFrame(
        {
            "value": value,
            "state": np.where(value.notna(), MEASURED, np.where(cells["diverged"] > 0, DIVERGED, NO_VALUE)),
            "is_partial": (value.notna() & (cells["num_diverged"] > 0)).astype(bool),
            "num_configurations": cells["size"].fillna(0).astype(int),
            "configuration": cells["configuration"].astype("Int64"),
        }
    ).reset_index()
    complete = table.loc[~table["is_partial"], "value"].dropna()
    best = None if complete.empty else complete.idxmin() if lower_is_better else complete.idxmax()
    return table.assign(is_best=table.index == best)[list(_COLUMNS)]


def tied_with_best(results: Results, metric: str, table: pd.DataFrame) -> pd.Series:
    """Return which cells tie with the best cell at 95 %: the rule of ``Results.compare``, for all cells with a value.

    Without a variance, as with one seed, no cell is tied.
    """
    tied = pd.Series(False, index=table.index)
    cells = table[table["value"].notna() & ~table["is_partial"]]
    if not table["is_best"].any() or len(cells) < 2:
        return tied
    by_seed = trial_values(results, [metric]).pivot_table(metric, "seed", "configuration")
    found = all_differences(by_seed[cells["configuration"]], results.is_lower_better(metric), CONFIDENCE)
    p = found.p[np.flatnonzero(cells["is_best"])[0]]
    tied[cells.index] = (p >= 1 - CONFIDENCE) & ~cells["is_best"]
    return tied


def draw(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw heat maps of all metrics with data, below one another."""
    x, y = str(specification.get("parameter")), str(specification.get("line"))
    tables = tables_by_metric(specification, lambda metric: heat_table(results, metric, x, y, where))
    if not tables:
        return []
    columns, rows = best_values(results, x, _MAX_COLUMNS), best_values(results, y, _MAX_ROWS)
    for metric, table in tables.items():
        selected = table[table["x"].isin(columns) & table["y"].isin(rows)]
        tables[metric] = selected.assign(is_tied=tied_with_best(results, metric, selected))
    cells = pd.concat(tables.values())
    columns = [value for value in columns if (cells["x"] == value).any()]
    rows = [value for value in rows if (cells["y"] == value).any()]
    height = max(len(rows) * _ROW_HEIGHT, _MIN_HEIGHT) + _AXIS_HEIGHT
    sheet = new_figure(figure_title(results, specification, where), [height] * len(tables))
    if legend := _legend(cells):
        sheet.add_legend(legend)
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        lower_is_better = results.is_lower_better(metric)
        norm, extend = _norm(table["value"].dropna(), lower_is_better and "accuracy" not in metric)
        # Dark is better for every metric, as in parallel coordinates.
        colour_map = "cividis" if lower_is_better else "cividis_r"
        table = table.assign(column=table["x"].map(columns.index), row=table["y"].map(rows.index))
        colours = _draw_cells(ax, table, (len(rows), len(columns)), norm, colour_map)
        sheet.add_colour_bar(ax, colours, metric, extend)
        set_category_ticks(ax, columns, 4.6)
        ax.set_yticks(range(len(rows)), [label_text(value) for value in rows])
        sheet.set_labels(ax, axis_label(x), axis_label(y))
        has_numbers = _draw_numbers(ax, table, colours, metric, len(columns))
        sheet.add_notes(*_notes(results, metric, table, norm, has_numbers))
    sheet.add_notes(best_values_note(results, x, columns), best_values_note(results, y, rows))
    return [sheet]


def _legend(table: pd.DataFrame) -> Legend:
    """Return the frames and hatches that occur."""
    masks = {"best": (table["is_best"], _BEST), "tied with the best": (table["is_tied"], _TIED)}
    masks |= {state: (table["state"] == state, style) for state, style in _STYLES.items()}
    return [(label, Patch(**style)) for label, (mask, style) in masks.items() if mask.any()]


def _draw_cells(
    ax: Axes, table: pd.DataFrame, shape: tuple[int, int], norm: Normalize, colour_map: str
) -> ScalarMappable:
    """Draw the coloured cells, hatches and frames of a table with ``row`` and ``column``; return the colours."""
    values = np.full(shape, np.nan)
    values[table["row"], table["column"]] = table["value"]
    colours = ax.pcolormesh(
        np.arange(shape[1] + 1) - 0.5, np.arange(shape[0] + 1) - 0.5, np.ma.masked_invalid(values),
        norm=norm, cmap=colour_map, edgecolors="white", linewidth=0.8,
    )  # fmt: skip
    ax.grid(False)
    ax.set_ylim(shape[0] - 0.5, -0.5)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    cell: Any
    for cell in table.itertuples():
        left, top = cell.column - 0.5, cell.row - 0.5
        if cell.state in _STYLES:
            ax.add_patch(Rectangle((left + 0.03, top + 0.04), 0.94, 0.92, **_STYLES[cell.state]))
        if cell.is_best:
            ax.add_patch(Rectangle((left, top), 1, 1, **_BEST, zorder=4, clip_on=False))
        if cell.is_tied:
            ax.add_patch(Rectangle((left + 0.02, top + 0.03), 0.96, 0.94, **_TIED, zorder=3))
    return colours


def _draw_numbers(ax: Axes, table: pd.DataFrame, colours: ScalarMappable, metric: str, num_columns: int) -> bool:
    """Write the value of each measured cell; return whether there is room for readable numbers."""
    table = table[table["state"] == MEASURED]
    # A range below 0.03 needs a fourth decimal.
    digits = 4 if table["value"].max() - table["value"].min() < 0.03 else 3
    texts = [
        _text(value, metric, digits) + "*" * bool(is_partial)
        for value, is_partial in zip(table["value"], table["is_partial"], strict=True)
    ]
    width = _PANEL_POINTS / num_columns - 4
    points = min(width / (max(map(len, texts), default=1) * _CHARACTER), 7.5)
    if points < _MIN_POINTS:
        return False
    cell: Any
    for cell, text in zip(table.itertuples(), texts, strict=True):
        ax.text(
            cell.column, cell.row + 0.02, text, ha="center", va="center", size=points,
            color="black" if _is_bright(colours.to_rgba(cell.value)) else "white",
            weight="bold" if cell.is_best else "normal",
        )  # fmt: skip
    return True


def _notes(results: Results, metric: str, table: pd.DataFrame, norm: Normalize, has_numbers: bool) -> Iterable[str]:
    """Yield the sentences of the caption for one metric."""
    has_seeds = "seed" in results.varied_parameters
    yield f"Cell: {display_name(metric)}{', mean over seeds' * has_seeds}."
    yield "Darker is better."
    if table["is_best"].any():
        yield "Framed: the best cell."
    if table["is_tied"].any():
        yield "Dashed: cells that tie with it at 95 % (Tukey)."
    if (table["num_configurations"] > 1).any():
        yield "Where other parameters vary, too, a cell is the best configuration's."
    if table["is_partial"].any():
        yield "*: mean of the seeds that did not diverge."
    for state, text in ((DIVERGED, "Striped: diverged"), (NO_VALUE, "Dotted: no trial there gave a value")):
        if count := int((table["state"] == state).sum()):
            yield f"{text} ({count} of {len(table)} cells)."
    if not has_numbers:
        yield "There is no room for numbers."
    highest = table["value"].max()
    if norm.vmax is not None and highest > norm.vmax:
        yield f"The colours end at {norm.vmax:.3g}; the highest value is {highest:.3g}."


def _text(value: float, metric: str, digits: int) -> str:
    """Return a number that fits into a cell."""
    if "accuracy" in metric:
        return f"{value:.{digits}f}"
    if 1000 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:#.3g}".replace("e+0", "e").replace("e-0", "e-").rstrip(".")


def _norm(values: pd.Series, may_explode: bool) -> tuple[Normalize, str]:
    """Return the range of the colours, cut so that a few exploded values do not make all others one colour."""
    low, high, median = float(values.min()), float(values.max()), float(values.median())
    if may_explode and low >= 0 and high > 8 * median > 0:
        return Normalize(low, 2 * median), "max"
    if low == high:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    return Normalize(low, high), "neither"


def _is_bright(colour: Any) -> bool:
    """Return whether black has more contrast on a colour than white (relative luminance of WCAG)."""
    channels = np.asarray(colour[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return bool(linear @ [0.2126, 0.7152, 0.0722] > 0.179)
