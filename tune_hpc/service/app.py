"""Application factory."""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyCookie, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse
from starlette.routing import BaseRoute
from starlette.staticfiles import StaticFiles

from tune_hpc.errors import RequestError, TuneHpcError
from tune_hpc.jobs.client import JobClient
from tune_hpc.search.experiment import Experiment
from tune_hpc.service.auth import AccessRules, AuthMiddleware
from tune_hpc.service.middleware import (
    BodyLimitMiddleware,
    ETagMiddleware,
    RequestMiddleware,
)
from tune_hpc.service.pages import login_routes, page_routes
from tune_hpc.service.problems import PROBLEM_TYPES, URN, Problem, ProblemRenderer, route_path
from tune_hpc.service.result_routes import result_routes
from tune_hpc.service.search_routes import search_routes
from tune_hpc.service.services import Registry, Services
from tune_hpc.service.system_routes import Metrics, health_routes, system_routes
from tune_hpc.service.templates import Templates

STATIC = Path(str(files("tune_hpc.service"))) / "static"
GZIP_MIN_BYTES = 2000
_DESCRIPTION = "Start, watch and control hyperparameter searches. Spaces are plain JSON; no text is evaluated."


def create_app(
    client: JobClient,
    rules: AccessRules,
    experiments: Iterable[Experiment],
    *,
    root_path: str = "",
    version: str = "unknown",
) -> FastAPI:
    """Return the service of a storage.

    Args:
        client: Client of the jobs of the storage.
        rules: Access rules.
        experiments: Experiments that requests may start.
        root_path: Path below which a proxy serves the service; empty, or with a leading slash.
        version: Version of the package.

    Raises:
        InvalidExperimentError: Two experiments have the same name.
    """
    services, metrics = Services(client, Registry(experiments)), Metrics()
    templates = Templates(has_token=rules.credentials is not None, root_path=root_path)
    respond = ProblemRenderer(templates)
    app = FastAPI(
        title="tune_hpc", version=version, description=_DESCRIPTION, docs_url=None, redoc_url=None,
        openapi_url="/api/v1/openapi.json", servers=[{"url": root_path or "/"}], redirect_slashes=False,
        middleware=[
            Middleware(RequestMiddleware, respond=respond, metrics=metrics, root_path=root_path),
            Middleware(GZipMiddleware, minimum_size=GZIP_MIN_BYTES, compresslevel=5),
            Middleware(ETagMiddleware),
            Middleware(AuthMiddleware, rules=rules, respond=respond),
            Middleware(BodyLimitMiddleware, respond=respond),
        ],
    )  # fmt: skip
    app.state.services = services
    cookie = rules.credentials.cookie_name if rules.credentials else "tune_hpc"
    schemes = [
        Security(HTTPBearer(auto_error=False, description="the token of the service")),
        Security(APIKeyCookie(name=cookie, auto_error=False, description="the session of a browser")),
    ]
    api = [system_routes(services, metrics, version), search_routes(services), result_routes(services)]
    others = [health_routes(version), login_routes(rules, templates), page_routes(services, templates)]
    for router in (*api, *others):
        app.include_router(router, dependencies=schemes if router in api else None)
    routes = [route for router in (*api, *others) for route in router.routes]

    @app.get("/favicon.ico", include_in_schema=False)
    async def read_icon() -> Response:
        return FileResponse(STATIC / "icon.svg", media_type="image/svg+xml")

    app.mount("/static", StaticFiles(directory=STATIC))

    def handle(request: Request, error: Exception) -> Response:
        return _handle([*routes, *app.routes], respond, request, error)

    for kind in (TuneHpcError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)
    _describe_problems(app)
    return app


def _describe_problems(app: FastAPI) -> None:
    """Replace the errors of FastAPI by problems in the OpenAPI description."""
    schema = app.openapi()
    schemas: dict[str, Any] = schema["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = Problem.model_json_schema()
    kinds = [URN + kind for kind in PROBLEM_TYPES]
    schemas["Problem"]["properties"]["type"]["enum"] = kinds


def _handle(routes: Sequence[BaseRoute], respond: ProblemRenderer, request: Request, error: Exception) -> Response:
    """Return the response to a request that a route or parser rejected."""
    path, method = route_path(request.scope)[:200], request.method
    if isinstance(error, RequestValidationError):
        return respond(request.scope, _invalid(error))
    if isinstance(error, TuneHpcError):
        return respond(request.scope, error)
    assert isinstance(error, HTTPException)
    if error.status_code != 405:
        text = {404: f"nothing is at {path!r}; /api/v1/openapi.json lists the routes"}.get(error.status_code)
        return respond(request.scope, RequestError(text or str(error.detail), error.status_code))
    methods = _methods(routes, request)
    allow = {"Allow": ", ".join(sorted(methods))}
    if method == "OPTIONS":
        return Response(status_code=204, headers=allow)
    text = f"{path!r} does not support {method}; it supports {allow['Allow']}"
    return respond(request.scope, RequestError(text, 405), allow)


def _methods(routes: Sequence[BaseRoute], request: Request) -> set[str]:
    """Return the methods of a path."""
    path, methods = route_path(request.scope), {"OPTIONS"}
    for route in routes:
        pattern = getattr(route, "path_regex", None)
        if pattern and pattern.match(path):
            methods |= getattr(route, "methods", None) or {"GET"}
    return methods | {"HEAD"} if "GET" in methods else methods


def _invalid(error: RequestValidationError) -> RequestError:
    """Return the error of an invalid request in one line, without the request, which may be large."""
    errors = error.errors()
    if any(one["type"] == "json_invalid" for one in errors):
        return RequestError(f"the body is not JSON: an error at character {errors[0]['loc'][-1]}; correct it", 400)
    texts = [f"{'.'.join(map(str, one['loc']))[:200]}: {one['msg'][:300]}" for one in errors[:5]]
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return RequestError(f"{'; '.join(texts)}{more}; /api/v1/openapi.json describes what is allowed")
