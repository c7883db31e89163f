"""Which process works on an experiment folder: told in its experiment.json, and looked for by others."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Return what tells this process from any other."""
    return process_of(os.getpid())


def process_of(pid: int) -> dict[str, Any]:
    """Return what tells a process of this machine from any other."""
    return {"host": platform.node(), "pid": pid, "began": _began(pid)}


def is_running(process: Mapping[str, Any] | None) -> bool:
    """Whether what ``this_process`` told of still runs, as far as this machine can tell; never of this process."""
    if not process or process.get("host") != platform.node() or process.get("pid") == os.getpid():
        return False
    began = _began(process.get("pid"))
    # A number may belong to another process by now, most likely where a container counts from 1 again.
    return began is not None and began == process.get("began")


def may_be_running(process: Mapping[str, Any] | None) -> bool:
    """Whether it runs, or is another machine's, of which this one cannot tell."""
    return process is not None and (process.get("host") != platform.node() or is_running(process))


def _began(pid: Any) -> str | None:
    """Return the moment at which a process began, in the kernel's own ticks and since the machine's own start."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return None
