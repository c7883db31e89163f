"""Functions and experiments by name: ``package.module:attribute``, to the object and back."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tune_hpc.errors import InvalidExperimentError, UnknownNameError


def load_reference(reference: str) -> Any:
    """Return the object at ``package.module:attribute``; the working folder is searched, too.

    Raises:
        UnknownNameError: no such module, or nothing of that name in it.
    """
    module_name, colon, attribute = reference.partition(":")
    if not (module_name and colon and attribute):
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
    try:
        return getattr(module, attribute)
    except AttributeError as error:
        public = ", ".join(name for name in vars(module) if not name.startswith("_"))
        raise UnknownNameError(f"nothing is called {attribute!r} in {module_name}; there are {public}") from error


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
