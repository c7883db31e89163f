"""What a scaling measurement does, and on what: checked before anything starts.

A configuration of it has the keys of a trial and these:

    workers          how many share the work (1)
    mode             strong: they share each batch; weak: each has a batch of its own (strong)
    repeats          how often everything is measured, each time with another seed (3)
    num_timed_steps  steps under the clock (all of ``steps`` on GPUs, at most 100 on CPUs)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning.config import complete

#: Steps that are timed on CPUs unless told otherwise; 5000 would take hours.
NUM_TIMED_STEPS_ON_CPU = 100
#: The keys that a trial does not have.
SCALING_KEYS = ("workers", "mode", "repeats", "num_timed_steps")
MODES = ("strong", "weak")
MOST_REPEATS = 100


@dataclass(frozen=True)
class Case:
    """A configuration on a number of workers.

    Attributes:
        config: A completed configuration; ``batch_size`` is what a step sees on one worker.
        workers: How many.
        mode: ``strong`` or ``weak``.
        num_timed_steps: Steps under the clock.
    """

    config: Mapping[str, Any]
    workers: int
    mode: str
    num_timed_steps: int

    @property
    def batch_size(self) -> int:
        """What a step of all workers sees."""
        return int(self.config["batch_size"]) * (self.workers if self.mode == "weak" else 1)

    def trained(self, repeat: int) -> dict[str, Any]:
        """Return what the workers train together: the batch of all of them, and a seed for each repeat."""
        return {**self.config, "batch_size": self.batch_size, "seed": self.config["seed"] + repeat}

    @property
    def alone(self) -> "Case":
        """The same on one worker, which it is held against."""
        return Case(self.config, 1, self.mode, self.num_timed_steps)


@dataclass(frozen=True)
class Plan:
    """What is measured, and on what.

    Attributes:
        cases: In the order in which they are told; all of one data set.
        repeats: How often each is measured.
        use_gpu: Whether each worker gets a GPU (or a share of one).
        backend: ``nccl`` or ``gloo``.
        cpus: CPU cores of the cluster.
        gpus: GPUs of the cluster.
    """

    cases: tuple[Case, ...]
    repeats: int
    use_gpu: bool
    backend: str
    cpus: float
    gpus: float

    def check_fits(self, num_samples: int) -> None:
        """Refuse a batch of all workers that is larger than the data.

        Raises:
            InvalidConfigError: so it is.
        """
        for case in self.cases:
            if case.batch_size > num_samples:
                raise InvalidConfigError(
                    f"{case.workers} workers with batches of {case.config['batch_size']} each see {case.batch_size} "
                    f"samples a step; there are {num_samples}: use fewer workers, or smaller batches"
                )

    @property
    def most_workers(self) -> int:
        """The largest number of workers."""
        return max(case.workers for case in self.cases)

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """What Ray reserves for each worker: a core, or its part where there are fewer cores than workers."""
        resources = {"CPU": min(1.0, self.cpus / self.most_workers)}
        if self.use_gpu:
            resources["GPU"] = min(1.0, self.gpus / self.most_workers)
        return resources

    def oversubscribed(self, num_workers: int) -> bool:
        """Whether so many workers share cores or GPUs."""
        return num_workers > (self.gpus if self.use_gpu else self.cpus)


def make_plan(configs: Sequence[Mapping[str, Any]], cluster: Mapping[str, float]) -> Plan:
    """Return how to measure some configurations.

    Args:
        configs: Keys of a trial, and of this module.
        cluster: Resources of the cluster, ``CPU`` and ``GPU``.

    Raises:
        InvalidConfigError: a rule of a configuration is broken, or they differ in ``repeats``, ``seed`` or ``data``.
    """
    gpus = cluster.get("GPU", 0)
    cases = tuple(_case(config, use_gpu=gpus > 0) for config in configs)
    repeats = [config.get("repeats", 3) for config in configs]
    for name, values in (
        ("repeats", repeats),
        ("seed", [case.config["seed"] for case in cases]),
        ("data", [case.config["data"] for case in cases]),
    ):
        if len(set(values)) > 1:
            told = ", ".join(map(str, dict.fromkeys(values)))
            why = "; its repeats have seeds of their own: set repeats" if name == "seed" else ""
            raise InvalidConfigError(f"a scaling measurement has one value of {name}; got {told}{why}")
    if not isinstance(repeats[0], int) or not 1 <= repeats[0] <= MOST_REPEATS:
        raise InvalidConfigError(f"repeats must be a whole number from 1 to {MOST_REPEATS}; got {repeats[0]!r}")
    # NCCL refuses two workers on one GPU; gloo carries their gradients through the host.
    backend = "nccl" if 0 < max(case.workers for case in cases) <= gpus else "gloo"
    return Plan(cases, repeats[0], gpus > 0, backend, cluster.get("CPU", 1), gpus)


def _case(whole: Mapping[str, Any], use_gpu: bool) -> Case:
    config = complete({name: value for name, value in whole.items() if name not in SCALING_KEYS})
    if config["model"] == "line":
        raise InvalidConfigError("the line's four points are not worth sharing; use model=softmax or model=cnn")
    if config["batching"] == "single_pass":
        raise InvalidConfigError("a single pass may end before the clock does; time it with batching=sequential")
    mode = whole.get("mode", "strong")
    if mode not in MODES:
        raise InvalidConfigError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    workers = whole.get("workers", 1)
    if not isinstance(workers, int) or not 1 <= workers <= config["batch_size"]:
        raise InvalidConfigError(
            f"workers must be a whole number from 1 to the batch size {config['batch_size']}; got {workers!r}"
        )
    default = config["steps"] if use_gpu else min(config["steps"], NUM_TIMED_STEPS_ON_CPU)
    num_timed_steps = whole.get("num_timed_steps", default)
    if not isinstance(num_timed_steps, int) or not 1 <= num_timed_steps <= config["steps"]:
        raise InvalidConfigError(
            f"num_timed_steps must be a whole number from 1 to the {config['steps']} steps; got {num_timed_steps!r}"
        )
    return Case(config, workers, mode, num_timed_steps)
