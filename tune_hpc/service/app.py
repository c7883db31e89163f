"""Application factory, and the routes of the service itself: health, readiness, metrics, registered experiments."""

import tempfile
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyCookie, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse
from starlette.routing import BaseRoute
from starlette.staticfiles import StaticFiles

from tune_hpc.errors import FolderError, RequestError, TuneHpcError
from tune_hpc.jobs.client import JobClient
from tune_hpc.search.experiment import Experiment
from tune_hpc.service.auth import AccessRules, AuthMiddleware, login_routes
from tune_hpc.service.experiments import Registry
from tune_hpc.service.middleware import BodyLimitMiddleware, ETagMiddleware, Metrics, RequestMiddleware
from tune_hpc.service.pages import page_routes
from tune_hpc.service.problems import (
    PROBLEM_TYPES,
    READ_ERRORS,
    URN,
    AsciiJsonResponse,
    Problem,
    Templates,
    problem_docs,
    route_path,
)
from tune_hpc.service.routes import result_routes, search_routes
from tune_hpc.service.schemas import Health, SpaceDetail, SpaceList
from tune_hpc.service.services import CLUSTER_TIMEOUT_S, Services

STATIC = Path(str(files("tune_hpc.service"))) / "static"
GZIP_MIN_BYTES = 2000
_DESCRIPTION = "Start, watch and control hyperparameter searches. Spaces are plain JSON; no text is evaluated."
_NO_STORE = {"Cache-Control": "no-store"}


def create_app(
    client: JobClient,
    rules: AccessRules,
    experiments: Iterable[Experiment],
    *,
    root_path: str = "",
    version: str = "unknown",
) -> FastAPI:
    """Return the service of a storage, in which requests may start the given experiments.

    A proxy may serve it below ``root_path``, which is empty or has a leading slash.
    """
    services, metrics = Services(client, Registry(experiments)), Metrics()
    templates = Templates(has_token=rules.credentials is not None, root_path=root_path)
    app = FastAPI(
        title="tune_hpc", version=version, description=_DESCRIPTION, docs_url=None, redoc_url=None,
        openapi_url="/api/v1/openapi.json", servers=[{"url": root_path or "/"}], redirect_slashes=False,
        middleware=[
            Middleware(RequestMiddleware, templates=templates, metrics=metrics, root_path=root_path),
            Middleware(GZipMiddleware, minimum_size=GZIP_MIN_BYTES, compresslevel=5),
            Middleware(ETagMiddleware),
            Middleware(AuthMiddleware, rules=rules, templates=templates),
            Middleware(BodyLimitMiddleware, templates=templates),
        ],
    )  # fmt: skip
    app.state.services = services
    cookie = rules.credentials.cookie_name if rules.credentials else "tune_hpc"
    schemes = [
        Security(HTTPBearer(auto_error=False, description="the token of the service")),
        Security(APIKeyCookie(name=cookie, auto_error=False, description="the session of a browser")),
    ]
    api = [_system_routes(services, metrics, version), search_routes(services), result_routes(services)]
    routers = [*api, login_routes(rules, templates), page_routes(services, templates)]
    for router in routers:
        app.include_router(router, dependencies=schemes if router in api else None)

    @app.get("/health", operation_id="readHealth", response_model=Health, responses=problem_docs(429), tags=["service"])
    async def read_health() -> Response:
        """Return the health of the process."""
        return AsciiJsonResponse({"status": "ok", "version": version}, headers=_NO_STORE)

    @app.get("/favicon.ico", include_in_schema=False)
    async def read_icon() -> Response:
        return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml")

    app.mount("/static", StaticFiles(directory=STATIC))
    routes = [route for router in routers for route in router.routes] + app.routes

    def handle(request: Request, error: Exception) -> Response:
        return _handle(routes, templates, request, error)

    for kind in (TuneHpcError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
    # The OpenAPI description has problems instead of the errors of FastAPI.
    schemas: dict[str, Any] = app.openapi()["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = Problem.model_json_schema()
    schemas["Problem"]["properties"]["type"]["enum"] = [URN + kind for kind in PROBLEM_TYPES]
    return app


def _system_routes(services: Services, metrics: Metrics, version: str) -> APIRouter:
    """Return the routes of the service itself that need the token."""
    router = APIRouter(tags=["service"])

    @router.get("/ready", operation_id="readReadiness", response_model=Health, responses=problem_docs(401, 429, 503))
    async def read_readiness() -> Response:
        """Check that the storage can be read and written, and that the cluster responds."""
        await run_in_threadpool(_check_ready, services)
        return AsciiJsonResponse({"status": "ok", "version": version}, headers=_NO_STORE)

    text: dict[int | str, Any] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @router.get("/metrics", operation_id="readMetrics", responses={**text, **problem_docs(401, 429, 503)},
                response_class=Response)  # fmt: skip
    async def read_metrics() -> Response:
        """Return metrics in the text format of Prometheus."""
        _, statuses = await services.list()
        return Response(metrics.render(statuses), headers=_NO_STORE | {"Content-Type": metrics.CONTENT_TYPE})

    @router.get("/api/v1/spaces", operation_id="listSpaces", response_model=SpaceList, responses=problem_docs(401, 429))
    def list_spaces() -> Response:
        """Return the registered experiments, with their spaces as plain JSON."""
        spaces = [services.registry.describe(experiment.name) for experiment in services.registry]
        return AsciiJsonResponse({"spaces": spaces})

    @router.get("/api/v1/spaces/{name}", operation_id="readSpace", response_model=SpaceDetail,
                responses=problem_docs(*READ_ERRORS))  # fmt: skip
    def read_space(name: str) -> Response:
        """Return a registered experiment."""
        return AsciiJsonResponse(services.registry.describe(name))

    return router


def _check_ready(services: Services) -> None:
    """Check that searches can be read and started."""
    storage = services.client.storage
    storage.list_names()
    if not storage.is_remote:
        try:
            with tempfile.NamedTemporaryFile(prefix=".ready-", dir=storage.root):
                pass
        except OSError as error:
            raise FolderError(f"{storage.uri} cannot be written: {error.strerror}; check the storage") from error
    services.client.launcher.check(CLUSTER_TIMEOUT_S)


def _handle(routes: Sequence[BaseRoute], templates: Templates, request: Request, error: Exception) -> Response:
    """Return the response to a request that a route or parser rejected."""
    path, method = route_path(request.scope), request.method
    if isinstance(error, RequestValidationError):
        return templates.problem(request.scope, _invalid(error))
    if isinstance(error, TuneHpcError):
        return templates.problem(request.scope, error)
    assert isinstance(error, HTTPException)
    if error.status_code != 405:
        text = {404: f"nothing is at {path[:200]!r}; /api/v1/openapi.json lists the routes"}.get(error.status_code)
        return templates.problem(request.scope, RequestError(text or str(error.detail), error.status_code))
    # Several routes serve different methods of one path.
    found = [route for route in routes if (pattern := getattr(route, "path_regex", None)) and pattern.match(path)]
    methods = {"OPTIONS"}.union(*(getattr(route, "methods", None) or {"GET"} for route in found))
    if "GET" in methods:
        methods.add("HEAD")
    allow = {"Allow": ", ".join(sorted(methods))}
    if method == "OPTIONS":
        return Response(status_code=204, headers=allow)
    text = f"{path[:200]!r} does not support {method}; it supports {allow['Allow']}"
    return templates.problem(request.scope, RequestError(text, 405), allow)


def _invalid(error: RequestValidationError) -> RequestError:
    """Return the error of an invalid request in one line, without the request, which may be large."""
    errors = error.errors()
    if any(one["type"] == "json_invalid" for one in errors):
        return RequestError(f"the body is not JSON: an error at character {errors[0]['loc'][-1]}; correct it", 400)
    texts = [f"{'.'.join(map(str, one['loc']))[:200]}: {one['msg'][:300]}" for one in errors[:5]]
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return RequestError(f"{'; '.join(texts)}{more}; /api/v1/openapi.json describes what is allowed")
