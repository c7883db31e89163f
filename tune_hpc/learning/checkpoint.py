"""Files for states of tensors, numbers, strings, lists and dictionaries; loading them runs no code.

A process without torch has no tensors. It saves and loads its state without torch, whose import takes two seconds.
"""

import collections
import io
import pickle
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

from tune_hpc.errors import FolderError

#: Bit that marks a folder in an archive. If damage sets it, torch reads a tensor as zeros.
_FOLDER = 0x10
#: Name of the only entry of an archive without tensors.
_PLAIN = "plain.pkl"


def save_state(path: Path, state: Any) -> None:
    """Write a state."""
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
    try:
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
    return state


def _load_tensors(path: Path) -> Any:
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


class _PlainUnpickler(pickle.Unpickler):
    """Unpickler that allows the same classes as torch."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "collections" and name in ("Counter", "OrderedDict"):
            return getattr(collections, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _unreadable(path: Path, reason: str) -> FolderError:
    first_line = next(iter(reason.splitlines()), "damaged")
    return FolderError(f"{path} is not readable as a checkpoint ({first_line}); delete it to restart the trial")
