"""Stop request of a search, as its trials see it on whatever machine they run."""

import contextlib
import time

from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.filesystem import is_remote

#: Seconds between two reads of the control file; a trial may offer its state at every step.
LOOK_INTERVAL_S = 0.2
#: The same in an object store, where each read is a request.
REMOTE_LOOK_INTERVAL_S = 2.0


class StopRequested(BaseException):
    """Unwinds a trainable whose state is saved; a trainable that catches ``Exception`` does not catch it."""


class StopRequest:
    """A trial's view of the control file of its search.

    Args:
        folder: The experiment folder, with the attempt that the trial belongs to.

    Attributes:
        is_superseded: Whether another attempt may write now: the trial ends and leaves nothing.
    """

    def __init__(self, folder: ExperimentFolder) -> None:
        self.is_superseded = False
        self._folder = folder
        self._is_made = False
        self._read_at: float | None = None
        self._interval_s = REMOTE_LOOK_INTERVAL_S if is_remote(folder.place) else LOOK_INTERVAL_S

    @property
    def is_made(self) -> bool:
        """Return whether the trial is to stop: it saves its state, unless it was superseded."""
        is_old = self._read_at is None or time.monotonic() - self._read_at >= self._interval_s
        if is_old and not self._is_made:
            self.check()
            self._read_at = time.monotonic()
        return self._is_made

    def check(self) -> bool:
        """Read the control file now; return whether this attempt may still write.

        A storage that does not answer for a while orders nothing.
        """
        with contextlib.suppress(FolderError):
            number, is_stop = self._folder.read_control()
            self.is_superseded = number != self._folder.attempt
            self._is_made = self._is_made or is_stop or self.is_superseded
        return not self.is_superseded
