"""Self-contained HTML report of one or several experiments: findings, tables, figures, provenance.

``write_report`` also writes tables/, figures/ and report.html into each experiment folder. A page has no external
references, and every text of a trial is escaped.
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

from tune_hpc.analysis.aggregation import describe_statuses, extrapolation_note
from tune_hpc.analysis.comparison import Comparison
from tune_hpc.analysis.concatenation import unique_names
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
from tune_hpc.analysis.value_labels import with_value_labels
from tune_hpc.errors import FolderError, TuneHpcError
from tune_hpc.report import tables
from tune_hpc.report.findings import best_value, findings, overview
from tune_hpc.report.plots import figures
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.filesystem import Storage

#: Maximum number of rows of a table on a page.
MAX_ROWS = 60


@dataclass
class Section:
    """One experiment of a report, with its tables and figures.

    Attributes:
        results: The experiment.
        titled_tables: Its tables.
        rendered_figures: Its figures.
    """

    results: Results
    titled_tables: list[tables.TitledTable]
    rendered_figures: list[figures.RenderedFigure]

    @property
    def published(self) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
        """The comparisons with published numbers and statements."""
        frames = {title: df for title, _, df in self.titled_tables}
        return frames.get(tables.PUBLISHED), frames.get(tables.CLAIMS)

    @cached_property
    def context(self) -> dict[str, Any]:
        """The variables of the template: texts, and tables as rows of texts."""
        results, experiment = self.results, self.results.experiment
        frames = {title: df for title, _, df in self.titled_tables}
        best, note = best_value(results), extrapolation_note(results, results.metric)
        return {
            "title": experiment.get("title") or results.name,
            "description": experiment.get("description") or "",
            "source": experiment.get("source") or "",
            "quick": bool(experiment.get("quick")),
            "state": experiment.get("state") or MISSING,
            "findings": findings(results, *self.published, frames.get(tables.SPECIAL_CASES)),
            "statuses": describe_statuses(results),
            "best": f"{describe_metric(best[0].mean, results.metric)}{note}" if best else MISSING,
            "best_config": format_config(best[2]) if best else "",
            "wall_time": format_duration((experiment.get("provenance") or {}).get("wall_s")),
            "search_space": _table("Search space", tables.search_space_table(results)),
            # The first finding has the counts by status.
            "tables": [
                _table(title, df) for title, _, df in self.titled_tables if len(df) and title != tables.STATUSES
            ],
            "figures": [_figure(figure) for figure in self.rendered_figures],
            "lacks_figures": bool(experiment.get("figures")) and not self.rendered_figures,
            "provenance": _provenance(experiment),
        }


def write_report(
    results_list: Sequence[Results], path: Path | str, title: str | None = None, *, in_folders: bool = True,
    importance: Callable[[Results], pd.DataFrame] | None = None, comparison: Comparison | None = None,
) -> Path:  # fmt: skip
    """Write one page about one or several experiments.

    Args:
        results_list: The experiments.
        path: The HTML file.
        title: Heading of the page; by default the experiment's title, or the number of experiments.
        in_folders: Also write tables, figures and report.html into the folder of each experiment.
        importance: Computes parameter importances, like ``tune_hpc.importance``; omitted where it raises.
        comparison: A comparison of these searches, or of a parameter's values, at the top of the page.

    Returns:
        ``path``.

    Raises:
        FolderError: A file cannot be written. If it is the page, no other file was written either.

    Example:
        >>> import shutil
        >>> from tune_hpc import load, write_report
        >>> folder = shutil.copytree("docs/results/exercise2.softmax.shuffled", "runs/softmax")
        >>> print(write_report([load(folder)], "report.html"))
        report.html
    """
    path = Path(path)
    if path.is_dir():
        raise FolderError(f"{path} is a folder; name the HTML file to write")
    # Checked before the figures are drawn, which takes longest.
    Storage(path.parent).check_writable()
    sections = [_section(results, importance) for results in results_list]
    for section in sections if in_folders else []:
        folder = section.results.folder
        if folder is not None:
            tables.write_tables(section.results, folder, section.titled_tables)
            figures.write(section.results, folder, section.rendered_figures)
            if len(sections) > 1 or ExperimentFolder(folder).report != path:
                _write_page([section], ExperimentFolder(folder).report)
    _write_page(sections, path, title, comparison)
    return path


def _section(results: Results, importance: Callable[[Results], pd.DataFrame] | None) -> Section:
    table, specifications = None, []
    with contextlib.suppress(TuneHpcError):
        table = importance(results) if importance else None
    if table is not None:
        specifications.append(
            {"kind": "importance", "metrics": [results.metric], "title": tables.IMPORTANCE, "table": table}
        )
    results = with_value_labels(results)
    return Section(results, tables.report_tables(results, table), figures.render_all(results, specifications))


def _write_page(
    sections: Sequence[Section], path: Path, title: str | None = None, comparison: Comparison | None = None
) -> None:  # fmt: skip
    names = unique_names([section.results for section in sections])
    taken: set[str] = set()
    experiments = [
        {**section.context, "name": name, "anchor": unique_slug(name, taken)}
        for name, section in zip(names, sections, strict=True)
    ]
    if len({experiment["title"] for experiment in experiments}) < len(experiments):
        experiments = [{**one, "title": f"{one['title']} ({one['name']})"} for one in experiments]
    if title is None:
        title = experiments[0]["title"] if len(experiments) == 1 else f"{len(experiments)} experiments"
    page = _template().render(
        title=title, experiments=experiments, any_quick=any(experiment["quick"] for experiment in experiments),
        overview=overview([(section.results, *section.published) for section in sections]),
        quick_note=QUICK_NOTE, comparison=None if comparison is None else _comparison(comparison),
    )  # fmt: skip
    Storage(path.parent).write_atomic(path, page)


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("report_template.html")


def _comparison(comparison: Comparison) -> dict[str, Any]:
    title = f"{display_name(comparison.metric).capitalize()} by {display_name(comparison.parameter)}"
    return {
        "sentences": comparison.sentences(),
        "tables": [_table("Values", tables.values_table(comparison)), _table("Pairs", tables.pairs_table(comparison))],
        "figure": _figure(figures.render_comparison(comparison, title)),
    }


def _table(title: str, df: pd.DataFrame) -> dict[str, Any]:
    text = format_table(df.head(MAX_ROWS))
    columns = [
        {"name": column_heading(name.removesuffix(" (quick)")), "is_text": is_text, "quick": name.endswith(" (quick)")}
        for name, is_text in zip(map(str, text.columns), text.attrs["is_text"], strict=True)
    ]
    return {
        "title": title,
        "columns": columns,
        "rows": text.to_numpy().tolist(),
        "source": text.attrs["source"],
        "num_omitted": max(len(df) - MAX_ROWS, 0),
    }


def _figure(figure: figures.RenderedFigure) -> dict[str, str]:
    """Return a figure as a data URL, with its title and notes."""
    kind = {"svg": "svg+xml"}.get(figure.kind, figure.kind)
    url = f"data:image/{kind};base64,{base64.b64encode(figure.content).decode()}"
    return {"url": url, "title": figure.title, "notes": figure.notes}


def _provenance(experiment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the origin of the numbers as labels and texts; the last is the command that reproduces them."""
    provenance = experiment.get("provenance") or {}
    machine = provenance.get("machine") or {}
    parts = [machine.get("host"), machine.get("cpu_model")]
    parts += [
        f"{format_value(machine[key])} {noun}"
        for key, noun in (("cpus", "CPUs"), ("gpus", "GPUs"))
        if machine.get(key) is not None
    ]
    versions = [(name, provenance.get(name)) for name in ("tune_hpc", "python", "ray", "torch")]
    wall_s, code = provenance.get("wall_s"), provenance.get("code")
    rows = {
        "experiment": f"{experiment['name']} ({QUICK_NOTE})" if experiment.get("quick") else experiment["name"],
        "searcher": experiment.get("searcher"),
        "seeds": ", ".join(map(str, experiment.get("seeds") or ())),
        "versions": ", ".join(f"{name} {version}" for name, version in versions if version),
        "commit": provenance.get("commit"),
        "code": f"{code['commit']}{' with uncommitted changes' if code.get('has_changes') else ''}" if code else None,
        "machine": ", ".join(str(part) for part in parts if part),
        "started": provenance.get("started"),
        "finished": provenance.get("finished"),
        "wall time": None if wall_s is None else format_duration(wall_s),
        "command": provenance.get("command"),
    }
    return [(label, str(text)) for label, text in rows.items() if text]
