"""Jinja templates of the pages; all values are escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse


class Templates:
    """The templates.

    Args:
        has_token: Whether users log in, and so may log out.
        root_path: The path below which a proxy serves the service; empty, or with a leading slash.
    """

    def __init__(self, *, has_token: bool, root_path: str = "") -> None:
        self._environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self._environment.globals.update(has_token=has_token, root=root_path, api=f"{root_path}/api/v1")

    def render(self, template: str, **values: Any) -> bytes:
        """Return a page, or a fragment of one."""
        return self._environment.get_template(template).render(**values).encode("utf-8", "replace")

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a page as a response that no browser stores."""
        return HTMLResponse(self.render(template, **values), status, {"Cache-Control": "no-store"})
