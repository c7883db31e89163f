"""Parallel coordinates: configurations as lines across the parameters' axes, coloured by a metric."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from tune_hpc.analysis.aggregation import row_mask
from tune_hpc.analysis.formatting import axis_label, display_name, format_number
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots.axes import WIDTH, label_text
from tune_hpc.report.plots.layout import EDGE, FigureLayout, colour_bar_width, figure_title, new_figure
from tune_hpc.report.plots.parallel_data import Scale, grouped, parallel_table

#: More axes than this stand too close to one another; then there are several panels, each ending with the metric.
MOST_AXES = 7
#: Inches of a panel's axes, of the names above them, below them; of a character of 6.5 points; between two labels.
_HEIGHT, _NAMES, _BELOW, _SMALL, _APART = 2.3, 0.42, 0.18, 0.056, 0.14
#: Inches: the widest name of an axis before it is broken, and a character of it.
_WIDEST, _CHARACTER = 1.2, 0.066
_BEST = "#D55E00"


def draw(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw parallel coordinates of one metric after another, a sheet each; none where nothing can be compared."""
    drawn = (_sheet(results, specification, where, metric) for metric in specification["metrics"])
    return [sheet for sheet in drawn if sheet is not None]


def _sheet(
    results: Results, specification: Mapping[str, Any], where: Mapping[str, Any], metric: str
) -> FigureLayout | None:  # fmt: skip
    table, scales, num_configurations = parallel_table(results, metric, where)
    if not scales:
        return None
    parameters, last = scales[:-1], scales[-1]
    groups = grouped(parameters, table, MOST_AXES)
    num_panels = len(groups)
    panel = _NAMES + _HEIGHT + _BELOW
    sheet = new_figure(figure_title(results, specification, where), num_panels * panel)
    right = colour_bar_width([metric], _HEIGHT)
    is_low = results.is_lower_better(metric)
    margin = 0.05 * (abs(last.low) or 1) * (last.low == last.high)
    norm = Normalize(last.low - margin, last.high + margin)
    # Dark is good: thin bright lines are hard to see on white.
    colours = ScalarMappable(norm, mpl.colormaps["cividis" if is_low else "cividis_r"])
    values = table[metric].to_numpy(float)
    extend = "max" if values.max() > last.high else "min" if values.min() < last.low else "neither"
    for number, group in enumerate(groups):
        own = [*group, last]
        labels = _labels(own[0], 1.2)
        left = EDGE + max(len(part) for text, _ in labels for part in text.split("\n")) * _SMALL + 0.12
        name = max(map(len, _broken(axis_label(own[0].name), _WIDEST).split("\n"))) * _CHARACTER
        left = max(left, name / 2 + 0.05)
        # The last axis has its numbers on its left, as all others.
        ax = sheet.panel(left, number * panel + _NAMES, WIDTH - left - right - 0.1, _HEIGHT)
        draw_parallel(ax, table, own, colours)
        sheet.colour_bar(ax, colours, metric, extend)
    seeds = ", the mean over its seeds" if (table["num_seeds"] > 1).any() else ""
    sheet.notes[f"Line: a configuration{seeds}; darker is better; thick and orange: the best."] = None
    if len(table) < num_configurations:
        said = f"{len(table)} of {num_configurations} configurations: the best, and an even sample of the rest by rank."
        sheet.notes[said] = None
    if table[[scale.name for scale in parameters]].isna().any(axis=None):
        sheet.notes["A line has a gap where its configuration lacks a parameter."] = None
    if num_panels > 1:
        sheet.notes["Each panel shows the same configurations."] = None
    if extend != "neither":
        edge, beyond = (last.high, values.max()) if extend == "max" else (last.low, values.min())
        sheet.notes[f"The axis of the {display_name(metric)} ends at {edge:.3g}; the worst value is {beyond:.3g}."] = (
            None
        )
    lost = int(((results.trials["status"] == "diverged") & row_mask(results.trials, where)).sum())
    if lost:
        sheet.notes[f"Configurations that diverged are left out ({lost} trials)."] = None
    return sheet


def draw_parallel(ax: Axes, table: pd.DataFrame, scales: Sequence[Scale], colours: ScalarMappable) -> None:
    """Draw one line per row of a table, the last on top and thicker, and an axis per scale."""
    places = np.column_stack([scale.positions(table[scale.name]) for scale in scales])
    x = np.arange(len(scales))
    shades = colours.to_rgba(table[scales[-1].name].to_numpy(float))
    alpha = 0.9 if len(table) <= 40 else 0.75 if len(table) <= 100 else 0.5
    for row, y in enumerate(places):
        is_best = row == len(places) - 1
        # A value between two gaps makes no line, but a point.
        held = np.concatenate([[True], np.isnan(y), [True]])
        lonely = [int(at) for at in np.flatnonzero(~np.isnan(y)) if held[at] and held[at + 2]]
        look: dict[str, Any] = (
            {"color": _BEST, "linewidth": 2.4, "zorder": 4, "marker": "o", "markersize": 4}
            if is_best
            else {"color": shades[row], "linewidth": 0.8, "alpha": alpha, "marker": "o", "markersize": 2.5,
                  "markevery": lonely}
        )  # fmt: skip
        ax.plot(x, y, **look)
    figure = ax.get_figure(root=True)
    assert figure is not None
    room = ax.get_window_extent().width / figure.dpi / max(len(scales) - 1, 1)
    ax.set_xlim(0, len(scales) - 1)
    ax.set_ylim(-0.02, 1.02)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set_yticks([])
    ax.tick_params(axis="x", length=0, labelsize=7.5, labeltop=True, labelbottom=False, top=False)
    ax.set_xticks(x, [_broken(axis_label(scale.name), room) for scale in scales])
    halo = [patheffects.withStroke(linewidth=2.2, foreground="white")]
    for at, scale in enumerate(scales):
        ax.axvline(at, color="#444444", linewidth=0.8, zorder=5, clip_on=False)
        for text, y in _labels(scale, room if at else 1.2):
            ax.annotate(
                text, (at, y), (-3, 0), textcoords="offset points", ha="right", va="center", size=6.5, zorder=6,
                path_effects=halo, annotation_clip=False, linespacing=0.95,
            )  # fmt: skip


def _broken(name: str, inches: float) -> str:
    """Return an axis's name in at most three lines that do not touch its neighbours'."""
    width = max(int(min(inches, _WIDEST) / 0.064), 5)
    lines = textwrap.wrap(name, width)
    return "\n".join(lines[:3])


def _labels(scale: Scale, inches: float) -> list[tuple[str, float]]:
    """Return an axis's labels with their places, as far as they do not touch."""
    if scale.is_categorical:
        most = max(int((inches - 0.08) / _SMALL), 4)
        told = [_fitted(label_text(value), most) for value in scale.values]
        places = list(scale.positions(scale.values))
    else:
        numbers = _ticks(scale)
        told = [format_number(value, 3) for value in numbers]
        places = list(scale.positions(numbers))
    kept: list[tuple[str, float]] = []
    for text, place in zip(told, places, strict=True):
        tall = _APART * (text.count("\n") + 1)
        if not kept or (place - kept[-1][1]) * _HEIGHT >= tall:
            kept.append((text, float(place)))
    return kept


def _fitted(text: str, most: int) -> str:
    """Return a name that fits: on two lines, or cut."""
    if len(text) > most:
        text = text.replace(" ", "\n", 1)
    return "\n".join(line if len(line) <= most else line[: most - 1] + "…" for line in text.split("\n"))


def _ticks(scale: Scale) -> list[float]:
    """Return the numbers to write at an axis: its values where they are few, round ones otherwise."""
    values = sorted(set(scale.values))
    if len(values) <= 8:
        return [value for value in values if scale.low <= value <= scale.high]
    if scale.is_log:
        decades = range(int(np.floor(np.log10(scale.low))), int(np.ceil(np.log10(scale.high))) + 1)
        steps = (1, 3) if len(decades) > 2 else (1, 2, 5)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
    else:
        ticks = list(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(scale.low, scale.high))
    return [tick for tick in ticks if scale.low <= tick <= scale.high]
