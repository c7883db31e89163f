"""HTML pages: login, the list of searches, a search, a trial, and the form that starts a search."""

import secrets
from collections.abc import Callable, Mapping
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from tune_hpc.analysis.reader import ResultsSnapshot
from tune_hpc.errors import RequestError, TuneHpcError, UnknownNameError
from tune_hpc.report import chart_data
from tune_hpc.search.options import MAX_REQUEST_SAMPLES
from tune_hpc.service import forms, schemas
from tune_hpc.service.auth import SESSION_S, AccessRules
from tune_hpc.service.cache import CachedResponse
from tune_hpc.service.problems import client_address, context_of, problem_type, status_of
from tune_hpc.service.result_routes import report_hint, trial_log
from tune_hpc.service.schemas import ExperimentQuery, TrialsQuery
from tune_hpc.service.services import SearchSnapshot, Services
from tune_hpc.service.templates import Templates, experiment_context, search_row, table_context, trial_context

#: Searches on a page of the list.
NUM_SEARCHES = 50
#: Size of the tail of a log on a page.
LOG_BYTES = 100_000
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
            rows = [search_row(one) for one in found[offset : offset + NUM_SEARCHES]]
            values = {"searches": rows, "total": len(found), "offset": offset, "state": state, "size": NUM_SEARCHES}
            return render(template, values)

        return (await services.cache.get(f"{template} {offset} {state}", str(version), False, make)).response()

    def search_values(snapshot: SearchSnapshot, experiment: str | None) -> tuple[dict[str, Any], ResultsSnapshot]:
        names = [one["name"] for one in snapshot.status["experiments"]]
        results = services.results(snapshot.folder, experiment or names[0])
        named = results.name if len(names) > 1 else None
        return {
            "search": search_row(snapshot.status),
            "experiment": experiment_context(snapshot.status, results),
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
            table = table_context(results, query, address, named)
        except RequestError as error:
            # Show the table without the invalid filter, and the problem above it.
            problem = str(error)
            table = table_context(results, TrialsQuery(experiment=query.experiment), address, named)
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
            return {**values, "trial": trial_context(results, trial_id), "log": log, "trial_id": trial_id}

        return await respond(search_id, "trial.html", query, make, trial_id)

    @router.post("/view/{search_id}/{action}")
    async def change(request: Request, search_id: str, action: str) -> Response:
        """Stop, resume, extend or delete a search; redirect to its page, or show the problem there."""
        fields = {name: values[0] for name, values in (await _read_form(request)).items()}
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

    def form_page(space: str, form: forms.Form, problem: str = "", status: int = 200) -> Response:
        experiment = registry[space]
        values = {key: texts[0] for key, texts in form.items()}
        return templates.page(
            "form.html", status, described=registry.describe(space), fields=forms.fields(experiment, form),
            form=values, problem=problem, overrides=forms.OVERRIDES, run_options=forms.RUN_OPTIONS,
            key=secrets.token_urlsafe(16),
        )  # fmt: skip

    @router.get("/new/{space}")
    def read_form_page(space: str) -> Response:
        return form_page(space, {})

    @router.get("/new/{space}/preview")
    def preview(request: Request, space: str) -> Response:
        """Return the size of the search of a form, or its problem."""
        form = parse_qs(request.url.query, keep_blank_values=False, max_num_fields=forms.MAX_FIELDS)
        text = problem = ""
        try:
            text = forms.summary(registry.build_experiment(forms.read_form(registry[space], form)))
        except TuneHpcError as error:
            problem = str(error)
        return templates.page("preview.html", text=text, problem=problem)

    @router.post("/new/{space}")
    async def start(request: Request, space: str) -> Response:
        form = await _read_form(request)
        key = f"page:{form['key'][0][:100]}" if form.get("key") else None

        def work() -> Response:
            try:
                body = forms.read_form(registry[space], form)
                job, _ = services.start(body, key)
            except UnknownNameError:
                raise
            except TuneHpcError as error:
                if problem_type(error) == "idempotency-key-reused":
                    # The user went back and changed the form, so the next submission starts another search.
                    del form["key"]
                return form_page(space, form, str(error), status_of(error))
            return RedirectResponse(f"{request.scope['root_path']}/view/{job.id}", 303)

        return await run_in_threadpool(work)

    return router


async def _read_form(request: Request) -> dict[str, list[str]]:
    """Return the fields of a form."""
    try:
        text = (await request.body()).decode("utf-8")
        return parse_qs(text, keep_blank_values=False, max_num_fields=forms.MAX_FIELDS)
    except ValueError as error:
        text = f"a form must be UTF-8 and have at most {forms.MAX_FIELDS} fields; this one cannot be read: {error}"
        raise RequestError(text, 400) from error


def login_routes(rules: AccessRules, templates: Templates) -> APIRouter:
    """Return the routes of login and logout."""
    router = APIRouter(include_in_schema=False)
    credentials = rules.credentials

    @router.get("/login")
    async def read_login(request: Request, next: str = "/") -> Response:
        root = request.scope["root_path"]
        if credentials is None:
            return RedirectResponse(f"{root}/", 303)
        return templates.page("login.html", target=_local_target(next, root), problem="")

    @router.post("/login")
    async def log_in(request: Request) -> Response:
        """Start a session for a browser that sends the token."""
        root = request.scope["root_path"]
        try:
            form = parse_qs((await request.body()).decode("utf-8"), max_num_fields=10)
        except ValueError:
            form = {}
        target = _local_target(form.get("next", ["/"])[0], root)
        if credentials is None:
            return RedirectResponse(target, 303)
        if not credentials.is_token(form.get("token", [""])[0].strip()):
            context_of(request.scope).is_login_rejected = True
            problem = "The token is wrong. The service prints the name of its token file when it starts."
            return templates.page("login.html", 401, target=target, problem=problem)
        rules.unauthenticated.give_back(client_address(request.scope))
        cookie = credentials.new_session()
        context_of(request.scope).user = f"session:{cookie[:8]}"
        response = RedirectResponse(target, 303)
        response.set_cookie(
            credentials.cookie_name, cookie, max_age=SESSION_S, httponly=True, samesite="strict", path=root or "/",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return response

    @router.post("/logout")
    def log_out(request: Request) -> Response:
        root, session = request.scope["root_path"], context_of(request.scope).session_id
        response = RedirectResponse(f"{root}/login", 303)
        if credentials and session:
            credentials.revoke(session)
            response.delete_cookie(credentials.cookie_name, httponly=True, samesite="strict", path=root or "/")
        return response

    return router


def _local_target(target: str, root: str) -> str:
    """Return the target of a login if it is a path of this service, else the list of searches."""
    try:
        url = urlsplit(target)
    except ValueError:
        return f"{root}/"
    is_local = target.startswith(f"{root}/") and not target.startswith(("//", "/\\"))
    has_no_host = not url.scheme and not url.netloc
    return target if is_local and has_no_host and target.isprintable() and "\\" not in target else f"{root}/"
