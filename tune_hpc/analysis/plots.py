"""Figures of one experiment, as files: the only module that knows matplotlib.

Each plot is two functions: one in plot_data.py computes a small table, one here (``draw_curve``, ``draw_response``)
draws it on axes. ``draw_all`` makes every figure that the experiment declares, one per value of its page, or standard
ones where it declares none; a figure without data is left out. Layout is counted in inches, so that legends stand
beside or below the data, never on it, whatever the labels.

No pyplot: figures belong to their caller. matplotlib's settings are global, so drawing holds a lock; threads may call
anything here.
"""

import io
import textwrap
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from tune_hpc.analysis import plot_data
from tune_hpc.analysis.folder import write_whole
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.wording import QUICK, axis_label, short, unique_slug, value_text, words

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

_WIDTH, _TITLE_LINE, _LEGEND_ROW = 6.5, 0.19, 0.185  # inches
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.72, 0.14, 0.46, 0.10  # around the axes of one panel
_CHARACTER = 0.068  # mean width of a legend's character
_HANDLE = 0.46
_lock = threading.Lock()
_style: dict[str, Any] = {}


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
    positive = table.loc[table["low"] > 0, "low"]
    log_y = log_y and bool((table["low"] >= 0).all()) and len(positive) > 0
    floor = positive.min() / 10 if log_y else -np.inf
    grouped = dict(list(table.groupby("line", sort=False)))
    for index, line in enumerate(lines):
        if line not in grouped:
            continue
        own = grouped[line]
        x, mean, low, high = (own[name].to_numpy(float) for name in ("x", "mean", "low", "high"))
        if plot_data.is_noisy(mean):
            window = max(len(mean) // 40, 5)
            mean, low, high = (plot_data.smoothed(values, window) for values in (mean, low, high))
            notes.append(f"Noisy curves are drawn as a running mean of {window} points.")
        kept = plot_data.thinned(mean)
        if (own["num_trials"] > 1).any():
            notes.append("Line: mean over seeds; band: lowest to highest seed.")
            band = (np.maximum(values[kept], floor) for values in (low, high))
            ax.fill_between(x[kept], *band, color=line_style(index)["color"], alpha=0.16, linewidth=0)
        every = (index % 5 * 0.03, 0.17) if len(kept) > 8 else None
        ax.plot(x[kept], np.maximum(mean[kept], floor), markevery=every, zorder=3, **line_style(index))
    if log_y:
        ax.set_yscale("log")
        if (table["low"] <= 0).any():
            ax.set_ylim(bottom=floor)
            notes.append("Exact zeros lie on the lower edge.")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if top := _tall(table, log_y):
        ax.set_ylim(top=top)
        notes.append(f"Cut at the top; the highest value is {short(float(f'{table["high"].max():.3g}'))}.")
    return notes


def _tall(table: pd.DataFrame, log_y: bool) -> float | None:
    """Return where to cut, if a few exploding lines would flatten all others."""
    highest = table.groupby("line", sort=False)["high"].max()
    usual = highest.median()
    if len(highest) < 3 or table["low"].min() < 0 or highest.max() <= usual * (1e4 if log_y else 8):
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
    wordy = not all(isinstance(value, int | float | np.number) for value in positions)
    place = {value: index for index, value in enumerate(positions)}
    for index, line in enumerate(lines):
        own = table[table["line"] == line]
        x = own["x"].map(place).to_numpy(float) if wordy else own["x"].to_numpy(float)
        style = line_style(index)
        # Several points over one value: other parameters vary too, and a line through them would mean nothing.
        if wordy or own["x"].duplicated().any():
            style["linestyle"] = "none"
        if (own["num_trials"] > 1).any():
            notes.append("Point: mean over seeds; bar: lowest to highest seed.")
            ax.vlines(x, own["low"], own["high"], color=style["color"], linewidth=0.9, alpha=0.7)
        ax.plot(x, own["mean"], zorder=3, **style)
        if published is not None:
            theirs = published[published["line"] == line]
            theirs_x = theirs["x"].map(place) if wordy else theirs["x"]
            ax.plot(theirs_x, theirs["mean"], zorder=4, **_published_style(style["color"]))
    if wordy:
        ax.set_xticks(range(len(positions)), [_plain(value) for value in positions], rotation=20, ha="right")
        ax.set_xlim(-0.5, len(positions) - 0.5)
    else:
        _number_axis(ax, sorted(map(float, positions)), log_x=log_x)
    return notes


def _published_style(colour: str) -> dict[str, Any]:
    return {
        "linestyle": "none", "marker": "D", "markersize": 7, "markerfacecolor": "none",
        "markeredgecolor": colour, "markeredgewidth": 1.1,
    }  # fmt: skip


def _number_axis(ax: Axes, values: list[float], *, log_x: bool) -> None:
    """Put ticks at the parameter's own values, as far as their labels do not touch."""
    log_x = log_x and bool(values) and values[0] > 0
    if log_x:
        ax.set_xscale("log")
    if not values or len(values) > 20:
        return
    low, high = values[0], values[-1]
    place = np.log10 if log_x else np.asarray
    span = float(place(high) - place(low)) or 1.0
    margin = 0.05 * span
    ax.set_xlim(*((10 ** (place(edge) + sign * margin)) if log_x else edge + sign * margin
                  for edge, sign in ((low, -1), (high, 1))))  # fmt: skip
    figure = ax.get_figure(root=True)
    inches = ax.get_position().width * (figure.get_figwidth() if figure else _WIDTH) / 1.1
    kept: list[float] = []
    for value in values:
        # The last value is kept whatever comes before it: both ends of the range are read most.
        while kept and (place(value) - place(kept[-1])) / span * inches < _room(kept[-1], value):
            if value != high or len(kept) == 1:
                break
            kept.pop()
        else:
            kept.append(value)
    ax.xaxis.set_major_locator(FixedLocator(kept))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())


def _room(left: float, right: float) -> float:
    return (len(short(left)) + len(short(right))) / 2 * 0.075 + 0.08


def _plain(value: Any) -> str:
    """Return a value as a label: underscores are spaces, and a dollar sign starts no formula."""
    return value_text(value).replace("_", " ").replace("$", r"\$")


def specifications(results: Results) -> list[dict[str, Any]]:
    """Return the figures that the experiment declares, or standard ones: curves, and a response to each parameter."""
    declared = list(results.experiment.get("figures") or ())
    if declared:
        return [dict(figure) for figure in declared]
    curves = [name for name in results.history if name not in {"trial_id", "step"}]
    base = results.metric.removeprefix("best_").replace("selected_", "")
    curves.sort(key=lambda name: (name != base, name != base.replace("accuracy", "loss")))
    made: list[dict[str, Any]] = []
    if curves:
        made.append({"kind": "curve", "metrics": curves[:2], "title": "Learning curves"})
    for name in [name for name in results.varying if name != "seed"][:4]:
        values = results.trials[name].dropna()
        numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        log_x = numeric and values.min() > 0 and values.max() / values.min() >= 20
        title = f"{words(results.metric).capitalize()} against {words(name)}"
        made.append(
            {"kind": "response", "metrics": [results.metric], "title": title, "parameter": name, "log_x": log_x}
        )
    return made


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
    labels = _labels(results, line, where, present)
    handles = [Line2D([], [], **line_style(shown.index(value))) for value in present]
    if published is not None:
        labels = labels if line else ["measured"]
        handles.append(Line2D([], [], **_published_style("#444444")))
        labels.append("published")
        if results.experiment.get("quick"):
            handles.append(Line2D([], [], linestyle="none"))
            labels.append(f"({QUICK})")
    if len(handles) == 1 and labels in (["measured"], [""]):
        handles, labels = [], []
    title = specification["title"] + "".join(f": {words(name)} {_plain(value)}" for name, value in where.items())
    title += " (quick run)" if results.experiment.get("quick") else ""
    sheet = _laid_out(title, len(tables), handles, labels, words(line) if line else None)
    sheet.notes.update(notes)
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        if is_curve:
            said = draw_curve(ax, table, shown, log_y=bool(specification.get("log_y")))
        else:
            over = published if metric == specification.get("published") or len(tables) == 1 else None
            positions = plot_data.values_of(results, parameter)
            log_x = bool(specification.get("log_x"))
            said = draw_response(ax, table, shown, over, positions=positions, log_x=log_x)
        ax.set_xlabel(axis_label("step" if is_curve else str(parameter)))
        ax.set_ylabel(axis_label(metric))
        sheet.notes.update(dict.fromkeys(said))
    if published is not None and results.experiment.get("quick"):
        sheet.notes[f"{QUICK.capitalize()} with the published numbers."] = None
    return sheet


def _labels(results: Results, line: str | None, where: Mapping[str, Any], present: Sequence[Any]) -> list[str]:
    labels = []
    for value in present:
        own = plot_data.matching(results.trials, {**where, line: value}) if line else None
        diverged = own is not None and (results.trials.loc[own, "status"] == "diverged").any()
        labels.append(_plain(value) + (" (diverged)" if diverged else ""))
    return labels


def _laid_out(title: str, num_panels: int, handles: list[Line2D], labels: list[str], heading: str | None) -> Sheet:
    """Return an empty figure with its panels, title and legend, all placed in inches."""
    num_columns = 1 if num_panels == 1 else 2
    num_rows = -(-num_panels // num_columns)
    height = {1: 3.0, 2: 2.35}[num_columns]
    title_lines = textwrap.wrap(title, 78)
    top = 0.16 + _TITLE_LINE * len(title_lines)
    entry = max((len(label) for label in [*labels, heading or ""]), default=0) * _CHARACTER + _HANDLE
    has_gap = num_panels > 1 and num_panels % 2 == 1 and entry < 2.9 and len(labels) <= 11
    beside = num_panels == 1 and entry < 2.1 and len(labels) <= 13
    below = bool(handles) and not has_gap and not beside
    per_row = max(min(int(_WIDTH // (entry + 0.2)), len(labels), 5), 1)
    legend_rows = -(-len(labels) // per_row) + bool(heading)
    legend_height = legend_rows * _LEGEND_ROW + 0.12 if below else 0.0
    total = top + num_rows * height + legend_height
    width = (_WIDTH - (entry + 0.1 if beside and handles else 0)) / num_columns
    figure = Figure(figsize=(_WIDTH, total))
    FigureCanvasAgg(figure)
    axes = []
    for panel in range(num_panels):
        row, column = divmod(panel, num_columns)
        left, lower = column * width + _LEFT, total - top - (row + 1) * height + _BOTTOM
        size = ((width - _LEFT - _RIGHT) / _WIDTH, (height - _BOTTOM - _TOP) / total)
        axes.append(figure.add_axes((left / _WIDTH, lower / total, *size)))
    figure.text(0.12 / _WIDTH, 1 - 0.1 / total, "\n".join(title_lines), va="top", weight="bold", size=9.5)
    if handles:
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.12 / _WIDTH, 0.08 / total), "ncols": per_row}
        if beside or has_gap:
            x = width if beside else _WIDTH / 2 + 0.5
            y = total - top - (num_rows - 1) * height - _TOP
            place = {"loc": "upper left", "bbox_to_anchor": (x / _WIDTH, y / total), "ncols": 1}
        figure.legend(handles, labels, title=heading, alignment="left", **place)
    return Sheet(figure, axes, title)


def _settings() -> dict[str, Any]:
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
    drawn = [sheet for specification in specifications(results) for sheet in sheets(results, specification)]
    return [rendered(sheet, unique_slug(sheet.title.removesuffix(" (quick run)"), taken)) for sheet in drawn]


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
