"""Jinja templates of the pages, and their context: texts and numbers from statuses and data frames."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from tune_hpc.analysis.formatting import (
    MISSING,
    column_heading,
    display_name,
    format_duration,
    format_metric,
    format_value,
)
from tune_hpc.analysis.frame_query import records, select
from tune_hpc.analysis.frames import METRICS
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots.series import is_numeric
from tune_hpc.service.schemas import STATES, TrialsQuery

#: Rows of a page of the table of trials, and metrics in it.
NUM_ROWS, MAX_METRICS = 50, 6
#: Columns that are neither parameters nor metrics.
_OTHER_COLUMNS = frozenset({
    "attempt", "experiment", "trial_id", "status", "stop_reason", "error", "host", "device", "steps_run", "setup_s",
    "train_s", "eval_s", "samples_per_s", "num_fused",
})  # fmt: skip


class Templates:
    """Jinja templates; all values are escaped."""

    def __init__(self, *, has_token: bool, root_path: str = "") -> None:
        self._environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._environment.globals.update(has_token=has_token, root=root_path, api=f"{root_path}/api/v1", states=STATES)

    def render(self, template: str, **values: Any) -> bytes:
        """Return a page or fragment."""
        return self._environment.get_template(template).render(**values).encode("utf-8", "replace")

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page as a response that browsers do not store."""
        return HTMLResponse(self.render(template, **values), status, {"Cache-Control": "no-store"})


def search_row(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the list of searches."""
    experiments = status["experiments"]
    first = experiments[0] if experiments else {}
    seconds = [one["remaining_s"] for one in experiments if one["remaining_s"] and one["state"] == "running"]
    has_estimate = seconds and status["state"] == "running"
    best = (_best(one) for one in experiments if one["best_value"] is not None)
    return {
        **status,
        "title": first.get("title") or first.get("name") or "",
        "quick": any(one["quick"] for one in experiments),
        "best": next(best, MISSING).removeprefix("best "),
        "requested": _age(status["requested_at"]),
        "remaining": f"about {format_duration(max(seconds))} left" if has_estimate else "",
    }


def _best(experiment: Mapping[str, Any]) -> str:
    if experiment["best_value"] is None:
        return MISSING
    return f"{display_name(experiment['metric'])} {format_metric(experiment['best_value'], experiment['metric'])}"


def _age(text: str | None) -> str:
    try:
        moment = datetime.fromisoformat(text or "")
        seconds = (datetime.now(UTC) - moment).total_seconds()
    except (ValueError, TypeError):
        return MISSING
    if seconds < 60:
        return "just now"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.0f} h ago" if seconds < 86400 else f"{moment:%Y-%m-%d %H:%M} UTC"


def experiment_context(status: Mapping[str, Any], results: Results) -> dict[str, Any]:
    """Return the summary of an experiment of a search."""
    experiment = next(one for one in status["experiments"] if one["name"] == results.name)
    best = results.trials[results.trials["trial_id"] == experiment["best_trial"]]
    best_config = records(best[[key for key in results.varied_parameters if key in best]])
    values = best_config[0].items() if best_config else ()
    counts = [f"{count} {state}" for state, count in experiment["counts"].items()]
    running = [f"{experiment['num_running']} running"] if experiment["num_running"] else []
    return {
        **experiment,
        "best": _best(experiment),
        "best_config": ", ".join(
            f"{display_name(key)} {format_value(value, 4)}" for key, value in values if value is not None
        ),
        "counts": ", ".join([*running, *counts]) or "none yet",
        "can_extend": experiment["searcher"] != "grid" and experiment["scheduler"] != "pbt",
    }


def _table_columns(results: Results) -> list[str]:
    """Return the columns of the table: id, status, varied parameters, results."""
    filled = [str(name) for name in results.trials if results.trials[name].notna().any()]
    excluded = _OTHER_COLUMNS.union(results.config_columns)
    ordered = dict.fromkeys([results.metric, *METRICS, *sorted(filled)])
    metrics = [name for name in ordered if name in filled and name not in excluded]
    ends = [name for name in ("steps_run", "train_s", "error") if name in filled]
    return ["trial_id", "status", *results.varied_parameters, *metrics[:MAX_METRICS], *ends]


def table_context(results: Results, query: TrialsQuery, address: str, experiment: str | None) -> dict[str, Any]:
    """Return a page of the table of trials.

    Raises:
        RequestError: The query is invalid.
    """
    columns, size, offset = _table_columns(results), query.limit or NUM_ROWS, query.offset
    selection = replace(query.frame_query(), columns=tuple(columns), limit=size, format="json")
    if not selection.sort and results.metric in columns:
        # The default order is from the best to the worst.
        selection = replace(selection, sort=(("-" if results.experiment["mode"] == "max" else "") + results.metric,))
    page, total = select(results.trials, selection)
    sorted_by = selection.sort[0] if selection.sort else ""

    def link(**changes: Any) -> str:
        values = {"experiment": experiment, "filter": query.filter, "sort": sorted_by, "offset": offset} | changes
        return f"{address}?{urlencode({key: value for key, value in values.items() if value}, doseq=True)}"

    heads = [
        {
            "name": name,
            "text": column_heading(name),
            "is_number": is_numeric(results, name),
            "order": {name: "ascending", f"-{name}": "descending"}.get(sorted_by, "none"),
            "address": link(sort=f"-{name}" if sorted_by == name else name, offset=0),
        }
        for name in columns
    ]
    config = set(results.config_columns)
    return {
        "heads": heads,
        "rows": [[_cell(name, value, name in config) for name, value in row.items()] for row in records(page)],
        "total": total,
        "num_all": len(results.trials),
        "first": offset + 1 if len(page) else 0,
        "last": offset + len(page),
        "previous": link(offset=max(0, offset - size)) if offset else None,
        "next": link(offset=offset + size) if offset + size < total else None,
        "address": link(),
        "filters": query.filter,
    }


def _cell(name: str, value: Any, is_config: bool) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float) and not is_config:
        return format_metric(value, name)
    return value if isinstance(value, str) else format_value(value)


def trial_context(results: Results, trial_id: str) -> dict[str, Any]:
    """Return the description of a trial."""
    row = records(results.trials[results.trials["trial_id"] == trial_id])[0]
    config = {name: row[name] for name in results.config_columns if row[name] is not None}
    titled = ("experiment", "trial_id", "status", "stop_reason", "error")
    others = {name: value for name, value in row.items() if name not in (*config, *titled) and value is not None}
    return {
        "trial_id": trial_id,
        "status": row["status"],
        "stop_reason": row.get("stop_reason") or "",
        "error": row.get("error") or "",
        "config": [(display_name(name), format_value(value)) for name, value in config.items()],
        "measured": [(column_heading(name), _cell(name, value, False)) for name, value in others.items()],
    }
