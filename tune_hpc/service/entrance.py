"""The routes by which a browser comes in and goes out, and the files that it needs."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse, RedirectResponse

from tune_hpc.errors import RequestError
from tune_hpc.service.access import WRONG_AT_ONCE, WRONG_PER_S
from tune_hpc.service.limits import Rate
from tune_hpc.service.rendering import Templates
from tune_hpc.service.tokens import SESSION_S, cookie_name, is_same, new_session

_HERE = Path(__file__).parent
#: All that is ever served from static/, each with its kind: no name of a request becomes a path.
_FILES = {
    "page.css": "text/css",
    "uPlot.min.css": "text/css",
    "page.js": "text/javascript",
    "charts.js": "text/javascript",
    "htmx.min.js": "text/javascript",
    "idiomorph.min.js": "text/javascript",
    "uPlot.iife.min.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def entrance_routes(token: str | None, templates: Templates) -> APIRouter:
    """Return the routes of the entrance.

    Args:
        token: The service's; ``None``: there is nothing to come in by.
        templates: The page's.
    """
    router = APIRouter(include_in_schema=False)
    wrong = Rate(WRONG_PER_S, WRONG_AT_ONCE)

    def page(status: int, target: str, problem: str) -> Response:
        return templates.page("login.html", status, target=target, problem=problem)

    @router.get("/login")
    async def read_login(next: str = "/") -> Response:
        return page(200, _inside(next), "") if token else RedirectResponse("/", 303)

    @router.post("/login")
    async def log_in(request: Request) -> Response:
        """Let a browser in that shows the token; the session is a cookie that no script can read."""
        try:
            form = parse_qs((await request.body()).decode("utf-8"), max_num_fields=10)
        except ValueError:
            form = {}
        target = _inside(form.get("next", ["/"])[0])
        if token is None:
            return RedirectResponse(target, 303)
        if not is_same(form.get("token", [""])[0].strip(), token):
            who = request.client.host if request.client else "-"
            if not (turn := wrong.take(who)).is_granted:
                raise RequestError(f"too many wrong tokens came from {who}; wait {turn.wait_s:.0f} s", 429)
            return page(401, target, "That is not the token of this service. It stands in the file that the service "
                        "names when it starts.")  # fmt: skip
        answer = RedirectResponse(target, 303)
        answer.set_cookie(
            cookie_name(token), new_session(token), max_age=SESSION_S, httponly=True, samesite="strict",
            secure=request.url.scheme == "https",
        )  # fmt: skip
        return answer

    @router.post("/logout")
    async def log_out() -> Response:
        answer = RedirectResponse("/login", 303)
        if token:
            answer.delete_cookie(cookie_name(token), httponly=True, samesite="strict")
        return answer

    @router.get("/static/{name}")
    async def read_file(name: str) -> Response:
        if name not in _FILES:
            raise RequestError(f"the page has no file {name[:100]!r}", 404)
        return FileResponse(_HERE / "static" / name, media_type=_FILES[name], headers={"Cache-Control": "no-cache"})

    @router.get("/favicon.ico")
    async def read_icon() -> Response:
        return FileResponse(_HERE / "static" / "icon.svg", media_type=_FILES["icon.svg"])

    return router


def _inside(target: str) -> str:
    """Return a place of this service to go on to; whatever leads elsewhere leads to the list."""
    url = urlsplit(target)
    is_ours = target.startswith("/") and not target.startswith(("//", "/\\")) and not url.scheme and not url.netloc
    return target if is_ours and target.isprintable() and "\\" not in target else "/"
