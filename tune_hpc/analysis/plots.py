"""Figures of one experiment, as files: the only module that knows matplotlib.

Each plot is two functions: one in plot_data.py computes a small table, one here (``draw_curve``, ``draw_response``)
draws it on axes. ``draw_all`` makes every figure that the experiment declares, one per value of its page, or standard
ones where it declares none; a figure without data is left out. Layout is counted in inches, so that legends stand
beside or below the data, never on it, whatever the labels.

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

_WIDTH, _TITLE_LINE, _LEGEND_ROW = 6.5, 0.19, 0.165  # inches
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.8, 0.2, 0.46, 0.10  # around the axes of one panel
_CHARACTER = 0.068  # mean width of a legend's character
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
        kept = plot_data.thinned(mean)
        if (own["num_trials"] > 1).any():
            notes.append("Line: mean over seeds; band: lowest to highest seed.")
            band = (np.maximum(values[kept], floor) for values in (low, high))
            ax.fill_between(x[kept], *band, color=line_style(index)["color"], alpha=0.16, linewidth=0)
        every = _marked(x[kept], index)
        ax.plot(x[kept], np.maximum(mean[kept], floor), markevery=every, zorder=3, **line_style(index))
    if log_y:
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(_power))
        ax.yaxis.set_minor_locator(NullLocator())
        if (table["low"] <= 0).any():
            ax.set_ylim(bottom=floor)
            notes.append("Exact zeros lie on the lower edge.")
    narrow = ax.get_window_extent().width < 3 * ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    num_ticks = 4 if narrow and table["x"].max() >= 10_000 else 6
    ax.xaxis.set_major_locator(MaxNLocator(num_ticks, integer=True, steps=[1, 2, 2.5, 5, 10]))
    if table["x"].min() == table["x"].max():
        ax.set_xlim(table["x"].min() - 1, table["x"].max() + 1)
    if top := _tall(table, log_y):
        ax.set_ylim(floor if log_y else table["low"].min() - 0.06 * top, top)
        notes.append(f"Cut at the top; the highest value is {table['high'].max():.3g}.")
    return notes


def _marked(x: np.ndarray, index: int) -> list[int]:
    """Return where a curve has its markers: evenly along the axis, at other places than its neighbours'."""
    if len(x) <= 8:
        return list(range(len(x)))
    places = x[0] + (np.arange(7) + 0.05 + index % 5 * 0.19) / 7 * (x[-1] - x[0])
    return sorted({int(place) for place in np.searchsorted(x, places).clip(max=len(x) - 1)})


def _power(value: float, _: object) -> str:
    """Return a power of ten with its exponent raised, without matplotlib's slow formula parser."""
    exponent = f"{np.log10(value):.3g}"
    return "10" + exponent.translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


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
    wordy = _wordy(positions)
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
        labels, lean, _ = _word_ticks(positions, ax.get_window_extent().width / 200)
        ax.set_xticks(range(len(positions)), labels, rotation=lean, ha="right" if lean else "center")
        ax.set_xlim(-0.5, len(positions) - 0.5)
    else:
        _number_axis(ax, sorted(map(float, positions)), log_x=log_x)
    return notes


def _word_ticks(positions: Sequence[Any], inches: float) -> tuple[list[str], int, float]:
    """Return labels that do not touch, how far they lean, and the extra inches that they need."""
    labels = [_plain(value).replace(" ", "\n") for value in positions]
    longest = max((len(part) for label in labels for part in label.split("\n")), default=0)
    if (longest + 1) * _CHARACTER <= inches / max(len(labels), 1):
        return labels, 0, 0.13 * max((label.count("\n") for label in labels), default=0)
    labels = [_plain(value) for value in positions]
    return labels, 40, 0.047 * max(map(len, labels))


def _wordy(positions: Sequence[Any]) -> bool:
    return not all(isinstance(value, int | float | np.number) for value in positions)


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
    ends = float(place(low)) - margin, float(place(high)) + margin
    ax.set_xlim((10 ** ends[0], 10 ** ends[1]) if log_x else ends)
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
    return value_text(value, 4).replace("_", " ").replace("$", r"\$")


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
    labels = [_plain(value) + _lost(results, line, where, value) * is_curve for value in present]
    handles = [Line2D([], [], **line_style(shown.index(value))) for value in present]
    if published is not None:
        labels = labels if line else ["measured"]
        handles.append(Line2D([], [], **_published_style("#444444")))
        labels.append("published")
    if len(handles) == 1 and labels in (["measured"], [""]):
        handles, labels = [], []
    title = specification["title"] + "".join(f": {words(name)} {_plain(value)}" for name, value in where.items())
    if results.experiment.get("quick"):
        title += " (quick run)" if published is None else f" ({QUICK})"
    positions = [] if is_curve else plot_data.values_of(results, parameter)
    inches = (2.3 if len(tables) > 1 else 4.0) if _wordy(positions) else 0.0
    extra = _word_ticks(positions, inches)[2] if inches else 0.0
    sheet = _laid_out(title, len(tables), handles, labels, words(line) if line else None, extra)
    sheet.notes.update(notes)
    for ax, (metric, table) in zip(sheet.axes, tables.items(), strict=True):
        if is_curve:
            said = draw_curve(ax, table, shown, log_y=bool(specification.get("log_y")))
        else:
            over = published if metric == specification.get("published") or len(tables) == 1 else None
            if over is not None and not _wordy(positions):
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
        left, lower = column * width + _LEFT, total - top - (row + 1) * height + bottom
        size = ((width - _LEFT - _RIGHT) / _WIDTH, (height - bottom - _TOP) / total)
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
