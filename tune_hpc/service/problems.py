"""Problem responses (RFC 9457): type, status and title of each error."""

import json
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse

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
from tune_hpc.storage.filesystem import DISK_FULL_ERRNOS

#: Prefix of the types of problems.
URN = "urn:tune-hpc:problem:"
#: Status and title of each problem type.
PROBLEM_TYPES = {
    "invalid-json": (400, "The body is not valid JSON"),
    "unauthorized": (401, "Valid credentials are missing"),
    "forbidden": (403, "The request does not come from the page of this service"),
    "not-found": (404, "No such resource"),
    "method-not-allowed": (405, "The resource does not support the method"),
    "body-timeout": (408, "The body did not arrive in time"),
    "conflict": (409, "The state of the search forbids the request"),
    "body-too-large": (413, "The body is too large"),
    "invalid-request": (422, "The request is invalid"),
    "invalid-experiment": (422, "The experiment is invalid"),
    "idempotency-key-reused": (422, "The idempotency key was used for another request"),
    "too-many-requests": (429, "Too many requests"),
    "internal": (500, "Internal error"),
    "storage-unavailable": (503, "The storage cannot be used"),
    "cluster-unavailable": (503, "The cluster cannot be reached, or refuses"),
    "data-unavailable": (503, "Data or a package is missing on the server"),
    "storage-full": (507, "The storage is full"),
}
_TYPE_OF_STATUS = {status: kind for kind, (status, _) in reversed(PROBLEM_TYPES.items())}
_TYPE_OF_ERROR: tuple[tuple[type[TuneHpcError], str], ...] = (
    (ConflictError, "conflict"),
    (UnknownNameError, "not-found"),
    (ClusterError, "cluster-unavailable"),
    (DataUnavailableError, "data-unavailable"),
    (MissingPackageError, "data-unavailable"),
    (FolderError, "storage-unavailable"),
    (InvalidExperimentError, "invalid-experiment"),
    (InvalidSpaceError, "invalid-experiment"),
    (InvalidConfigError, "invalid-experiment"),
)


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
    return next((kind for known, kind in _TYPE_OF_ERROR if isinstance(error, known)), "invalid-request")


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
