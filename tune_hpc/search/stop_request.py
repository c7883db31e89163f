"""How trials under way are asked to save their state and end, on whatever machine they run.

Each experiment folder has a file ``trials/stop`` while its search runs: it is empty, and a word in it asks. It is there
from the beginning, for NFS shows what is written to a file that is opened anew at once, but may for half a minute deny
that there is a new one.
"""

import contextlib
import time
from pathlib import Path

from tune_hpc.analysis.folder import ExperimentFolder
from tune_hpc.analysis.object_store import is_remote, place_of, pull, push
from tune_hpc.errors import FolderError

#: A trial looks into the file no more often; it may offer its state at every step.
LOOK_INTERVAL_S = 0.2
#: The same, where to look is to ask an object store.
REMOTE_LOOK_INTERVAL_S = 2.0


class StopAsked(BaseException):
    """Unwinds a trainable whose state is kept; no exception that a trainable would take for a failure of its own."""


class StopRequest:
    """A trial's view of the file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_made = False
        self._looked_at: float | None = None
        self._interval_s = REMOTE_LOOK_INTERVAL_S if is_remote(place_of(path)) else LOOK_INTERVAL_S

    @property
    def is_made(self) -> bool:
        """Whether the trial is to save its state and end."""
        is_old = self._looked_at is None or time.monotonic() - self._looked_at >= self._interval_s
        if is_old and not self._is_made:
            with contextlib.suppress(OSError):
                pull(self.path)
                self._is_made = bool(self.path.read_bytes())
            self._looked_at = time.monotonic()
        return self._is_made


def ask_to_stop(home: ExperimentFolder) -> None:
    """Ask the trials of an experiment to save their state and end.

    Raises:
        FolderError: the folder cannot be written, or the disk is full.
    """
    _write(home.stop, b"stop\n")


def ask_nothing(home: ExperimentFolder) -> None:
    """Let the trials of an experiment run, whatever an earlier search asked.

    Raises:
        FolderError: the folder cannot be written.
    """
    _write(home.stop, b"")


def _write(path: Path, asked: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(asked)
        push(path)
    except OSError as error:
        raise FolderError(f"{path} cannot be written: {error.strerror or error}; choose another folder") from error
