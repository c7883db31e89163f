"""Pages from templates; whatever comes from a trial or a request is escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from tune_hpc.errors import TuneHpcError
from tune_hpc.service.answers import error_answer, status_code


class Templates:
    """The page's templates.

    Args:
        has_token: Whether one logs in, and so may log out.
    """

    def __init__(self, has_token: bool) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._environment.globals["has_token"] = has_token

    def render(self, template: str, **shown: Any) -> bytes:
        """Return a page, or a part of one."""
        return self._environment.get_template(template).render(**shown).encode("utf-8", "replace")

    def page(self, template: str, status: int = 200, **shown: Any) -> HTMLResponse:
        """Return a page as an answer that nobody keeps."""
        return HTMLResponse(self.render(template, **shown), status, {"Cache-Control": "no-store"})

    def error(self, request: Request, error: TuneHpcError, headers: dict[str, str] | None = None) -> Any:
        """Return an error as JSON, or as a page to somebody who looks at it in a browser."""
        answer = error_answer(error, headers)
        if request.method != "GET" or "text/html" not in request.headers.get("accept", ""):
            return answer
        message = " ".join(str(error).split())
        return HTMLResponse(
            self.render("error.html", status=answer.status_code, message=message), status_code(error),
            {"Cache-Control": "no-store", **(headers or {})},
        )  # fmt: skip
