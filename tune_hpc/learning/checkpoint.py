"""States on disk: tensors, numbers, strings, lists and dictionaries, and nothing that could run on loading."""

import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tune_hpc.errors import FolderError

#: The bit by which an archive marks a folder: where it is set by damage, torch reads a tensor as zeros.
_FOLDER = 0x10


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state."""
    torch.save(dict(state), path)


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
        if damaged is not None:
            raise zipfile.BadZipFile(f"the sum of {damaged} differs")
        if folders:
            raise zipfile.BadZipFile(f"{folders[0]} is marked as a folder")
        state = torch.load(path, map_location="cpu", weights_only=True)
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


def _unreadable(path: Path, reason: str) -> FolderError:
    first_line = next(iter(reason.splitlines()), "damaged")
    return FolderError(f"{path} is not readable as a checkpoint ({first_line}); remove it to start that trial anew")
