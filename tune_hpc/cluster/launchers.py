"""Where the drivers of jobs run: processes of this machine, or this process itself. Ray's are in ray_jobs.py."""

import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from typing import Any, Protocol

from tune_hpc.analysis.process import is_running, process_of, this_process
from tune_hpc.cluster.job_folder import Attempt, JobFolder


class DriverState(StrEnum):
    """What a launcher knows of a driver."""

    WAITING = "waiting"
    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"  #: it cannot tell: another machine's process, a cluster that does not answer


class Launcher(Protocol):
    """A place where drivers run."""

    def check(self) -> None:
        """Refuse now what a start would find out later.

        Raises:
            ClusterError: nothing is there, or it does not let us in.
        """

    def place(self, job: JobFolder) -> Mapping[str, Any]:
        """Return what is written down of the place: ``kind``, and what one needs to find the driver there."""

    def start(self, job: JobFolder, attempt: Attempt) -> None:
        """Have a driver work on an attempt; do not wait for it.

        Raises:
            ClusterError: nobody takes it.
        """

    def state(self, job: JobFolder, attempt: Attempt) -> DriverState:
        """Return what is known of an attempt's driver."""

    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """End a driver that does not answer, at once."""

    def output(self, job: JobFolder, attempt: Attempt) -> str:
        """Return what was said before the driver could write to the job's own log: mostly why it did not begin."""


def driver_command(python: str, job: JobFolder, attempt: Attempt) -> list[str]:
    """Return the command of a driver."""
    return [python, "-m", "tune_hpc.cluster.driver", job.place, str(attempt.number)]


class Processes:
    """Drivers as processes of this machine, which outlive whoever asked for them. Each has a Ray of its own."""

    def check(self) -> None:
        """There is always this machine."""

    def place(self, job: JobFolder) -> Mapping[str, Any]:
        """See ``Launcher``."""
        return {"kind": "process", "host": this_process()["host"]}

    def start(self, job: JobFolder, attempt: Attempt) -> None:
        """See ``Launcher``."""
        # A process's own folder and modules are those of whoever asked; its output belongs to the job from the start.
        with job.output.open("ab") as output:
            child = subprocess.Popen(
                driver_command(sys.executable, job, attempt),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        job.write_process(attempt.number, process_of(child.pid))
        # A child that has ended stays in the table of processes until somebody asks how.
        threading.Thread(target=child.wait, daemon=True).start()

    def state(self, job: JobFolder, attempt: Attempt) -> DriverState:
        """See ``Launcher``."""
        process = job.read_process(attempt.number)
        if attempt.place.get("host") != this_process()["host"]:
            return DriverState.UNKNOWN
        return DriverState.ALIVE if is_running(process) else DriverState.GONE

    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """See ``Launcher``."""
        process = job.read_process(attempt.number)
        if is_running(process):
            # With it goes the Ray that it started: both are of the session that was made for it.
            os.killpg(process["pid"], signal.SIGKILL)

    def output(self, job: JobFolder, attempt: Attempt) -> str:
        """See ``Launcher``; all of it is in the job's log."""
        return ""


class InProcess:
    """Drivers in a thread of this process, one after the other: for tests, and to look into what a job does.

    They use the Ray that this process is connected to, or else start one.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")
        self._drivers: dict[tuple[str, int], Future[None]] = {}

    def check(self) -> None:
        """There is always this process."""

    def place(self, job: JobFolder) -> Mapping[str, Any]:
        """See ``Launcher``."""
        return {"kind": "in_process", **this_process()}

    def start(self, job: JobFolder, attempt: Attempt) -> None:
        """See ``Launcher``."""
        self._drivers[job.id, attempt.number] = self._thread.submit(_drive_here, job, attempt)

    def state(self, job: JobFolder, attempt: Attempt) -> DriverState:
        """See ``Launcher``."""
        driver = self._drivers.get((job.id, attempt.number))
        if driver is None:
            return DriverState.UNKNOWN
        if driver.done():
            return DriverState.GONE
        return DriverState.ALIVE if driver.running() else DriverState.WAITING

    def end(self, job: JobFolder, attempt: Attempt) -> None:
        """Take it out of the queue; a thread cannot be ended, and ends when its search has stopped."""
        if driver := self._drivers.get((job.id, attempt.number)):
            driver.cancel()

    def output(self, job: JobFolder, attempt: Attempt) -> str:
        """See ``Launcher``; all of it is in the job's log."""
        return ""


def _drive_here(job: JobFolder, attempt: Attempt) -> None:
    from tune_hpc.cluster.driver import drive

    with job.output.open("a", encoding="utf-8", buffering=1) as output:
        try:
            drive(job, attempt.number, output)
        except BaseException:
            traceback.print_exc(file=output)
            raise
