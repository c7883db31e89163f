"""Launchers that start the drivers of jobs as processes of this machine or in this process; see also ray_jobs.py."""

import os
import subprocess
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tune_hpc.errors import ClusterError
from tune_hpc.jobs.job_folder import Attempt, JobFolder
from tune_hpc.jobs.status import DriverState
from tune_hpc.storage.process import is_running, kill_session, process_of, this_process

#: Default limit in seconds on a request to a cluster.
TIMEOUT_S = 15.0


class Launcher(ABC):
    """Starts drivers and reports whether they are alive."""

    def check(self, timeout_s: float = TIMEOUT_S) -> None:  # noqa: B027
        """Raise if a start would fail; by default there is nothing to check.

        Raises:
            ClusterError: no cluster answers, or it rejects the request.
        """

    @abstractmethod
    def location(self, job: JobFolder) -> Mapping[str, Any]:
        """Return ``kind`` and the address or host at which a new driver can be found."""

    @abstractmethod
    def start(self, job: JobFolder, attempt: Attempt) -> Mapping[str, Any]:
        """Start the driver of an attempt without waiting for it; return its process if known.

        Raises:
            ClusterError: the driver cannot be started.
        """

    @abstractmethod
    def state(self, job: JobFolder, attempt: Attempt, timeout_s: float = TIMEOUT_S) -> DriverState:
        """Return the state of the driver of an attempt."""

    @abstractmethod
    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """Kill the driver of an attempt."""

    def output(self, job: JobFolder, attempt: Attempt, timeout_s: float = TIMEOUT_S) -> str:
        """Return output from before the driver opened the log of the job, usually why it did not start."""
        return ""


def driver_command(python: str, job: JobFolder, attempt: Attempt) -> list[str]:
    """Return the command of a driver."""
    return [python, "-m", "tune_hpc.jobs.driver", job.uri, str(attempt.number)]


class LocalLauncher(Launcher):
    """Drivers as processes of this machine, each with its Ray; they outlive the process that started them."""

    def location(self, job: JobFolder) -> Mapping[str, Any]:
        """See ``Launcher``."""
        return {"kind": "process", "host": this_process()["host"]}

    def start(self, job: JobFolder, attempt: Attempt) -> Mapping[str, Any]:
        """See ``Launcher``."""
        output = job.open_output()
        try:
            # In a new session, a signal to the process group of the service or terminal does not reach the driver.
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
        # This includes a driver that a signal has stopped, and its Ray, which is in the same session.
        if process.get("began") and process == process_of(process["pid"]):
            kill_session(process["pid"])


class InProcessLauncher(Launcher):
    """Drivers in a thread of this process, one after the other, for tests and debugging.

    They use the Ray session of this process, or start one.
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
        """Remove a driver from the queue; a running driver ends when its search has stopped."""
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
