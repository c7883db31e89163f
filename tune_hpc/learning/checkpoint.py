"""States on disk: tensors, numbers, strings, lists and dictionaries, and nothing that could run on loading.

A process that has not loaded torch has no tensors. What it keeps is written and read without torch, whose import takes
two seconds of each process of a trainable that has no use for it.
"""

import collections
import io
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune_hpc.errors import FolderError

#: The bit by which an archive marks a folder: where it is set by damage, torch reads a tensor as zeros.
_FOLDER = 0x10
#: The one entry of an archive without tensors.
_PLAIN = "plain.pkl"


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state."""
    if "torch" in sys.modules:
        import torch

        torch.save(dict(state), path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(_PLAIN, pickle.dumps(dict(state)))


def load_state(path: Path) -> dict[str, Any]:
    """Read a state that ``save_state`` wrote, onto the CPU.

    Raises:
        FolderError: the file is damaged, or holds more than plain data.
    """
    try:
        # torch neither verifies the sums in its own files nor answers damage with errors of its own.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & _FOLDER]
            is_plain = damaged is None and _PLAIN in archive.namelist()
            plain = archive.read(_PLAIN) if is_plain else None
        if damaged is not None:
            raise zipfile.BadZipFile(f"the sum of {damaged} differs")
        if folders:
            raise zipfile.BadZipFile(f"{folders[0]} is marked as a folder")
        state = _load_tensors(path) if plain is None else _PlainUnpickler(io.BytesIO(plain)).load()
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
    if not isinstance(state, dict):
        raise _unreadable(path, "it holds no state")
    return state


def _load_tensors(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


class _PlainUnpickler(pickle.Unpickler):
    """Calls nothing that a file names but what torch lets a file name, too."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "collections" and name in ("Counter", "OrderedDict"):
            return getattr(collections, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unreadable(path: Path, reason: str) -> FolderError:
    first_line = next(iter(reason.splitlines()), "damaged")
    return FolderError(f"{path} is not readable as a checkpoint ({first_line}); remove it to start that trial anew")
