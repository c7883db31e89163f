"""How a search ends before all its trials have: it asks those under way to save their state, and waits for a while."""

import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any

from ray.tune import Stopper

from tune_hpc.errors import FolderError
from tune_hpc.search.callback import SearchCallback
from tune_hpc.search.limits import LOOK_INTERVAL_S, StopCriteria
from tune_hpc.storage.experiment_folder import ExperimentFolder

#: Seconds that trials under way have to save their state, or to end; batch systems warn a minute or more before theirs.
WAIT_S = 30.0

_log = logging.getLogger(__name__)


class GracefulStopper(Stopper):
    """Ray Tune asks this between any two events, ten times a second at least, whether to stop everything.

    Args:
        limits: They know why the search is to end.
        watcher: It knows what is under way.
        homes: The folders of the experiments.
    """

    def __init__(self, limits: StopCriteria, watcher: SearchCallback, homes: Iterable[ExperimentFolder]) -> None:
        self.limits = limits
        self.watcher = watcher
        self.homes = list(homes)
        self._asked_at: float | None = None
        self._read_at = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles it for a restore that is never asked for.
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """End no single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether to stop everything: all that was under way has ended or saved its state, or had the time for it."""
        self.watcher.show()
        if self._is_superseded():
            self.watcher.kill_running()
            return True
        if not self.limits.are_reached():
            return False
        if self._asked_at is None:
            self._ask()
            self._asked_at = time.monotonic()
        if not self.watcher.is_any_under_way:
            return True
        if self.limits.force_stop or time.monotonic() - self._asked_at >= WAIT_S:
            self.watcher.kill_running()
            return True
        return False

    def _is_superseded(self) -> bool:
        """Return whether another attempt of a search has begun; read once a second."""
        if self.limits.is_superseded or time.monotonic() - self._read_at < LOOK_INTERVAL_S:
            return self.limits.is_superseded
        self._read_at = time.monotonic()
        # A storage that does not answer for a while orders nothing.
        with contextlib.suppress(FolderError):
            if any(home.is_superseded() for home in self.homes):
                self.limits.is_superseded, self.limits.reason = True, "another process resumed the search"
        return self.limits.is_superseded

    def _ask(self) -> None:
        for home in self.homes:
            try:
                home.write_control(stop=True)
            except FolderError as error:
                _log.warning("%s, or make room; its trials will go on from the state that they kept last", error)
        if self.watcher.is_any_under_way and not self.limits.force_stop:
            reason, again = ("stopping", "again ") if self.limits.is_interrupted else (self.limits.reason, "")
            _log.info(
                "%s: trials under way save their state, at most %g s; press Ctrl-C %sto stop at once",
                reason,
                WAIT_S,
                again,
            )
