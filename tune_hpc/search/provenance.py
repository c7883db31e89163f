"""Provenance of a run: versions, machine, command, and the state of the repository with the user's code."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tune_hpc.search.user_code import is_installed, package_paths
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import now

#: Packages whose versions are part of the provenance.
_PACKAGES = ("tune-hpc", "ray", "torch", "optuna", "pandas", "numpy")
#: Limit in bytes on a stored diff.
MAX_DIFF_BYTES = 1_000_000
#: File beside copied packages: ``repository_state`` of their originals, by package.
REPOSITORY_FILE = "repository.json"
#: Seconds within which git must answer.
_GIT_TIMEOUT_S = 10.0
_OUR_ROOT = Path(__file__).parents[2]


def provenance(nodes: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the facts that are needed to repeat a run that starts now; ``nodes`` has the resources of each node."""
    return {
        **{name.replace("-", "_"): _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "commit": _commit(),
        "machine": {
            "host": platform.node(),
            "cpu_model": _cpu_model(),
            "cpus": int(sum(node.get("CPU", 0) for node in nodes)),
            "gpus": int(sum(node.get("GPU", 0) for node in nodes)),
            "num_nodes": len(nodes),
        },
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": now(),
    }


def record_repository(trainable: str | Callable[..., Any], folder: ExperimentFolder) -> dict[str, Any]:
    """Return the state of the repository with a user's trainable, and store its diff in the experiment folder.

    Returns:
        The key ``code`` with ``commit``, ``has_changes``, ``untracked`` (Python files that git does not know) and
        ``diff`` (file in the folder with the uncommitted changes; ``None`` without any, or if they exceed
        ``MAX_DIFF_BYTES``). Nothing for an installed trainable, without a repository, and for that of this project.
    """
    name = getattr(trainable, "__module__", "tune_hpc")
    if name != "__main__" and is_installed(name):
        return {}
    state = _recorded_state(name) or repository_state(getattr(sys.modules.get(name), "__file__", None))
    if not state:
        return {}
    if diff := state.pop("diff"):
        file = folder.changes / f"{folder.attempt}.diff"
        folder.storage.write_atomic(file, diff)
        diff = str(file.relative_to(folder.path))
    return {"code": state | {"diff": diff or None}}


def repository_state(path: str | Path | None) -> dict[str, Any] | None:
    """Return ``commit``, ``has_changes``, ``untracked`` and the text ``diff`` of the repository that holds a path.

    Returns:
        ``None`` if the path is in no repository, or in that of this project.
    """
    if path is None:
        return None
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    root = _git(folder, "rev-parse", "--show-toplevel").strip()
    commit = _git(folder, "rev-parse", "--short=12", "HEAD").strip()
    if not root or not commit or Path(root) == _OUR_ROOT:
        return None
    diff = _git(Path(root), "diff", "HEAD", "--no-color", "--no-ext-diff")
    untracked = _git(Path(root), "ls-files", "--others", "--exclude-standard", "--", "*.py").splitlines()
    return {
        "commit": commit,
        "has_changes": bool(diff or untracked),
        "untracked": untracked[:100],
        "diff": diff if len(diff.encode()) <= MAX_DIFF_BYTES else "",
    }


def _recorded_state(module: str) -> dict[str, Any] | None:
    """Return the state of the repository from which a module was copied into a job."""
    package = module.partition(".")[0]
    for path in package_paths(package):
        with suppress(OSError, ValueError, KeyError):
            return dict(json.loads((path.parent / REPOSITORY_FILE).read_text(encoding="utf-8"))[package])
    return None


def _git(folder: Path, *arguments: str) -> str:
    """Return the output of git in a folder; empty if it fails."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, errors="replace", timeout=_GIT_TIMEOUT_S,
            check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the working tree of this package, marked if files differ from it."""
    # An installed package may lie in the repository of a user.
    if not (_OUR_ROOT / ".git").exists():
        return None
    return _git(_OUR_ROOT, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").strip() or None


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return platform.machine()
