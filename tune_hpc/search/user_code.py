"""A user's code: its folders on ``sys.path``, and its trainable in a form that reaches the trial processes."""

import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray

from tune_hpc.errors import InvalidExperimentError
from tune_hpc.search.object_reference import load_reference, reference_to
from tune_hpc.storage.filesystem import Storage

#: Packages that every node of a cluster has.
_OURS = ("tune_hpc", "search_spaces")


@dataclass(frozen=True)
class PortableTrainable:
    """A trainable that other processes load, with the modules that it imports.

    A process imports the function by its reference, from the same folders as the driver. A node that does not see
    these folders unpickles the function, which contains its module.

    Attributes:
        reference: ``package.module:function``; empty if the function cannot be imported by name.
        folders: URIs of the folders with users' code.
        pickled: The function, pickled by value; empty if it is installed or has a state that cannot be pickled.
    """

    reference: str
    folders: tuple[str, ...]
    pickled: bytes

    @classmethod
    def of(cls, function: Callable[..., Any]) -> "PortableTrainable":
        """Return the portable form of a function.

        Raises:
            InvalidExperimentError: The function can neither be imported by name nor be pickled.
        """
        module = function.__module__
        is_importable = _can_import(module) and vars(sys.modules[module]).get(function.__qualname__) is function
        pickled = b"" if is_importable and is_installed(module) else _pickle_by_value(function)
        if not is_importable and not pickled:
            raise InvalidExperimentError(
                f"the trainable {function.__qualname__} cannot be sent to other processes: "
                f"{_obstacle(function) or 'it'} cannot be pickled; create such objects inside the trainable, or define "
                "the trainable at the top of a module"
            )
        return cls(reference_to(function) if is_importable else "", code_folders(), pickled)

    def load(self) -> Callable[..., Any]:
        """Return the function in another process.

        Raises:
            UnknownNameError: Its module cannot be imported.
        """
        add_code_folders(self.folders)
        package = self.reference.partition(":")[0].partition(".")[0]
        if package and (importlib.util.find_spec(package) or not self.pickled):
            function: Callable[..., Any] = load_reference(self.reference)
        else:
            function = ray.cloudpickle.loads(self.pickled)
        return function


def _can_import(module: str) -> bool:
    """Return whether another process can import a module by its name."""
    try:
        return module in sys.modules and module != "__main__" and importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _pickle_by_value(function: Callable[..., Any]) -> bytes:
    """Return a function pickled with its module; empty if this is impossible."""
    module = sys.modules.get(function.__module__)
    is_registered = module is not None and module.__name__.partition(".")[0] not in ("__main__", *_OURS)
    if is_registered:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        return bytes(ray.cloudpickle.dumps(function))
    except Exception:  # noqa: BLE001
        # Objects of users may raise anything.
        return b""
    finally:
        if is_registered:
            ray.cloudpickle.unregister_pickle_by_value(module)


def _obstacle(function: Callable[..., Any]) -> str:
    """Return the first variable used by a function that cannot be pickled, with its type; empty if unknown."""
    try:
        variables = inspect.getclosurevars(function)
    except TypeError:
        return ""
    for name, value in {**variables.nonlocals, **variables.globals}.items():
        try:
            ray.cloudpickle.dumps(value)
        except Exception:  # noqa: BLE001
            # Objects of users may raise anything.
            return f"its variable {name} ({type(value).__module__}.{type(value).__qualname__})"
    return ""


def is_installed(module: str) -> bool:
    """Return whether a module is a part of Python, of an installed package, or of this project."""
    package = module.partition(".")[0]
    return package in _OURS or not package_paths(package)


def package_paths(package: str) -> list[Path]:
    """Return the folders of a top-level package, or the file of a top-level module, of a user.

    A package in several folders is a namespace package. The list is empty if there is no such package, or if it is
    installed.
    """
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    paths = [*(spec.submodule_search_locations or ()), *([] if spec.submodule_search_locations else [spec.origin])]
    return [Path(path) for path in paths if path and Path(path).exists() and not is_in_installation(path)]


def code_folders() -> tuple[str, ...]:
    """Return the URIs of the folders on ``sys.path`` that do not belong to the installation of Python."""
    folders = dict.fromkeys(Path(entry).absolute() for entry in sys.path)
    storages = [Storage(folder) for folder in folders if folder.is_dir() and not is_in_installation(folder)]
    # The working folder of a driver is its job; its working copy of a bucket has results that trials do not need.
    return tuple(one.uri for one in storages if not (one.is_remote and one.root == Path.cwd()))


@cache
def add_code_folders(uris: tuple[str, ...]) -> None:
    """Put folders at the beginning of ``sys.path``, those of a bucket with their working copies."""
    storages = [Storage(uri) for uri in uris]
    for storage in storages:
        storage.download_tree()
    folders = [str(storage.root) for storage in storages]
    sys.path[:] = [*folders, *(entry for entry in sys.path if entry not in folders)]
    importlib.invalidate_caches()


def is_in_installation(path: str | Path) -> bool:
    """Return whether a file or folder belongs to Python or to an installed package."""
    folders = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("scripts"))
    is_below = any(Path(path).is_relative_to(folder) for folder in folders)
    return is_below or not {"site-packages", "dist-packages"}.isdisjoint(Path(path).parts)
