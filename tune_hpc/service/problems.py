"""State of a request, templates of pages, and problem responses (RFC 9457) with the status of each error."""

import json
import logging
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Scope

from tune_hpc.errors import (
    ClusterError,
    ConflictError,
    DataUnavailableError,
    FolderError,
    InvalidConfigError,
    InvalidExperimentError,
    InvalidSpaceError,
    MissingPackageError,
    RequestError,
    TuneHpcError,
    UnknownNameError,
)
from tune_hpc.service.schemas import STATES
from tune_hpc.storage.filesystem import DISK_FULL_ERRNOS

_log = logging.getLogger(__name__)

_CONTEXT_KEY = "tune_hpc"
#: Characters of the detail of a problem.
MAX_DETAIL = 2000

#: Prefix of the types of problems.
URN = "urn:tune-hpc:problem:"
#: Status, title and exceptions of each problem type.
PROBLEM_TYPES: dict[str, tuple[int, str, *tuple[type[TuneHpcError], ...]]] = {
    "invalid-json": (400, "The body is not valid JSON"),
    "unauthorized": (401, "Valid credentials are missing"),
    "forbidden": (403, "The request does not come from the page of this service"),
    "not-found": (404, "No such resource", UnknownNameError),
    "method-not-allowed": (405, "The resource does not support the method"),
    "body-timeout": (408, "The body did not arrive in time"),
    "conflict": (409, "The state of the search forbids the request", ConflictError),
    "body-too-large": (413, "The body is too large"),
    "invalid-request": (422, "The request is invalid"),
    "invalid-experiment": (
        422,
        "The experiment is invalid",
        InvalidExperimentError,
        InvalidSpaceError,
        InvalidConfigError,
    ),
    "idempotency-key-reused": (422, "The idempotency key was used for another request"),
    "too-many-requests": (429, "Too many requests"),
    "internal": (500, "Internal error"),
    "storage-unavailable": (503, "The storage cannot be used", FolderError),
    "cluster-unavailable": (503, "The cluster cannot be reached, or refuses", ClusterError),
    "data-unavailable": (503, "Data or a package is missing on the server", DataUnavailableError, MissingPackageError),
    "storage-full": (507, "The storage is full"),
}
#: Statuses of problems that routes which read respond with.
READ_ERRORS = (401, 404, 422, 429, 503)
_TYPE_OF_STATUS = {status: kind for kind, (status, *_) in reversed(PROBLEM_TYPES.items())}


class Problem(BaseModel):
    """An error."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


def problem_type(error: TuneHpcError) -> str:
    """Return the problem type of an error, without its URN prefix."""
    if isinstance(error, RequestError):
        has_own_type = error.status == PROBLEM_TYPES[error.kind][0]
        return error.kind if has_own_type else _TYPE_OF_STATUS.get(error.status, "invalid-request")
    cause = error.__cause__
    while cause:
        if getattr(cause, "errno", None) in DISK_FULL_ERRNOS:
            return "storage-full"
        cause = cause.__cause__
    return next((kind for kind, entry in PROBLEM_TYPES.items() if isinstance(error, entry[2:])), "invalid-request")


def status_of(error: TuneHpcError) -> int:
    """Return the HTTP status of an error."""
    return PROBLEM_TYPES[problem_type(error)][0]


def problem_docs(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of the errors of a route."""
    schema = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": PROBLEM_TYPES[_TYPE_OF_STATUS[status]][1], "content": schema} for status in statuses
    }


def to_json(content: Any) -> bytes:
    """Return JSON in ASCII, so that a response can contain any text of a request."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class AsciiJsonResponse(JSONResponse):
    """JSON in ASCII."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return to_json(content)


class TooManyRequestsError(RequestError):
    """A client sends too many requests; a request may succeed after ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, 429, "too-many-requests")
        self.retry_after_s = retry_after_s


@dataclass
class RequestContext:
    """State of one request, shared by all layers."""

    request_id: str = field(default_factory=lambda: secrets.token_hex(8))
    #: ``session:ID`` or ``token``; empty before authentication, and for a service without a token.
    user: str = ""
    session_id: str = ""
    #: Whether the request has wrong credentials.
    is_login_rejected: bool = False
    is_body_read: bool = False


def context_of(scope: Scope) -> RequestContext:
    """Return the context of a request, and create it if necessary."""
    context: RequestContext = scope.setdefault(_CONTEXT_KEY, RequestContext())
    return context


def route_path(scope: Scope) -> str:
    """Return the path of a request without the root path of the service."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def client_address(scope: Scope) -> str:
    """Return the address of the client."""
    client: Any = scope.get("client")
    return str(client[0]) if client else "-"


def has_body(scope: Scope) -> bool:
    """Return whether a request announces a body."""
    headers = dict(scope["headers"])
    return headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers


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

    def problem(self, scope: Scope, error: TuneHpcError, headers: Mapping[str, str] | None = None) -> Response:
        """Return the response to a failed request: a problem (RFC 9457), or a page for a browser."""
        kind, context = problem_type(error), context_of(scope)
        status, title, *_ = PROBLEM_TYPES[kind]
        detail = " ".join(str(error).split())[:MAX_DETAIL]
        if status >= 500:
            _log.warning("%d: %s request_id=%s", status, detail, context.request_id)
        base_headers = {"Cache-Control": "no-store"}
        if status == 401:
            base_headers["WWW-Authenticate"] = 'Bearer realm="tune_hpc"'
        if has_body(scope) and not context.is_body_read:
            # Closing the connection is cheaper than reading the rest of the body.
            base_headers["Connection"] = "close"
        if isinstance(error, TooManyRequestsError):
            base_headers["Retry-After"] = str(math.ceil(error.retry_after_s))
        base_headers |= headers or {}
        is_page = scope["method"] == "GET" or not route_path(scope).startswith("/api/")
        if is_page and "text/html" in Headers(scope=scope).get("accept", ""):
            page = self.render("error.html", status=status, message=detail)
            return HTMLResponse(page, status, base_headers)
        problem = Problem(type=URN + kind, title=title, status=status, detail=detail, request_id=context.request_id)
        return AsciiJsonResponse(problem.model_dump(), status, base_headers, "application/problem+json")
