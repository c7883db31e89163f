"""One self-contained HTML page from one experiment or many: conclusions, tables, figures, provenance.

``write_report`` writes a page where it is told, and beside each experiment's frames its tables/, figures/ and own
report.html. A page refers to nothing outside itself. Every text that comes from a trial, an error's included, is
escaped.
"""

import base64
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from tune_hpc.analysis.comparison import Comparison
from tune_hpc.analysis.concat import unique_names
from tune_hpc.analysis.formatting import (
    MISSING,
    QUICK_NOTE,
    column_heading,
    describe_metric,
    display_name,
    format_config,
    format_duration,
    format_table,
    format_value,
    unique_slug,
)
from tune_hpc.analysis.results import Results
from tune_hpc.errors import FolderError, TuneHpcError
from tune_hpc.report import tables
from tune_hpc.report.findings import best_configuration, findings
from tune_hpc.report.plots import figures
from tune_hpc.storage.experiment_folder import ExperimentFolder, check_writable, write_atomic

_MOST_ROWS = 60
#: The table that a page leaves out: its first sentence says the same.
_SAID = "Trials by status"


@dataclass
class Section:
    """Everything that is made of one experiment, made once.

    Attributes:
        results: The experiment.
        made: Its tables.
        drawings: Its figures.
    """

    results: Results
    made: list[tables.TitledTable]
    drawings: list[figures.RenderedFigure]

    @cached_property
    def shown(self) -> dict[str, Any]:
        """What the template shows of it."""
        return _experiment(self)


def write_report(
    results_list: Sequence[Results], path: Path | str, title: str | None = None, *, in_folders: bool = True,
    importance: Callable[[Results], pd.DataFrame] | None = None, comparison: Comparison | None = None,
) -> Path:  # fmt: skip
    """Write one page on all these experiments.

    Args:
        results_list: One or more.
        path: The HTML file.
        title: Its heading; by default the experiment's own, or how many there are.
        in_folders: Also write each experiment's tables, figures and own page in the folder it was loaded from.
        importance: Says which parameters decide: ``tune_hpc.importance``; what it refuses has no such figure.
        comparison: Leads the page: how these searches, or a parameter's values, compare.

    Returns:
        ``path``.

    Raises:
        FolderError: a file cannot be written; where that is the page, nothing was.
    """
    path = Path(path)
    # Drawing takes longest; a page that cannot be written is to be known before.
    if path.is_dir():
        raise FolderError(f"{path} is a folder; name the file that the page is to be")
    check_writable(path.parent)
    sections = [_section(results, importance) for results in results_list]
    for section in sections if in_folders else []:
        folder = section.results.folder
        if folder is not None:
            _write_in(section, folder, page=len(sections) > 1 or ExperimentFolder(folder).report != path)
    _write_page(sections, path, title, comparison)
    return path


def _section(results: Results, importance: Callable[[Results], pd.DataFrame] | None) -> Section:
    decisive = None
    with contextlib.suppress(TuneHpcError):
        decisive = importance(results) if importance else None
    figure = {"kind": "importance", "metrics": [results.metric], "title": tables.IMPORTANCE, "table": decisive}
    more = [figure] if decisive is not None else []
    return Section(results, tables.report_tables(results, decisive), figures.draw_all(results, more))


def _write_in(section: Section, folder: Path, *, page: bool) -> None:
    tables.write_tables(section.results, folder, section.made)
    figures.write(section.results, folder, section.drawings)
    if page:
        _write_page([section], ExperimentFolder(folder).report, None)


def _write_page(
    sections: Sequence[Section], path: Path, title: str | None, comparison: Comparison | None = None
) -> None:  # fmt: skip
    names = unique_names([section.results for section in sections])
    taken: set[str] = set()
    experiments = [
        {**section.shown, "name": name, "anchor": unique_slug(name, taken)}
        for name, section in zip(names, sections, strict=True)
    ]
    if len({one["title"] for one in experiments}) < len(experiments):
        experiments = [{**one, "title": f"{one['title']} ({one['name']})"} for one in experiments]
    if title is None:
        title = experiments[0]["title"] if len(experiments) == 1 else f"{len(experiments)} experiments"
    any_quick = any(experiment["quick"] for experiment in experiments)
    page = _template().render(
        title=title, experiments=experiments, any_quick=any_quick, quick_words=QUICK_NOTE,
        comparison=None if comparison is None else _comparison(comparison),
    )  # fmt: skip
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report_template.html")


def _experiment(section: Section) -> dict[str, Any]:
    """Return what the template shows of one experiment: plain texts, and tables as rows of texts."""
    results, asked = section.results, section.results.experiment
    frames = {title: df for title, _, df in section.made}
    counted = results.counts()
    best = best_configuration(results)
    undrawn = bool(asked.get("figures")) and not section.drawings
    return {
        "title": asked.get("title") or results.name,
        "description": asked.get("description") or "",
        "source": asked.get("source") or "",
        "quick": bool(asked.get("quick")),
        "state": asked.get("state") or MISSING,
        "sentences": findings(
            results, *(frames.get(title) for title in (tables.PUBLISHED, tables.CLAIMS, tables.SPECIAL_CASES))
        ),
        "became": ", ".join(f"{count} {status}" for status, count in counted.items()),
        "best": describe_metric(best[0], results.metric) if best else MISSING,
        "best_at": format_config(best[2]) if best else "",
        "wall": format_duration((asked.get("provenance") or {}).get("wall_s")),
        "varied": _table("What varied", tables.search_space_table(results)),
        "tables": [_table(title, df) for title, _, df in section.made if len(df) and title != _SAID],
        "figures": [_figure(drawing) for drawing in section.drawings],
        "undrawn": undrawn,
        "provenance": _provenance(asked),
    }


def _comparison(ranking: Comparison) -> dict[str, Any]:
    """Return what the template shows of a comparison."""
    drawing = figures.ranking_drawing(
        ranking, f"{display_name(ranking.metric).capitalize()} by {display_name(ranking.parameter)}"
    )
    return {
        "sentences": ranking.sentences(),
        "tables": [_table("Values", tables.values_table(ranking)), _table("Pairs", tables.pairs_table(ranking))],
        "figure": _figure(drawing),
    }


def _table(title: str, df: pd.DataFrame) -> dict[str, Any]:
    text = format_table(df.head(_MOST_ROWS))
    return {
        "title": title,
        "columns": [
            {
                "name": column_heading(str(name).removesuffix(" (quick)")),
                "wordy": wordy,
                "quick": str(name).endswith(" (quick)"),
            }
            for name, wordy in zip(text.columns, text.attrs["wordy"], strict=True)
        ],
        "rows": text.to_numpy().tolist(),
        "source": text.attrs["source"],
        "num_left_out": max(len(df) - _MOST_ROWS, 0),
    }


def _figure(drawing: figures.RenderedFigure) -> dict[str, str]:
    """Return a figure as a data address: vectors, unless they are heavier than the pixels."""
    svg_is_lighter = len(drawing.svg) <= len(drawing.png)
    kind, content = ("svg+xml", drawing.svg) if svg_is_lighter else ("png", drawing.png)
    address = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return {"address": address, "caption": drawing.caption, "stem": drawing.stem}


def _provenance(asked: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what made the numbers, and how to make them again, as labels and texts; the command comes last."""
    known = asked.get("provenance") or {}
    machine = known.get("machine") or {}
    versions = ", ".join(f"{name} {known[name]}" for name in ("tune_hpc", "python", "ray", "torch") if known.get(name))
    parts = [machine.get("host"), machine.get("cpu_model")]
    for noun in ("cpus", "gpus"):
        if machine.get(noun) is not None:
            parts.append(f"{format_value(machine[noun])} {noun.upper()[:-1]}s")
    rows = {
        "experiment": _marked_name(asked),
        "searcher": asked.get("searcher"),
        "seeds": ", ".join(map(str, asked.get("seeds") or ())),
        "versions": versions,
        "commit": known.get("commit"),
        "machine": ", ".join(str(part) for part in parts if part),
        "started": known.get("started"),
        "finished": known.get("finished"),
        "wall time": format_duration(known["wall_s"]) if known.get("wall_s") is not None else None,
        "command": known.get("command"),
    }
    return [(label, str(text)) for label, text in rows.items() if text]


def _marked_name(asked: Mapping[str, Any]) -> str:
    return f"{asked['name']} ({QUICK_NOTE})" if asked.get("quick") else str(asked["name"])
