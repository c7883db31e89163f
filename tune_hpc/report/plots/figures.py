"""Figures of one experiment, laid out and as files.

``draw_all`` makes every figure that the experiment declares, one per value of its page, or standard ones where it
declares none; a figure without data is left out. Curves and responses are laid out here, all others in modules of their
own.

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

from tune_hpc.analysis.comparison import Comparison
from tune_hpc.analysis.formatting import axis_label, display_name, unique_slug
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots import (
    budget_curve,
    curves,
    heatmap,
    parallel_coordinates,
    published_values,
    ranking,
    scaling,
    scaling_predictions,
)
from tune_hpc.report.plots.axes import (
    categorical_ticks,
    draw_curve,
    draw_response,
    is_categorical,
    label_text,
    line_style,
    published_style,
)
from tune_hpc.report.plots.layout import FigureLayout, figure_title, label_y, new_grid
from tune_hpc.storage.experiment_folder import write_atomic

_lock = threading.Lock()
_style: Any = {}


@dataclass(frozen=True)
class RenderedFigure:
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


def sheets(results: Results, specification: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw one declared figure: a sheet for each value of its page that has data.

    Raises:
        UnknownNameError: no such kind, as in an experiment folder of another version.
    """
    page = specification.get("page")
    pages = [{page: value} for value in curves.values_of(results, page)] if page else [{}]
    draw = KINDS.get(specification["kind"])
    if draw is None:
        raise UnknownNameError(
            f"no figure of the kind {specification['kind']!r} in {results.name}; there are {', '.join(KINDS)}"
        )
    with _lock, mpl.rc_context(_settings()):
        return [sheet for where in pages for sheet in draw(results, specification, where)]


def _lines(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> list[FigureLayout]:
    """Draw curves or responses."""
    sheet = _sheet(results, specification, where)
    return [] if sheet is None else [sheet]


def _sheet(results: Results, specification: Mapping[str, Any], where: Mapping[str, Any]) -> FigureLayout | None:
    line, parameter = specification.get("line"), specification.get("parameter")
    is_curve = specification["kind"] == "curve"
    shown = curves.shown_lines(results, line)
    notes: dict[str, None] = {}
    if len(shown) < len(curves.values_of(results, line)):
        notes[f"The best {len(shown)} values of {display_name(str(line))} are shown."] = None
    if is_curve:
        members = curves.curve_lines(results, line, where, shown)
        shown = shown if line else list(dict.fromkeys(members["line"]))
        tables = {
            metric: curves.curve_table(results, metric, members, specification.get("last_step"))
            for metric in specification["metrics"]
        }
    else:
        shown = shown if line else ["measured"]
        tables = {
            metric: curves.response_table(results, metric, str(parameter), line, where)
            for metric in specification["metrics"]
        }
    tables = {metric: table for metric, table in tables.items() if len(table)}
    if not tables:
        return None
    published = None
    if not is_curve and specification.get("published"):
        published = curves.published_table(results, specification["published"], str(parameter), line, where)
        published = published if len(published) else None
    present = [value for value in shown if any((table["line"] == value).any() for table in tables.values())]
    labels = [label_text(value) + _lost(results, line, where, value) * is_curve for value in present]
    handles = [Line2D([], [], **line_style(shown.index(value))) for value in present]
    if published is not None:
        labels = labels if line else ["measured"]
        handles.append(Line2D([], [], **published_style("#444444")))
        is_timed = str(specification["published"]).endswith("_s")
        labels.append("published, another machine" if is_timed else "published")
    if len(handles) == 1 and labels in (["measured"], [""]):
        handles, labels = [], []
    title = figure_title(results, specification, where, compared=published is not None)
    positions = [] if is_curve else curves.values_of(results, parameter)
    inches = (2.3 if len(tables) > 1 else 4.0) if is_categorical(positions) else 0.0
    extra = categorical_ticks(positions, inches)[2] if inches else 0.0
    sheet = new_grid(title, len(tables), handles, labels, display_name(line) if line else None, extra)
    sheet.notes.update(notes)
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        if is_curve:
            said = draw_curve(ax, table, shown, log_y=bool(specification.get("log_y")))
        else:
            over = published if metric == specification.get("published") or len(tables) == 1 else None
            if over is not None and not is_categorical(positions):
                positions = sorted({*positions, *over["x"]})
            log_x = bool(specification.get("log_x"))
            said = draw_response(ax, table, shown, over, positions=positions, log_x=log_x)
            if over is not None and metric.endswith("_s"):
                said.append("The published seconds are another machine's.")
        ax.set_xlabel(axis_label("step" if is_curve else str(parameter)))
        label_y(ax, axis_label(metric))
        sheet.notes.update(dict.fromkeys(said))
    return sheet


def _lost(results: Results, line: str | None, where: Mapping[str, Any], value: Any) -> str:
    """Return how many trials of a line diverged, for its label."""
    diverged = results.trials["status"] == "diverged"
    if line is None or not diverged.any():
        return ""
    own = curves.row_mask(results.trials, {**where, line: value})
    lost, of = int((diverged & own).sum()), int(own.sum())
    return "" if not lost else " (diverged)" if lost == of else f" ({lost} of {of} diverged)"


def _settings() -> Any:
    if not _style:
        path = Path(__file__).with_name("paper.mplstyle")
        _style.update(mpl.rc_params_from_file(path, use_default_template=False))
    return _style


#: Who draws which kind: zero or more sheets for one value of the page.
KINDS = {
    "curve": _lines, "response": _lines, "heatmap": heatmap.draw, "published": published_values.draw,
    "parallel": parallel_coordinates.draw, "ranking": ranking.draw_ranking, "importance": ranking.draw_importance,
    "budget": budget_curve.draw_budget, "target": budget_curve.draw_target, "stack": scaling.draw_stack,
    "speedup": scaling.draw_speedup, "links": scaling_predictions.draw_links,
    "cost": scaling_predictions.draw_cost, "widths": scaling_predictions.draw_widths,
}  # fmt: skip


def rendered(sheet: FigureLayout, stem: str) -> RenderedFigure:
    """Render a sheet once to PNG and once to SVG."""
    png, svg = io.BytesIO(), io.BytesIO()
    with _lock, mpl.rc_context(_settings()):
        sheet.figure.savefig(png, format="png")
        sheet.figure.savefig(svg, format="svg", metadata={"Date": None})
    return RenderedFigure(stem, sheet.caption.replace(r"\$", "$"), png.getvalue(), svg.getvalue())


def ranking_drawing(comparison: Comparison, title: str) -> RenderedFigure:
    """Draw and render a ranking."""
    with _lock, mpl.rc_context(_settings()):
        sheet = ranking.ranking_sheet(comparison, title)
    return rendered(sheet, unique_slug(title, set()))


def draw_all(results: Results, more: Sequence[Mapping[str, Any]] = ()) -> list[RenderedFigure]:
    """Draw and render every figure that has data.

    Args:
        results: Any results.
        more: Figures beside those that the experiment declares.
    """
    taken: set[str] = set()
    specifications = [*curves.default_figures(results), *more]
    drawn = [sheet for specification in specifications for sheet in sheets(results, specification)]
    return [rendered(sheet, unique_slug(re.sub(r" \(quick run.*\)$", "", sheet.title), taken)) for sheet in drawn]


def write(results: Results, folder: Path, drawings: Sequence[RenderedFigure] | None = None) -> list[tuple[Path, str]]:
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
            write_atomic(path, lambda temporary, content=content: temporary.write_bytes(content))  # type: ignore[misc]
            files.append((path, drawing.caption))
    return files
