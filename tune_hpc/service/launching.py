"""A launcher that never keeps a reader waiting: a cluster that does not answer is asked in the background."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from typing import Any

from tune_hpc.cluster.job_folder import Attempt, JobFolder
from tune_hpc.cluster.launchers import DriverState, Launcher

#: For so many seconds an answer holds, and so long one waits for it.
LASTS_S = 2.0
WAIT_S = 0.3
#: What is known of so many attempts is remembered.
MOST_ATTEMPTS = 10_000


class Prompt:
    """Another launcher, whose answers about drivers come at once: the last one known, or that nobody can tell.

    Args:
        launcher: The other one.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self._known: dict[tuple[str, str, int], tuple[float, Any]] = {}
        self._asked: dict[tuple[str, str, int], Future[Any]] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="drivers")

    def check(self) -> None:
        """See ``Launcher``."""
        self.launcher.check()

    def place(self, job: JobFolder) -> Mapping[str, Any]:
        """See ``Launcher``."""
        return self.launcher.place(job)

    def start(self, job: JobFolder, attempt: Attempt) -> None:
        """See ``Launcher``."""
        self.launcher.start(job, attempt)

    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """See ``Launcher``."""
        self.launcher.end(job, attempt)
        with self._lock:
            self._known.clear()

    def state(self, job: JobFolder, attempt: Attempt) -> DriverState:
        """See ``Launcher``; ``UNKNOWN`` as long as the other one has not answered."""
        told: DriverState = self._ask("state", job, attempt, DriverState.UNKNOWN)
        return told

    def output(self, job: JobFolder, attempt: Attempt) -> str:
        """See ``Launcher``; empty as long as the other one has not answered."""
        told: str = self._ask("output", job, attempt, "")
        return told

    def _ask(self, question: str, job: JobFolder, attempt: Attempt, default: Any) -> Any:
        key = (question, job.id, attempt.number)
        with self._lock:
            if (known := self._known.get(key)) and time.monotonic() - known[0] < LASTS_S:
                return known[1]
            asked = self._asked.get(key)
            if asked is None:
                asked = self._asked[key] = self._threads.submit(getattr(self.launcher, question), job, attempt)
        try:
            answer = asked.result(WAIT_S)
        except NotInTime:
            # Whoever asks next finds the answer here, or goes on without it just as soon.
            with self._lock:
                known = self._known[key] = (time.monotonic(), self._known.get(key, (0.0, default))[1])
            return known[1]
        finally:
            if asked.done():
                with self._lock:
                    self._asked.pop(key, None)
        with self._lock:
            if len(self._known) >= MOST_ATTEMPTS:
                self._known.clear()
            self._known[key] = (time.monotonic(), answer)
        return answer
