"""Resources of a trial, and the number of concurrent trials, from the resources of the cluster."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tune_hpc.errors import ClusterError, InvalidExperimentError

#: Maximum number of small trials that share one GPU by default; an estimate, not measured.
MAX_TRIALS_PER_GPU = 4


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
    """Raise unless a number of GPUs is a fraction up to 1, or a whole number.

    Raises:
        InvalidExperimentError: It is not, such as 1.5.
    """
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
