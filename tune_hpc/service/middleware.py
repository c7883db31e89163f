"""Middleware: request id, audit log, metrics, security headers, ETags, limits of bodies and rates."""

import asyncio
import hashlib
import logging
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tune_hpc.errors import RequestError
from tune_hpc.service.problems import (
    RequestContext,
    Templates,
    TooManyRequestsError,
    client_address,
    context_of,
    has_body,
    route_path,
)
from tune_hpc.service.schemas import STATES

_log = logging.getLogger(__name__)
_audit_log = logging.getLogger("tune_hpc.audit")

#: Maximum number of token buckets; the least recently used one is dropped.
MAX_KEYS = 10_000
MAX_BODY_BYTES = 256 * 1024
BODY_TIMEOUT_S = 15.0
_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
#: Requests in the audit log, and their actions, unless the path names the action; a path may name the search.
_AUDITED = {
    re.compile(r"POST (/api/v1/searches|/new/[^/]+)"): "start",
    re.compile(r"POST (/api/v1/searches|/view)/(?P<search>[^/]+)/(?P<action>stop|resume|extend|delete)"): "",
    re.compile(r"DELETE /api/v1/searches/(?P<search>[^/]+)"): "delete",
    re.compile(r"POST /(?P<action>login|logout)"): "",
}
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: A report contains its styles and images, and no script.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox allow-same-origin allow-popups"
)
_SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "private, no-cache",
}


class Metrics:
    """Prometheus metrics of one service, in a separate registry."""

    CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._searches = Gauge("tune_hpc_searches", "Searches by state.", ["state"], registry=self._registry)
        self._trials = Gauge("tune_hpc_trials_ended", "Trials that ended.", ["status"], registry=self._registry)
        #: Duration of requests in seconds, by route, method and status.
        self.requests = Histogram(
            "tune_hpc_request_duration_seconds", "Duration of requests.", ["route", "method", "status"],
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10), registry=self._registry,
        )  # fmt: skip

    def render(self, searches: Iterable[Mapping[str, Any]]) -> bytes:
        """Return all metrics in the text format of Prometheus; ``searches`` is the status of each search."""
        states, trials = Counter(dict.fromkeys(STATES, 0)), Counter[str]()
        for search in searches:
            states[search["state"]] += 1
            for experiment in search["experiments"]:
                trials.update(experiment["counts"])
        for gauge, counts in ((self._searches, states), (self._trials, trials)):
            gauge.clear()
            for label, count in counts.items():
                gauge.labels(label).set(count)
        return generate_latest(self._registry)


class TokenBuckets:
    """Token buckets, one for each key."""

    def __init__(self, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_s = per_s
        self.burst = burst
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Take a token; return 0, or the seconds until a token is available."""
        level = self._level(key)
        self._store(key, level - 1 if level >= 1 else level)
        return 0.0 if level >= 1 else (1 - level) / self.per_s

    def draw(self, key: str, what: str) -> None:
        """Take a token."""
        if wait_s := self.take(key):
            text = f"at most {self.per_s:g} {what} a second are allowed; wait {wait_s:.1f} s"
            raise TooManyRequestsError(text, wait_s)

    def give_back(self, key: str) -> None:
        """Return a token."""
        self._store(key, min(self.burst, self._level(key) + 1))

    def _level(self, key: str) -> float:
        level, moment = self._levels.get(key, (self.burst, self._clock()))
        return min(self.burst, level + (self._clock() - moment) * self.per_s)

    def _store(self, key: str, level: float) -> None:
        self._levels[key] = level, self._clock()
        self._levels.move_to_end(key)
        if len(self._levels) > MAX_KEYS:
            self._levels.popitem(last=False)


class RequestMiddleware:
    """Outermost layer: request id, headers, metrics and audit log; unexpected exceptions become problems."""

    def __init__(self, app: ASGIApp, *, templates: Templates, metrics: Metrics, root_path: str = "") -> None:
        self.app = app
        self._templates = templates
        self._metrics = metrics
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, method, status = time.perf_counter(), scope["method"], 0
        root, path = self._root_path, scope["path"]
        is_below_root = path == root or path.startswith(f"{root}/")
        # Routes see HEAD as GET; the server sends no body in response to HEAD.
        scope = {**scope, "root_path": root, "path": path if is_below_root else root + path}
        scope["method"] = "GET" if method == "HEAD" else method
        context, path = context_of(scope), route_path(scope)
        sent_id = Headers(scope=scope).get("x-request-id", "")
        context.request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else context.request_id
        search = ""

        async def send_with_headers(message: Message) -> None:
            nonlocal status, search
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = context.request_id
                headers["Vary"] = "Accept-Encoding, Cookie, Authorization"
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                search = headers.get("location", "").rpartition("/")[2]
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            if not status:
                raise
            _log.warning("the response was cut off: the service stops request_id=%s", context.request_id)
        except Exception:
            _log.exception("%s %r failed request_id=%s", method, scope["path"], context.request_id)
            if status:
                raise
            problem = RequestError("the request failed; the log of the service has the cause", 500, "internal")
            await self._templates.problem(scope, problem)(scope, receive, send_with_headers)
        finally:
            unrouted = "/static" if path.startswith("/static/") else "other"
            route = getattr(scope.get("route"), "path", unrouted)
            # A client can send any word as a method, and each label of a metric takes memory.
            known_method = method if method in _METHODS else "other"
            self._metrics.requests.labels(route, known_method, str(status)).observe(time.perf_counter() - start)
            _audit(scope, path, context, status, search)


def _audit(scope: Scope, path: str, context: RequestContext, status: int, search: str) -> None:
    """Write a line to the audit log for a change, a login or a logout."""
    action, is_guess = "", context.is_login_rejected and status != 429
    for pattern, name in _AUDITED.items():
        if match := pattern.fullmatch(f"{scope['method']} {path}"):
            parts = match.groupdict()
            action = name or parts["action"]
            search = parts.get("search", search if action == "start" else "")
    if is_guess:
        action, search = "failed-login", ""
    elif not action or (status in (401, 429) and not context.user):
        # Requests that authentication rejects would fill the log.
        return
    _audit_log.info(
        "action=%s search=%r status=%d user=%s client=%r request_id=%s",
        action, search[:200], status, context.user or "none", client_address(scope), context.request_id,
    )  # fmt: skip


class ETagMiddleware:
    """Weak ETags of complete responses to GET, and 304 Not Modified (RFC 9110)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        known = Headers(scope=scope).get("if-none-match", "")
        start: Message | None = None
        is_unchanged = False

        async def send_with_tag(message: Message) -> None:
            nonlocal start, is_unchanged
            if message["type"] == "http.response.start" and message["status"] == 200:
                start = message
                return
            if start is not None:
                headers = MutableHeaders(scope=start)
                if "etag" not in headers and not message.get("more_body"):
                    headers["ETag"] = f'W/"{hashlib.sha1(message["body"], usedforsecurity=False).hexdigest()}"'
                if is_unchanged := "etag" in headers and _matches(known, headers["etag"]):
                    # A browser updates the headers of its copy, so the policies of the response stay.
                    start["status"] = 304
                    for name in ("content-length", "content-type", "content-disposition"):
                        del headers[name]
                    await send(start)
                    await send({"type": "http.response.body", "body": b""})
                else:
                    await send(start)
                start = None
            if not is_unchanged:
                await send(message)

        await self.app(scope, receive, send_with_tag)


def _matches(known: str, tag: str) -> bool:
    """Return whether an If-None-Match header contains a tag, by weak comparison (RFC 9110)."""
    tags = [one.strip().removeprefix("W/") for one in known.split(",")]
    return "*" in tags or tag.removeprefix("W/") in tags


class BodyLimitMiddleware:
    """Limits of the size and duration of bodies; a body is read before the routes are called."""

    def __init__(self, app: ASGIApp, templates: Templates) -> None:
        self.app = app
        self._templates = templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not has_body(scope):
            await self.app(scope, receive, send)
            return
        try:
            length = Headers(scope=scope).get("content-length", "0")
            if not length.isdigit() or int(length[:20]) > MAX_BODY_BYTES:
                raise _too_large(length[:20])
            message = {"type": "http.request", "body": await _read_body(receive), "more_body": False}
        except RequestError as error:
            await self._templates.problem(scope, error)(scope, receive, send)
            return
        context_of(scope).is_body_read = True
        waiting: list[Message] = [message]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)


async def _read_body(receive: Receive) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large(f"more than {MAX_BODY_BYTES}")
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        text = f"the body must arrive within {BODY_TIMEOUT_S:g} s; got {len(body)} bytes: send it again"
        raise RequestError(text, 408) from None


def _too_large(size: str) -> RequestError:
    return RequestError(f"a body has at most {MAX_BODY_BYTES} bytes; got {size}: send less", 413)
