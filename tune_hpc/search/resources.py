"""What a trial may use, and how many run at once, from what the cluster has."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tune_hpc.errors import ClusterError, InvalidExperimentError

#: Small trials that share one GPU by default. A careful guess: no measurement on a GPU stands behind it yet.
MAX_TRIALS_PER_GPU = 4


@dataclass(frozen=True)
class TrialResources:
    """The resources of one trial.

    Attributes:
        cpus: CPU cores; of each worker, where a trial has several.
        gpus: GPUs; a fraction shares one.
        num_slots: How many trials run at once.
        workers: How many workers a trial has at most; 0: it is none of several.
    """

    cpus: float
    gpus: float
    num_slots: int
    workers: int = 0

    @property
    def per_worker(self) -> dict[str, float]:
        """What each worker gets."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def as_ray(self) -> dict[str, float]:
        """Return the request as Ray Tune writes it; that of a trial whose workers do the work is next to nothing."""
        if self.workers:
            # Ray Tune refuses to ask for nothing: a byte, which every node has.
            return {"CPU": 0, "memory": 1}
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def check_request(
    cpus_per_trial: float | None = None, gpus_per_trial: float | None = None, max_concurrent: int | None = None
) -> None:
    """Refuse what no cluster could give; a search asks this before it connects to one.

    Raises:
        InvalidExperimentError: a request that is not positive, or 1.5 GPUs.
    """
    if cpus_per_trial is not None and not cpus_per_trial > 0:
        raise InvalidExperimentError(f"cpus_per_trial must be above 0; got {cpus_per_trial}")
    if gpus_per_trial is not None and (not gpus_per_trial >= 0 or (gpus_per_trial > 1 and gpus_per_trial % 1)):
        raise InvalidExperimentError(
            f"gpus_per_trial must be a fraction up to 1, or a whole number; got {gpus_per_trial}"
        )
    if max_concurrent is not None and max_concurrent < 1:
        raise InvalidExperimentError(f"max_concurrent must be at least 1; got {max_concurrent}")


def choose_resources(
    nodes: Sequence[Mapping[str, float]],
    num_trials: int,
    cpus_per_trial: float | None = None,
    gpus_per_trial: float | None = None,
    max_concurrent: int | None = None,
    workers: int = 0,
) -> TrialResources:
    """Choose what each trial gets.

    One core a trial: on CPUs two trials of one thread do more work than one of two threads. With GPUs, an equal
    fraction of one, as many trials to a GPU as there are cores to feed it and trials to run, four at most.

    Where trials have workers of their own, each worker has a core, and a GPU if there are any. So many trials run at
    once as have all their workers at the same time: none ever waits for what another one that waits holds.

    Args:
        nodes: The resources of each node, ``CPU`` and ``GPU``; a trial must fit on one of them.
        num_trials: Trials to run.
        cpus_per_trial: Overrides the choice.
        gpus_per_trial: Overrides the choice; 0 leaves the GPUs alone.
        max_concurrent: Upper bound on the trials that run at once.
        workers: How many workers a trial has at most; 0: it is none of several.

    Raises:
        InvalidExperimentError: a request that is not positive, or 1.5 GPUs.
        ClusterError: no node can hold a trial, or all of them not its workers.
    """
    check_request(cpus_per_trial, gpus_per_trial, max_concurrent)
    cpus = 1.0 if cpus_per_trial is None else cpus_per_trial
    if gpus_per_trial is not None:
        gpus = float(gpus_per_trial)
    elif workers:
        gpus = float(any(node.get("GPU", 0) for node in nodes))
    else:
        gpus = _fair_share(nodes, num_trials, cpus)
    num_slots = sum(_fitting(node, cpus, gpus) for node in nodes)
    if 0 < num_slots < workers:
        raise ClusterError(
            f"a trial asks for {workers} workers of {cpus:g} CPU cores and {gpus:g} GPUs each; the cluster has room "
            f"for {num_slots}: use fewer workers, ask for less for each, or connect to a larger cluster"
        )
    if not num_slots:
        largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)), default={})
        raise ClusterError(
            f"a trial asks for {cpus:g} CPU cores and {gpus:g} GPUs; the largest node has {largest.get('CPU', 0):g} "
            f"and {largest.get('GPU', 0):g}: ask for less, or connect to a larger cluster"
        )
    num_slots //= max(1, workers)
    return TrialResources(cpus, gpus, max(1, min(num_slots, num_trials, max_concurrent or num_slots)), workers)


def _fair_share(nodes: Sequence[Mapping[str, float]], num_trials: int, cpus: float) -> float:
    """Return the fraction of a GPU that one trial gets; 0 without GPUs."""
    num_gpus = sum(node.get("GPU", 0) for node in nodes)
    if not num_gpus:
        return 0.0
    cores_per_gpu = min(int(node.get("CPU", 0) / cpus / node["GPU"]) for node in nodes if node.get("GPU"))
    return 1.0 / max(1, min(MAX_TRIALS_PER_GPU, cores_per_gpu, math.ceil(num_trials / num_gpus)))


def _fitting(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Return how many trials a node holds; a fraction of a GPU never spans two."""
    by_cpu = int(node.get("CPU", 0) / cpus + 1e-9)
    if not gpus:
        return by_cpu
    num_gpus = int(node.get("GPU", 0))
    by_gpu = num_gpus * int(1 / gpus + 1e-9) if gpus <= 1 else int(num_gpus / gpus)
    return min(by_cpu, by_gpu)
