"""Identify the process that works on an experiment folder, and check whether it still runs."""

import os
import platform
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Process states of ``/proc/PID/stat`` in which no work is done: zombie, dead, stopped by a signal or a tracer.
_NOT_ALIVE = frozenset("ZXxTt")


def this_process() -> dict[str, Any]:
    """Return the identity of this process."""
    return process_of(os.getpid())


def process_of(pid: int) -> dict[str, Any]:
    """Return the identity of a process of this machine: host, pid, start time, and Slurm job if it has one."""
    identity = {"host": platform.node(), "pid": pid, "began": (_stat(pid) or ("", None))[1]}
    return identity | ({"slurm_job": job} if (job := os.environ.get("SLURM_JOB_ID")) else {})


def is_running(process: Mapping[str, Any] | None) -> bool:
    """Return whether a process is known to run on this machine; ``False`` for this process itself.

    Zombies and processes stopped by a signal do not count as running.
    """
    if not process or process.get("host") != platform.node() or process.get("pid") == os.getpid():
        return False
    state, began = _stat(process.get("pid")) or ("X", None)
    # The pid may belong to another process by now, for example where a container counts from 1 again.
    return state not in _NOT_ALIVE and began == process.get("began")


def may_be_running(process: Mapping[str, Any] | None) -> bool:
    """Return whether a process runs, or is on another machine and its state is unknown.

    A Slurm job runs once at a time: the process of an earlier start of the job that this process belongs to has ended.
    """
    if not process:
        return False
    if process.get("host") == platform.node():
        return is_running(process)
    return "slurm_job" not in process or process["slurm_job"] != os.environ.get("SLURM_JOB_ID")


def kill_session(leader: int) -> None:
    """Kill all processes of a session of this machine, whatever their process groups, until none is left."""
    while pids := [int(path.name) for path in Path("/proc").glob("[0-9]*") if _is_of_session(path.name, leader)]:
        for pid in pids:
            # It may have ended meanwhile.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _is_of_session(pid: str, leader: int) -> bool:
    fields = _fields(pid)
    return fields[:1] not in (["Z"], ["X"]) and fields[3:4] == [str(leader)]


def _stat(pid: Any) -> tuple[str, str] | None:
    """Return the state letter of a process and its start time (boot id and kernel ticks); ``None`` if there is none."""
    fields = _fields(pid)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return fields[0], f"{boot}:{fields[19]}"
    except (OSError, IndexError):
        return None


def _fields(pid: Any) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` from the state letter on; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return []
