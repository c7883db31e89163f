"""The page: searches, one search, one trial, and the form that starts one; rendered here, kept fresh by fragments."""

from functools import partial
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import RedirectResponse

from tune_hpc.errors import RequestError, TuneHpcError
from tune_hpc.service import charts, forms, views
from tune_hpc.service.answers import Answer, in_thread, status_code
from tune_hpc.service.bodies import Extension
from tune_hpc.service.outcomes import trial_log, why_no_report
from tune_hpc.service.parts import Parts
from tune_hpc.service.queries import OfExperiment, Rows
from tune_hpc.service.readings import Reading
from tune_hpc.service.rendering import Templates
from tune_hpc.service.searches import extend, resume, stop
from tune_hpc.service.statuses import find

#: Searches on a page of the list.
SEARCHES = 50
#: How much of a trial's log a page shows, in bytes.
LOG_BYTES = 100_000


def page_routes(parts: Parts, templates: Templates) -> APIRouter:
    """Return the routes of the page."""
    router = APIRouter(include_in_schema=False)
    html, page = templates.render, templates.page

    async def kept(request: Request, key: object, template: str, look: Any) -> Response:
        """Answer with a fragment, made once for all who look at it."""

        def make(before: Answer | None) -> Answer:
            version, shown = look(before.version if before else None)
            if before and shown is None:
                return before
            return Answer(html(template, **shown), "text/html", version=version)

        return (await parts.kept.get((template, key), make)).as_response(request.scope)

    def listing(offset: int, state: str) -> dict[str, Any]:
        found = [one for one in parts.statuses.all() if state in ("", one["state"])]
        return {
            "searches": [views.search_row(one) for one in found[offset : offset + SEARCHES]],
            "total": len(found),
            "offset": offset,
            "state": state,
            "size": SEARCHES,
        }

    @router.get("/")
    async def read_list(request: Request, offset: int = 0, state: str = "") -> Response:
        return await kept(
            request, (offset, state), "list.html", lambda _: (None, listing(max(0, offset), state))
        )  # fmt: skip

    @router.get("/parts/searches")
    async def read_list_part(request: Request, offset: int = 0, state: str = "") -> Response:
        return await kept(
            request, (offset, state), "list_part.html", lambda _: (None, listing(max(0, offset), state))
        )  # fmt: skip

    def look_at(search_id: str, experiment: str | None) -> tuple[dict[str, Any], Reading, dict[str, Any]]:
        job = find(parts.client, search_id)
        status = parts.statuses.one(search_id)
        name = experiment or status["experiments"][0]["name"]
        reading = parts.readings.read(job, name)
        return status, reading, views.experiment_view(status, name, reading.results)

    def shown_of(search_id: str, experiment: str | None) -> dict[str, Any]:
        status, reading, one = look_at(search_id, experiment)
        several = len(status["experiments"]) > 1
        return {
            "search": views.search_row(status),
            "experiment": one,
            "query": f"?{urlencode({'experiment': one['name']})}" if several else "",
            "named": one["name"] if several else None,
            "no_report": "" if find(parts.client, search_id).report.is_file() else why_no_report(parts, search_id),
            "has_response": status["is_active"] or bool(charts.response_parameters(reading.results)),
            "problem": "",
        }

    @router.get("/view/{search_id}")
    async def read_view(request: Request, search_id: str, asked: Annotated[Rows, Query()]) -> Response:
        def look(_: object) -> tuple[object, dict[str, Any]]:
            shown = shown_of(search_id, asked.experiment)
            return None, {**shown, "table": table_of(search_id, asked)[1]}

        return await kept(request, (search_id, asked.model_dump_json()), "view.html", look)

    @router.get("/view/{search_id}/summary")
    async def read_summary(request: Request, search_id: str, asked: Annotated[OfExperiment, Query()]) -> Response:
        look = partial(lambda _: (None, shown_of(search_id, asked.experiment)))
        return await kept(request, (search_id, asked.experiment), "summary.html", look)

    def table_of(search_id: str, rows: Rows) -> tuple[object, dict[str, Any]]:
        status, reading, one = look_at(search_id, rows.experiment)
        named = one["name"] if len(status["experiments"]) > 1 else None
        shown = views.table(reading.results, rows, f"/view/{search_id}/table", named)
        shown |= {"search_id": search_id, "named": named, "problem": "", "is_active": status["is_active"]}
        return (reading.version, status["is_active"]), shown

    @router.get("/view/{search_id}/table")
    async def read_table(request: Request, search_id: str, rows: Annotated[Rows, Query()]) -> Response:
        def look(version: object) -> tuple[object, dict[str, Any] | None]:
            try:
                new, shown = table_of(search_id, rows)
            except RequestError as error:
                if error.status != 422:
                    raise
                # A filter that cannot be read is told where it was written, and the table stands without it.
                new, shown = table_of(search_id, Rows(experiment=rows.experiment))
                shown |= {"problem": str(error), "here": f"{request.url.path}?{request.url.query}"}
            return new, None if new == version else {"table": shown}

        return await kept(request, (search_id, rows.model_dump_json()), "table.html", look)

    @router.get("/view/{search_id}/parallel")
    async def read_parallel(request: Request, search_id: str, asked: Annotated[OfExperiment, Query()]) -> Response:
        def look(version: object) -> tuple[object, dict[str, Any] | None]:
            _, reading, _ = look_at(search_id, asked.experiment)
            if reading.version == version:
                return version, None
            return reading.version, {"chart": charts.parallel(reading.results)}

        return await kept(request, (search_id, asked.experiment), "parallel.html", look)

    @router.get("/view/{search_id}/trial/{trial_id}")
    async def read_trial(
        request: Request, search_id: str, trial_id: str, asked: Annotated[OfExperiment, Query()]
    ) -> Response:
        def look(_: object) -> tuple[object, dict[str, Any]]:
            shown = shown_of(search_id, asked.experiment)
            reading = look_at(search_id, asked.experiment)[1]
            log = trial_log(parts, search_id, trial_id, shown["experiment"]["name"], LOG_BYTES)
            return None, {**shown, "trial": views.trial_view(reading.results, trial_id), "log": log}

        return await kept(request, (search_id, trial_id, asked.experiment), "trial.html", look)

    @router.post("/view/{search_id}/{verb}")
    async def change(request: Request, search_id: str, verb: str) -> Response:
        """Stop, resume or extend a search, and go back to where it is seen; or say there why not."""
        form = await _read(request)

        def work() -> None:
            if verb == "stop":
                stop(parts, search_id, force="force" in form)
            elif verb == "resume":
                resume(parts, search_id, {})
            elif verb == "extend":
                text = form.get("num_samples", [""])[0]
                if not text.isdigit() or not 1 <= int(text) <= 100_000:
                    raise RequestError(f"how many more is a whole number from 1 to 100000; got {text[:50]!r}")
                extend(parts, search_id, Extension(num_samples=int(text), experiment=form.get("experiment", [None])[0]))
            else:
                raise RequestError(f"a search can be stopped, resumed and extended; got {verb[:50]!r}", 404)

        experiment = form.get("experiment", [None])[0]
        try:
            await in_thread(work)
        except TuneHpcError as error:
            if status_code(error) == 404:
                raise
            shown = await in_thread(lambda: shown_of(search_id, experiment))
            table = await in_thread(lambda: table_of(search_id, Rows(experiment=experiment))[1])
            return page("view.html", status_code(error), **{**shown, "problem": str(error), "table": table})
        parts.has_changed()
        query = f"?{urlencode({'experiment': experiment})}" if experiment else ""
        return RedirectResponse(f"/view/{search_id}{query}", 303)

    @router.get("/new")
    async def choose() -> Response:
        spaces = await in_thread(lambda: [parts.catalogue.describe(one.name) for one in parts.catalogue])
        return page("choose.html", spaces=spaces)

    def form_page(space: str, form: forms.Form, problem: str = "", status: int = 200) -> Response:
        experiment = parts.catalogue[space]
        return page(
            "form.html", status, experiment=experiment, described=parts.catalogue.describe(space),
            fields=forms.fields(experiment, form), form={key: one[0] for key, one in form.items()}, problem=problem,
            choices=views.choices(), key=forms.new_key(form),
        )  # fmt: skip

    @router.get("/new/{space}")
    async def read_form(space: str) -> Response:
        return await in_thread(lambda: form_page(space, {}))

    @router.get("/new/{space}/preview")
    async def preview(request: Request, space: str) -> Response:
        """Say what would be started, while the form is filled in."""
        form = parse_qs(request.url.query, keep_blank_values=False, max_num_fields=forms.MOST_FIELDS)

        def work() -> dict[str, str]:
            try:
                experiment = parts.catalogue.asked(forms.read_form(parts.catalogue[space], form))
                return {"told": forms.in_words(experiment), "problem": ""}
            except TuneHpcError as error:
                return {"told": "", "problem": str(error)}

        return page("preview.html", **await in_thread(work))

    @router.post("/new/{space}")
    async def start(request: Request, space: str) -> Response:
        form = await _read(request)

        def work() -> Response:
            body = forms.read_form(parts.catalogue[space], form)
            key = f"page:{form['key'][0][:100]}" if form.get("key") else None
            job, _ = parts.submissions.submit(parts.catalogue.asked(body), body.options(), key)
            parts.has_changed()
            return RedirectResponse(f"/view/{job.id}", 303)

        try:
            answer: Response = await in_thread(work)
        except TuneHpcError as error:
            problem, status = str(error), status_code(error)
            if space not in {one.name for one in parts.catalogue}:
                raise
            return await in_thread(lambda: form_page(space, form, problem, status))
        return answer

    return router


async def _read(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form.

    Raises:
        RequestError: it is none, or has too many.
    """
    try:
        text = (await request.body()).decode("utf-8")
        return parse_qs(text, keep_blank_values=False, max_num_fields=forms.MOST_FIELDS)
    except ValueError as error:
        raise RequestError(f"a form has at most {forms.MOST_FIELDS} fields in UTF-8; this one cannot be read: {error}",
                           400) from error  # fmt: skip
