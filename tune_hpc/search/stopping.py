"""Early stop of a search: time budget, target, failures, stop file, signals, and takeover by another attempt.

Every stop works alike. No further trial starts, running trials save their states, and ``resume`` continues from there.
The driver decides with ``StopCriteria`` and publishes the decision in the control file of each folder
(``GracefulStop``). Trials poll this file on their machines (``StopRequest``).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from tune_hpc.errors import FolderError, TimeLimitReached
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.filesystem import Storage

if TYPE_CHECKING:
    from tune_hpc.search.monitor import SearchMonitor

#: Signal by which a batch system warns that the time of a job is nearly over.
WARNING_SIGNAL = signal.SIGUSR1
#: Signals that stop a search after its trials have saved their states.
SIGNALS = (WARNING_SIGNAL, signal.SIGTERM, signal.SIGINT)
#: Seconds between two reads of the stop file and of the control file by the driver.
DRIVER_POLL_INTERVAL_S = 1.0
#: Seconds between two reads of the control file by a trial, which may offer its state at every step.
TRIAL_POLL_INTERVAL_S = 0.2
#: The same on S3, where each read is a request.
REMOTE_POLL_INTERVAL_S = 2.0
#: Number of the first trials of a run that stop the search by default if all of them fail.
NUM_FIRST_FAILURES = 3
#: Seconds that running trials have to save their states or to end; batch systems warn a minute or more before the end.
WAIT_S = 30.0

_log = logging.getLogger(__name__)


@functools.cache
def reset_signals_in_children() -> None:
    """Give processes that a trainable forks the default signal handlers: a pool of processes ends its by SIGTERM.

    They would inherit the handlers of the driver or of Ray, which do not end a process. Signals wait during the fork,
    because an inherited handler would consume one that arrives before the reset.
    """
    masks = threading.local()

    def block() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def reset() -> None:
        for number in (signal.SIGTERM, WARNING_SIGNAL):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        unblock()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=reset)


@contextlib.contextmanager
def ignored_warning_signal() -> Iterator[None]:
    """Ignore the warning of a batch system that its job ends soon; in other threads than the main one, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(WARNING_SIGNAL, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(WARNING_SIGNAL, handler)


class StopRequested(BaseException):
    """Unwinds a trainable after its state was saved; ``except Exception`` in a trainable does not catch it."""


class StopRequest:
    """A trial's view of the control file of its search.

    Args:
        folder: The experiment folder, with the attempt of the trial.
        poll: Called before each read of the file, by a driver in the process of the trial.

    Attributes:
        is_superseded: Whether another attempt may write now: the trial stops and writes nothing.
    """

    def __init__(self, folder: ExperimentFolder, poll: Callable[[], object] = lambda: None) -> None:
        self.is_superseded = False
        self._folder = folder
        self._poll = poll
        self._is_made = False
        self._read_at: float | None = None
        self._interval_s = REMOTE_POLL_INTERVAL_S if folder.storage.is_remote else TRIAL_POLL_INTERVAL_S

    @property
    def is_made(self) -> bool:
        """Return whether the trial must stop: it saves its state, unless it was superseded."""
        is_old = self._read_at is None or time.monotonic() - self._read_at >= self._interval_s
        if is_old and not self._is_made:
            self._poll()
            self.check()
            self._read_at = time.monotonic()
        return self._is_made

    def check(self) -> bool:
        """Read the control file now, and return whether this attempt may still write.

        A storage that does not answer has no effect.
        """
        with contextlib.suppress(FolderError):
            number, is_stop = self._folder.read_control()
            self.is_superseded = number != self._folder.attempt
            self._is_made = self._is_made or is_stop or self.is_superseded
        return not self.is_superseded


class TimeLimit:
    """Time limit of a trial or of a fused group; its start is that of the object.

    Args:
        limit_s: The limit; ``None``: no limit.
    """

    def __init__(self, limit_s: float | None = None) -> None:
        self._limit_s = math.inf if limit_s is None else limit_s
        self._started_at = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Return the seconds that count."""
        return time.monotonic() - self._started_at

    def add(self, seconds: float) -> None:
        """Count the time of an earlier run, too."""
        self._started_at -= seconds

    def check(self) -> None:
        """Check the time.

        Raises:
            TimeLimitReached: It is over.
        """
        if self.elapsed_s > self._limit_s:
            raise TimeLimitReached


class StopCriteria:
    """Reasons to stop a search before all its trials have ended.

    Args:
        time_budget_s: Seconds from ``start`` on; ``None``: no limit.
        target: Value of the metric that ranks trials at which the search stops; ``None``: no target.
        stop_file: File whose existence stops the search; ``None``: no such file.
        max_failures: Number of failed trials at which the search stops, 0 for no limit; ``None``: it stops if its first
            trials all fail.

    Attributes:
        reason: Reason of the stop; ``None``: the search runs.
        has_failed: Whether too many trials failed.
        is_warned: Whether a batch system requested the stop.
        is_terminated: Whether SIGTERM requested it.
        is_interrupted: Whether the user pressed Ctrl-C.
        is_superseded: Whether another process has resumed the search.
        force_stop: Whether the user pressed Ctrl-C again and waits for nothing more.
        in_process: Whether trials run in this process, so that a second Ctrl-C interrupts the trial itself.
    """

    def __init__(
        self,
        time_budget_s: float | None = None,
        target: float | None = None,
        stop_file: Path | None = None,
        max_failures: int | None = None,
    ) -> None:
        self.time_budget_s = time_budget_s
        self.target = target
        self.stop_file = stop_file
        self.max_failures = max_failures
        self.reason: str | None = None
        self.has_failed = False
        self.is_warned = False
        self.is_terminated = False
        self.is_superseded = False
        self.is_interrupted = False
        self.force_stop = False
        self.in_process = False
        self._started_at = self._polled_at = time.monotonic()
        self._previous_handler: Any = signal.default_int_handler

    @property
    def is_user_request(self) -> bool:
        """Return whether the search stopped by a criterion that its user set."""
        by_signal = self.is_warned or self.is_terminated or self.is_interrupted
        return self.reason is not None and not by_signal and not self.is_superseded

    def start(self) -> None:
        """Start the clock of the time budget: trials can start now."""
        self._started_at = time.monotonic()

    def record_value(self, value: float | None, mode: str) -> None:
        """Compare the value of a trial that ended with the target."""
        if self.target is None or value is None or self.reason:
            return
        if value <= self.target if mode == "min" else value >= self.target:
            self.reason = f"a trial reached {value:g}, and {self.target:g} was the target"

    def record_failures(self, num_failed: int, num_ended: int) -> None:
        """Compare the number of trials that failed in this run, of those that ended in it, with the limit."""
        if self.reason or not num_failed:
            return
        if self.max_failures is None:
            self.has_failed = num_failed == num_ended >= NUM_FIRST_FAILURES
            text = "the first trials all failed; correct the cause, or allow failures with --max-failures 0"
        else:
            self.has_failed = 0 < self.max_failures <= num_failed
            text = f"{num_failed} of {num_ended} trials failed, and the limit was {self.max_failures}"
        self.reason = text if self.has_failed else None

    def is_met(self) -> bool:
        """Return whether the search must stop."""
        now = time.monotonic()
        if not self.reason and self.time_budget_s is not None and now - self._started_at > self.time_budget_s:
            self.reason = f"the time budget of {self.time_budget_s:g} s is spent"
        if not self.reason and self.stop_file is not None and now - self._polled_at >= DRIVER_POLL_INTERVAL_S:
            self._polled_at = now
            # A storage that does not answer has no effect.
            with contextlib.suppress(FolderError):
                self.reason = "a stop was requested" if Storage(self.stop_file.parent).exists(self.stop_file) else None
        return self.reason is not None

    @contextlib.contextmanager
    def restoring_signal_handlers(self) -> Iterator[None]:
        """Restore the signal handlers after the block; only the main thread can have changed them."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self._previous_handler = before[signal.SIGINT] or signal.default_int_handler
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler or signal.SIG_DFL)

    def install_signal_handlers(self, *, interrupts: bool = True) -> None:
        """Handle warnings, SIGTERM and interrupts, instead of the handlers of Ray and Ray Tune."""
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
            if self.in_process:
                signal.signal(signal.SIGINT, self._previous_handler)
        else:
            self.force_stop = True
            # A third Ctrl-C ends the process at once, without the shutdown of Ray.
            signal.signal(signal.SIGINT, self._previous_handler)


class GracefulStop:
    """Ends a run once its criteria are met and its running trials have saved their states.

    Args:
        criteria: Stop criteria of the run.
        monitor: Monitor of the run.
        folders: Experiment folders; their control files receive the stop request.
    """

    def __init__(self, criteria: StopCriteria, monitor: SearchMonitor, folders: Iterable[ExperimentFolder]) -> None:
        self.criteria = criteria
        self.monitor = monitor
        self.folders = list(folders)
        self._requested_at: float | None = None
        self._polled_at = time.monotonic()

    def is_due(self) -> bool:
        """Return whether the run must end now: running trials have saved their states or ended, or had time to.

        The runner calls this at least every second, and kills the trials that still run if it is true.
        """
        self.monitor.show()
        if self._is_superseded():
            return True
        if not self.criteria.is_met():
            return False
        if self._requested_at is None:
            self._request_stop()
            self._requested_at = time.monotonic()
        is_late = self.criteria.force_stop or time.monotonic() - self._requested_at >= WAIT_S
        return is_late or not self.monitor.any_running

    def _is_superseded(self) -> bool:
        """Return whether another attempt of a search has started; read once a second."""
        criteria = self.criteria
        if criteria.is_superseded or time.monotonic() - self._polled_at < DRIVER_POLL_INTERVAL_S:
            return criteria.is_superseded
        self._polled_at = time.monotonic()
        # A storage that does not answer has no effect.
        with contextlib.suppress(FolderError):
            if any(folder.is_superseded() for folder in self.folders):
                criteria.is_superseded, criteria.reason = True, "another process resumed the search"
        return criteria.is_superseded

    def _request_stop(self) -> None:
        for folder in self.folders:
            try:
                folder.write_control(stop=True)
            except FolderError as error:
                _log.warning("%s, or make room; its trials resume from their last checkpoints", error)
        if self.monitor.any_running and not self.criteria.force_stop:
            is_interrupted = self.criteria.is_interrupted
            reason, again = ("stopping", "again ") if is_interrupted else (self.criteria.reason, "")
            _log.info(
                "%s: running trials save their states within %g s; press Ctrl-C %sto stop at once",
                reason, WAIT_S, again,
            )  # fmt: skip
