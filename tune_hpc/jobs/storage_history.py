"""Storages and clusters that this user has used before.

They make jobs findable by id alone, and limit tokens to known clusters. ``$XDG_STATE_HOME/tune_hpc/storages`` and
``clusters`` have one per line, the latest last.
"""

import os
from pathlib import Path
from typing import Literal

#: Limit on the lines of a file; the oldest are dropped.
MAX_LINES = 100

Kind = Literal["storages", "clusters"]


def remember(kind: Kind, value: str) -> None:
    """Add a value as the latest one; an unwritable file is ignored."""
    lines = [*(line for line in recall(kind) if line != value), value]
    try:
        _file(kind).parent.mkdir(parents=True, exist_ok=True)
        _file(kind).write_text("".join(f"{line}\n" for line in lines[-MAX_LINES:]), encoding="utf-8")
    except OSError:
        return


def recall(kind: Kind) -> list[str]:
    """Return the values, the latest last."""
    try:
        return _file(kind).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _file(kind: Kind) -> Path:
    parent = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(parent) / "tune_hpc" / kind
