"""What the page's templates show: plain texts and numbers, made from statuses and frames."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from tune_hpc.analysis.plot_data import is_numeric
from tune_hpc.analysis.results import METRICS, Results
from tune_hpc.analysis.wording import MISSING, duration, heading, number, value_text, words
from tune_hpc.search.experiment import SCHEDULERS, SEARCHERS
from tune_hpc.service.frames import Query, records, select
from tune_hpc.service.queries import Rows

#: Rows of a page of the table, and metrics that it shows.
ROWS, MOST_METRICS = 50, 6
ACTIVE = ("pending", "running", "stopping")


def search_row(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the list shows of one search."""
    first = status["experiments"][0] if status["experiments"] else {}
    best = [
        f"{words(one['metric']).removeprefix('best ')} {number(one['best_value'], one['metric'])}"
        for one in status["experiments"]
        if one["best_value"] is not None
    ]
    return {
        **status,
        "title": first.get("title") or first.get("name") or "",
        "names": ", ".join(one["name"] for one in status["experiments"]),
        "quick": any(one.get("quick") for one in status["experiments"]),
        "best": best[0] if best else MISSING,
        "asked": moment(status["asked_at"]),
        "left": left(status),
    }


def left(status: Mapping[str, Any]) -> str:
    """Return how long a search will take, in words; empty where nobody can tell."""
    known = [one["left_s"] for one in status["experiments"] if one["left_s"] is not None and one["state"] == "running"]
    if status["state"] != "running" or not known or not max(known):
        return ""
    return f"about {duration(max(known))} left"


def moment(text: str | None, now: datetime | None = None) -> str:
    """Return a moment as one says it: how long ago, or the day."""
    if not text:
        return MISSING
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return MISSING
    seconds = ((now or datetime.now(UTC)) - at).total_seconds()
    if seconds < 60:
        return "just now"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.0f} h ago" if seconds < 86400 else f"{at:%Y-%m-%d %H:%M} UTC"


def experiment_view(status: Mapping[str, Any], name: str | None, results: Results) -> dict[str, Any]:
    """Return what is shown of one experiment of a search."""
    one = next(one for one in status["experiments"] if name in (None, one["name"]))
    best = ""
    if one["best_value"] is not None:
        row = results.trials[results.trials["trial_id"] == one["best_trial"]]
        if len(row):
            config = {key: row.iloc[0][key] for key in results.varying if key in row}
            best = ", ".join(f"{words(key)} {value_text(value, 4)}" for key, value in config.items() if value == value)
    return {
        **one,
        "best": f"{words(one['metric'])} {number(one['best_value'], one['metric'])}" if one["best_value"] is not None
        else MISSING,
        "best_at": best,
        "counts": ", ".join(
            [*([f"{one['running']} running"] if one["running"] else []),
             *(f"{count} {state}" for state, count in one["ended"].items())]
        ) or "none yet",
        "description": results.experiment.get("description") or "",
        "can_extend": one.get("searcher") != "grid" and one.get("scheduler") != "pbt",
    }  # fmt: skip


def trial_columns(results: Results) -> list[str]:
    """Return the columns of the table: the trial, what varied, what came of it."""
    there = [str(name) for name in results.trials if results.trials[name].notna().any()]
    own = [results.metric, *(name for name in METRICS if name in there), *sorted(there)]
    known = {*results.config_columns, "experiment", "trial_id", "status", "stop_reason", "error", "host", "device"}
    known |= {"steps_run", "setup_s", "train_s", "eval_s", "samples_per_s", "num_fused"}
    metrics = [name for name in dict.fromkeys(own) if name in there and name not in known]
    ends = [name for name in ("steps_run", "train_s", "error") if name in there]
    return ["trial_id", "status", *results.varying, *metrics[:MOST_METRICS], *ends]


def table(results: Results, rows: Rows, base: str, experiment: str | None) -> dict[str, Any]:
    """Return a page of the table of trials.

    Args:
        results: Of one experiment.
        rows: Which part of it, in which order.
        base: The address of the table itself.
        experiment: The experiment, where the address has to name it.

    Raises:
        RequestError: as ``frames.select``.
    """
    columns = trial_columns(results)
    asked = rows.query()
    if not asked.sort and results.metric in columns:
        # The best come first, unless somebody wants another order.
        asked = replace(asked, sort=(("-" if results.experiment["mode"] == "max" else "") + results.metric,))
    page, total = select(
        results.trials, Query(asked.filters, asked.sort, tuple(columns), rows.limit or ROWS, rows.offset)
    )  # fmt: skip
    size = rows.limit or ROWS
    sorted_by = asked.sort[0] if asked.sort else ""

    def address(**changes: Any) -> str:
        told = {"experiment": experiment, "filter": list(asked.filters), "sort": sorted_by, "offset": rows.offset}
        told |= changes
        return f"{base}?{urlencode({key: value for key, value in told.items() if value}, doseq=True)}"

    heads = [
        {
            "name": name,
            "text": heading(name),
            "is_number": is_numeric(results, name),
            "order": {name: "ascending", f"-{name}": "descending"}.get(sorted_by, "none"),
            "address": address(sort=f"-{name}" if sorted_by == name else name, offset=0),
        }
        for name in columns
    ]
    config = set(results.config_columns)
    cells = [
        [_cell(name, value, name in config) for name, value in row.items()] for row in records(page)
    ]  # fmt: skip
    return {
        "heads": heads,
        "rows": cells,
        "total": total,
        "all": len(results.trials),
        "first": rows.offset + 1 if len(page) else 0,
        "last": rows.offset + len(page),
        "before": address(offset=max(0, rows.offset - size)) if rows.offset else None,
        "after": address(offset=rows.offset + size) if rows.offset + size < total else None,
        "here": address(),
        "filters": list(asked.filters),
    }


def _cell(name: str, value: Any, is_config: bool) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float) and not is_config:
        return number(value, name)
    return value_text(value) if not isinstance(value, str) else value


def trial_view(results: Results, trial_id: str) -> dict[str, Any]:
    """Return what is shown of one trial; empty where there is none of that id."""
    found = results.trials[results.trials["trial_id"] == trial_id]
    if found.empty:
        return {}
    row = records(found)[0]
    config = {name: row[name] for name in results.config_columns if row[name] is not None}
    others = {name: value for name, value in row.items() if name not in config and value is not None}
    told = ("experiment", "trial_id", "status", "stop_reason", "error")
    return {
        "trial_id": trial_id,
        "status": row["status"],
        "stop_reason": row.get("stop_reason") or "",
        "error": row.get("error") or "",
        "config": [(words(name), value_text(value)) for name, value in config.items()],
        "measured": [(heading(name), _cell(name, value, False)) for name, value in others.items() if name not in told],
    }


def choices() -> dict[str, tuple[str, ...]]:
    """Return what the form's lists hold."""
    return {"searcher": SEARCHERS, "scheduler": SCHEDULERS, "fuse": ("auto", "off")}
