"""Styles, ticks and labels that all kinds of figures share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike

from tune_hpc.analysis.formatting import format_number, format_value

# Okabe and Ito's palette without yellow (invisible on white), and three more colours.
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#882255", "#7F7F7F", "#999933",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
#: Dashed grey line for an ideal or a target.
IDEAL: dict[str, Any] = {"color": "#7f7f7f", "linewidth": 1.0, "linestyle": (0, (2, 2))}
#: Mean width of a label's character in inches.
CHARACTER = 0.068
#: A longer label belongs to a sampled value; its axis gets round ticks.
_MAX_CHARACTERS = 6


def line_style(index: int) -> dict[str, Any]:
    """Return the style of the ``index``-th line; ten lines differ in colour and marker, neighbours in dash."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[index % len(_DASHES)],
    }


def published_style(colour: str = "#444444") -> dict[str, Any]:
    """Return the style of published numbers: hollow diamonds."""
    return {
        "linestyle": "none", "marker": "D", "markersize": 7, "markerfacecolor": "none",
        "markeredgecolor": colour, "markeredgewidth": 1.1,
    }  # fmt: skip


def label_text(value: Any) -> str:
    """Return a value as a label: underscores become spaces, and a dollar sign starts no formula."""
    return format_value(value, 4).replace("_", " ").replace("$", r"\$")


def format_ticks(axis: Axis, digits: int = 6) -> None:
    """Write tick labels as plain numbers of at most ``digits`` significant digits."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value, digits)))


def set_log2_ticks(axis: Axis, values: Sequence[Any] = ()) -> None:
    """Write plain numbers on a logarithmic axis of base 2, at ``values`` if given."""
    if values:
        axis.set_major_locator(FixedLocator(list(values)))
    axis.set_minor_locator(NullLocator())
    format_ticks(axis)


def set_log_y(ax: Axes) -> None:
    """Make the vertical axis logarithmic, with powers of ten as plain text: the formula parser is slow."""
    superscripts = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "10" + f"{np.log10(value):.3g}".translate(superscripts))
    )
    ax.yaxis.set_minor_locator(NullLocator())


def set_metric_axis(ax: Axes, values: pd.Series, num_ticks: int = 6) -> None:
    """Scale the horizontal axis of a metric: logarithmic if positive values span a factor of 100."""
    values = values.dropna()
    if values.min() > 0 and values.max() / values.min() >= 100:
        ax.set_xscale("log")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(num_ticks, steps=[1, 2, 5, 10]))
    format_ticks(ax.xaxis, 4)


def is_categorical(values: Sequence[Any]) -> bool:
    """Return whether any of the values is not a number."""
    return not all(isinstance(value, int | float | np.number) for value in values)


def set_category_ticks(ax: Axes, values: Sequence[Any], inches: float) -> None:
    """Label the horizontal axis with one value at each whole number.

    Args:
        ax: The panel.
        values: The values, in order.
        inches: Width of the panel; labels that are too wide lean.
    """
    labels = [label_text(value) for value in values]
    longest = max((len(word) for label in labels for word in label.split()), default=0)
    if (longest + 1) * CHARACTER <= inches / max(len(labels), 1):
        ax.set_xticks(range(len(labels)), [label.replace(" ", "\n") for label in labels])
    else:
        ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.5, len(labels) - 0.5)


def set_number_ticks(ax: Axes, values: Sequence[float], inches: float, *, log_x: bool) -> None:
    """Label the horizontal axis at chosen values whose labels do not touch, or at round ones for sampled values.

    Args:
        ax: The panel.
        values: The values of the parameter, ascending.
        inches: Width of the panel.
        log_x: Whether the axis is logarithmic; ignored unless all values are positive.
    """
    if not values:
        return
    transform: Any = np.asarray
    if log_x and values[0] > 0:
        ax.set_xscale("log")
        transform = np.log10
    positions = [float(transform(value)) for value in values]
    span = (positions[-1] - positions[0]) or 1.0
    ends = np.array([positions[0] - 0.05 * span, positions[-1] + 0.05 * span])
    ax.set_xlim(*(10**ends if transform is np.log10 else ends))
    format_ticks(ax.xaxis)
    ax.xaxis.set_minor_formatter(NullFormatter())
    widths = [len(format_number(value)) for value in values]
    if len(values) > 20 or max(widths) > _MAX_CHARACTERS:
        if transform is np.log10:
            ax.xaxis.set_major_locator(LogLocator(subs=(1,) if span > 2 else (1, 2, 5)))
        return

    def is_apart(left: int, right: int) -> bool:
        distance = (positions[right] - positions[left]) / span * inches / 1.1
        return distance >= (widths[left] + widths[right]) / 2 * 0.075 + 0.08

    # Both ends have labels; a value between them has one if there is room.
    last = len(values) - 1
    indices = [0]
    for index in range(1, last):
        if is_apart(indices[-1], index) and is_apart(index, last):
            indices.append(index)
    if last and is_apart(indices[-1], last):
        indices.append(last)
    ax.xaxis.set_major_locator(FixedLocator([values[index] for index in indices]))
    ax.xaxis.set_minor_locator(NullLocator())


def clip_error_bars(ax: Axes, table: pd.DataFrame, others: ArrayLike = ()) -> bool:
    """Limit the vertical axis to the means if intervals are much wider, as those of two seeds are.

    Args:
        ax: The panel.
        table: Columns ``mean``, ``low`` and ``high``.
        others: More values that must be visible.

    Returns:
        Whether the axis was limited.
    """
    values = np.concatenate([table["mean"].to_numpy(float), np.asarray(others, dtype=float)])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    span = high - low
    lowest, highest = float(table["low"].min()), float(table["high"].max())
    if span > 0 and (lowest < low - span or highest > high + span):
        ax.set_ylim(max(min(lowest, low), low - span / 2), min(max(highest, high), high + span / 2))
        return True
    return False
