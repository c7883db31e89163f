"""Parts that all kinds of figures share: panels, legend and caption, styles, ticks and labels.

matplotlib's constrained layout places the parts.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike

from tune_hpc.analysis.formatting import QUICK_NOTE, axis_label, display_name, format_number, format_value
from tune_hpc.analysis.results import Results

#: Width of a figure in inches: the text of a page.
WIDTH = 6.5
#: Height in inches of a panel with its labels, by the number of panels in a row; of the title; of a legend's row.
_PANEL_HEIGHTS, _TITLE_HEIGHT, _LEGEND_ROW_HEIGHT = {1: 2.9, 2: 2.3}, 0.3, 0.18
#: Characters of a vertical label's line, of a legend's line, and of the space that a legend's handle takes.
_LABEL_CHARACTERS, _LINE_CHARACTERS, _HANDLE_CHARACTERS = 22, 92, 9
# Okabe and Ito's palette without yellow (invisible on white), and three more colours.
_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#882255", "#7F7F7F", "#999933",
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
#: Style of a line for an ideal or a target.
IDEAL: dict[str, Any] = {"color": "#7f7f7f", "linewidth": 1.0, "linestyle": (0, (2, 2))}
#: Mean width of a label's character in inches.
_CHARACTER = 0.068
#: A longer label belongs to a sampled value; its axis gets round ticks.
_MAX_CHARACTERS = 6
#: Labels of a legend, each with the style of its line or an artist.
Legend = Sequence[tuple[str, Mapping[str, Any] | Artist]]


@dataclass
class CaptionedFigure:
    """Figure with its panels (without colour bars), its heading, and sentences for its caption."""

    figure: Figure
    axes: list[Axes]
    title: str
    notes: list[str] = field(default_factory=list)

    @property
    def caption(self) -> str:
        """Title and notes as sentences."""
        return " ".join([f"{self.title}.", *self.notes])

    def add_notes(self, *notes: str) -> None:
        """Add sentences to the caption, each once; skip empty ones."""
        self.notes += [note for note in dict.fromkeys(notes) if note and note not in self.notes]

    def set_labels(self, ax: Axes, x: str, y: str) -> None:
        """Label both axes of a panel; a long vertical label is broken into lines."""
        ax.set(xlabel=x, ylabel=textwrap.fill(y, _LABEL_CHARACTERS))

    def add_legend(self, legend: Legend, heading: str | None = None) -> None:
        """Add a legend below the panels; its rows make the figure higher."""
        labels = [label for label, _ in legend]
        handles = [style if isinstance(style, Artist) else Line2D([], [], **style) for _, style in legend]
        longest = max(map(len, labels), default=0) + _HANDLE_CHARACTERS
        num_columns = max(min(_LINE_CHARACTERS // longest, len(labels), 5), 1)
        num_rows = -(-len(labels) // num_columns) + bool(heading)
        self.figure.set_figheight(self.figure.get_figheight() + _LEGEND_ROW_HEIGHT * num_rows)
        self.figure.legend(
            handles, labels, title=heading, loc="outside lower center", ncols=num_columns, borderaxespad=0.6
        )

    def add_colour_bar(self, ax: Axes, colours: ScalarMappable, metric: str, extend: str = "neither") -> None:
        """Add a colour bar on the right of a panel, as high as the panel, with the metric and its unit."""
        bar = self.figure.colorbar(colours, ax=ax, extend=extend, fraction=0.03, pad=0.02)
        bar.ax.set_box_aspect(None)
        bar.ax.set_label("colour bar")
        bar.outline.set_linewidth(0.5)
        bar.ax.tick_params(labelsize=7, length=2)
        format_ticks(bar.ax.yaxis, 4)
        bar.set_label(textwrap.fill(axis_label(metric), _LABEL_CHARACTERS), fontsize=8)

    def lay_out(self) -> None:
        """Place all parts, once for all files."""
        engine = self.figure.get_layout_engine()
        assert engine is not None
        engine.execute(self.figure)
        self.figure.set_layout_engine(None)


def new_figure(title: str, heights: Sequence[float], num_columns: int = 1) -> CaptionedFigure:
    """Return a figure with empty panels; ``heights`` are inches of each row of panels with its labels."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, wspace=0.02, hspace=0.03)
    figure = Figure(figsize=(WIDTH, sum(heights) + _TITLE_HEIGHT), layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, 72), x=0.018, ha="left", weight="bold", size=9.5)
    axes = figure.subplots(len(heights), num_columns, squeeze=False, height_ratios=heights)
    return CaptionedFigure(figure, list(axes.flat), title)


def new_grid(title: str, num_panels: int, legend: Legend = (), parameter: str | None = None) -> CaptionedFigure:
    """Return a figure with empty panels, two in a row, and a legend, headed by the ``parameter`` of its lines."""
    num_columns = min(num_panels, 2)
    sheet = new_figure(title, [_PANEL_HEIGHTS[num_columns]] * -(-num_panels // num_columns), num_columns)
    for ax in sheet.axes[num_panels:]:
        ax.remove()
    del sheet.axes[num_panels:]
    if legend:
        sheet.add_legend(legend, display_name(parameter) if parameter else None)
    return sheet


def figure_title(
    results: Results, specification: Mapping[str, Any], where: Mapping[str, Any], is_compared: bool = False
) -> str:
    """Return a figure's title, with its page and a mark of quick runs (if compared with published numbers, a note)."""
    page = "".join(f": {display_name(name)} {label_text(value)}" for name, value in where.items())
    quick = f" ({QUICK_NOTE})" if is_compared else " (quick run)"
    return f"{specification['title']}{page}{quick if results.experiment.get('quick') else ''}"


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


def set_plain_ticks(axis: Axis, values: Sequence[Any] = ()) -> None:
    """Write plain numbers at ``values``, or at the scale's ticks, without minor ticks."""
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
    if values.min() > 0 and values.max() / 100 >= values.min():
        ax.set_xscale("log")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(num_ticks, steps=[1, 2, 5, 10]))
    format_ticks(ax.xaxis, 4)


def is_categorical(values: Sequence[Any]) -> bool:
    """Return whether any of the values is not a number."""
    return not all(isinstance(value, int | float | np.number) for value in values)


def set_category_ticks(ax: Axes, values: Sequence[Any], inches: float) -> None:
    """Label a panel ``inches`` wide with one value at each whole number; labels that are too wide lean."""
    labels = [label_text(value) for value in values]
    longest = max((len(word) for label in labels for word in label.split()), default=0)
    if (longest + 1) * _CHARACTER <= inches / max(len(labels), 1):
        ax.set_xticks(range(len(labels)), [label.replace(" ", "\n") for label in labels])
    else:
        ax.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.5, len(labels) - 0.5)


def set_number_ticks(ax: Axes, values: Sequence[float], inches: float, *, log_x: bool) -> None:
    """Label a panel ``inches`` wide at ascending values whose labels do not touch, or at round ones for sampled values.

    ``log_x`` makes the axis logarithmic if all values are positive.
    """
    if not values:
        return
    is_log = log_x and values[0] > 0
    positions = np.log10(values) if is_log else np.array(values)
    span = float(positions[-1] - positions[0]) or 1.0
    ends = np.array([positions[0] - 0.05 * span, positions[-1] + 0.05 * span])
    if is_log:
        ax.set_xscale("log")
    ax.set_xlim(*(10**ends if is_log else ends))
    format_ticks(ax.xaxis)
    ax.xaxis.set_minor_formatter(NullFormatter())
    widths = [len(format_number(value)) for value in values]
    if len(values) > 20 or max(widths) > _MAX_CHARACTERS:
        if is_log:
            ax.xaxis.set_major_locator(LogLocator(subs=(1,) if span > 2 else (1, 2, 5)))
        return

    def is_apart(left: int, right: int) -> bool:
        distance = (positions[right] - positions[left]) / span * inches / 1.1
        return bool(distance >= (widths[left] + widths[right]) / 2 * 0.075 + 0.08)

    # Both ends have labels; a value between them has one if there is room.
    last = len(values) - 1
    indices = [0]
    for index in range(1, last + 1):
        if is_apart(indices[-1], index) and (index == last or is_apart(index, last)):
            indices.append(index)
    set_plain_ticks(ax.xaxis, [values[index] for index in indices])


def clip_error_bars(ax: Axes, table: pd.DataFrame, others: ArrayLike = ()) -> bool:
    """Limit the vertical axis to the means if intervals are much wider, as those of two seeds are.

    ``table`` has ``mean``, ``low`` and ``high``; ``others`` are more values that must be visible. Returns whether the
    axis was limited.
    """
    values = np.concatenate([table["mean"].to_numpy(float), np.asarray(others, dtype=float)])
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    span = high - low
    lowest, highest = float(table["low"].min()), float(table["high"].max())
    if span > 0 and (lowest < low - span or highest > high + span):
        ax.set_ylim(max(min(lowest, low), low - span / 2), min(max(highest, high), high + span / 2))
        return True
    return False
