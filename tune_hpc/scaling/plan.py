"""What a scaling measurement does, and on what: checked before anything starts.

A configuration of it has the keys of a trial and these:

    workers          how many share the work (1)
    mode             strong: they share each batch; weak: each has a batch of its own (strong)
    repeats          how often everything is measured, each time with another seed (3)
    num_timed_steps  steps under the clock (all of ``steps`` on GPUs, at most 100 on CPUs)
    batches_per_step fewer and larger steps: so many batches in each, and so many times fewer steps (1)

    option           one of ``OPTIONS``, by name: what could make it scale, to be measured one by one (none)

and those of ``Exchange``: ``bucket_mb``, ``bucket_view``, ``compression``, ``local_steps``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tune_hpc.errors import ClusterError, InvalidConfigError
from tune_hpc.learning.config import check_key, complete

#: Steps that are timed on CPUs unless told otherwise; 5000 would take hours.
NUM_TIMED_STEPS_ON_CPU = 100
MODES = ("strong", "weak")
MAX_REPEATS = 100
#: Steps before the clock starts: allocations, and the gradients' first exchange.
NUM_WARMUP_STEPS = 3


@dataclass(frozen=True)
class GradientSync:
    """What the workers of a training exchange, and how.

    Attributes:
        bucket_mb: Megabytes of gradients that are averaged at a time; the fewer, the sooner the first ones leave.
        bucket_view: Whether gradients are views of what is sent, which saves copying them.
        compression: ``none``, or ``bf16``: gradients travel in two bytes a number.
        local_steps: 1: gradients at every step; more: no gradients, but the parameters after every so many steps.

    Raises:
        InvalidConfigError: a value that is none of these, or two that contradict one another.
    """

    bucket_mb: float = 25.0
    bucket_view: bool = False
    compression: str = "none"
    local_steps: int = 1

    def __post_init__(self) -> None:
        for one in fields(self):
            check_key(one.name).check(getattr(self, one.name))
        if self.local_steps > 1 and (self.compression, self.bucket_view) != ("none", False):
            raise InvalidConfigError(
                f"with local_steps={self.local_steps} no gradients travel, and parameters keep their digits; leave "
                "compression and bucket_view out"
            )


GRADIENT_SYNC_KEYS = tuple(one.name for one in fields(GradientSync))
#: The keys that a trial on one worker does not have.
SCALING_KEYS = ("workers", "mode", "repeats", "num_timed_steps", "option", "batches_per_step", *GRADIENT_SYNC_KEYS)
#: What could make it scale, each by itself beside the plain way.
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "small_buckets": {"bucket_mb": 1},
    "bucket_view": {"bucket_view": True},
    "bf16": {"compression": "bf16"},
    "larger_steps": {"batches_per_step": 4},
    "local_steps": {"local_steps": 8},
}


@dataclass(frozen=True)
class BenchmarkCase:
    """A configuration on a number of workers.

    Attributes:
        config: A completed configuration; ``batch_size`` is what a step sees on one worker.
        workers: How many.
        mode: ``strong`` or ``weak``.
        num_timed_steps: Steps under the clock.
        batches_per_step: How many batches one of its steps sees; its configuration has been changed accordingly.
        exchange: What the workers exchange, and how.
        option: The name of what differs from the plain way, if that was given.
    """

    config: Mapping[str, Any]
    workers: int
    mode: str
    num_timed_steps: int
    batches_per_step: int = 1
    exchange: GradientSync = field(default_factory=GradientSync)
    option: str = "none"

    @property
    def asked(self) -> dict[str, Any]:
        """The configuration as it was asked for, of steps that see one batch."""
        many = self.batches_per_step
        size, steps = int(self.config["batch_size"]), int(self.config["steps"])
        return dict(self.config) | {"batch_size": size // many, "steps": steps * many}

    @property
    def batch_size(self) -> int:
        """What a step of all workers sees."""
        return int(self.config["batch_size"]) * (self.workers if self.mode == "weak" else 1)

    def training_config(self, repeat: int) -> dict[str, Any]:
        """Return what the workers train together: the batch of all of them, and a seed for each repeat."""
        return {**self.config, "batch_size": self.batch_size, "seed": self.config["seed"] + repeat}

    @property
    def alone(self) -> "BenchmarkCase":
        """The same on one worker, which it is held against."""
        return BenchmarkCase(self.config, 1, self.mode, self.num_timed_steps, self.batches_per_step)

    @property
    def is_whole(self) -> bool:
        """Whether every step is under the clock but the first ones, which warm up."""
        return self.num_timed_steps + NUM_WARMUP_STEPS >= int(self.config["steps"])

    @property
    def options(self) -> dict[str, Any]:
        """The keys of this case that a trial on one worker does not have."""
        return {
            "workers": self.workers,
            "mode": self.mode,
            "option": self.option,
            "batches_per_step": self.batches_per_step,
            **vars(self.exchange),
        }


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
        is_quick: Whether this is a first look, which leaves out what would take long.
    """

    cases: tuple[BenchmarkCase, ...]
    repeats: int
    use_gpu: bool
    backend: str
    cpus: float
    gpus: float
    is_quick: bool = False

    @property
    def numbers(self) -> list[int]:
        """The numbers of workers, each once."""
        return list(dict.fromkeys(case.workers for case in self.cases))

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

    def check_nodes(self, nodes: Sequence[Mapping[str, float]]) -> None:
        """Refuse workers that are to be on nodes of their own, of which there are too few.

        Raises:
            ClusterError: so it is.
        """
        wanted = self.resources_per_worker
        fitting = [node for node in nodes if all(node.get(name, 0) >= amount for name, amount in wanted.items())]
        if len(fitting) < self.max_workers:
            raise ClusterError(
                f"{self.max_workers} workers on a node each need as many nodes; the cluster has {len(fitting)} with "
                f"{', '.join(f'{amount:g} {name}' for name, amount in wanted.items())}: ask for fewer workers"
            )

    @property
    def max_workers(self) -> int:
        """The largest number of workers."""
        return max(case.workers for case in self.cases)

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """What Ray reserves for each worker: a core, or its part where there are fewer cores than workers."""
        resources = {"CPU": min(1.0, self.cpus / self.max_workers)}
        if self.use_gpu:
            resources["GPU"] = min(1.0, self.gpus / self.max_workers)
        return resources

    def is_oversubscribed(self, num_workers: int) -> bool:
        """Whether so many workers share cores or GPUs."""
        return num_workers > (self.gpus if self.use_gpu else self.cpus)


def make_plan(configs: Sequence[Mapping[str, Any]], cluster: Mapping[str, float], *, is_quick: bool = False) -> Plan:
    """Return how to measure some configurations.

    Args:
        configs: Keys of a trial, and of this module.
        cluster: Resources of the cluster, ``CPU`` and ``GPU``.
        is_quick: Whether this is a first look.

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
    if not isinstance(repeats[0], int) or not 1 <= repeats[0] <= MAX_REPEATS:
        raise InvalidConfigError(f"repeats must be a whole number from 1 to {MAX_REPEATS}; got {repeats[0]!r}")
    # NCCL refuses two workers on one GPU; gloo carries their gradients through the host.
    backend = "nccl" if 0 < max(case.workers for case in cases) <= gpus else "gloo"
    return Plan(cases, repeats[0], gpus > 0, backend, cluster.get("CPU", 1), gpus, is_quick)


def _case(whole: Mapping[str, Any], use_gpu: bool) -> BenchmarkCase:
    option = whole.get("option", "none")
    if option not in OPTIONS:
        raise InvalidConfigError(f"option must be one of {', '.join(OPTIONS)}; got {option!r}")
    whole = {**OPTIONS[option], **whole}
    config = complete({name: value for name, value in whole.items() if name not in SCALING_KEYS})
    batches_per_step = whole.get("batches_per_step", 1)
    if not _is_whole(batches_per_step) or not 1 <= batches_per_step <= config["steps"]:
        raise InvalidConfigError(
            f"batches_per_step must be a whole number from 1 to the {config['steps']} steps; got {batches_per_step!r}"
        )
    if batches_per_step > 1:
        steps = config["steps"] // batches_per_step
        config |= {"batch_size": config["batch_size"] * batches_per_step, "steps": steps}
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
    most = config["steps"] * batches_per_step
    if not _is_whole(num_timed_steps) or not 1 <= num_timed_steps <= most:
        raise InvalidConfigError(
            f"num_timed_steps must be a whole number from 1 to the {most} steps; got {num_timed_steps!r}"
        )
    # Those that warm up are steps of the training, too: its last step is the last one under the clock.
    num_timed_steps = min(num_timed_steps, max(1, config["steps"] - NUM_WARMUP_STEPS))
    exchange = GradientSync(**{name: whole[name] for name in GRADIENT_SYNC_KEYS if name in whole})
    return BenchmarkCase(config, workers, mode, num_timed_steps, batches_per_step, exchange, option)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
