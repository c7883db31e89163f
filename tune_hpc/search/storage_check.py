"""Asks every node of a cluster whether it sees the storage: before trials write where nobody will look.

Each node reads a file that the driver wrote and writes one that the driver reads. It is asked in a process that runs
our own code, so that a node without it, or with another version, is found out, too.
"""

import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_hpc.errors import ClusterError, FolderError
from tune_hpc.storage.experiment_folder import check_writable
from tune_hpc.storage.filesystem import delete, here, is_remote, pull, push, uri

#: Seconds that all nodes together have: each starts a process, and NFS may deny for a while that a file is new.
ANSWER_WAIT_S = 60.0
#: Seconds until a file that another node wrote must be seen.
SEEN_WAIT_S = 10.0


@dataclass(frozen=True)
class ProbeResult:
    """What a node says.

    Attributes:
        host: Its name.
        version: Of tune_hpc there.
        problem: Why it cannot work on the storage; empty: it can.
    """

    host: str
    version: str
    problem: str


def check_storage(folders: Sequence[Path]) -> None:
    """Refuse a storage that not all nodes of the connected cluster see, at once and leaving nothing behind.

    Args:
        folders: Folders that trials are to write to; they need not be there yet.

    Raises:
        ClusterError: a node does not see one of them, cannot write there, does not answer, or has another tune_hpc.
        FolderError: this machine cannot write there.
    """
    here = ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if set(others) <= {here}:
        return
    for place in dict.fromkeys(map(_existing, folders)):
        _check_place(place, others)


def _check_place(place: Path, nodes: dict[str, str]) -> None:
    token = secrets.token_hex(8)
    asked = place / f".probe-{token}"
    written = [asked]
    try:
        try:
            _write(asked, token)
        except OSError as error:
            raise FolderError(
                f"{uri(place)} cannot be written: {error.strerror or error}; choose another folder"
            ) from error
        probe = ray.remote(num_cpus=0, max_retries=0)(_probe)
        answers = {}
        for node_id in nodes:
            there = place / f".probe-{token}-{node_id[:12]}"
            written.append(there)
            affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
            answers[node_id] = probe.options(scheduling_strategy=affinity).remote(uri(asked), uri(there), token)
        deadline = time.monotonic() + ANSWER_WAIT_S
        for (node_id, host), there in zip(nodes.items(), written[1:], strict=True):
            problem = _problem(answers[node_id], there, token, deadline)
            if problem:
                told = problem.format(place=uri(place))
                raise ClusterError(
                    f"node {host} {told}; choose a storage that every node sees under this name: a shared file system, "
                    "or s3://"
                )
    finally:
        for path in written:
            delete(path)


def _problem(answer: "ray.ObjectRef[ProbeResult]", there: Path, token: str, deadline: float) -> str:
    """Return what is wrong with a node; empty: nothing."""
    try:
        told = ray.get(answer, timeout=max(0.1, deadline - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        return f"did not answer for {ANSWER_WAIT_S:g} s, when asked for {{place}}"
    except ray.exceptions.RayError as error:
        last = str(error).strip().rpartition("\n")[2].replace("{", "(").replace("}", ")")
        return f"cannot run tune_hpc {version('tune-hpc')} ({last})"
    if told.version != version("tune-hpc"):
        return f"has tune_hpc {told.version} and not {version('tune-hpc')}"
    if told.problem:
        return told.problem
    return "" if _is_seen(there, token) else "writes to {place}, but this machine does not see what it wrote"


def _probe(asked: str, there: str, token: str) -> ProbeResult:
    """Read and write, on the node that is asked."""
    problem = ""
    if not _is_seen(here(asked), token):
        problem = "does not see {place}"
    else:
        try:
            _write(here(there), token)
        except OSError as error:
            problem = f"cannot write to {{place}} ({error.strerror or error})"
    return ProbeResult(socket.gethostname(), version("tune-hpc"), problem)


def _write(path: Path, token: str) -> None:
    if is_remote(uri(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(token, encoding="utf-8")
    push(path)


def _is_seen(path: Path, token: str) -> bool:
    """Whether a file is there, with what it should hold; if its folder is there, it may take a while to show."""
    deadline = time.monotonic() + SEEN_WAIT_S
    while True:
        try:
            if pull(path) and path.read_text(encoding="utf-8") == token:
                return True
        except FolderError:
            return False
        except OSError:
            pass
        if not is_remote(uri(path)) and not path.parent.is_dir():
            return False
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)


def _existing(folder: Path) -> Path:
    """Return a folder, or the nearest above it that is there; in an object store each is."""
    if is_remote(uri(folder)):
        return folder
    check_writable(folder)
    return next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
