"""The connected cluster: resources of trials on it, and access of its nodes to the storage."""

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_hpc.errors import ClusterError, FolderError, InvalidExperimentError
from tune_hpc.storage.filesystem import Storage

#: Maximum number of small trials that share one GPU by default; an estimate, not measured.
MAX_TRIALS_PER_GPU = 4
#: Seconds that all nodes together have to check the storage: each starts a process, and NFS may show a new file late.
ANSWER_WAIT_S = 60.0
#: Seconds until a file of another node must be visible.
VISIBLE_WAIT_S = 10.0


@dataclass(frozen=True)
class TrialResources:
    """The resources of one trial.

    Attributes:
        cpus: CPU cores; per worker if a trial has workers.
        gpus: GPUs; a fraction shares one.
        num_slots: Number of concurrent trials.
        workers: Maximum number of workers of a trial; 0: a trial has no workers.
    """

    cpus: float
    gpus: float
    num_slots: int
    workers: int = 0

    @property
    def per_worker(self) -> dict[str, float]:
        """Resources of each worker."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def as_ray(self) -> dict[str, float]:
        """Return the request of a trial for Ray Tune; almost nothing if its workers do the work."""
        if self.workers:
            # Ray Tune rejects an empty request; every node has a byte of memory.
            return {"CPU": 0, "memory": 1}
        return self.per_worker


def check_gpus(gpus_per_trial: float | None) -> None:
    """Raise ``InvalidExperimentError`` unless a number of GPUs is a fraction up to 1, or a whole number."""
    if gpus_per_trial is not None and (not gpus_per_trial >= 0 or (gpus_per_trial > 1 and gpus_per_trial % 1)):
        raise InvalidExperimentError(
            f"gpus_per_trial must be a fraction up to 1, or a whole number; got {gpus_per_trial}"
        )


def choose_resources(
    nodes: Sequence[Mapping[str, float]],
    num_trials: int,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    max_concurrent: int | None = None,
    workers: int = 0,
) -> TrialResources:
    """Return the resources of each trial.

    By default a trial has one core: two trials with one thread are faster than one with two threads. With GPUs, a trial
    has an equal fraction of a GPU. As many trials share a GPU as there are cores for it and trials to run, at most
    four.

    If trials have workers, each worker has a core, and a GPU if there are any. Only as many trials run at once as have
    all their workers at the same time, so that no trial waits for the workers of another waiting trial.

    Args:
        nodes: Resources of each node, ``CPU`` and ``GPU``; a trial must fit on one of them.
        num_trials: Number of trials to run.
        cpus_per_trial: Cores of a trial or worker; ``None``: the default.
        gpus_per_trial: GPUs of a trial or worker; ``None``: the default, 0: none.
        max_concurrent: Maximum number of concurrent trials.
        workers: Maximum number of workers of a trial; 0: a trial has no workers.

    Raises:
        InvalidExperimentError: As ``check_gpus``.
        ClusterError: No node has room for a trial, or the cluster has no room for its workers.
    """
    check_gpus(gpus_per_trial)
    cpus = 1.0 if cpus_per_trial is None else cpus_per_trial
    if gpus_per_trial is not None:
        gpus = float(gpus_per_trial)
    elif workers:
        gpus = float(any(node.get("GPU", 0) for node in nodes))
    else:
        gpus = _fair_share(nodes, num_trials, cpus)
    num_slots = sum(_num_fitting(node, cpus, gpus) for node in nodes)
    if 0 < num_slots < workers:
        raise ClusterError(
            f"a trial requests {workers} workers of {cpus:g} CPU cores and {gpus:g} GPUs each; the cluster has room "
            f"for {num_slots}: use fewer workers, request less for each, or connect to a larger cluster"
        )
    if not num_slots:
        largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        raise ClusterError(
            f"a trial requests {cpus:g} CPU cores and {gpus:g} GPUs; the largest node has {largest.get('CPU', 0):g} "
            f"and {largest.get('GPU', 0):g}: request less, or connect to a larger cluster"
        )
    num_slots //= max(1, workers)
    return TrialResources(cpus, gpus, max(1, min(num_slots, num_trials, max_concurrent or num_slots)), workers)


def _fair_share(nodes: Sequence[Mapping[str, float]], num_trials: int, cpus: float) -> float:
    """Return the fraction of a GPU for one trial; 0 without GPUs."""
    num_gpus = sum(node.get("GPU", 0) for node in nodes)
    if not num_gpus:
        return 0.0
    cores_per_gpu = min(int(node.get("CPU", 0) / cpus / node["GPU"]) for node in nodes if node.get("GPU"))
    return 1.0 / max(1, min(MAX_TRIALS_PER_GPU, cores_per_gpu, math.ceil(num_trials / num_gpus)))


def _num_fitting(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return the number of trials that fit on a node; a fraction of a GPU never spans two GPUs."""
    by_cpu = int(node.get("CPU", 0) / cpus + 1e-9)
    if not gpus:
        return by_cpu
    num_gpus = int(node.get("GPU", 0))
    by_gpu = num_gpus * int(1 / gpus + 1e-9) if gpus <= 1 else int(num_gpus / gpus)
    return min(by_cpu, by_gpu)


def node_resources() -> list[Mapping[str, float]]:
    """Return the resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_storage(folders: Sequence[Path]) -> None:
    """Raise if a node of the connected cluster has no access to a folder; leave no files behind.

    Each node reads a file that the driver wrote, and writes a file that the driver reads. The check runs the code of
    this package, so that it also finds nodes without it or with another version.

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


def _check_nodes(storage: Storage, nodes: Mapping[str, str]) -> None:
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
            if problem := _problem(answers[node_id], storage, replies[node_id], token, deadline):
                raise ClusterError(
                    f"node {host} {problem}; choose a storage that every node sees under this name: a shared file "
                    "system, or s3://"
                )
    finally:
        for name in (request, *replies.values()):
            storage.delete(name)


def _problem(answer: ray.ObjectRef, storage: Storage, reply: str, token: str, deadline: float) -> str:
    """Return the problem of a node; empty if there is none."""
    here = version("tune-hpc")
    try:
        there, problem = ray.get(answer, timeout=max(0.1, deadline - time.monotonic()))
    except ray.exceptions.GetTimeoutError:
        return f"did not answer within {ANSWER_WAIT_S:g} s about {storage.uri}"
    except ray.exceptions.RayError as error:
        last = str(error).strip().rpartition("\n")[2]
        return f"cannot run tune_hpc {here} ({last})"
    if there != here:
        return f"has tune_hpc {there} and not {here}"
    if not problem and not _is_visible(storage, reply, token):
        return f"writes to {storage.uri}, but this machine does not see its file"
    return str(problem)


def _probe(uri: str, request: str, reply: str, token: str) -> tuple[str, str]:
    """Read and write on the node where this function runs; return its version of tune_hpc and its problem."""
    problem = ""
    storage = Storage(uri)
    if not _is_visible(storage, request, token):
        problem = f"does not see {uri}"
    else:
        try:
            storage.write_atomic(reply, token)
        except FolderError as error:
            problem = f"cannot write to {uri} ({error})"
    return version("tune-hpc"), problem


def _is_visible(storage: Storage, name: str, token: str) -> bool:
    """Return whether a file with the given content is visible; if its folder is, wait a while for the file."""
    path = storage.local_path(name)
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
