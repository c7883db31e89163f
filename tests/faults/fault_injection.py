"""Faults of the harness: signals, processes of Ray, the storage, its clock, damaged files, and second drivers."""

import errno
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

#: Errors that a storage raises for a while.
ERRNOS = (errno.EIO, errno.ESTALE, errno.EACCES, errno.EROFS, errno.ENOSPC)
#: Seconds by which the clock of the storage steps.
CLOCK_STEP_S = 86_400.0


class Target(Protocol):
    """A running search, as the faults see it."""

    random: random.Random
    disk: Path  #: File system of the folder; a small one where it can be mounted.
    folder: Path  #: Output folder, or storage of a job.
    fault_file: Path  #: Faults of the storage (``injection/sitecustomize.py``).

    def driver(self) -> int | None:
        """Return the process of the driver, ``None`` if it has ended or not started."""

    def start(self) -> "subprocess.Popen[str]":
        """Start or resume the search in a process of its own."""

    def finish(self, process: "subprocess.Popen[str]") -> None:
        """Wait for a process, and check what it left."""

    def ray_processes(self) -> list[int]:
        """Return the processes of Ray that belong to the run."""


Fault = Callable[[Target], None]


def _signal(*numbers: signal.Signals) -> Fault:
    """Send signals to the driver."""

    def send(target: Target) -> None:
        if (pid := target.driver()) is not None:
            _send(target, pid, numbers)

    return send


def _signal_to_process(pattern: str, *numbers: signal.Signals) -> Fault:
    """Send signals to one of the processes of Ray whose command line contains a pattern."""

    def send(target: Target) -> None:
        # Without its agents a node is not usable any more.
        lines = {pid: _command_line(pid) for pid in target.ray_processes()}
        pids = [pid for pid, line in lines.items() if pattern in line and "Agent" not in line]
        if pids:
            _send(target, target.random.choice(pids), numbers)

    return send


def _send(target: Target, pid: int, numbers: Sequence[signal.Signals]) -> None:
    for index, number in enumerate(numbers):
        if index:
            time.sleep(target.random.uniform(0.2, 2.0))
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _storage_error(number: int) -> Fault:
    """Let calls on files fail for a while; 0: slow calls."""

    def fail(target: Target) -> None:
        target.fault_file.write_text(f"{number} {target.folder}")
        time.sleep(target.random.uniform(0.1, 2.0))
        target.fault_file.unlink()

    return fail


def _full_disk(target: Target) -> None:
    """Fill the file system of the folder for a while, if it is small."""
    if not target.disk.is_mount():
        return _storage_error(errno.ENOSPC)(target)
    filler = target.disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
    time.sleep(target.random.uniform(0.1, 3.0))
    filler.unlink()


def _clock_step(target: Target) -> None:
    """Step the clock of the storage back or forward: all files seem to be of tomorrow or of yesterday."""
    step = target.random.choice((-CLOCK_STEP_S, CLOCK_STEP_S))
    for path in _files(target.folder):
        with suppress(OSError):  # It may have been deleted meanwhile.
            os.utime(path, (path.stat().st_mtime + step,) * 2)


def _second_driver(target: Target) -> None:
    """Start a second process on the same folder; it must end with ``ConflictError``, or be the only one left."""
    target.finish(target.start())


def _two_resumes(target: Target) -> None:
    """Kill the driver, and resume the search in two processes at once."""
    _signal(signal.SIGKILL)(target)
    for resumed in [target.start(), target.start()]:
        target.finish(resumed)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def damage(target: Target) -> tuple[Path, bytes, bytes] | None:
    """Flip a bit of a file of the search, or truncate it; return the file, its contents before and after."""
    time.sleep(1.0)  # Trials of a killed driver may write for a moment.
    skipped = ("logs", "ray", "code")
    files = [path for path in _files(target.folder) if not set(skipped) & set(path.parts)]
    files = [path for path in files if path.name[0] != "." and path.suffix not in (".log", ".lock")]
    files = [path for path in files if path.exists() and path.stat().st_size]
    if not files:
        return None
    path = target.random.choice(files)
    contents = path.read_bytes()
    position = target.random.randrange(len(contents))
    if target.random.random() < 0.3:
        path.write_bytes(contents[:position])
    else:
        flipped = contents[position] ^ (1 << target.random.randrange(8))
        path.write_bytes(contents[:position] + bytes([flipped]) + contents[position + 1 :])
    return path, contents, path.read_bytes()


#: Faults of every kind of run. After ``DAMAGE``, the harness also damages a file before the search is resumed.
DAMAGE = "SIGKILL and damage to a file"
FAULTS: dict[str, Fault] = {
    "SIGKILL": _signal(signal.SIGKILL),
    "SIGTERM": _signal(signal.SIGTERM),
    "SIGINT": _signal(signal.SIGINT),
    "SIGSTOP and SIGCONT": _signal(signal.SIGSTOP, signal.SIGCONT),
    "second driver": _second_driver,
    "SIGKILL and two resumes": _two_resumes,
    "full disk": _full_disk,
    "clock step": _clock_step,
    DAMAGE: _signal(signal.SIGKILL),
}
#: Faults of runs whose processes have the injection: not those of a running cluster.
STORAGE_FAULTS: dict[str, Fault] = {
    **{f"storage: {errno.errorcode[number]}": _storage_error(number) for number in ERRNOS},
    "slow storage": _storage_error(0),
}
TRIAL_FAULTS: dict[str, Fault] = {
    "SIGKILL of a trial process": _signal_to_process("ray::", signal.SIGKILL),
    "SIGTERM of a trial process": _signal_to_process("ray::", signal.SIGTERM),
    "SIGSTOP and SIGCONT of a trial process": _signal_to_process("ray::", signal.SIGSTOP, signal.SIGCONT),
}
NODE_FAULTS: dict[str, Fault] = {
    "SIGKILL of the raylet": _signal_to_process("raylet/raylet", signal.SIGKILL),
    "SIGKILL of the GCS": _signal_to_process("gcs_server", signal.SIGKILL),
}
#: Faults by runner.
FAULTS_OF: dict[str, dict[str, Fault]] = {
    "local": FAULTS | STORAGE_FAULTS,
    "ray": FAULTS | STORAGE_FAULTS | TRIAL_FAULTS | NODE_FAULTS,
    "job": FAULTS | STORAGE_FAULTS,
    "ray job": FAULTS | TRIAL_FAULTS,
}
