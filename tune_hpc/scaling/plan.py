"""Benchmark plan of a scaling measurement, validated before Ray starts.

A configuration has the keys of a trial, those of ``GradientSync``, and these:

    workers          number of workers (1)
    mode             strong: workers share each batch; weak: each worker has a batch of the full size (strong)
    repeats          repetitions of the whole measurement, each with another seed (3)
    num_timed_steps  timed steps (all of ``steps`` on GPUs, at most 100 on CPUs)
    batches_per_step factor on the batch size, and divisor of the number of steps (1)
    option           name in ``OPTIONS``: a change that may improve the scaling (none)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tune_hpc.errors import ClusterError, InvalidConfigError
from tune_hpc.learning.config import check_key, complete

#: Default number of timed steps on CPUs; 5000 would take hours.
NUM_TIMED_STEPS_ON_CPU = 100
MODES = ("strong", "weak")
MAX_REPEATS = 100
#: Steps before the timing: memory allocation and the first exchange of gradients.
NUM_WARMUP_STEPS = 3


@dataclass(frozen=True)
class GradientSync:
    """Options of the gradient synchronization between workers.

    Attributes:
        bucket_mb: Megabytes of gradients that are averaged at a time; smaller buckets start earlier.
        bucket_view: Whether gradients are views of the communication buffers, which avoids a copy.
        compression: ``none``, or ``bf16``: two bytes for each gradient.
        local_steps: 1: average gradients at every step; n > 1: average the parameters after every n steps instead.

    Raises:
        InvalidConfigError: a value is invalid, or two values contradict each other.
    """

    bucket_mb: float = 25.0
    bucket_view: bool = False
    compression: str = "none"
    local_steps: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_key(name).check(value)
        if self.local_steps > 1 and (self.compression, self.bucket_view) != ("none", False):
            raise InvalidConfigError(
                f"with local_steps={self.local_steps} workers send no gradients; leave compression and bucket_view out"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "GradientSync":
        """Return the options of a configuration."""
        return cls(**{name: config[name] for name in GRADIENT_SYNC_KEYS if name in config})


GRADIENT_SYNC_KEYS = tuple(entry.name for entry in fields(GradientSync))
#: Keys of a measurement beside those of a trial on one worker.
SCALING_KEYS = ("workers", "mode", "repeats", "num_timed_steps", "option", "batches_per_step", *GRADIENT_SYNC_KEYS)
#: Changes that may improve the scaling, each measured separately.
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

    The keys are those of this module; ``batch_size`` and ``steps`` of ``config`` include ``batches_per_step``.
    """

    config: Mapping[str, Any]
    workers: int
    mode: str
    num_timed_steps: int
    batches_per_step: int = 1
    gradient_sync: GradientSync = field(default_factory=GradientSync)
    option: str = "none"

    @property
    def requested_config(self) -> dict[str, Any]:
        """Configuration before the application of ``batches_per_step``."""
        factor = self.batches_per_step
        size, steps = int(self.config["batch_size"]), int(self.config["steps"])
        return dict(self.config) | {"batch_size": size // factor, "steps": steps * factor}

    @property
    def batch_size(self) -> int:
        """Global batch size, over all workers."""
        return int(self.config["batch_size"]) * (self.workers if self.mode == "weak" else 1)

    def training_config(self, repeat: int) -> dict[str, Any]:
        """Return the configuration that the workers train, with the global batch size and the seed of the repeat."""
        return {**self.config, "batch_size": self.batch_size, "seed": self.config["seed"] + repeat}

    @property
    def single_worker(self) -> "BenchmarkCase":
        """The same case on one worker, the baseline of the speed-up."""
        return BenchmarkCase(self.config, 1, self.mode, self.num_timed_steps, self.batches_per_step)

    @property
    def covers_all_steps(self) -> bool:
        """True if warm-up and timed steps are the whole training."""
        return self.num_timed_steps + NUM_WARMUP_STEPS >= int(self.config["steps"])

    @property
    def options(self) -> dict[str, Any]:
        """Keys of this case that a trial on one worker does not have."""
        return {
            "workers": self.workers,
            "mode": self.mode,
            "option": self.option,
            "batches_per_step": self.batches_per_step,
            **vars(self.gradient_sync),
        }


@dataclass(frozen=True)
class Plan:
    """Cases of one data set, in the order of the results, and their resources.

    Attributes:
        cases: The cases.
        repeats: Number of repetitions of each case.
        use_gpu: Whether each worker gets a GPU or a share of one.
        backend: ``nccl`` or ``gloo``.
        cpus: CPU cores of the cluster.
        gpus: GPUs of the cluster.
        is_quick: Whether the measurement omits slow probes.
    """

    cases: tuple[BenchmarkCase, ...]
    repeats: int
    use_gpu: bool
    backend: str
    cpus: float
    gpus: float
    is_quick: bool = False

    @property
    def predicted_cases(self) -> list[BenchmarkCase]:
        """Cases whose network the step-time model describes, which knows it by its width."""
        return [case for case in self.cases if not case.config.get("depth")]

    @property
    def worker_counts(self) -> list[int]:
        """Distinct numbers of workers."""
        return list(dict.fromkeys(case.workers for case in self.cases))

    @property
    def max_workers(self) -> int:
        """Largest number of workers."""
        return max(case.workers for case in self.cases)

    @property
    def resources_per_worker(self) -> dict[str, float]:
        """Ray resources of each worker: a core, or a share if there are fewer cores than workers."""
        resources = {"CPU": min(1.0, self.cpus / self.max_workers)}
        if self.use_gpu:
            resources["GPU"] = min(1.0, self.gpus / self.max_workers)
        return resources

    def is_oversubscribed(self, num_workers: int) -> bool:
        """Return whether this number of workers exceeds that of the cores or GPUs."""
        return num_workers > (self.gpus if self.use_gpu else self.cpus)

    def check_fits(self, num_samples: int) -> None:
        """Raise ``InvalidConfigError`` if a global batch is larger than the training data."""
        for case in self.cases:
            if case.batch_size > num_samples:
                raise InvalidConfigError(
                    f"{case.workers} workers with batches of {case.config['batch_size']} each see {case.batch_size} "
                    f"samples a step; there are {num_samples}: use fewer workers, or smaller batches"
                )

    def check_nodes(self, nodes: Sequence[Mapping[str, float]]) -> None:
        """Raise ``ClusterError`` if too few nodes, given by their Ray resources, have those of a worker."""
        required = self.resources_per_worker
        num_nodes = sum(all(node.get(name, 0) >= amount for name, amount in required.items()) for node in nodes)
        if num_nodes < self.max_workers:
            raise ClusterError(
                f"{self.max_workers} workers on a node each need as many nodes; the cluster has {num_nodes} with "
                f"{', '.join(f'{amount:g} {name}' for name, amount in required.items())}: use fewer workers"
            )


def make_plan(configs: Sequence[Mapping[str, Any]], cluster: Mapping[str, float], *, is_quick: bool = False) -> Plan:
    """Return the plan of a measurement.

    Args:
        configs: Keys of a trial, and of this module.
        cluster: ``CPU`` and ``GPU`` of the cluster.
        is_quick: See ``Plan``.

    Raises:
        InvalidConfigError: a configuration breaks a rule, or they differ in ``repeats``, ``seed`` or ``data``.
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
            listed = ", ".join(map(str, dict.fromkeys(values)))
            remedy = "; its repeats have distinct seeds: set repeats" if name == "seed" else ""
            raise InvalidConfigError(f"a scaling measurement has one value of {name}; got {listed}{remedy}")
    _check_count("repeats", repeats[0], MAX_REPEATS)
    # NCCL rejects two workers on one GPU; gloo transfers their gradients through the host.
    backend = "nccl" if 0 < max(case.workers for case in cases) <= gpus else "gloo"
    return Plan(cases, repeats[0], gpus > 0, backend, cluster.get("CPU", 1), gpus, is_quick)


def _case(settings: Mapping[str, Any], use_gpu: bool) -> BenchmarkCase:
    option = settings.get("option", "none")
    if option not in OPTIONS:
        raise InvalidConfigError(f"option must be one of {', '.join(OPTIONS)}; got {option!r}")
    settings = {**OPTIONS[option], **settings}
    config = complete({name: value for name, value in settings.items() if name not in SCALING_KEYS})
    num_steps = config["steps"]
    batches_per_step = settings.get("batches_per_step", 1)
    _check_count("batches_per_step", batches_per_step, num_steps, "the {} steps")
    if batches_per_step > 1:
        config |= {"batch_size": config["batch_size"] * batches_per_step, "steps": num_steps // batches_per_step}
    if config["model"] == "line":
        raise InvalidConfigError("the model line cannot share its four points; use model=softmax or model=cnn")
    if config["batching"] == "single_pass":
        raise InvalidConfigError("a single pass may end before the timed steps do; use batching=sequential")
    mode = settings.get("mode", "strong")
    if mode not in MODES:
        raise InvalidConfigError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    workers = settings.get("workers", 1)
    _check_count("workers", workers, config["batch_size"], "the batch size {}")
    default = config["steps"] if use_gpu else min(config["steps"], NUM_TIMED_STEPS_ON_CPU)
    num_timed_steps = settings.get("num_timed_steps", default)
    _check_count("num_timed_steps", num_timed_steps, config["steps"] * batches_per_step, "the {} steps")
    # Warm-up steps are part of the training: its last step is the last timed step.
    num_timed_steps = min(num_timed_steps, max(1, config["steps"] - NUM_WARMUP_STEPS))
    return BenchmarkCase(
        config, workers, mode, num_timed_steps, batches_per_step, GradientSync.from_config(settings), option
    )


def _check_count(name: str, value: Any, high: int, bound: str = "{}") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
        raise InvalidConfigError(f"{name} must be a whole number from 1 to {bound.format(high)}; got {value!r}")
