"""The application: routes, limits and access, wired; errors in one form."""

import logging
from collections.abc import Callable, Iterable
from functools import partial

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from tune_hpc.cluster.client import JobClient
from tune_hpc.errors import RequestError, TuneHpcError
from tune_hpc.search.experiment import Experiment
from tune_hpc.service.access import Access
from tune_hpc.service.answers import Json, error_answer
from tune_hpc.service.catalogue import Catalogue
from tune_hpc.service.descriptions import Health, SpaceList, SpaceTold, errors, json_of
from tune_hpc.service.entrance import entrance_routes
from tune_hpc.service.http import Coalescing
from tune_hpc.service.limits import READS_PER_S, WRITES_PER_S, Limits
from tune_hpc.service.outcomes import outcome_routes
from tune_hpc.service.pages import page_routes
from tune_hpc.service.parts import Parts, make_parts
from tune_hpc.service.quick import Quick
from tune_hpc.service.rendering import Templates
from tune_hpc.service.searches import search_routes

_log = logging.getLogger(__name__)
#: The names under which a service of this machine is meant.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_DESCRIPTION = (
    "Hyperparameter searches: started, watched and steered. Spaces are plain JSON; nothing is ever evaluated."
)


class Guarded(FastAPI):
    """FastAPI behind an entrance, so that what is refused costs none of its layers; what is given again costs none."""

    entrance: ASGIApp
    quick: Quick
    coalescing: Coalescing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self.entrance(scope, receive, send)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one that was let in."""
        await super().__call__(scope, receive, send)


def create_app(
    client: JobClient,
    token: str | None,
    registered: Iterable[Experiment],
    *,
    hosts: frozenset[str] = LOOPBACK,
    reads_per_s: float = READS_PER_S,
    writes_per_s: float = WRITES_PER_S,
    version: str = "unknown",
) -> FastAPI:
    """Return the service of a client's storage.

    Args:
        client: Who starts jobs, and where they are kept.
        token: What a request must send; ``None``: nothing, under one of ``hosts``.
        registered: The experiments that may be asked for.
        hosts: The names under which the service is meant, where it has no token.
        reads_per_s: Requests a second of one address that read.
        writes_per_s: Requests a second of one address that change something.
        version: What the service says of itself.

    Raises:
        InvalidExperimentError: two experiments are called the same.
    """
    parts = make_parts(client, Catalogue(registered))
    app = Guarded(
        title="tune_hpc", version=version, description=_DESCRIPTION, docs_url=None, redoc_url=None,
        default_response_class=Json,
    )  # fmt: skip
    needs_token = [Depends(HTTPBearer(auto_error=False, description="the service's token"))]
    app.include_router(_health_routes(version))
    for routes in (_space_routes(parts), search_routes(parts), outcome_routes(parts)):
        app.include_router(routes, dependencies=needs_token)
    templates = Templates(has_token=token is not None)
    app.include_router(entrance_routes(token, templates))
    app.include_router(page_routes(parts, templates))
    for kind, told in ((TuneHpcError, _refused), (RequestValidationError, _invalid), (HTTPException, _unserved)):
        app.add_exception_handler(kind, partial(_answer, templates, told))
    app.add_exception_handler(Exception, _unexpected)
    limited = Limits(app.serve, reads_per_s=reads_per_s, writes_per_s=writes_per_s)
    app.entrance = Access(limited, token=token, hosts=hosts)
    app.quick = Quick(parts.kept, limited.reads)
    app.coalescing = Coalescing()
    # FastAPI makes routes ready when they are first asked for, which two services of one process must not do at once.
    app.openapi()
    return app


def _health_routes(version: str) -> APIRouter:
    router = APIRouter(tags=["service"])

    @router.get("/health", responses={200: {"model": Health}, **errors(429)})
    async def health() -> Response:
        """Say that the service answers; needs no token and tells nothing of searches."""
        return Json({"status": "ok", "version": version})

    return router


def _space_routes(parts: Parts) -> APIRouter:
    router = APIRouter(tags=["spaces"])

    @router.get("/spaces", responses={200: {"model": SpaceList}, **errors(401, 429)})
    def list_spaces() -> Response:
        """Return the experiments that may be asked for, with their spaces as plain JSON."""
        return Json({"spaces": [parts.catalogue.describe(one.name) for one in parts.catalogue]})

    @router.get("/spaces/{name}", responses=json_of(SpaceTold))
    def read_space(name: str) -> Response:
        """Return one of them."""
        return Json(parts.catalogue.describe(name))

    return router


def _answer(
    templates: Templates, told: Callable[[Request, Exception], TuneHpcError], request: Request, error: Exception
) -> Response:
    headers = dict(getattr(error, "headers", None) or {})
    answer: Response = templates.error(request, told(request, error), headers)
    return answer


def _refused(request: Request, error: Exception) -> TuneHpcError:
    assert isinstance(error, TuneHpcError)
    return error


def _invalid(request: Request, error: Exception) -> TuneHpcError:
    """Tell what is wrong with a request in one line, without what it held: that may be large, or no JSON."""
    assert isinstance(error, RequestValidationError)
    if any(one["type"] == "json_invalid" for one in error.errors()):
        place = error.errors()[0]["loc"][-1]
        return RequestError(f"the body is no JSON: an error at character {place}; correct it", 400)
    told = [f"{'.'.join(map(str, one['loc']))[:200]}: {one['msg'][:300]}" for one in error.errors()[:5]]
    more = f"; and {len(error.errors()) - 5} more" if len(error.errors()) > 5 else ""
    return RequestError(f"{'; '.join(told)}{more}; /openapi.json says what is allowed")


def _unserved(request: Request, error: Exception) -> TuneHpcError:
    """Tell what no route serves."""
    assert isinstance(error, HTTPException)
    words = {
        404: f"nothing is at {request.url.path[:200]!r}; /openapi.json lists all routes",
        405: f"{request.method} is not served at {request.url.path[:200]!r}; /openapi.json lists what is",
    }
    return RequestError(words.get(error.status_code, f"{error.detail}"), error.status_code)


def _unexpected(request: Request, error: Exception) -> Response:
    """Answer for what nobody thought of; the log has it all."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return error_answer(RequestError("the service failed at this request; its log says why", 500))
