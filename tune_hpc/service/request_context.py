"""State of one request, shared by the layers of the service."""

import secrets
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

_KEY = "tune_hpc"


@dataclass
class RequestContext:
    """State of one request, shared by all layers.

    Attributes:
        request_id: In the response, in problems and in the audit log.
        user: ``session:ID`` or ``token``; empty before authentication, and for a service without a token.
        session_id: The session of the request; empty if it has none.
        is_login_rejected: Whether the request presented wrong credentials.
        is_body_read: Whether the whole body has arrived.
    """

    request_id: str = field(default_factory=lambda: secrets.token_hex(8))
    user: str = ""
    session_id: str = ""
    is_login_rejected: bool = False
    is_body_read: bool = False


def context_of(scope: Scope) -> RequestContext:
    """Return the context of a request; the first call makes it."""
    context: RequestContext = scope.setdefault(_KEY, RequestContext())
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
