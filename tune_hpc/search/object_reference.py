"""Objects by name: references ``package.module:attribute``, and entry points of installed packages.

An exporter is a class with the interface of ``tune_hpc.export.exporter.Exporter``, named by an entry point of the group
``tune_hpc.exporters``. The name of the entry point is that of the tool: ``tune-hpc export FOLDER --to NAME``.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_hpc.errors import InvalidExperimentError, MissingPackageError, UnknownNameError

if TYPE_CHECKING:
    from tune_hpc.export.exporter import Exporter

#: Entry-point group of exporters.
EXPORTERS = "tune_hpc.exporters"


def load_reference(reference: str) -> Any:
    """Return the object at ``package.module:attribute``, also of a module in the working directory.

    Raises:
        UnknownNameError: There is no such module, it cannot be imported, or it has no such attribute.
    """
    module_name, colon, attribute = reference.partition(":")
    if module_name.endswith(".py"):
        parts = [part for part in Path(module_name).with_suffix("").parts if part not in ("/", ".", "..")]
        raise UnknownNameError(f"{reference!r} names a file; name the module: {'.'.join(parts)}:{attribute or 'NAME'}")
    if not (module_name and colon and attribute) or not all(module_name.split(".")):
        raise UnknownNameError(f"{reference!r} is not a reference; use the form package.module:attribute")
    working_dir = str(Path.cwd())
    if working_dir not in sys.path:
        sys.path.append(working_dir)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UnknownNameError(f"{module_name} needs the module {error.name}, which is not installed") from error
        raise UnknownNameError(
            f"no module {module_name!r}, neither installed nor in {working_dir}; use the form package.module:attribute"
        ) from error
    except (Exception, SystemExit) as error:
        # A module may raise anything, and a script may end; the message names the line that failed.
        reason = " ".join("".join(traceback.format_exception_only(error)).split())
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        location = f" ({Path(frames[-1].filename).name} line {frames[-1].lineno})" if frames[1:] else ""
        raise UnknownNameError(f"{module_name} cannot be imported: {reason}{location}") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        if module_name == "__main__" or "<locals>" in attribute:
            function = attribute.rpartition(".")[2]
            raise UnknownNameError(
                f"the trainable {function} was defined in a main program, a notebook or a function, and cannot be "
                f"found by its name {reference}; pass it from Python: resume(folder, trainable={function}), or extend"
            ) from error
        public = [name for name, value in vars(module).items() if name[0] != "_" and not inspect.ismodule(value)]
        names = f"it has {', '.join(public[:20])}{', ...' if public[20:] else ''}" if public else "it is empty"
        raise UnknownNameError(f"{module_name} has no {attribute!r}; {names}") from error


def reference_to(target: str | Callable[..., Any]) -> str:
    """Return the reference ``package.module:function`` of a function.

    Raises:
        InvalidExperimentError: The object is not a named function.
    """
    if isinstance(target, str):
        return target
    name = getattr(target, "__qualname__", None)
    if not callable(target) or name is None:
        raise InvalidExperimentError(
            f"a trainable is a function (config, report) or package.module:function; got {target!r}"
        )
    return f"{target.__module__}:{name}"


@cache
def load_entry_point(group: str, name: str) -> Any:
    """Return the object of an entry point of an installed package.

    Raises:
        UnknownNameError: There is no such entry point.
    """
    for point in entry_points(group=group, name=name):
        return point.load()
    raise UnknownNameError(f"no entry point {name!r} in the group {group}; install tune-hpc again")


def exporter_class(tool: str) -> type[Exporter]:
    """Return the exporter to a tool; errors as for ``check_tools``."""
    points = {point.name: point for point in entry_points(group=EXPORTERS)}
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
