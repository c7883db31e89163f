"""Registered exporters: those of this project and of other installed packages.

An exporter is a class with the interface of ``tune_hpc.export.exporter.Exporter``, named by an entry point of the group
``tune_hpc.exporters``. The name of the entry point is that of the tool: ``tune-hpc export FOLDER --to NAME``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING

from tune_hpc.errors import MissingPackageError, UnknownNameError

if TYPE_CHECKING:
    from tune_hpc.export.exporter import Exporter

#: Entry-point group of exporters.
GROUP = "tune_hpc.exporters"


def exporter_class(tool: str) -> type[Exporter]:
    """Return the exporter to a tool.

    Raises:
        UnknownNameError: There is no such exporter.
        MissingPackageError: The package that it needs is not installed.
    """
    points = {point.name: point for point in entry_points(group=GROUP)}
    if tool not in points:
        raise UnknownNameError(f"an export goes to {', '.join(sorted(points))}; got {tool!r}")
    exporter: type[Exporter] = points[tool].load()
    if find_spec(exporter.package) is None:
        raise MissingPackageError(
            f"an export to {tool} needs the package {exporter.package}, which is not installed; {exporter.remedy}"
        )
    return exporter


def check_tools(tools: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of tools, each once; a text may contain several, separated by commas.

    Raises:
        UnknownNameError: There is no exporter to a tool.
        MissingPackageError: A package is not installed.
    """
    texts = [tools] if isinstance(tools, str) else tools
    names = tuple(dict.fromkeys(name.strip() for text in texts for name in text.split(",")))
    for name in names:
        exporter_class(name)
    return names
