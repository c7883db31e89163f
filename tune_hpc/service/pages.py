"""HTML pages: the list of searches, a search, a trial, and the form that starts a search."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

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
from tune_hpc.analysis.reader import ResultsSnapshot
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.value_labels import with_value_labels
from tune_hpc.errors import RequestError, TuneHpcError, UnknownNameError
from tune_hpc.report import chart_data
from tune_hpc.report.plots.series import is_numeric
from tune_hpc.search.options import MAX_REQUEST_SAMPLES
from tune_hpc.service import experiments, schemas
from tune_hpc.service.problems import Templates, status_of
from tune_hpc.service.routes import report_hint, trial_log
from tune_hpc.service.schemas import ExperimentQuery, TrialsQuery
from tune_hpc.service.services import CachedResponse, SearchSnapshot, Services
from tune_hpc.storage.trial_file import CONFIG, row_to_config

#: Rows of a page of the table of trials, and metrics in it.
NUM_ROWS, MAX_METRICS = 50, 6
#: Columns that are neither parameters nor metrics.
_OTHER_COLUMNS = frozenset({
    "attempt", "experiment", "trial_id", "status", "stop_reason", "error", "host", "device", "steps_run", "setup_s",
    "train_s", "eval_s", "samples_per_s", "num_fused", "ended_at", CONFIG,
})  # fmt: skip
#: Searches on a page of the list.
NUM_SEARCHES = 50
#: Size of the tail of a log on a page.
LOG_BYTES = 100_000
MAX_FIELDS = 500
_NO_STORE, _FRAGMENT = {"Cache-Control": "no-store"}, {"Cache-Control": "private, no-cache"}
_ACTIONS: dict[str, type[schemas.Body]] = {
    "stop": schemas.StopRequest,
    "resume": schemas.ResumeRequest,
    "extend": schemas.ExtendRequest,
    "delete": schemas.DeleteRequest,
}


def page_routes(services: Services, templates: Templates) -> APIRouter:
    """Return the routes of the pages."""
    router = APIRouter(include_in_schema=False)
    registry = services.registry

    def render(template: str, values: Mapping[str, Any]) -> CachedResponse:
        is_page = template in ("list.html", "view.html", "trial.html")
        return CachedResponse(templates.render(template, **values), "text/html", _NO_STORE if is_page else _FRAGMENT)

    async def respond(
        search_id: str,
        template: str,
        query: ExperimentQuery,
        make: Callable[[SearchSnapshot], dict[str, Any]],
        trial_id: str = "",
    ) -> Response:
        """Return a page or fragment about a search, rendered once for all clients."""
        key = f"{template} {trial_id} {query.model_dump_json()}"
        return await services.respond(search_id, key, lambda snapshot: render(template, make(snapshot)))

    @router.get("/")
    @router.get("/fragments/searches")
    async def read_list(request: Request, offset: schemas.Offset = 0, state: str = "") -> Response:
        version, statuses = await services.list()
        template = "list.html" if request.scope["route"].path == "/" else "list_fragment.html"

        def make() -> CachedResponse:
            found = [one for one in statuses if state in ("", one["state"])]
            rows = [_search_row(one) for one in found[offset : offset + NUM_SEARCHES]]
            values = {"searches": rows, "total": len(found), "offset": offset, "state": state, "size": NUM_SEARCHES}
            return render(template, values)

        return (await services.cache.get(f"{template} {offset} {state}", str(version), False, make)).response()

    def search_values(snapshot: SearchSnapshot, experiment: str | None) -> tuple[dict[str, Any], ResultsSnapshot]:
        names = [one["name"] for one in snapshot.status["experiments"]]
        results = services.results(snapshot.folder, experiment or names[0])
        named = results.name if len(names) > 1 else None
        return {
            "search": _search_row(snapshot.status),
            "experiment": _experiment_context(snapshot.status, results),
            "query": f"?{urlencode({'experiment': named})}" if named else "",
            "named": named,
            "key": snapshot.version,
            "max_samples": MAX_REQUEST_SAMPLES,
            "report_hint": "" if snapshot.folder.report.is_file() else report_hint(snapshot),
            "has_response": snapshot.status["is_active"] or bool(chart_data.response_parameters(results)),
            "problem": "",
        }, results

    def table_values(snapshot: SearchSnapshot, query: TrialsQuery, root: str) -> dict[str, Any]:
        values, results = search_values(snapshot, query.experiment)
        address, problem, named = f"{root}/view/{snapshot.folder.id}/table", "", values["named"]
        try:
            table = _table_context(results, query, address, named)
        except RequestError as error:
            # Show the table without the invalid filter, and the problem above it.
            problem = str(error)
            table = _table_context(results, TrialsQuery(experiment=query.experiment), address, named)
            table["address"] = f"{address}?{urlencode(query.model_dump(exclude_defaults=True), doseq=True)}"
        table |= {"search_id": snapshot.folder.id, "named": named, "problem": problem,
                  "is_active": snapshot.status["is_active"]}  # fmt: skip
        return {**values, "table": table}

    @router.get("/view/{search_id}")
    @router.get("/view/{search_id}/table")
    async def read_view(request: Request, search_id: str, query: Annotated[TrialsQuery, Query()]) -> Response:
        root = request.scope["root_path"]
        template = "table.html" if request.scope["route"].path.endswith("/table") else "view.html"
        return await respond(search_id, template, query, lambda snapshot: table_values(snapshot, query, root))

    @router.get("/view/{search_id}/summary")
    async def read_summary(search_id: str, query: Annotated[ExperimentQuery, Query()]) -> Response:
        return await respond(search_id, "summary.html", query, lambda found: search_values(found, query.experiment)[0])

    @router.get("/view/{search_id}/parallel")
    async def read_parallel(search_id: str, query: Annotated[ExperimentQuery, Query()]) -> Response:
        def make(snapshot: SearchSnapshot) -> dict[str, Any]:
            return {"chart": chart_data.parallel_coordinates(search_values(snapshot, query.experiment)[1])}

        return await respond(search_id, "parallel.html", query, make)

    @router.get("/view/{search_id}/trial/{trial_id}")
    async def read_trial(search_id: str, trial_id: str, query: Annotated[ExperimentQuery, Query()]) -> Response:
        def make(snapshot: SearchSnapshot) -> dict[str, Any]:
            values, results = search_values(snapshot, query.experiment)
            log = trial_log(services, snapshot, trial_id, results.name, LOG_BYTES)
            return {**values, "trial": _trial_context(results, trial_id), "log": log, "trial_id": trial_id}

        return await respond(search_id, "trial.html", query, make, trial_id)

    @router.post("/view/{search_id}/{action}")
    async def change(request: Request, search_id: str, action: str) -> Response:
        """Stop, resume, extend or delete a search; redirect to its page, or show the problem there."""
        fields = {name: values[0] for name, values in _parse_form(await request.body()).items()}
        experiment, root = fields.get("experiment"), request.scope["root_path"]
        if action not in _ACTIONS:
            raise RequestError(f"the actions are {', '.join(_ACTIONS)}; got {action[:50]!r}", 404)
        try:
            body = schemas.read_fields(_ACTIONS[action], fields)
            await run_in_threadpool(services.change, search_id, body, fields.get("key"))
        except TuneHpcError as error:
            if status_of(error) == 404:
                raise
            snapshot = await services.snapshot(search_id)
            values = await run_in_threadpool(table_values, snapshot, TrialsQuery(experiment=experiment), root)
            return templates.page("view.html", status_of(error), **{**values, "problem": str(error)})
        query = f"?{urlencode({'experiment': experiment})}" if experiment else ""
        return RedirectResponse(f"{root}/" if action == "delete" else f"{root}/view/{search_id}{query}", 303)

    @router.get("/new")
    def choose() -> Response:
        return templates.page("choose.html", spaces=[registry.describe(experiment.name) for experiment in registry])

    def form_page(space: str, form: experiments.Form, problem: str = "", status: int = 200) -> Response:
        experiment = registry[space]
        values = {key: texts[0] for key, texts in form.items()}
        return templates.page(
            "form.html", status, described=registry.describe(space), fields=experiments.fields(experiment, form),
            form=values, problem=problem, overrides=experiments.OVERRIDES, run_options=experiments.RUN_OPTIONS,
            key=secrets.token_urlsafe(16),
        )  # fmt: skip

    @router.get("/new/{space}")
    def read_form_page(space: str) -> Response:
        return form_page(space, {})

    @router.get("/new/{space}/preview")
    def preview(request: Request, space: str) -> Response:
        """Return the size of the search of a form, or its problem."""
        text = problem = ""
        try:
            form = _parse_form(request.scope["query_string"])
            text = experiments.summary(registry.build_experiment(experiments.read_form(registry[space], form)))
        except TuneHpcError as error:
            problem = str(error)
        return templates.page("preview.html", text=text, problem=problem)

    @router.post("/new/{space}")
    async def start(request: Request, space: str) -> Response:
        form = _parse_form(await request.body())
        key = f"page:{form['key'][0][:100]}" if form.get("key") else None

        def work() -> Response:
            try:
                body = experiments.read_form(registry[space], form)
                job, _ = services.start(body, key)
            except UnknownNameError:
                raise
            except TuneHpcError as error:
                # A page of a form has a new key: the next submission starts another search.
                return form_page(space, form, str(error), status_of(error))
            return RedirectResponse(f"{request.scope['root_path']}/view/{job.id}", 303)

        return await run_in_threadpool(work)

    return router


def _parse_form(data: bytes) -> dict[str, list[str]]:
    try:
        return parse_qs(data.decode("utf-8"), max_num_fields=MAX_FIELDS)
    except ValueError as error:
        text = f"a form must be UTF-8 and have at most {MAX_FIELDS} fields; this one cannot be read: {error}"
        raise RequestError(text, 400) from error


def _search_row(status: Mapping[str, Any]) -> dict[str, Any]:
    details = status["experiments"]
    first = details[0] if details else {}
    seconds = [one["remaining_s"] for one in details if one["remaining_s"] and one["state"] == "running"]
    has_estimate = seconds and status["state"] == "running"
    best = (_best(one) for one in details if one["best_value"] is not None)
    return {
        **status,
        "title": first.get("title") or first.get("name") or "",
        "quick": any(one["quick"] for one in details),
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


def _experiment_context(status: Mapping[str, Any], results: Results) -> dict[str, Any]:
    experiment = next(one for one in status["experiments"] if one["name"] == results.name)
    best = results.trials[results.trials["trial_id"] == experiment["best_trial"]]
    best_config = _config_texts(records(best)[0], results.varied_parameters, 4) if len(best) else {}
    counts = [f"{count} {state}" for state, count in experiment["counts"].items()]
    running = [f"{experiment['num_running']} running"] if experiment["num_running"] else []
    return {
        **experiment,
        "best": _best(experiment),
        "best_config": ", ".join(f"{display_name(name)} {text}" for name, text in best_config.items()),
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


def _table_context(results: Results, query: TrialsQuery, address: str, experiment: str | None) -> dict[str, Any]:
    columns, size, offset = _table_columns(results), query.limit or NUM_ROWS, query.offset
    selection = replace(query.frame_query(), columns=tuple(columns), limit=size, format="json")
    if not selection.sort and results.metric in columns:
        # The default order is from the best to the worst.
        selection = replace(selection, sort=(("-" if results.experiment["mode"] == "max" else "") + results.metric,))
    if CONFIG in results.trials:
        # Labels need the configurations of the rows.
        selection = replace(selection, columns=(*columns, CONFIG))
    page, total = select(results.trials, selection)
    page = with_value_labels(results.with_trials(page)).trials[columns]
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


def _config_texts(row: Mapping[str, Any], names: Sequence[str], digits: int = 6) -> dict[str, str]:
    """Return the values of the parameters that a trial has, as texts."""
    config = row_to_config(row)
    # In a row of an early release, which has only columns, None is a missing value.
    present = [name for name in names if name in config and (CONFIG in row or config[name] is not None)]
    return {name: "None" if config[name] is None else format_value(config[name], digits) for name in present}


def _trial_context(results: Results, trial_id: str) -> dict[str, Any]:
    row = records(results.trials[results.trials["trial_id"] == trial_id])[0]
    titled = ("experiment", "trial_id", "status", "stop_reason", "error", CONFIG)
    others = {
        name: value
        for name, value in row.items()
        if name not in (*results.config_columns, *titled) and value is not None
    }
    return {
        "trial_id": trial_id,
        "status": row["status"],
        "stop_reason": row.get("stop_reason") or "",
        "error": row.get("error") or "",
        "config": [(display_name(name), text) for name, text in _config_texts(row, results.config_columns).items()],
        "measured": [(column_heading(name), _cell(name, value, False)) for name, value in others.items()],
    }
