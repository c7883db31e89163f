"""Bearer-token and session authentication, login, checks of origin and host.

A client sends the token with each request (``Authorization: Bearer``). A browser sends it once and gets a session
cookie. A request without valid credentials draws from a rate limit before the comparison, so that guesses are slow.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

from fastapi import APIRouter, Request
from itsdangerous import BadSignature, TimestampSigner
from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tune_hpc.errors import FolderError, RequestError, TuneHpcError
from tune_hpc.service.connection import CONNECTION
from tune_hpc.service.middleware import TokenBuckets
from tune_hpc.service.problems import Templates, client_address, context_of, has_body, route_path

SESSION_S = 12 * 3600
_MIN_TOKEN_LENGTH = 16
_PUBLIC = frozenset({"/health", "/login", "/favicon.ico", "/api/v1/openapi.json"})
_READS = ("GET", "OPTIONS")
_REVOKED = re.compile(r"^([0-9a-f]{32}) (\d{1,12})$", re.MULTILINE)
_METRICS = frozenset({"/ready", "/metrics"})


def read_or_create_secret(path: Path) -> str:
    """Return the secret of a file that only this user can read; create the file if it does not exist."""
    try:
        if not os.path.lexists(path):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(path, f"{secrets.token_urlsafe(32)}\n")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="ascii") as file:
            status, secret = os.fstat(file.fileno()), file.read(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(f"the token file {path} cannot be used: {error}; choose another with --token-file") from error
    if status.st_uid != os.geteuid():
        raise FolderError(f"the token file {path} belongs to another user (uid {status.st_uid}); remove it")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise FolderError(f"other users can read the token file {path} (mode {mode:o}); run chmod 600 {path}")
    if len(secret) < _MIN_TOKEN_LENGTH or not secret.isprintable() or " " in secret:
        raise FolderError(
            f"the token file {path} must contain at least {_MIN_TOKEN_LENGTH} printable characters without spaces; "
            "remove it to get a new token"
        )
    return secret


def _create(path: Path, text: str) -> None:
    """Create a file with its whole content, unless another process has created it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Credentials:
    """Token of a service, and sessions of browsers.

    A session cookie is a random id with a time stamp and a signature. Services with the same token file share sessions.
    """

    def __init__(self, token: str, key: str, revoked_file: Path) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()
        self._signer = TimestampSigner(key, salt=self._digest, digest_method=hashlib.sha256)
        #: One id and the end of its validity per line.
        self._revoked_file = revoked_file
        self._revoked: dict[str, float] = {}
        self._revoked_stamp: tuple[int, int] | None = None
        #: A browser sends cookies to all ports of a host, so the name depends on the key.
        self.cookie_name = f"tune_hpc_{hashlib.sha256(b'cookie' + key.encode()).hexdigest()[:8]}"

    @classmethod
    def load(cls, token_file: Path) -> "Credentials":
        """Return the credentials of a token file; create the file if it does not exist."""
        revoked_file = token_file.with_name(f"{token_file.name}.revoked")
        token, key = (read_or_create_secret(path) for path in (token_file, Path(f"{token_file}.key")))
        return cls(token, key, revoked_file)

    def is_token(self, text: str) -> bool:
        """Return whether a text is the token, in constant time."""
        return hmac.compare_digest(hashlib.sha256(text.encode("utf-8", "replace")).digest(), self._digest)

    def new_session(self) -> str:
        """Return the cookie of a new session."""
        return self._signer.sign(secrets.token_hex(16)).decode("ascii")

    def session_id(self, cookie: str) -> str:
        """Return the session id of a cookie; empty if the cookie is forged, expired or revoked."""
        try:
            session = self._signer.unsign(cookie, max_age=SESSION_S).decode("ascii")
        except (BadSignature, UnicodeError):
            return ""
        return "" if session in self._read_revoked() else session

    def revoke(self, session: str) -> None:
        """Revoke a session for all services of this token file."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(self._revoked_file, flags, 0o600), "a", encoding="ascii") as file:
                # The first line break ends a line that a full disk has truncated.
                file.write(f"\n{session} {time.time() + SESSION_S:.0f}\n")
        except OSError as error:
            raise FolderError(f"{self._revoked_file} cannot be written: {error}; the session stays valid") from error

    def _read_revoked(self) -> dict[str, float]:
        """Return the revoked sessions; damaged lines of the file are skipped."""
        try:
            status = os.stat(self._revoked_file)
            stamp = status.st_mtime_ns, status.st_size
            if stamp != self._revoked_stamp:
                lines = _REVOKED.findall(self._revoked_file.read_text(encoding="ascii", errors="replace"))
                self._revoked = {session: float(end) for session, end in lines if float(end) > time.time()}
                self._revoked_stamp = stamp
        except FileNotFoundError:
            self._revoked, self._revoked_stamp = {}, None
        except OSError as error:
            raise FolderError(f"{self._revoked_file} cannot be read: {error.strerror}; check the storage") from error
        return self._revoked


@dataclass(frozen=True)
class AccessRules:
    """Access rules and rate limits of a service.

    Attributes:
        credentials: Token and sessions; None: all processes of this machine have access.
        hosts: Host names of a service without a token.
        reads: Limit of read requests, by session or token.
        changes: Limit of requests that change something, by session or token.
        public: Limit of requests of public routes, by address.
        unauthenticated: Limit of requests without valid credentials, by address.
        has_public_metrics: Whether /metrics and /ready need no token.
        is_behind_proxy: Whether one connection may carry requests of several clients.
    """

    credentials: Credentials | None
    hosts: frozenset[str]
    reads: TokenBuckets
    changes: TokenBuckets
    public: TokenBuckets = field(default_factory=lambda: TokenBuckets(200, 400))
    unauthenticated: TokenBuckets = field(default_factory=lambda: TokenBuckets(5, 20))
    has_public_metrics: bool = False
    is_behind_proxy: bool = False


class AuthMiddleware:
    """Authentication, rate limits, and protection from cross-site request forgery."""

    def __init__(self, app: ASGIApp, *, rules: AccessRules, templates: Templates) -> None:
        self.app = app
        self._rules = rules
        self._templates = templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except TuneHpcError as error:
                await self._refusal(scope, error)(scope, receive, send)
                return
            # Parsers behind this layer need quadratic time for cookies, and have other error responses for ranges.
            dropped = (b"cookie", b"range") if _is_public(route_path(scope)) else (b"cookie",)
            scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in dropped]
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers, path, rules = Headers(scope=scope), route_path(scope), self._rules
        is_change = scope["method"] not in _READS
        credentials, context, address = rules.credentials, context_of(scope), client_address(scope)
        has_sent_token = False
        if credentials is None:
            if _split(f"//{headers.get('host', '')}").hostname not in rules.hosts:
                raise RequestError(
                    f"a service without a token answers as {', '.join(sorted(rules.hosts))} only; got the host "
                    f"{headers.get('host', '')[:200]!r}: use one of these, or start the service with a token",
                    403,
                )
        else:
            context.session_id = credentials.session_id(_cookie(headers.get("cookie", ""), credentials.cookie_name))
            if context.session_id:
                context.user = f"session:{context.session_id[:8]}"
            else:
                has_sent_token = self._check_token(scope, credentials, headers.get("authorization", ""))
        if is_change and not has_sent_token and not self._is_same_origin(headers):
            raise RequestError(
                "a change that a browser sends must come from the page of this service; this one came from "
                f"{headers.get('origin', 'nowhere')[:200]!r}: send the token in Authorization: Bearer instead",
                403,
            )
        if context.user or credentials is None:
            is_costly = is_change or path.endswith("/preview")
            buckets = rules.changes if is_costly else rules.reads
            buckets.draw(context.session_id or context.user or address, "changes" if is_costly else "reads")
            if context.user and CONNECTION in scope.get("state", {}):
                scope["state"][CONNECTION].setdefault("user", context.user)

    def _check_token(self, scope: Scope, credentials: Credentials, authorization: str) -> bool:
        """Return whether a request without a session has the token; public routes need none."""
        path, address, context, rules = route_path(scope), client_address(scope), context_of(scope), self._rules
        connection = {} if rules.is_behind_proxy else scope.get("state", {}).get(CONNECTION, {})
        digest = hashlib.sha256(authorization.encode("utf-8", "replace")).digest()
        if authorization and hmac.compare_digest(connection.get("authorization", b""), digest):
            context.user = "token"
            return True
        is_login = path == "/login" and scope["method"] == "POST"
        is_public = _is_public(path) or (rules.has_public_metrics and path in _METRICS)
        if is_public and scope["method"] in _READS:
            rules.public.draw(address, "requests")
            if has_body(scope):
                raise RequestError(f"a {scope['method']} of {path[:100]!r} has no body; send none", 413)
            return False
        # Before the comparison: while the bucket is empty, even the right token is rejected, so guesses find nothing.
        rules.unauthenticated.draw(address, "requests without valid credentials")
        if is_login:
            return False
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer" and credentials.is_token(token.strip()):
            rules.unauthenticated.give_back(address)
            connection["authorization"] = digest
            context.user = "token"
            return True
        context.is_login_rejected = bool(authorization)
        problem = "is wrong, or the service has a new one" if authorization else "is missing"
        raise RequestError(
            f"the token {problem}; send the one in the service's token file in Authorization: Bearer TOKEN", 401
        )

    def _refusal(self, scope: Scope, error: TuneHpcError) -> Response:
        headers, root = Headers(scope=scope), scope.get("root_path", "")
        redirect = {"HX-Redirect": f"{root}/login"} if headers.get("hx-request") else {}
        is_login_needed = isinstance(error, RequestError) and error.status == 401
        is_page = scope["method"] == "GET" and "text/html" in headers.get("accept", "")
        if is_login_needed and is_page and not headers.get("authorization"):
            query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
            return RedirectResponse(f"{root}/login?next={quote(scope['path'] + query, safe='')}", 303)
        return self._templates.problem(scope, error, redirect if is_login_needed else {})

    def _is_same_origin(self, headers: Headers) -> bool:
        """Return whether a request has the origin of this service; without a token, no browser is also valid."""
        if site := headers.get("sec-fetch-site"):
            return site in ("same-origin", "none")
        if origin := headers.get("origin"):
            return _split(origin).netloc.lower() == headers.get("host", "").lower()
        return self._rules.credentials is None


def _is_public(path: str) -> bool:
    return path in _PUBLIC or path.startswith("/static/")


def _cookie(header: str, name: str) -> str:
    """Return the value of a cookie in linear time; empty if there is no such cookie."""
    pairs = (pair.strip().partition("=") for pair in header.split(";"))
    return next((value for key, _, value in pairs if key == name), "")


def _split(url: str) -> SplitResult:
    """Return the parts of an address; empty parts if it is malformed."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


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
