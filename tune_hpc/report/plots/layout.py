"""Figure with a title, panels, a legend and notes for its caption.

matplotlib's constrained layout places all parts.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from tune_hpc.analysis.formatting import QUICK_NOTE, axis_label, display_name
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots.axes import format_ticks, label_text

#: Width of a figure in inches: the text of a page.
WIDTH = 6.5
#: Height in inches of a panel with its labels, by the number of panels in a row; of the title; of a legend's row.
_PANEL_HEIGHTS, _TITLE_HEIGHT, _LEGEND_ROW_HEIGHT = {1: 2.9, 2: 2.3}, 0.3, 0.18
#: Characters of a vertical label's line, of a legend's line, and of the space that a legend's handle takes.
_LABEL_CHARACTERS, _LINE_CHARACTERS, _HANDLE_CHARACTERS = 22, 92, 9


@dataclass
class CaptionedFigure:
    """Figure and the text of its caption.

    Attributes:
        figure: The figure.
        axes: Its panels, without colour bars.
        title: Its heading.
        notes: Sentences for the caption.
    """

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

    def add_legend(self, handles: Sequence[Any], labels: Sequence[str], heading: str | None = None) -> None:
        """Add a legend below the panels; its rows make the figure higher."""
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
    """Return a figure with its title and empty panels.

    Args:
        title: Its heading.
        heights: Inches of each row of panels with its labels.
        num_columns: Panels in a row.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, wspace=0.02, hspace=0.03)
    figure = Figure(figsize=(WIDTH, sum(heights) + _TITLE_HEIGHT), layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, 72), x=0.018, ha="left", weight="bold", size=9.5)
    axes = figure.subplots(len(heights), num_columns, squeeze=False, height_ratios=heights)
    return CaptionedFigure(figure, list(axes.flat), title)


def new_grid(
    title: str, num_panels: int, handles: Sequence[Any] = (), labels: Sequence[str] = (), heading: str | None = None
) -> CaptionedFigure:
    """Return a figure with empty panels, two in a row, and a legend if there are handles."""
    num_columns = min(num_panels, 2)
    sheet = new_figure(title, [_PANEL_HEIGHTS[num_columns]] * -(-num_panels // num_columns), num_columns)
    for ax in sheet.axes[num_panels:]:
        ax.remove()
    del sheet.axes[num_panels:]
    if handles:
        sheet.add_legend(handles, labels, heading)
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
