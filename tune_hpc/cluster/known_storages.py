"""Which storages this user has submitted jobs to: so that a job is found by its id alone.

One line each in ``$XDG_STATE_HOME/tune_hpc/storages``, the latest last.
"""

import os
from pathlib import Path

#: More than these nobody looks through.
MAX_STORAGES = 100


def remember(storage: str) -> None:
    """Note a storage as the latest one; without a place to note it, jobs are found with --storage only."""
    lines = [one for one in storages() if one != storage] + [storage]
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{one}\n" for one in lines[-MAX_STORAGES:]), encoding="utf-8")
    except OSError:
        return


def storages() -> list[str]:
    """Return what was noted, the latest last."""
    try:
        return _path().read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _path() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "tune_hpc" / "storages"
