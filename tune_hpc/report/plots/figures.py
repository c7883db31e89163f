"""Figures of one experiment: kinds, pages, and rendering to SVG.

To add a kind, write a module with a function that computes its table and one that draws it, and enter the latter in
``KINDS``. matplotlib's settings are global, so drawing takes a lock: any thread may call these functions.
"""

import functools
import io
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

from tune_hpc.analysis.aggregation import configuration_numbers, is_scaling
from tune_hpc.analysis.budget import MIN_CONFIGURATIONS
from tune_hpc.analysis.comparison import Comparison
from tune_hpc.analysis.formatting import display_name, unique_slug
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.value_labels import with_value_labels
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.plots import budget_curve, curves, heatmap, named_rows, parallel_coordinates, response, scaling
from tune_hpc.report.plots.layout import CaptionedFigure
from tune_hpc.report.plots.series import free_parameters, is_geometric, is_numeric, values_of
from tune_hpc.storage.filesystem import Storage

#: Size above which a figure is rendered to pixels instead of vectors.
MAX_SVG_BYTES = 400_000
#: Absolute value above which numbers are not drawn.
MAX_DRAWN = 1e150
#: Number of parameters with a figure of their own; all are in the parallel coordinates.
MAX_RESPONSES = 12
#: Parts of a step of a scaling measurement.
STEP_PARTS = ("compute_s", "communicate_s", "data_s")

#: Drawing functions by kind: results, figure specification and the page's value -> figures.
KINDS: dict[str, Callable[[Results, Mapping[str, Any], Mapping[str, Any]], list[CaptionedFigure]]] = {
    "curve": curves.draw, "response": response.draw, "heatmap": heatmap.draw, "published": named_rows.draw_published,
    "parallel": parallel_coordinates.draw, "ranking": named_rows.draw_ranking, "importance": named_rows.draw_importance,
    "budget": budget_curve.draw_budget, "target": budget_curve.draw_target, "stack": scaling.draw_stack,
    "speedup": scaling.draw_speedup, "links": scaling.draw_links, "cost": scaling.draw_cost,
    "widths": scaling.draw_widths,
}  # fmt: skip

_lock = threading.Lock()


@dataclass(frozen=True)
class RenderedFigure:
    """Rendered figure.

    Attributes:
        stem: File name without the ending.
        title: Its heading.
        notes: Sentences about it; may be empty.
        kind: ``svg`` for vectors, or ``png`` for pixels, 200 per inch.
        content: The file.
    """

    stem: str
    title: str
    notes: str
    kind: str
    content: bytes

    @property
    def caption(self) -> str:
        """Title and notes as sentences."""
        return f"{self.title}. {self.notes}".rstrip()


@functools.cache
def _settings() -> Any:
    return mpl.rc_params_from_file(Path(__file__).with_name("paper.mplstyle"), use_default_template=False)


def draw(results: Results, specification: Mapping[str, Any]) -> list[CaptionedFigure]:
    """Draw one figure (``kind``, ``metrics``, ``title``, options of the kind) for each value of its page with data.

    Raises:
        UnknownNameError: the kind is unknown, as in an experiment folder of another version.
    """
    kind, page = specification["kind"], specification.get("page")
    if kind not in KINDS:
        raise UnknownNameError(f"unknown figure kind {kind!r} in {results.name}; use one of {', '.join(KINDS)}")
    pages = [{page: value} for value in values_of(results, page)] if page else [{}]
    with _lock, mpl.rc_context(_settings()):
        sheets = [sheet for where in pages for sheet in KINDS[kind](results, specification, where)]
        for sheet in sheets:
            sheet.lay_out()
    return sheets


def render(sheet: CaptionedFigure, stem: str, kind: str = "svg") -> RenderedFigure:
    """Render a figure; one with too many points for vectors becomes a PNG."""
    content = io.BytesIO()
    with _lock, mpl.rc_context(_settings()):
        sheet.figure.savefig(content, format=kind, metadata={"Date": None} if kind == "svg" else None)
    if kind == "svg" and content.tell() > MAX_SVG_BYTES:
        return render(sheet, stem, "png")
    title, notes = (text.replace(r"\$", "$") for text in (sheet.title, " ".join(sheet.notes)))
    return RenderedFigure(stem, title, notes, kind, content.getvalue())


def render_comparison(comparison: Comparison, title: str) -> RenderedFigure:
    """Draw and render a comparison of a parameter's values."""
    with _lock, mpl.rc_context(_settings()):
        sheet = named_rows.draw_comparison(comparison, title)
        sheet.lay_out()
    return render(sheet, unique_slug(title, set()))


def render_all(results: Results, more: Sequence[Mapping[str, Any]] = (), kind: str = "svg") -> list[RenderedFigure]:
    """Draw and render every figure that has data.

    Args:
        results: Any results.
        more: Figures beside those of ``default_figures``.
        kind: ``svg`` or ``png``.
    """
    stems: set[str] = set()
    results = _drawable(with_value_labels(results))
    sheets = [sheet for specification in [*default_figures(results), *more] for sheet in draw(results, specification)]
    return [render(sheet, unique_slug(re.sub(r" \(quick run.*\)$", "", sheet.title), stems), kind) for sheet in sheets]


def _drawable(results: Results) -> Results:
    """Return results without numbers that matplotlib cannot draw: the squares of distances on an axis overflow."""

    def masked(df: pd.DataFrame) -> pd.DataFrame:
        numbers = df.select_dtypes("float64")
        is_huge = numbers.abs() > MAX_DRAWN
        return df.assign(**numbers.mask(is_huge)) if is_huge.any(axis=None) else df

    return Results(results.experiment, masked(results.trials), masked(results.history), results.folder)


def write(results: Results, folder: Path, figures: Sequence[RenderedFigure] | None = None) -> list[tuple[Path, str]]:
    """Write every figure as ``figures/STEM.svg``, or ``.png`` if it has too many points.

    Args:
        results: Any results.
        folder: The experiment folder.
        figures: Result of ``render_all``; the default is to call it.

    Returns:
        Each file with its caption.

    Raises:
        FolderError: the folder cannot be written.
    """
    files = []
    for figure in render_all(results) if figures is None else figures:
        path = folder / "figures" / f"{figure.stem}.{figure.kind}"
        Storage(path.parent).write_atomic(path, figure.content)
        files.append((path, figure.caption))
    return files


def default_figures(results: Results) -> list[dict[str, Any]]:
    """Return the declared figures, or standard ones; a search of 20 configurations or more also has a budget curve."""
    declared = [dict(figure) for figure in results.experiment.get("figures") or ()]
    if is_scaling(results):
        return declared or _scaling_figures(results)
    figures = declared or [*_curve_and_response_figures(results), *_overview_figures(results)]
    has_budget_curve = (
        results.experiment.get("scheduler") != "pbt"
        and len(results.trials) >= MIN_CONFIGURATIONS
        and configuration_numbers(results).nunique() >= MIN_CONFIGURATIONS
    )
    budget = _figure("budget", [results.metric], "What fewer configurations would have found")
    return [*figures, budget] if has_budget_curve else figures


def _figure(kind: str, metrics: Sequence[Any], title: str, **options: Any) -> dict[str, Any]:
    return {"kind": kind, "metrics": metrics, "title": title, **options}


def _curve_and_response_figures(results: Results) -> list[dict[str, Any]]:
    metrics = [name for name in results.history if name not in {"trial_id", "step"}]
    base = results.metric.removeprefix("best_").replace("selected_", "")
    declared = results.experiment.get("metrics") or {}
    related = base.replace("accuracy", "loss")
    metrics.sort(key=lambda name: (name != base, name not in declared, name != related))
    figures = [_figure("curve", metrics[: max(2, 1 + len(declared))], "Learning curves")] if metrics else []
    for name in free_parameters(results, [])[:MAX_RESPONSES]:
        title = f"{display_name(results.metric).capitalize()} against {display_name(name)}"
        log_x = is_geometric(values_of(results, name))
        figures.append(_figure("response", [results.metric], title, parameter=name, log_x=log_x))
    return figures


def _overview_figures(results: Results) -> list[dict[str, Any]]:
    """Return a heat map of two parameters on a full grid, else parallel coordinates of all parameters."""
    names = [name for name in free_parameters(results, []) if len(values_of(results, name)) > 1]
    metric = display_name(results.metric).capitalize()
    if len(names) == 2:
        # Names are easier to read beside rows; of two numeric parameters, the one with more values goes across.
        y, x = sorted(names, key=lambda name: (is_numeric(results, name), len(values_of(results, name))))
        pairs = results.trials[[x, y]].drop_duplicates()
        if not pairs.isna().any(axis=None) and len(pairs) == len(values_of(results, x)) * len(values_of(results, y)):
            title = f"{metric} by {display_name(y)} and {display_name(x)}"
            return [_figure("heatmap", [results.metric], title, parameter=x, line=y)]
    return [_figure("parallel", [results.metric], f"{metric} of all configurations")] if len(names) > 1 else []


def _scaling_figures(results: Results) -> list[dict[str, Any]]:
    """Return the standard figures of a scaling measurement; another varying parameter has lines or pages."""
    other = next(iter(free_parameters(results, ["workers"])), None)
    line, page = ({"line": other}, {"page": other}) if other else ({}, {})
    # Options do the same work and are comparable; networks of several widths are not.
    cost = line if other == "option" else page
    gains = ["speedup", "efficiency"]
    workers = {"parameter": "workers"}
    return [
        _figure("speedup", gains, "Speed-up and efficiency by workers", **workers, **line),
        _figure("stack", list(STEP_PARTS), "Where a step's time goes", **workers, **page),
        _figure("cost", ["train_s", "worker_s"], "Time and what it costs, by workers", **workers, **cost),
        _figure("links", gains, "Predicted: more workers, other links", **workers, **page),
        _figure("widths", ["efficiency"], "Predicted: efficiency by the network's width"),
    ]
