"""States on disk: tensors, numbers, strings, lists and dictionaries, and nothing that could run on loading."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tune_hpc.errors import FolderError


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state."""
    torch.save(dict(state), path)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state that ``save_state`` wrote, onto the CPU.

    Raises:
        FolderError: the file is damaged, or holds more than plain data.
    """
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, EOFError, pickle.UnpicklingError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FolderError(
            f"{path} is not readable as a checkpoint ({reason}); remove it to start that trial anew"
        ) from error
