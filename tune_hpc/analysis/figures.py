"""Figures of one experiment, laid out and as files.

``draw_all`` makes every figure that the experiment declares, one per value of its page, or standard ones where it
declares none; a figure without data is left out. Layout is counted in inches, so that legends stand beside or below the
data, never on it, whatever the labels.

No pyplot: figures belong to their caller. matplotlib's settings are global, so drawing holds a lock; threads may call
anything here.
"""

import io
import re
import textwrap
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tune_hpc.analysis import plot_data
from tune_hpc.analysis.folder import write_whole
from tune_hpc.analysis.plots import (
    CHARACTER,
    WIDTH,
    draw_curve,
    draw_response,
    is_wordy,
    line_style,
    plain,
    published_style,
    word_ticks,
)
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.wording import QUICK, axis_label, unique_slug, words

_TITLE_LINE, _LEGEND_ROW = 0.19, 0.165  # inches
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.8, 0.2, 0.46, 0.10  # around the axes of one panel
_HANDLE = 0.46
_lock = threading.Lock()
_style: Any = {}


@dataclass(frozen=True)
class Drawing:
    """A figure, rendered.

    Attributes:
        stem: Its file name without the ending.
        caption: What it shows, in sentences.
        png: At 200 dots an inch.
        svg: The same as vectors.
    """

    stem: str
    caption: str
    png: bytes
    svg: bytes


@dataclass
class Sheet:
    """A figure being drawn: its parts, and what the caption must say.

    Attributes:
        figure: The figure.
        axes: One a panel.
        title: Its heading.
        notes: Sentences for the caption, each once.
    """

    figure: Figure
    axes: list[Axes]
    title: str
    notes: dict[str, None] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """The title and the notes as sentences."""
        return " ".join([f"{self.title}.", *self.notes])


def sheets(results: Results, specification: Mapping[str, Any]) -> list[Sheet]:
    """Draw one declared figure: a sheet for each value of its page that has data."""
    page = specification.get("page")
    pages = [{page: value} for value in plot_data.values_of(results, page)] if page else [{}]
    with _lock, mpl.rc_context(_settings()):
        drawn = [_sheet(results, specification, where) for where in pages]
    return [sheet for sheet in drawn if sheet is not None]


def _sheet(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> Sheet | None:
    line, parameter = specification.get("line"), specification.get("parameter")
    is_curve = specification["kind"] == "curve"
    shown = plot_data.shown_lines(results, line)
    notes: dict[str, None] = {}
    if len(shown) < len(plot_data.values_of(results, line)):
        notes[f"The best {len(shown)} values of {words(str(line))} are shown."] = None
    if is_curve:
        members = plot_data.curve_lines(results, line, where, shown)
        shown = shown if line else list(dict.fromkeys(members["line"]))
        tables = {
            metric: plot_data.curve_table(results, metric, members, specification.get("last_step"))
            for metric in specification["metrics"]
        }
    else:
        shown = shown if line else ["measured"]
        tables = {
            metric: plot_data.response_table(results, metric, str(parameter), line, where)
            for metric in specification["metrics"]
        }
    tables = {metric: table for metric, table in tables.items() if len(table)}
    if not tables:
        return None
    published = None
    if not is_curve and specification.get("published"):
        published = plot_data.published_table(results, specification["published"], str(parameter), line, where)
        published = published if len(published) else None
    present = [value for value in shown if any((table["line"] == value).any() for table in tables.values())]
    labels = [plain(value) + _lost(results, line, where, value) * is_curve for value in present]
    handles = [Line2D([], [], **line_style(shown.index(value))) for value in present]
    if published is not None:
        labels = labels if line else ["measured"]
        handles.append(Line2D([], [], **published_style("#444444")))
        labels.append("published")
    if len(handles) == 1 and labels in (["measured"], [""]):
        handles, labels = [], []
    title = specification["title"] + "".join(f": {words(name)} {plain(value)}" for name, value in where.items())
    if results.experiment.get("quick"):
        title += " (quick run)" if published is None else f" ({QUICK})"
    positions = [] if is_curve else plot_data.values_of(results, parameter)
    inches = (2.3 if len(tables) > 1 else 4.0) if is_wordy(positions) else 0.0
    extra = word_ticks(positions, inches)[2] if inches else 0.0
    sheet = _laid_out(title, len(tables), handles, labels, words(line) if line else None, extra)
    sheet.notes.update(notes)
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        if is_curve:
            said = draw_curve(ax, table, shown, log_y=bool(specification.get("log_y")))
        else:
            over = published if metric == specification.get("published") or len(tables) == 1 else None
            if over is not None and not is_wordy(positions):
                positions = sorted({*positions, *over["x"]})
            log_x = bool(specification.get("log_x"))
            said = draw_response(ax, table, shown, over, positions=positions, log_x=log_x)
        ax.set_xlabel(axis_label("step" if is_curve else str(parameter)))
        box = ax.get_window_extent()
        ax.set_ylabel("\n".join(textwrap.wrap(axis_label(metric), int(box.height / sheet.figure.dpi / 0.078))))
        ax.yaxis.set_label_coords(-0.53 * sheet.figure.dpi / box.width, 0.5)
        sheet.notes.update(dict.fromkeys(said))
    return sheet


def _lost(results: Results, line: str | None, where: Mapping[str, Any], value: Any) -> str:
    """Return how many trials of a line diverged, for its label."""
    diverged = results.trials["status"] == "diverged"
    if line is None or not diverged.any():
        return ""
    own = plot_data.matching(results.trials, {**where, line: value})
    lost, of = int((diverged & own).sum()), int(own.sum())
    return "" if not lost else " (diverged)" if lost == of else f" ({lost} of {of} diverged)"


def _laid_out(
    title: str, num_panels: int, handles: list[Line2D], labels: list[str], heading: str | None, extra: float
) -> Sheet:
    """Return an empty figure with its panels, title and legend, all in inches; ``extra`` for tall tick labels."""
    bottom = _BOTTOM + extra
    num_columns = 1 if num_panels == 1 else 2
    num_rows = -(-num_panels // num_columns)
    height = {1: 3.0, 2: 2.35}[num_columns] + extra
    title_lines = textwrap.wrap(title, 78)
    top = 0.1 + _TITLE_LINE * len(title_lines)
    entry = max((len(label) for label in [*labels, heading or ""]), default=0) * CHARACTER + _HANDLE
    has_gap = num_panels > 1 and num_panels % 2 == 1 and entry < 2.9 and len(labels) <= 11
    beside = num_panels == 1 and entry < 2.1 and len(labels) <= 13
    below = bool(handles) and not has_gap and not beside
    per_row = max(min(int(WIDTH // (entry + 0.2)), len(labels), 5), 1)
    legend_rows = -(-len(labels) // per_row) + bool(heading)
    legend_height = legend_rows * _LEGEND_ROW + 0.12 if below else 0.0
    total = top + num_rows * height + legend_height
    width = (WIDTH - (entry + 0.1 if beside and handles else 0)) / num_columns
    figure = Figure(figsize=(WIDTH, total))
    FigureCanvasAgg(figure)
    axes = []
    for panel in range(num_panels):
        row, column = divmod(panel, num_columns)
        left, lower = column * width + _LEFT, total - top - (row + 1) * height + bottom
        size = ((width - _LEFT - _RIGHT) / WIDTH, (height - bottom - _TOP) / total)
        axes.append(figure.add_axes((left / WIDTH, lower / total, *size)))
    figure.text(0.12 / WIDTH, 1 - 0.1 / total, "\n".join(title_lines), va="top", weight="bold", size=9.5)
    if handles:
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.12 / WIDTH, 0.08 / total), "ncols": per_row}
        if beside or has_gap:
            x = width if beside else WIDTH / 2 + 0.5
            y = total - top - (num_rows - 1) * height - _TOP
            place = {"loc": "upper left", "bbox_to_anchor": (x / WIDTH, y / total), "ncols": 1}
        figure.legend(handles, labels, title=heading, alignment="left", **place)
    return Sheet(figure, axes, title)


def _settings() -> Any:
    if not _style:
        path = Path(__file__).with_name("paper.mplstyle")
        _style.update(mpl.rc_params_from_file(path, use_default_template=False))
    return _style


def rendered(sheet: Sheet, stem: str) -> Drawing:
    """Render a sheet once to PNG and once to SVG."""
    png, svg = io.BytesIO(), io.BytesIO()
    with _lock, mpl.rc_context(_settings()):
        sheet.figure.savefig(png, format="png")
        sheet.figure.savefig(svg, format="svg", metadata={"Date": None})
    return Drawing(stem, sheet.caption.replace(r"\$", "$"), png.getvalue(), svg.getvalue())


def draw_all(results: Results) -> list[Drawing]:
    """Draw and render every figure that has data."""
    taken: set[str] = set()
    drawn = [sheet for specification in plot_data.specifications(results) for sheet in sheets(results, specification)]
    return [rendered(sheet, unique_slug(re.sub(r" \(quick run.*\)$", "", sheet.title), taken)) for sheet in drawn]


def write(results: Results, folder: Path, drawings: Sequence[Drawing] | None = None) -> list[tuple[Path, str]]:
    """Write every figure as ``figures/STEM.png`` and ``figures/STEM.svg``.

    Args:
        results: Any results.
        folder: The experiment folder.
        drawings: What ``draw_all`` returned, where it is at hand.

    Returns:
        The files written, each with its caption.

    Raises:
        FolderError: the folder cannot be written.
    """
    files = []
    for drawing in draw_all(results) if drawings is None else drawings:
        for ending, content in (("png", drawing.png), ("svg", drawing.svg)):
            path = folder / "figures" / f"{drawing.stem}.{ending}"
            write_whole(path, lambda temporary, content=content: temporary.write_bytes(content))  # type: ignore[misc]
            files.append((path, drawing.caption))
    return files
