"""Check that every node of a cluster has access to the storage, before trials write files that the driver cannot see.

Each node reads a file that the driver wrote, and writes a file that the driver reads. The check runs in a process with
the code of this package, so that it also finds nodes without it or with another version.
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
from tune_hpc.storage.filesystem import Storage

#: Seconds that all nodes together have: each starts a process, and NFS may show a new file late.
ANSWER_WAIT_S = 60.0
#: Seconds until a file of another node must be visible.
VISIBLE_WAIT_S = 10.0


@dataclass(frozen=True)
class ProbeResult:
    """Result of the check on one node.

    Attributes:
        host: Name of the node.
        version: Version of tune_hpc there.
        problem: Reason why the node cannot use the storage; empty if it can.
    """

    host: str
    version: str
    problem: str


def check_storage(folders: Sequence[Path]) -> None:
    """Raise if a node of the connected cluster has no access to a folder; leave no files behind.

    Args:
        folders: Folders for the files of trials; they need not exist.

    Raises:
        ClusterError: A node cannot see or write a folder, does not answer, or has another version of tune_hpc.
        FolderError: This machine cannot write to a folder.
    """
    driver_id = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if set(nodes) <= {driver_id}:
        return
    for storage in {storage.uri: storage for storage in map(_existing_storage, folders)}.values():
        _check_nodes(storage, nodes)


def _check_nodes(storage: Storage, nodes: dict[str, str]) -> None:
    token = secrets.token_hex(8)
    request = f".probe-{token}"
    replies = {node_id: f"{request}-{node_id[:12]}" for node_id in nodes}
    try:
        storage.write_atomic(request, token)
        probe = ray.remote(num_cpus=0, max_retries=0)(_probe)
        answers = {}
        for node_id, reply in replies.items():
            affinity = NodeAffinitySchedulingStrategy(node_id, soft=False)
            remote = probe.options(scheduling_strategy=affinity).remote
            answers[node_id] = remote(storage.uri, request, reply, token)
        deadline = time.monotonic() + ANSWER_WAIT_S
        for node_id, host in nodes.items():
            problem = _problem(answers[node_id], storage.local_path(replies[node_id]), token, deadline)
            if problem:
                raise ClusterError(
                    f"node {host} {problem.format(uri=storage.uri)}; choose a storage that every node sees under this "
                    "name: a shared file system, or s3://"
                )
    finally:
        for name in (request, *replies.values()):
            storage.delete(name)


def _problem(answer: "ray.ObjectRef[ProbeResult]", reply: Path, token: str, deadline: float) -> str:
    """Return the problem of a node; empty if there is none."""
    try:
        result = ray.get(answer, timeout=max(0.1, deadline - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        return f"did not answer within {ANSWER_WAIT_S:g} s about {{uri}}"
    except ray.exceptions.RayError as error:
        last = str(error).strip().rpartition("\n")[2].replace("{", "(").replace("}", ")")
        return f"cannot run tune_hpc {version('tune-hpc')} ({last})"
    if result.version != version("tune-hpc"):
        return f"has tune_hpc {result.version} and not {version('tune-hpc')}"
    if result.problem:
        return result.problem
    return "" if _is_visible(reply, token) else "writes to {uri}, but this machine does not see its file"


def _probe(uri: str, request: str, reply: str, token: str) -> ProbeResult:
    """Read and write on the node where this function runs."""
    problem = ""
    storage = Storage(uri)
    if not _is_visible(storage.local_path(request), token):
        problem = "does not see {uri}"
    else:
        try:
            storage.write_atomic(reply, token)
        except FolderError as error:
            problem = f"cannot write to {{uri}} ({error})"
    return ProbeResult(socket.gethostname(), version("tune-hpc"), problem)


def _is_visible(path: Path, token: str) -> bool:
    """Return whether a file with the given content is visible; if its folder is, wait a while for the file."""
    storage = Storage(path.parent)
    deadline = time.monotonic() + VISIBLE_WAIT_S
    while True:
        try:
            if storage.read_text(path) == token:
                return True
        except FileNotFoundError:
            if not storage.is_remote and not path.parent.is_dir():
                return False
        except FolderError:
            return False
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)


def _existing_storage(folder: Path) -> Storage:
    """Return a folder, or its nearest existing parent; on S3, every folder exists."""
    storage = Storage(folder)
    if storage.is_remote:
        return storage
    storage.check_writable()
    return Storage(next(path for path in (folder, *folder.absolute().parents) if path.is_dir()))
