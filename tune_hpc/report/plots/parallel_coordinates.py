"""Parallel coordinates: configurations as lines across the axes of all parameters, coloured by a metric."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from tune_hpc.analysis.aggregation import aggregate_seeds, row_mask, sort_configurations
from tune_hpc.analysis.formatting import axis_label, display_name, format_number
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots.layout import CaptionedFigure, figure_title, label_text, new_figure
from tune_hpc.report.plots.series import even_sample, free_parameters, is_geometric

#: Lines of a figure at most.
MAX_LINES = 300
#: Parameters of a panel at most; more need several panels, each with the metric as its last axis.
_MAX_AXES = 7
#: Parameters on all panels.
MAX_AXES = 28
#: Inches: height of an axis and of its name, width between the first and last axis, room for the labels of the first.
_HEIGHT, _NAME_HEIGHT, _WIDTH, _FIRST = 2.3, 0.5, 4.8, 1.2
#: Inches of a character of 6.5 points, and between two labels of an axis.
_CHARACTER, _LABEL_DISTANCE = 0.056, 0.14
_BEST_COLOUR = "#D55E00"


@dataclass(frozen=True)
class ParallelAxis:
    """Vertical axis of one parameter or of the metric, from ``low`` to ``high`` (0 to 1 for names at equal distances).

    Values are numbers ascending, or names from the bottom up.
    """

    name: str
    values: Sequence[Any]
    is_categorical: bool
    is_log: bool
    low: float
    high: float

    def positions(self, values: Any) -> np.ndarray:
        """Return the positions of values, 0 (bottom) to 1 (top); NaN for missing values."""
        if self.is_categorical:
            levels = {value: (index + 0.5) / len(self.values) for index, value in enumerate(self.values)}
            return np.array([np.nan if pd.isna(value) else levels.get(value, np.nan) for value in values], float)
        numbers = pd.to_numeric(pd.Series(list(values)), errors="coerce").to_numpy(float, na_value=np.nan)
        low, high = self.low, self.high
        if self.is_log:
            numbers, low, high = np.log(numbers), np.log(low), np.log(high)
        return np.clip((numbers - low) / (high - low), 0, 1) if high > low else np.where(np.isnan(numbers), np.nan, 0.5)


def parallel_table(
    results: Results, metric: str, where: Mapping[str, Any]
) -> tuple[pd.DataFrame, list[ParallelAxis], int]:
    """Return the configurations without diverged seeds, the worst first, and the axes that they cross.

    Returns:
        Values and mean metric of at most 300 configurations (the best, and an even sample of the others by rank); the
        axes of all varying parameters, then of the metric; the number of configurations before sampling. Without two
        different configurations, an empty frame, no axes and 0.
    """
    df = aggregate_seeds(results, [metric, results.metric])
    df = df[(df["num_diverged"] == 0) & df[metric].notna() & row_mask(df, where)]
    if metric == results.metric:
        df = sort_configurations(results, df)
    names = _varied(df, free_parameters(results, [metric]))
    if len(df) < 2 or not names:
        return df.iloc[:0], [], 0
    lower_is_better = results.is_lower_better(metric)
    df = df.sort_values(metric, ascending=lower_is_better, kind="stable").reset_index(drop=True)
    table = df.iloc[even_sample(len(df), MAX_LINES)[::-1]].reset_index(drop=True)
    axes = [_parameter_axis(name, table[name]) for name in _varied(table, names)[:MAX_AXES]]
    return table, [*axes, _metric_axis(metric, table[metric], lower_is_better)], len(df)


def _varied(df: pd.DataFrame, names: Sequence[str]) -> list[str]:
    return [name for name in names if len(df[name].dropna().unique()) > 1]


def _parameter_axis(name: str, column: pd.Series) -> ParallelAxis:
    values = column.dropna().drop_duplicates()
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        # A column with gaps can contain booleans as objects.
        return ParallelAxis(name, sorted(values, key=str, reverse=True), True, False, 0.0, 1.0)
    numbers = sorted(map(float, values))
    return ParallelAxis(name, numbers, False, is_geometric(numbers), numbers[0], numbers[-1])


def _metric_axis(metric: str, column: pd.Series, lower_is_better: bool) -> ParallelAxis:
    """Return the metric's axis, cut so that a few far worse values do not compress all others."""
    values = np.sort(column.to_numpy(float))
    best, worst = (values[0], values[-1]) if lower_is_better else (values[-1], values[0])
    spread = float(np.quantile(np.abs(values - best), 0.75))
    if spread > 0 and abs(worst - best) > 6 * spread:
        worst = best + np.sign(worst - best) * 2 * spread
    return ParallelAxis(metric, list(values), False, False, float(min(best, worst)), float(max(best, worst)))


def _panels(axes: Sequence[ParallelAxis], table: pd.DataFrame) -> list[list[ParallelAxis]]:
    """Return the parameters' axes by panel, in order as far as gaps allow.

    A value between two gaps makes no line. Thus, as long as there are complete parameters, one with gaps neither
    begins a panel nor follows another one with gaps.
    """
    with_gaps = {axis.name for axis in axes if table[axis.name].isna().any()}
    sizes = [len(part) for part in np.array_split(np.arange(len(axes)), -(-len(axes) // _MAX_AXES))]
    waiting, panels = list(axes), []
    for size in sizes:
        panel: list[ParallelAxis] = []
        while len(panel) < size:
            complete = [axis for axis in waiting if axis.name not in with_gaps]
            needs_complete = not panel or panel[-1].name in with_gaps
            axis = complete[0] if needs_complete and complete else waiting[0]
            waiting.remove(axis)
            panel.append(axis)
        panels.append(panel)
    return panels


def draw(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw parallel coordinates, a figure per metric with configurations to compare."""
    sheets = []
    for metric in specification["metrics"]:
        table, axes, num_configurations = parallel_table(results, metric, where)
        if axes:
            title = figure_title(results, specification, where)
            sheet = _draw_metric(title, table, axes, num_configurations, results.is_lower_better(metric))
            if len(free_parameters(results, [metric])) > MAX_AXES:
                sheet.add_notes(f"Axes: the first {MAX_AXES} of the parameters that vary.")
            diverged = (results.trials["status"] == "diverged") & row_mask(results.trials, where)
            if num_diverged := int(diverged.sum()):
                sheet.add_notes(f"Configurations that diverged are left out ({num_diverged} trials).")
            sheets.append(sheet)
    return sheets


def _draw_metric(
    title: str, table: pd.DataFrame, axes: Sequence[ParallelAxis], num_configurations: int, lower_is_better: bool
) -> CaptionedFigure:
    last = axes[-1]
    panels = _panels(axes[:-1], table)
    sheet = new_figure(title, [_HEIGHT + _NAME_HEIGHT] * len(panels))
    margin = 0.05 * (abs(last.low) or 1) * (last.low == last.high)
    # Dark is better: thin bright lines are hard to see on white.
    colours = ScalarMappable(
        Normalize(last.low - margin, last.high + margin), mpl.colormaps["cividis" if lower_is_better else "cividis_r"]
    )
    lowest, highest = table[last.name].min(), table[last.name].max()
    extend = "max" if highest > last.high else "min" if lowest < last.low else "neither"
    for ax, panel in zip(sheet.axes, panels, strict=True):
        _draw_lines(ax, table, [*panel, last], colours)
        sheet.add_colour_bar(ax, colours, last.name, extend)
    seeds = ", the mean over its seeds" if (table["num_seeds"] > 1).any() else ""
    sheet.add_notes(f"Line: a configuration{seeds}; darker is better; thick and orange: the best.")
    if len(table) < num_configurations:
        sheet.add_notes(
            f"{len(table)} of {num_configurations} configurations: the best, and an even sample of the rest by rank."
        )
    if table[[axis.name for axis in axes[:-1]]].isna().any(axis=None):
        sheet.add_notes("A line has a gap where its configuration lacks a parameter.")
    if len(panels) > 1:
        sheet.add_notes("Each panel shows the same configurations.")
    if extend != "neither":
        edge, worst = (last.high, highest) if extend == "max" else (last.low, lowest)
        sheet.add_notes(
            f"The axis of the {display_name(last.name)} ends at {edge:.3g}; the worst value is {worst:.3g}."
        )
    return sheet


def _draw_lines(ax: Axes, table: pd.DataFrame, axes: Sequence[ParallelAxis], colours: ScalarMappable) -> None:
    """Draw one line per row of a table, the last on top and thicker, and the axes."""
    heights = np.column_stack([axis.positions(table[axis.name]) for axis in axes])
    x = np.arange(len(axes))
    shades = colours.to_rgba(table[axes[-1].name].to_numpy(float))
    alpha = 0.9 if len(table) <= 40 else 0.75 if len(table) <= 100 else 0.5
    for row, y in enumerate(heights[:-1]):
        # A value between two gaps makes no line, but a point.
        is_gap = np.concatenate([[True], np.isnan(y), [True]])
        points = [int(index) for index in np.flatnonzero(~is_gap[1:-1] & is_gap[:-2] & is_gap[2:])]
        ax.plot(x, y, color=shades[row], linewidth=0.8, alpha=alpha, marker="o", markersize=2.5, markevery=points)
    ax.plot(x, heights[-1], color=_BEST_COLOUR, linewidth=2.4, zorder=4, marker="o", markersize=4)
    distance = _WIDTH / max(len(axes) - 1, 1)
    ax.set_xlim(0, len(axes) - 1)
    ax.set_ylim(-0.02, 1.02)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_yticks([])
    ax.tick_params(axis="x", length=0, labelsize=7.5, labeltop=True, labelbottom=False, top=False)
    width = max(int(min(distance, _FIRST) / 0.064), 5)
    ax.set_xticks(x, ["\n".join(textwrap.wrap(axis_label(axis.name), width)[:3]) for axis in axes])
    halo = [patheffects.withStroke(linewidth=2.2, foreground="white")]
    for index, axis in enumerate(axes):
        ax.axvline(index, color="#444444", linewidth=0.8, zorder=5, clip_on=False)
        for text, y in _tick_labels(axis, distance if index else _FIRST):
            ax.annotate(
                text, (index, y), (-3, 0), textcoords="offset points", ha="right", va="center", size=6.5, zorder=6,
                path_effects=halo, annotation_clip=False, linespacing=0.95,
            )  # fmt: skip


def _tick_labels(axis: ParallelAxis, inches: float) -> list[tuple[str, float]]:
    """Return an axis's labels with their positions, without those that touch the label below."""
    if axis.is_categorical:
        max_characters = max(int((inches - 0.08) / _CHARACTER), 4)
        values = axis.values
        texts = [_shorten(label_text(value), max_characters) for value in values]
    else:
        values = _ticks(axis)
        texts = [format_number(value, 3) for value in values]
    labels: list[tuple[str, float]] = []
    for text, position in zip(texts, axis.positions(values), strict=True):
        height = _LABEL_DISTANCE * (text.count("\n") + 1)
        if not labels or (position - labels[-1][1]) * _HEIGHT >= height:
            labels.append((text, float(position)))
    return labels


def _shorten(text: str, max_characters: int) -> str:
    """Return a name on two lines, or cut, if it is too long."""
    if len(text) > max_characters:
        text = text.replace(" ", "\n", 1)
    lines = text.split("\n")
    return "\n".join(line if len(line) <= max_characters else line[: max_characters - 1] + "…" for line in lines)


def _ticks(axis: ParallelAxis) -> list[float]:
    """Return the ticks of a numeric axis: its values if they are few, else round numbers."""
    values: list[float] = sorted(set(axis.values))
    if len(values) > 8 and axis.is_log:
        decades = range(int(np.floor(np.log10(axis.low))), int(np.ceil(np.log10(axis.high))) + 1)
        steps = (1, 3) if len(decades) > 2 else (1, 2, 5)
        values = [step * 10.0**decade for decade in decades for step in steps]
    elif len(values) > 8:
        values = list(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(axis.low, axis.high))
    return [value for value in values if axis.low <= value <= axis.high]
