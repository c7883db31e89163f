"""Launchers: start the drivers of jobs as processes of this machine or in this process. Ray's is in ray_jobs.py."""

import os
import subprocess
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from typing import Any

from tune_hpc.errors import ClusterError
from tune_hpc.jobs.job_folder import Attempt, JobFolder
from tune_hpc.storage.process import is_running, kill_session, process_of, this_process

#: Seconds within which a cluster must answer, unless the caller has less time.
TIMEOUT_S = 15.0


class DriverState(StrEnum):
    """What a launcher knows of a driver."""

    WAITING = "waiting"
    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"  #: a process of another machine, or a cluster that does not answer


class Launcher(ABC):
    """Starts drivers, and knows whether they live."""

    def check(self, timeout_s: float = TIMEOUT_S) -> None:  # noqa: B027
        """Raise now if a start would fail; by default there is nothing to check.

        Raises:
            ClusterError: no cluster answers, or it refuses the request.
        """

    @abstractmethod
    def location(self, job: JobFolder) -> Mapping[str, Any]:
        """Return ``kind`` and what is needed to find a driver that is started now."""

    @abstractmethod
    def start(self, job: JobFolder, attempt: Attempt) -> Mapping[str, Any]:
        """Start the driver of an attempt, and do not wait for it; return its process if it is known.

        Raises:
            ClusterError: the driver cannot be started.
        """

    @abstractmethod
    def state(self, job: JobFolder, attempt: Attempt, timeout_s: float = TIMEOUT_S) -> DriverState:
        """Return what is known of the driver of an attempt."""

    @abstractmethod
    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """Kill the driver of an attempt."""

    def output(self, job: JobFolder, attempt: Attempt, timeout_s: float = TIMEOUT_S) -> str:
        """Return output from before the driver could write to the log of the job: mostly why it did not start."""
        return ""


def driver_command(python: str, job: JobFolder, attempt: Attempt) -> list[str]:
    """Return the command of a driver."""
    return [python, "-m", "tune_hpc.jobs.driver", job.place, str(attempt.number)]


class LocalLauncher(Launcher):
    """Drivers as processes of this machine that outlive the process that started them. Each starts a Ray."""

    def location(self, job: JobFolder) -> Mapping[str, Any]:
        """See ``Launcher``."""
        return {"kind": "process", "host": this_process()["host"]}

    def start(self, job: JobFolder, attempt: Attempt) -> Mapping[str, Any]:
        """See ``Launcher``."""
        output = job.open_output()
        try:
            # A session of its own: a signal to the group of the service or terminal does not reach the driver.
            child = subprocess.Popen(
                driver_command(sys.executable, job, attempt),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        except OSError as error:
            raise ClusterError(f"the driver of {job.id} cannot be started: {error}; free some resources") from error
        finally:
            os.close(output)
        process = process_of(child.pid)
        # A child that ended is a zombie until its parent waits for it.
        threading.Thread(target=child.wait, daemon=True).start()
        return process

    def state(self, job: JobFolder, attempt: Attempt, timeout_s: float = TIMEOUT_S) -> DriverState:
        """See ``Launcher``."""
        if attempt.location.get("host") != this_process()["host"]:
            return DriverState.UNKNOWN
        return DriverState.ALIVE if is_running(job.read_process(attempt.number)) else DriverState.GONE

    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """See ``Launcher``."""
        process = job.read_process(attempt.number) or {}
        # A driver that a signal has stopped is not running, but must go, too. Its Ray is of the same session.
        if process.get("began") and process == process_of(process["pid"]):
            kill_session(process["pid"])


class InProcessLauncher(Launcher):
    """Drivers in a thread of this process, one after the other: for tests and for debugging.

    They use the Ray that this process is connected to, or start one.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._drivers: dict[tuple[str, int], Future[None]] = {}

    def location(self, job: JobFolder) -> Mapping[str, Any]:
        """See ``Launcher``."""
        return {"kind": "in_process", **this_process()}

    def start(self, job: JobFolder, attempt: Attempt) -> Mapping[str, Any]:
        """See ``Launcher``."""
        self._drivers[job.id, attempt.number] = self._thread.submit(_drive, job, attempt)
        return this_process()

    def state(self, job: JobFolder, attempt: Attempt, timeout_s: float = TIMEOUT_S) -> DriverState:
        """See ``Launcher``."""
        driver = self._drivers.get((job.id, attempt.number))
        if driver is None:
            return DriverState.UNKNOWN
        if driver.done():
            return DriverState.GONE
        return DriverState.ALIVE if driver.running() else DriverState.WAITING

    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """Take a driver out of the queue; one that runs ends when its search has stopped."""
        if driver := self._drivers.get((job.id, attempt.number)):
            driver.cancel()


def _drive(job: JobFolder, attempt: Attempt) -> None:
    from tune_hpc.jobs.driver import drive

    with os.fdopen(job.open_output(), "a", encoding="utf-8", buffering=1) as output:
        try:
            drive(job, attempt.number, output)
        except BaseException:
            traceback.print_exc(file=output)
            raise
