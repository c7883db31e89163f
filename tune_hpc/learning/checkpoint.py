"""Files for states of tensors, numbers, strings, lists and dictionaries; loading them runs no code.

A process without torch has no tensors. It saves and loads its state without torch, whose import takes two seconds.
"""

import codecs
import collections
import io
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tune_hpc.errors import FolderError

#: Bit that marks a folder in an archive. If damage sets it, torch reads a tensor as zeros.
_FOLDER = 0x10
#: Name of the only entry of an archive without tensors.
_PLAIN = "plain.pkl"


def save_state(path: Path, state: Any) -> None:
    """Write a state.

    Raises:
        TypeError: A value is of a type that ``load_state`` rejects.
    """
    _check_types(state, "the state")
    if "torch" in sys.modules:
        import torch

        torch.save(state, path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(_PLAIN, pickle.dumps(state))


def load_state(path: Path) -> Any:
    """Load a state of ``save_state`` onto the CPU.

    Raises:
        FolderError: the file is damaged, or contains more than plain data.
    """
    with _readable(path):
        # torch does not verify the checksums in its files, and damage raises arbitrary errors.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & _FOLDER]
            is_plain = damaged is None and _PLAIN in archive.namelist()
            plain = archive.read(_PLAIN) if is_plain else None
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} differs")
        if folders:
            raise zipfile.BadZipFile(f"{folders[0]} is marked as a folder")
        return _load_tensors(path) if plain is None else _PlainUnpickler(io.BytesIO(plain)).load()


def load_arrays(path: Path) -> Any:
    """Load a state of ``save_state`` without torch and without its tensors, which are ``None``.

    Raises:
        FolderError: as for ``load_state``.
    """
    with _readable(path), zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name == _PLAIN or name.endswith("/data.pkl")]
        if not names:
            raise zipfile.BadZipFile("it has no state")
        return _TensorSkippingUnpickler(io.BytesIO(archive.read(names[0]))).load()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise ``FolderError`` for the errors of a damaged file."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        pickle.UnpicklingError,
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
    ) as error:
        raise _unreadable(path, str(error)) from error


def _check_types(value: Any, name: str) -> None:
    """Raise if a part of a state is neither plain data nor an array or a tensor."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_types(item, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_types(item, f"{name}[{number}]")
    elif isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in "biufc":
            raise TypeError(f"{name} is an array of {value.dtype}; a checkpoint has arrays of numbers: convert it")
    elif not (value is None or isinstance(value, bool | int | float | str | bytes) or _is_of_torch(value)):
        raise TypeError(
            f"{name} is of type {type(value).__name__}; a checkpoint has tensors, arrays, numbers, texts, lists and "
            "mappings: convert it, or save its state_dict"
        )


def _is_of_torch(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor | torch.Size | torch.dtype | torch.device)


#: Classes and functions of NumPy in pickled arrays of numbers.
_NUMPY = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy._core.multiarray", "scalar"): np._core.multiarray.scalar,  # type: ignore[attr-defined]
}


def _load_tensors(path: Path) -> Any:
    import torch

    dtypes = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"]
    with torch.serialization.safe_globals([*_NUMPY.values(), *dtypes, bytes, codecs.encode]):
        return torch.load(path, map_location="cpu", weights_only=True)


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler that allows the same classes as torch."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "collections" and name in ("Counter", "OrderedDict"):
            return getattr(collections, name)
        if (module, name) in _NUMPY:
            return _NUMPY[module, name]
        if (module, name) == ("_codecs", "encode"):
            return codecs.encode
        raise pickle.UnpicklingError(f"it names {module}.{name}")


class _TensorSkippingUnpickler(_PlainUnpickler):
    """Unpickler that makes ``None`` instead of a tensor."""

    def find_class(self, module: str, name: str) -> Any:
        return (lambda *_: None) if module.partition(".")[0] == "torch" else super().find_class(module, name)

    def persistent_load(self, pid: Any) -> None:
        """Return no numbers of a tensor."""


def _unreadable(path: Path, reason: str) -> FolderError:
    first_line = next(iter(reason.splitlines()), "damaged")
    return FolderError(f"{path} is not readable as a checkpoint ({first_line}); delete it to restart the trial")
