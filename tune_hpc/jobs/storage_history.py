"""Storages and clusters that this user has used: jobs are found by id alone, and tokens go to known clusters only.

One line each in ``$XDG_STATE_HOME/tune_hpc/storages`` and ``clusters``, the latest last.
"""

import os
from pathlib import Path
from typing import Literal

#: More lines than these are dropped, the oldest first.
MAX_LINES = 100

Kind = Literal["storages", "clusters"]


def remember(kind: Kind, value: str) -> None:
    """Note a value as the latest one; if it cannot be noted, it must be given again next time."""
    lines = [*(one for one in recall(kind) if one != value), value]
    try:
        _file(kind).parent.mkdir(parents=True, exist_ok=True)
        _file(kind).write_text("".join(f"{one}\n" for one in lines[-MAX_LINES:]), encoding="utf-8")
    except OSError:
        return


def recall(kind: Kind) -> list[str]:
    """Return the noted values, the latest last."""
    try:
        return _file(kind).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _file(kind: Kind) -> Path:
    parent = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(parent) / "tune_hpc" / kind
