"""What ends a search before all its trials have: a time budget, a target that is reached, a batch system's warning.

Each ends it in the same way: no trial is begun any more, those under way keep their last checkpoint, and ``resume``
goes on with the rest.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from ray.tune import Stopper

from tune_hpc.errors import InvalidExperimentError

#: The signal by which a batch system warns that a job's time is nearly over.
WARNING_SIGNAL = signal.SIGUSR1


def check_limits(time_budget_s: float | None, target: float | None) -> None:
    """Refuse limits that no search could keep.

    Raises:
        InvalidExperimentError: a time budget that is not above 0, or a target that is no number.
    """
    if time_budget_s is not None and not time_budget_s > 0:
        raise InvalidExperimentError(f"time_budget_s must be above 0; got {time_budget_s}")
    if target is not None and target != target:
        raise InvalidExperimentError(f"target must be a number; got {target}")


class Limits(Stopper):
    """Ray Tune asks this between any two events whether to go on.

    Args:
        time_budget_s: Seconds from now; ``None``: as long as it takes.
        target: A value of the metric that ranks trials, at which the search has found enough; ``None``: none.

    Attributes:
        reason: Why the search ends before all its trials have; ``None``: it does not.
        is_warned: Whether a batch system asked for it.
    """

    def __init__(self, time_budget_s: float | None = None, target: float | None = None) -> None:
        self.time_budget_s = time_budget_s
        self.target = target
        self.reason: str | None = None
        self.is_warned = False
        self._began = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles it for a restore that is never asked for.
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """End no single trial."""
        return False

    @property
    def is_users_own(self) -> bool:
        """Whether the search ended by a limit that its user set."""
        return self.reason is not None and not self.is_warned

    def note(self, value: float | None, mode: str) -> None:
        """Take a trial's value into account."""
        if self.target is None or value is None or self.reason:
            return
        if value <= self.target if mode == "min" else value >= self.target:
            self.reason = f"a trial reached {value:g}, and {self.target:g} was the target"

    def stop_all(self) -> bool:
        """Whether to end the search."""
        if not self.reason and self.time_budget_s is not None and time.monotonic() - self._began > self.time_budget_s:
            self.reason = f"the time budget of {self.time_budget_s:g} s is spent"
        return self.reason is not None

    @contextlib.contextmanager
    def giving_the_signal_back(self) -> Iterator[None]:
        """Leave the warning signal as it was before the block; only the main thread can have taken it."""
        before = signal.getsignal(WARNING_SIGNAL)
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(WARNING_SIGNAL, before)

    def heed_warning(self) -> None:
        """Take a batch system's warning from now on; Ray Tune has its own handler, which tells nobody."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(WARNING_SIGNAL, self._warn)

    def _warn(self, number: int, frame: FrameType | None) -> None:
        self.is_warned = self.reason is None
        self.reason = self.reason or "the batch system's time is nearly over (SIGUSR1)"
