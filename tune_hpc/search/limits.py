"""What ends a search before all its trials have: a time budget, a target that is reached, an interrupt, a warning.

Each ends it in the same way (ending.py): no trial is begun any more, those under way save their state, and ``resume``
goes on with them and the rest.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tune_hpc.errors import FolderError, InvalidExperimentError
from tune_hpc.storage.filesystem import pull

#: The signal by which a batch system warns that a job's time is nearly over.
WARNING_SIGNAL = signal.SIGUSR1
#: All signals that end a search with the states of its trials saved.
SIGNALS = (WARNING_SIGNAL, signal.SIGTERM, signal.SIGINT)
#: Seconds between two looks for the file that ends a search.
LOOK_INTERVAL_S = 1.0


def check_limits(time_budget_s: float | None, target: float | None) -> None:
    """Refuse limits that no search could keep.

    Raises:
        InvalidExperimentError: a time budget that is not above 0, or a target that is no number.
    """
    if time_budget_s is not None and not time_budget_s > 0:
        raise InvalidExperimentError(f"time_budget_s must be above 0; got {time_budget_s}")
    if target is not None and target != target:
        raise InvalidExperimentError(f"target must be a number; got {target}")


class StopCriteria:
    """Knows whether a search is to end, and why.

    Args:
        time_budget_s: Seconds from now; ``None``: as long as it takes.
        target: A value of the metric that ranks trials, at which the search has found enough; ``None``: none.
        stop_file: A file that somebody makes to end the search; ``None``: nobody does.

    Attributes:
        reason: Why the search ends before all its trials have; ``None``: it does not.
        is_warned: Whether a batch system asked for it.
        is_terminated: Whether SIGTERM asked for it.
        is_interrupted: Whether its user did, by Ctrl-C.
        is_superseded: Whether another process has resumed the search.
        force_stop: Whether the user did so while the search was ending, and waits for nothing more.
    """

    def __init__(
        self, time_budget_s: float | None = None, target: float | None = None, stop_file: Path | None = None
    ) -> None:
        self.time_budget_s = time_budget_s
        self.target = target
        self.stop_file = stop_file
        self.reason: str | None = None
        self.is_warned = False
        self.is_terminated = False
        self.is_superseded = False
        self.is_interrupted = False
        self.force_stop = False
        self._began = self._looked_at = time.monotonic()
        self._handler_before: Any = signal.default_int_handler

    @property
    def is_user_request(self) -> bool:
        """Whether the search ended by a limit that its user set."""
        by_signal = self.is_warned or self.is_terminated or self.is_interrupted
        return self.reason is not None and not by_signal and not self.is_superseded

    def start(self) -> None:
        """Restart the clock of the time budget: trials can begin now."""
        self._began = time.monotonic()

    def note(self, value: float | None, mode: str) -> None:
        """Take a trial's value into account."""
        if self.target is None or value is None or self.reason:
            return
        if value <= self.target if mode == "min" else value >= self.target:
            self.reason = f"a trial reached {value:g}, and {self.target:g} was the target"

    def are_reached(self) -> bool:
        """Whether the search is to end."""
        if not self.reason and self.time_budget_s is not None and time.monotonic() - self._began > self.time_budget_s:
            self.reason = f"the time budget of {self.time_budget_s:g} s is spent"
        if not self.reason and self.stop_file is not None and time.monotonic() - self._looked_at >= LOOK_INTERVAL_S:
            self._looked_at = time.monotonic()
            # A storage that does not answer for a while asks for nothing.
            with contextlib.suppress(FolderError):
                self.reason = "it was asked to stop" if pull(self.stop_file) else None
        return self.reason is not None

    @contextlib.contextmanager
    def restoring_signal_handlers(self) -> Iterator[None]:
        """Leave the signals as they were before the block; only the main thread can have taken them."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._handler_before = before[signal.SIGINT] or signal.default_int_handler
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler or signal.SIG_DFL)

    def install_signal_handlers(self, *, interrupts: bool = True) -> None:
        """Handle warnings, SIGTERM and interrupts from now on, instead of the handlers of Ray and Ray Tune."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(WARNING_SIGNAL, self._warn)
            signal.signal(signal.SIGTERM, self._terminate)
            if interrupts:
                signal.signal(signal.SIGINT, self._interrupt)

    def _warn(self, number: int, frame: FrameType | None) -> None:
        if self.reason is None:
            self.is_warned = True
            self.reason = "the batch system's time is nearly over (SIGUSR1)"

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if self.reason is None:
            self.is_terminated = True
            self.reason = "terminated (SIGTERM)"

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.reason is None:
            self.is_interrupted = True
            self.reason = "interrupted"
        else:
            self.force_stop = True
            # Whoever asks once more does not even want to wait for Ray.
            signal.signal(signal.SIGINT, self._handler_before)
