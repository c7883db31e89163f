"""Functions and experiments by name: ``package.module:attribute``, to the object and back."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tune_hpc.errors import InvalidExperimentError, UnknownNameError


def load_reference(reference: str) -> Any:
    """Return the object at ``package.module:attribute``; the working folder is searched, too.

    Raises:
        UnknownNameError: no such module, one that cannot be imported, or nothing of that name in it.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute) or not all(module_name.split(".")):
        raise UnknownNameError(f"{reference!r} is no reference; it reads package.module:attribute")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UnknownNameError(f"{module_name} needs the module {error.name}, which is not installed") from error
        raise UnknownNameError(
            f"no module {module_name!r}, neither installed nor in {here}; a reference reads package.module:attribute"
        ) from error
    except Exception as error:
        # A module may do anything when it is imported; where it broke off is what its author must know.
        reason = " ".join("".join(traceback.format_exception_only(error)).split())
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        where = f" ({Path(own[-1].filename).name} line {own[-1].lineno})" if own[1:] else ""
        raise UnknownNameError(f"{module_name} cannot be imported: {reason}{where}") from error
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        public = [name for name, value in vars(module).items() if name[0] != "_" and not inspect.ismodule(value)]
        named = f"there are {', '.join(public[:20])}{', ...' if public[20:] else ''}" if public else "it is empty"
        raise UnknownNameError(f"nothing is called {attribute!r} in {module_name}; {named}") from error


def reference_to(target: str | Callable[..., Any]) -> str:
    """Return where a function is, as ``package.module:function``.

    Raises:
        InvalidExperimentError: an object without a name of its own.
    """
    if isinstance(target, str):
        return target
    name = getattr(target, "__qualname__", None)
    if not callable(target) or name is None:
        raise InvalidExperimentError(
            f"a trainable is a function (config, report) or package.module:function; got {target!r}"
        )
    return f"{target.__module__}:{name}"
