"""Who may ask: whoever sends the token, or a browser that has shown it; and what every answer tells a browser.

A cookie travels with requests that other sites make, so whatever changes something on the word of a cookie, or of
nothing where there is no token, must say that it comes from this site's own page. A name that resolves to this machine
does not make another site this one: without a token the ``Host`` must be one under which the service is meant.
"""

from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tune_hpc.errors import RequestError
from tune_hpc.service.answers import error_answer
from tune_hpc.service.limits import Rate
from tune_hpc.service.tokens import cookie_name, is_same, is_session

#: What anybody may see: nothing of a search is in it.
_PUBLIC = ("/health", "/openapi.json", "/login", "/favicon.ico")
_PUBLIC_FOLDER = "/static/"
#: Where a request says that it was let in, and is not only for what anybody may see.
LET_IN = "tune_hpc.let_in"
_READS = ("GET", "HEAD", "OPTIONS")
#: Wrong tokens a second that one address may send, over some time, and at once.
WRONG_PER_S, WRONG_AT_ONCE = 0.2, 20

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
#: A report has its styles and pictures in itself, and no script.
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox allow-same-origin allow-popups"
)
_POLICY = (b"content-security-policy", CONTENT_POLICY.encode())
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)


def guarded(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return an answer's headers with those that tell a browser what it must not do with it."""
    told = [*headers, *_ALWAYS]
    return told if any(name.lower() == _POLICY[0] for name, _ in told) else [*told, _POLICY]


class Access:
    """Lets in whoever has the token.

    Args:
        app: What comes behind it.
        token: The service's; ``None``: whoever reaches it may ask, under one of these names.
        hosts: The names and addresses under which it is meant, where there is no token.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: frozenset[str]) -> None:
        self.app = app
        self.token = token
        self.hosts = hosts
        self._wrong = Rate(WRONG_PER_S, WRONG_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": guarded(message["headers"])}
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self.app)(scope, receive, send_guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        path = scope["path"]
        if self.token is None and _hostname(headers.get("host", "")) not in self.hosts:
            return error_answer(
                RequestError(
                    f"without a token the service answers under {', '.join(sorted(self.hosts))} only; got "
                    f"{headers.get('host', '')!r}: use one of these, or start it with a token",
                    403,
                )
            )
        is_public = path in _PUBLIC or path.startswith(_PUBLIC_FOLDER)
        has_sent_token = False
        is_let_in = self.token is None
        if self.token is not None:
            given = headers.get("authorization", "")
            scheme, _, sent = given.partition(" ")
            has_sent_token = scheme.lower() == "bearer" and is_same(sent.strip(), self.token)
            is_let_in = has_sent_token or is_session(session_of(headers, self.token), self.token)
            if not is_let_in and not is_public:
                return self._unknown(scope, headers, given)
        if scope["method"] not in _READS and not has_sent_token and not self._is_from_here(headers):
            return error_answer(
                RequestError(
                    "a change that a browser asks for comes from this service's own page; this one came from "
                    f"{headers.get('origin') or 'nowhere'!r}: send the token in Authorization: Bearer instead",
                    403,
                )
            )
        scope[LET_IN] = is_let_in
        return None

    def _unknown(self, scope: Scope, headers: Headers, given: str) -> Response:
        who = scope["client"][0] if scope.get("client") else "-"
        if given and not (turn := self._wrong.take(who)).is_granted:
            told = RequestError(f"too many wrong tokens came from {who}; wait {turn.wait_s:.0f} s", 429)
            return error_answer(told, {"Retry-After": str(int(turn.wait_s) + 1)})
        if not given and "text/html" in headers.get("accept", "") and scope["method"] == "GET":
            path = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
            return RedirectResponse(f"/login?next={quote(path, safe='')}", 303)
        what = "it was refused: it is another service's, or has changed" if given else "none came"
        more = {"HX-Redirect": "/login"} if headers.get("hx-request") else {}
        told = RequestError(
            f"a request has the service's token in Authorization: Bearer TOKEN; {what}: it stands in the file that "
            "the service names when it starts",
            401,
        )
        return error_answer(told, more)

    def _is_from_here(self, headers: Headers) -> bool:
        """Whether a request comes from our own page, or from no browser where there is no token."""
        if site := headers.get("sec-fetch-site"):
            return site in ("same-origin", "none")
        if origin := headers.get("origin"):
            return urlsplit(origin).netloc.lower() == headers.get("host", "").lower()
        return self.token is None


def session_of(headers: Headers, token: str) -> str:
    """Return the session that a browser has sent; empty where it has none."""
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    found = cookies.get(cookie_name(token))
    return found.value if found else ""


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
