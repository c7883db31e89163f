"""Drawing on axes: curves against steps, and responses to one parameter.

Each plot is two functions: one in plot_data.py computes a small table, one here (``draw_curve``, ``draw_response``)
draws it. figures.py makes the axes, the legends and the files.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike

from tune_hpc.analysis.formatting import format_number, format_value
from tune_hpc.report.plots import curves

# Okabe and Ito's palette without its yellow (invisible on white), with three that keep their distance from the rest.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#7F7F7F",
    "#999933",
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))

#: Inches: a figure as wide as a page's text, and the mean width of a label's character.
WIDTH, CHARACTER = 6.5, 0.068
#: A value whose label is longer was drawn, not chosen.
MOST_CHARACTERS = 6
#: More points than this are drawn as pixels also where the rest is vectors: a file of them takes megabytes.
MOST_MARKS = 5000


def line_style(index: int) -> dict[str, Any]:
    """Return how the ``index``-th line looks: colour, dash and marker all differ among ten."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index % len(_DASHES)],
    }


def draw_curve(ax: Axes, table: pd.DataFrame, lines: Sequence[Any], *, log_y: bool = False) -> list[str]:
    """Draw curves with their bands.

    Args:
        ax: Where.
        table: What ``plot_data.curve_table`` returned.
        lines: All lines of the figure, in the order of their styles.
        log_y: A logarithmic axis where no value is negative; exact zeros lie on its lower edge.

    Returns:
        Notes for the caption.
    """
    notes: list[str] = []
    positive = table.loc[table["mean"] > 0, "mean"]
    log_y = log_y and bool((table["mean"] >= 0).all()) and len(positive) > 0
    floor = positive.min() / 10 if log_y else -np.inf
    grouped = dict(list(table.groupby("line", sort=False)))
    for index, line in enumerate(lines):
        if line not in grouped:
            continue
        own = grouped[line]
        x, mean, low, high = (own[name].to_numpy(float) for name in ("x", "mean", "low", "high"))
        kept = curves.downsample(mean)
        if (own["num_trials"] > 1).any():
            notes.append("Line: mean over seeds.")
        if (own["high"] > own["low"]).any():
            notes.append("Band: 95 % interval of the mean (Student's).")
            band = (np.maximum(values[kept], floor) for values in (low, high))
            ax.fill_between(x[kept], *band, color=line_style(index)["color"], alpha=0.16, linewidth=0)
        every = _marked(x[kept], index)
        ax.plot(x[kept], np.maximum(mean[kept], floor), markevery=every, zorder=3, **line_style(index))
    if log_y:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(_power))
        ax.yaxis.set_minor_locator(NullLocator())
        if (table["mean"] <= 0).any():
            ax.set_ylim(bottom=floor)
            notes.append("Exact zeros lie on the lower edge.")
    narrow = ax.get_window_extent().width < 3 * ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    num_ticks = 4 if narrow and table["x"].max() >= 10_000 else 6
    ax.xaxis.set_major_locator(MaxNLocator(num_ticks, integer=True, steps=[1, 2, 2.5, 5, 10]))
    if table["x"].min() == table["x"].max():
        ax.set_xlim(table["x"].min() - 1, table["x"].max() + 1)
    if top := _y_cutoff(table, log_y):
        ax.set_ylim(floor if log_y else table["mean"].min() - 0.06 * top, top)
        notes.append(f"Cut at the top; the highest value is {table['mean'].max():.3g}.")
    elif not log_y and clip_error_bars(ax, table):
        notes.append("Bands far wider than the lines' range are cut.")
    return notes


def clip_error_bars(ax: Axes, table: pd.DataFrame, others: ArrayLike = ()) -> bool:
    """Keep means readable: two seeds make an interval many times as wide as what they measured.

    Args:
        ax: Where they are drawn.
        table: ``mean``, ``low`` and ``high``.
        others: More that must be seen, on the same axis.

    Returns:
        Whether the axis was cut.
    """
    shown = np.concatenate([table["mean"].to_numpy(float), np.asarray(others, dtype=float)])
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    span = high - low
    if span > 0 and (table["low"].min() < low - span or table["high"].max() > high + span):
        bottom, top = min(float(table["low"].min()), low), max(float(table["high"].max()), high)
        ax.set_ylim(max(bottom, low - span / 2), min(top, high + span / 2))
        return True
    return False


def _marked(x: np.ndarray, index: int) -> list[int]:
    """Return where a curve has its markers: evenly along the axis, at other places than its neighbours'."""
    if len(x) <= 8:
        return list(range(len(x)))
    places = x[0] + (np.arange(7) + 0.05 + index % 5 * 0.19) / 7 * (x[-1] - x[0])
    return sorted({int(place) for place in np.searchsorted(x, places).clip(max=len(x) - 1)})


def _power(value: float, _: object) -> str:
    """Return a power of ten with its exponent raised, without matplotlib's slow formula parser."""
    exponent = f"{np.log10(value):.3g}"
    return "10" + exponent.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _y_cutoff(table: pd.DataFrame, log_y: bool) -> float | None:
    """Return where to cut, if a few exploding lines would flatten all others."""
    highest = table.groupby("line", sort=False)["mean"].max()
    usual = highest.median()
    if len(highest) < 3 or table["mean"].min() < 0 or highest.max() <= usual * (1e4 if log_y else 8):
        return None
    return float(usual * (100 if log_y else 2))


def draw_response(
    ax: Axes,
    table: pd.DataFrame,
    lines: Sequence[Any],
    published: pd.DataFrame | None = None,
    *,
    positions: Sequence[Any],
    log_x: bool = False,
) -> list[str]:
    """Draw a trial's metric against one parameter, published numbers as hollow diamonds.

    Args:
        ax: Where.
        table: What ``plot_data.response_table`` returned.
        lines: All lines of the figure, in the order of their styles.
        published: What ``plot_data.published_table`` returned.
        positions: The parameter's values; words are placed at equal distances.
        log_x: A logarithmic axis where all values are positive.

    Returns:
        Notes for the caption.
    """
    notes: list[str] = []
    wordy = is_categorical(positions)
    is_dense = len(table) > MOST_MARKS
    place = {value: index for index, value in enumerate(positions)}
    for index, line in enumerate(lines):
        own = table[table["line"] == line]
        x = own["x"].map(place).to_numpy(float) if wordy else own["x"].to_numpy(float)
        style = line_style(index)
        # Where other parameters vary, too, a line through the points would mean nothing.
        if wordy or not own["is_joined"].all():
            style["linestyle"] = "none"
        if (own["num_trials"] > 1).any():
            notes.append("Point: mean over seeds.")
        if (own["high"] > own["low"]).any():
            notes.append("Bar: 95 % interval of the mean (Student's).")
            ax.vlines(x, own["low"], own["high"], color=style["color"], linewidth=0.9, alpha=0.7, rasterized=is_dense)
        ax.plot(x, own["mean"], zorder=3, rasterized=is_dense, **style)
        if published is not None:
            theirs = published[published["line"] == line]
            theirs_x = theirs["x"].map(place) if wordy else theirs["x"]
            ax.plot(theirs_x, theirs["mean"], zorder=4, **published_style(style["color"]))
    if len(table) and clip_error_bars(ax, table, () if published is None else published["mean"]):
        notes.append("Bars far longer than the points' range are cut.")
    if wordy:
        labels, lean, _ = categorical_ticks(positions, ax.get_window_extent().width / 200)
        ax.set_xticks(range(len(positions)), labels, rotation=lean, ha="right" if lean else "center")
        ax.set_xlim(-0.5, len(positions) - 0.5)
    else:
        _number_axis(ax, sorted(map(float, positions)), log_x=log_x)
    return notes


def categorical_ticks(positions: Sequence[Any], inches: float) -> tuple[list[str], int, float]:
    """Return labels that do not touch, how far they lean, and the extra inches that they need."""
    labels = [label_text(value).replace(" ", "\n") for value in positions]
    longest = max((len(part) for label in labels for part in label.split("\n")), default=0)
    if (longest + 1) * CHARACTER <= inches / max(len(labels), 1):
        return labels, 0, 0.13 * max((label.count("\n") for label in labels), default=0)
    labels = [label_text(value) for value in positions]
    return labels, 40, 0.047 * max(map(len, labels))


def is_categorical(positions: Sequence[Any]) -> bool:
    """Return whether any of a parameter's values is no number."""
    return not all(isinstance(value, int | float | np.number) for value in positions)


def published_style(colour: str) -> dict[str, Any]:
    """Return how published numbers look beside measured ones of a colour."""
    return {
        "linestyle": "none", "marker": "D", "markersize": 7, "markerfacecolor": "none",
        "markeredgecolor": colour, "markeredgewidth": 1.1,
    }  # fmt: skip


def _number_axis(ax: Axes, values: list[float], *, log_x: bool) -> None:
    """Put ticks at the values that were chosen, as far as labels do not touch; at round ones where they were drawn."""
    log_x = log_x and bool(values) and values[0] > 0
    if log_x:
        ax.set_xscale("log")
    if not values:
        return
    low, high = values[0], values[-1]
    place = np.log10 if log_x else np.asarray
    span = float(place(high) - place(low)) or 1.0
    margin = 0.05 * span
    ends = float(place(low)) - margin, float(place(high)) + margin
    ax.set_xlim((10 ** ends[0], 10 ** ends[1]) if log_x else ends)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    if len(values) > 20 or max(len(format_number(value)) for value in values) > MOST_CHARACTERS:
        if log_x:
            ax.xaxis.set_major_locator(LogLocator(subs=(1,) if span > 2 else (1, 2, 5)))
        return
    figure = ax.get_figure(root=True)
    inches = ax.get_position().width * (figure.get_figwidth() if figure else WIDTH) / 1.1
    kept: list[float] = []
    for value in values:
        # The last value is kept whatever comes before it: both ends of the range are read most.
        while kept and (place(value) - place(kept[-1])) / span * inches < _margin(kept[-1], value):
            if value != high or len(kept) == 1:
                break
            kept.pop()
        else:
            kept.append(value)
    ax.xaxis.set_major_locator(FixedLocator(kept))
    ax.xaxis.set_minor_locator(NullLocator())


def _margin(left: float, right: float) -> float:
    return (len(format_number(left)) + len(format_number(right))) / 2 * 0.075 + 0.08


def label_text(value: Any) -> str:
    """Return a value as a label: underscores are spaces, and a dollar sign starts no formula."""
    return format_value(value, 4).replace("_", " ").replace("$", r"\$")
