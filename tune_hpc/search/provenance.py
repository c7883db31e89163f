"""Provenance of results: versions, commit, machine, command, time."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray

_PACKAGES = ("tune-hpc", "ray", "torch", "optuna", "pandas", "numpy")


def now() -> str:
    """Return the current time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance() -> dict[str, Any]:
    """Return the facts that are needed to repeat a run that starts now on the connected cluster."""
    cluster = ray.cluster_resources()
    return {
        **{name.replace("-", "_"): _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "commit": _commit(),
        "machine": {
            "host": platform.node(),
            "cpu_model": _cpu_model(),
            "cpus": int(cluster.get("CPU", 0)),
            "gpus": int(cluster.get("GPU", 0)),
            "num_nodes": sum(node["Alive"] for node in ray.nodes()),
        },
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": now(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the working tree of this package, marked if files differ from it."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    except OSError:
        pass
    return platform.machine()
