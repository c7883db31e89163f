"""Figure with a title, panels, a legend and notes for its caption.

matplotlib's constrained layout places all parts. ``CaptionedFigure.fit`` then sets the height of the figure so that
each row of panels has its height, whatever the labels and the legend take.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tune_hpc.analysis.formatting import QUICK_NOTE, axis_label, display_name
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots.axes import CHARACTER, format_ticks, label_text, wrap_text

#: Width of a figure in inches: the text of a page.
WIDTH = 6.5
#: Height of a panel in inches, by the number of panels in a row.
_PANEL_HEIGHTS = {1: 2.44, 2: 1.79}
#: Inches by which the height of all rows may differ from the intended one.
_TOLERANCE = 0.06
#: Inches of a legend's handle with its gaps.
_HANDLE = 0.66
#: Characters of a row's name.
_MAX_NAME = 40
#: Inches and entries of the largest legend beside a panel, and characters of the longest title beside such a legend.
_BESIDE_WIDTH, _BESIDE_ENTRIES, _BESIDE_TITLE = 2.3, 13, 50


@dataclass
class CaptionedFigure:
    """Figure and the text of its caption.

    Attributes:
        figure: The figure.
        axes: Its panels, without colour bars.
        title: Its heading.
        heights: Inches of each row of panels.
        notes: Sentences for the caption.
    """

    figure: Figure
    axes: list[Axes]
    title: str
    heights: Sequence[float]
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
        ax.set_xlabel(x)
        ax.set_ylabel(wrap_text(y, self._height(ax)))

    def add_legend(
        self, handles: Sequence[Any], labels: Sequence[str], heading: str | None = None, *, may_be_beside: bool = False
    ) -> None:
        """Add a legend below the panels; a small one stands beside a single panel if it may."""
        entry = max(map(len, [*labels, heading or ""]), default=0) * CHARACTER + _HANDLE
        is_small = entry < _BESIDE_WIDTH and 1 < len(labels) <= _BESIDE_ENTRIES and len(self.title) <= _BESIDE_TITLE
        is_beside = may_be_beside and len(self.axes) == 1 and is_small
        location: Any = "outside right upper" if is_beside else "outside lower left"
        columns = 1 if is_beside else max(min(int(WIDTH / entry), len(labels), 5), 1)
        legend = self.figure.legend(
            handles=handles,
            labels=labels,
            title=heading,
            alignment="left",
            loc=location,
            ncols=columns,
            borderaxespad=0.6,
        )
        if not is_beside:
            inches = legend.get_window_extent().height / self.figure.dpi
            self.figure.set_figheight(self.figure.get_figheight() + inches + 0.12)

    def add_colour_bar(self, ax: Axes, colours: ScalarMappable, metric: str, extend: str = "neither") -> None:
        """Add a colour bar on the right of a panel, as high as the panel, with the metric and its unit."""
        bar = self.figure.colorbar(colours, ax=ax, extend=extend, fraction=0.03, pad=0.02)
        bar.ax.set_box_aspect(None)
        bar.ax.set_label("colour bar")
        bar.outline.set_linewidth(0.5)
        bar.ax.tick_params(labelsize=7, length=2)
        format_ticks(bar.ax.yaxis, 4)
        bar.set_label(wrap_text(axis_label(metric), self._height(ax)), fontsize=8)

    def _height(self, ax: Axes) -> float:
        """Return the inches of a panel."""
        columns = -(-len(self.axes) // len(self.heights))
        return self.heights[self.axes.index(ax) // columns]

    def fit(self) -> "CaptionedFigure":
        """Place all parts and set the figure's height, so that each row of panels has its height; return itself."""
        engine = self.figure.get_layout_engine()
        assert engine is not None
        self.figure.align_ylabels()
        engine.execute(self.figure)
        columns = -(-len(self.axes) // len(self.heights))
        present = sum(ax.get_position().height for ax in self.axes[::columns])
        present *= self.figure.get_figheight()
        # A second layout costs as much as drawing; most figures do not need it.
        if abs(missing := sum(self.heights) - present) > _TOLERANCE:
            self.figure.set_figheight(self.figure.get_figheight() + missing)
            engine.execute(self.figure)
        self.figure.set_layout_engine(None)  # the layout is final; rendering need not repeat it
        return self


def new_figure(title: str, heights: Sequence[float], num_columns: int = 1) -> CaptionedFigure:
    """Return a figure with its title and empty panels.

    Args:
        title: Its heading.
        heights: Inches of each row of panels.
        num_columns: Panels in a row.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, wspace=0.02, hspace=0.03)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5 * len(heights) + 0.25), layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, 72), x=0.018, ha="left", weight="bold", size=9.5)
    axes = figure.subplots(len(heights), num_columns, squeeze=False, height_ratios=heights)
    return CaptionedFigure(figure, list(axes.flat), title, heights)


def new_grid(
    title: str, num_panels: int, handles: Sequence[Any] = (), labels: Sequence[str] = (), heading: str | None = None
) -> CaptionedFigure:
    """Return a figure with empty panels, two in a row, and a legend if there are handles."""
    num_columns = min(num_panels, 2)
    num_rows = -(-num_panels // num_columns)
    sheet = new_figure(title, [_PANEL_HEIGHTS[num_columns]] * num_rows, num_columns)
    for ax in sheet.axes[num_panels:]:
        ax.remove()
    del sheet.axes[num_panels:]
    if handles:
        sheet.add_legend(handles, labels, heading, may_be_beside=True)
    return sheet


def figure_title(
    results: Results, specification: Mapping[str, Any], where: Mapping[str, Any], is_compared: bool = False
) -> str:
    """Return a figure's title, with its page and a mark of quick runs.

    Args:
        results: Any results.
        specification: The figure.
        where: Parameter and value of the page.
        is_compared: Whether the figure shows published numbers, too.
    """
    page = "".join(f": {display_name(name)} {label_text(value)}" for name, value in where.items())
    quick = f" ({QUICK_NOTE})" if is_compared else " (quick run)"
    return f"{specification['title']}{page}{quick if results.experiment.get('quick') else ''}"


def named_rows(title: str, names: Iterable[str], label: str, row_height: float) -> tuple[CaptionedFigure, Axes]:
    """Return a figure with one panel that has a named row at each whole number, the first on top."""
    labels = [name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "…" for name in names]
    height = max(len(labels) * row_height, 0.8)
    sheet = new_figure(title, [height])
    ax = sheet.axes[0]
    ax.set_yticks(range(len(labels)), labels)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.set_ylabel(wrap_text(label, height))
    ax.grid(False, axis="y")
    return sheet, ax
