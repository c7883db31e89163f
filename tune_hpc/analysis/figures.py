"""Figures of one experiment, laid out and as files.

``draw_all`` makes every figure that the experiment declares, one per value of its page, or standard ones where it
declares none; a figure without data is left out. Curves and responses are laid out here; heat maps, published numbers
and parallel coordinates in modules of their own.

No pyplot: figures belong to their caller. matplotlib's settings are global, so drawing holds a lock; threads may call
anything here.
"""

import io
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.lines import Line2D

from tune_hpc.analysis import heat_figure, parallel_figure, plot_data, published_figure
from tune_hpc.analysis.folder import write_whole
from tune_hpc.analysis.plots import (
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
from tune_hpc.analysis.sheet import Sheet, entry_width, legend_height, started, titled, wrapped
from tune_hpc.analysis.wording import axis_label, unique_slug, words
from tune_hpc.errors import UnknownNameError

#: Inches around the axes of one panel.
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.8, 0.2, 0.46, 0.10
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


def sheets(results: Results, specification: Mapping[str, Any]) -> list[Sheet]:
    """Draw one declared figure: a sheet for each value of its page that has data.

    Raises:
        UnknownNameError: no such kind, as in an experiment folder of another version.
    """
    page = specification.get("page")
    pages = [{page: value} for value in plot_data.values_of(results, page)] if page else [{}]
    draw = _KINDS.get(specification["kind"])
    if draw is None:
        raise UnknownNameError(
            f"no figure of the kind {specification['kind']!r} in {results.name}; there are {', '.join(_KINDS)}"
        )
    with _lock, mpl.rc_context(_settings()):
        return [sheet for where in pages for sheet in draw(results, specification, where)]


def _lines(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[Sheet]:
    """Draw curves or responses."""
    sheet = _sheet(results, specification, where)
    return [] if sheet is None else [sheet]


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
    title = titled(results, specification, where, compared=published is not None)
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
        ax.set_ylabel(wrapped(axis_label(metric), box.height / sheet.figure.dpi))
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
    """Return an empty figure with its panels, title and legend; ``extra`` inches for tall tick labels."""
    bottom = _BOTTOM + extra
    num_columns = 1 if num_panels == 1 else 2
    num_rows = -(-num_panels // num_columns)
    height = {1: 3.0, 2: 2.35}[num_columns] + extra
    entry = entry_width(labels, heading)
    has_gap = num_panels > 1 and num_panels % 2 == 1 and entry < 2.9 and len(labels) <= 11
    beside = num_panels == 1 and entry < 2.1 and len(labels) <= 13
    below = bool(handles) and not has_gap and not beside
    sheet = started(title, num_rows * height, legend_height(labels, heading) if below else 0.0)
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


def _settings() -> Any:
    if not _style:
        path = Path(__file__).with_name("paper.mplstyle")
        _style.update(mpl.rc_params_from_file(path, use_default_template=False))
    return _style


#: Who draws which kind: zero or more sheets for one value of the page.
_KINDS = {
    "curve": _lines, "response": _lines, "heatmap": heat_figure.draw, "published": published_figure.draw,
    "parallel": parallel_figure.draw,
}  # fmt: skip


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
