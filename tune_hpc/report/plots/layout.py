"""A figure under way: its title, its panels and its legend, all placed in inches.

Whatever the labels, legends stand beside or below the panels, never on them: room is counted before anything is drawn.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from tune_hpc.analysis.formatting import QUICK_NOTE, axis_label, display_name, format_number
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots.axes import CHARACTER, WIDTH, label_text

#: Inches: between a figure's edge and what stands at it; a line of the title; a row of the legend; its handle.
EDGE, TITLE_LINE, LEGEND_ROW, HANDLE = 0.12, 0.19, 0.165, 0.46
#: Inches around the axes of one panel.
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.8, 0.2, 0.46, 0.10


@dataclass
class FigureLayout:
    """A figure being drawn: its parts, and what the caption must say.

    Attributes:
        figure: The figure.
        axes: One a panel.
        title: Its heading.
        top: Inches that the heading takes.
        notes: Sentences for the caption, each once.
    """

    figure: Figure
    axes: list[Axes]
    title: str
    top: float = 0.0
    notes: dict[str, None] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """The title and the notes as sentences."""
        return " ".join([f"{self.title}.", *self.notes])

    def panel(self, left: float, below: float, width: float, height: float) -> Axes:
        """Add axes, in inches: from the left edge, and below the heading."""
        ax = self._axes(left, below, width, height)
        self.axes.append(ax)
        return ax

    def colour_bar(self, ax: Axes, colours: ScalarMappable, metric: str, extend: str = "neither") -> None:
        """Add a colour bar on the right of a panel, as high as it, with its metric and unit."""
        box = ax.get_window_extent()
        scale = self.figure.dpi
        below = self.figure.get_figheight() - self.top - box.y1 / scale
        place = self._axes(box.x1 / scale + 0.12, below, 0.13, box.height / scale)
        place.set_label("colour bar")
        bar = self.figure.colorbar(colours, cax=place, extend=extend)
        bar.outline.set_linewidth(0.5)
        bar.ax.tick_params(labelsize=7, length=2)
        bar.ax.yaxis.set_major_formatter(lambda value, _: format_number(value, 4))
        bar.set_label(wrap_text(axis_label(metric), box.height / scale), fontsize=8)

    def _axes(self, left: float, below: float, width: float, height: float) -> Axes:
        total = self.figure.get_figheight()
        lower = total - self.top - below - height
        return self.figure.add_axes((left / WIDTH, lower / total, width / WIDTH, height / total))

    def legend(self, handles: Sequence[Any], labels: Sequence[str], heading: str | None = None, **place: Any) -> None:
        """Add the legend: by default at the lower edge, where ``legend_height`` has left room for it."""
        total = self.figure.get_figheight()
        below: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (EDGE / WIDTH, 0.08 / total)}
        below["ncols"] = entries_per_row(labels, heading)
        self.figure.legend(handles, labels, title=heading, alignment="left", **{**below, **place})


def new_figure(title: str, body: float, below: float = 0.0) -> FigureLayout:
    """Return an empty figure: its title, ``body`` inches for the panels and ``below`` inches for a legend."""
    lines = textwrap.wrap(title, 78)
    top = 0.1 + TITLE_LINE * len(lines)
    total = top + body + below
    figure = Figure(figsize=(WIDTH, total))
    FigureCanvasAgg(figure)
    figure.text(EDGE / WIDTH, 1 - 0.1 / total, "\n".join(lines), va="top", weight="bold", size=9.5)
    return FigureLayout(figure, [], title, top)


def new_grid(
    title: str, num_panels: int, handles: Sequence[Any], labels: list[str], heading: str | None, extra: float
) -> FigureLayout:
    """Return an empty figure with its panels, two in a row, its title and its legend; ``extra`` is for tall labels."""
    bottom = _BOTTOM + extra
    num_columns = 1 if num_panels == 1 else 2
    num_rows = -(-num_panels // num_columns)
    height = {1: 3.0, 2: 2.35}[num_columns] + extra
    entry = entry_width(labels, heading)
    has_gap = num_panels > 1 and num_panels % 2 == 1 and entry < 2.9 and len(labels) <= 11
    beside = num_panels == 1 and entry < 2.1 and len(labels) <= 13
    below = bool(handles) and not has_gap and not beside
    sheet = new_figure(title, num_rows * height, legend_height(labels, heading) if below else 0.0)
    width = (WIDTH - (entry + 0.1 if beside and handles else 0)) / num_columns
    for panel in range(num_panels):
        row, column = divmod(panel, num_columns)
        sheet.panel(column * width + _LEFT, row * height + _TOP, width - _LEFT - _RIGHT, height - bottom - _TOP)
    if handles:
        place: dict[str, Any] = {}
        if beside or has_gap:
            total = sheet.figure.get_figheight()
            x = width if beside else WIDTH / 2 + 0.5
            y = total - sheet.top - (num_rows - 1) * height - _TOP
            place = {"loc": "upper left", "bbox_to_anchor": (x / WIDTH, y / total), "ncols": 1}
        sheet.legend(handles, labels, heading, **place)
    return sheet


def label_y(ax: Axes, text: str) -> None:
    """Label the vertical axis, at the same place in every panel."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    box = ax.get_window_extent()
    ax.set_ylabel(wrap_text(text, box.height / figure.dpi))
    ax.yaxis.set_label_coords(-0.53 * figure.dpi / box.width, 0.5)


def figure_title(
    results: Results, specification: Mapping[str, Any], where: Mapping[str, Any], compared: bool = False
) -> str:
    """Return a figure's heading: which page it is, and that a quick run is one (``compared``: with published ones)."""
    title = specification["title"] + "".join(
        f": {display_name(name)} {label_text(value)}" for name, value in where.items()
    )
    if results.experiment.get("quick"):
        title += f" ({QUICK_NOTE})" if compared else " (quick run)"
    return str(title)


def entry_width(labels: Sequence[str], heading: str | None = None) -> float:
    """Return the inches of a legend's widest entry."""
    return max((len(label) for label in [*labels, heading or ""]), default=0) * CHARACTER + HANDLE


def entries_per_row(labels: Sequence[str], heading: str | None = None) -> int:
    """Return how many entries stand side by side below the panels."""
    return max(min(int(WIDTH // (entry_width(labels, heading) + 0.2)), len(labels), 5), 1)


def legend_height(labels: Sequence[str], heading: str | None = None) -> float:
    """Return the inches that a legend takes below the panels."""
    rows = -(-len(labels) // entries_per_row(labels, heading)) + bool(heading)
    return rows * LEGEND_ROW + 0.12


def colour_bar_width(metrics: Iterable[str], height: float) -> float:
    """Return the inches that colour bars take on the right of their panels, with numbers and labels."""
    return 0.7 + 0.15 * max(wrap_text(axis_label(metric), height).count("\n") + 1 for metric in metrics)


def wrap_text(text: str, inches: float) -> str:
    """Return a text in lines that are no longer than so many inches."""
    return "\n".join(textwrap.wrap(text, max(int(inches / 0.078), 6)))
