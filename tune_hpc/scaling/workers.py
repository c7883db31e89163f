"""Worker function of a scaling measurement, and the probes of the step-time model.

The training step is that of a search (``learning.training.Training``); each worker takes its share of every batch.

The parts of a step are found by omission: the same steps without gradient synchronization, and the batches alone. So
the parts add up to the step, and communication that overlaps with computation counts as computation.

No probe is a training step of several workers. One worker computes a share of a batch, without and with DDP. Several
workers train separate models at the same time, which measures contention. Buffers of several sizes are all-reduced.

A case of a repeat is disturbed if its step, or that of one worker in the same repeat, takes more than
``DISTURBED_FACTOR`` times the shortest of all repeats. Each repeat with a disturbed case is followed by one more.
"""

import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import ray
import torch
from torch import distributed
from torch.utils.flop_counter import FlopCounterMode

from tune_hpc.learning.data import ImageData
from tune_hpc.learning.tasks import ImageClassification
from tune_hpc.learning.training import Communicator, Training
from tune_hpc.scaling.communication import DistributedCommunicator
from tune_hpc.scaling.plan import NUM_WARMUP_STEPS, BenchmarkCase, GradientSync, Plan

#: Ratio to the shortest step of the same case above which a repeat is disturbed.
DISTURBED_FACTOR = 1.5
#: Timeout of a collective operation; workers wait while others are measured.
GROUP_TIMEOUT = timedelta(hours=24)
#: The parts of a step are timed on a quarter of the timed steps.
PART_DIVISOR = 4
#: Divisors of the batch in the ``compute`` probes.
SHARES = (1, 2, 4, 16, 64)
#: Widths of the network, for predictions between them.
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Bytes of the all-reduce probes, beside the gradients of the measured networks.
SIZES = (1 << 10, 1 << 16, 1 << 20, 1 << 22, 1 << 24)
#: Seconds and bounds on the steps of a probe.
PROBE_S = 0.4
MIN_STEPS, MAX_STEPS = 2, 20
NUM_PROBE_WARMUP_STEPS = 2
NUM_ALL_REDUCES = 10
#: Divisor of the batch in the probe of the DDP overhead, which does not depend on the batch.
OVERHEAD_SHARE = 16


@dataclass(frozen=True)
class WorkerContext:
    """A worker and its process groups."""

    images: ImageData
    device: torch.device
    rank: int
    #: Process group of the first n workers by n; ``None`` values without torch.distributed.
    groups: Mapping[int, Any]

    def communicator(
        self, num_workers: int, gradient_sync: GradientSync | None = None, *, always_wrap: bool = False
    ) -> DistributedCommunicator:
        """Return the communicator of the first ``num_workers`` workers."""
        return DistributedCommunicator(
            self.rank,
            num_workers,
            group=self.groups[num_workers],
            device=self.device,
            gradient_sync=gradient_sync or GradientSync(),
            always_wrap=always_wrap,
        )

    def barrier(self, num_workers: int) -> None:
        """Wait until the device is idle and the first ``num_workers`` workers are here."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if num_workers > 1 and self.groups[num_workers] is not None:
            distributed.barrier(self.groups[num_workers])

    def seconds(self, num_workers: int, call: Callable[[], object]) -> float:
        """Return the seconds of a call on the first ``num_workers`` workers."""
        self.barrier(num_workers)
        started = time.perf_counter()
        call()
        self.barrier(num_workers)
        return time.perf_counter() - started


def time_workers(config: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]] | None:
    """Time training steps on several numbers of workers; the function of every worker of a TorchTrainer.

    Args:
        config: ``plan`` (a ``Plan``), ``images`` (a list of one reference to the arrays of the data set) and
            ``called_at`` (start of the trainer in seconds since the epoch).

    Returns:
        On rank 0 ``measured`` and ``probes``, else ``None``. ``measured`` has a mapping for each case and repeat:
        ``case`` and ``repeat`` (numbers); seconds for each step in ``step_s``, ``compute_s``, ``communicate_s``,
        ``data_s`` and ``alone_s`` (on one worker in the same repeat); ``disturbed``; ``warmup_s``, ``startup_s``,
        ``gradient_bytes``, ``flop_per_gradient_byte``, ``cores_per_worker``, ``host``, ``num_nodes`` and ``device``.
        Cases that run every step have the metrics of the model, too. ``probes`` has the rows of ``_probe``.
    """
    from ray.train.torch import get_device

    startup_s = time.time() - config["called_at"]
    plan: Plan = config["plan"]
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    device = get_device()
    # One core for each worker; otherwise fewer workers would have more cores.
    torch.set_num_threads(1)
    images = ImageData.from_arrays(ray.get(config["images"][0])).to(device)
    groups = {
        number: distributed.new_group(list(range(number)), timeout=GROUP_TIMEOUT)
        if distributed.is_initialized()
        else None
        for number in sorted({1, plan.max_workers, *plan.worker_counts})
    }
    context = WorkerContext(images, device, rank, groups)
    # Ray nodes instead of host names: a machine may run several nodes.
    nodes = context.communicator(plan.max_workers).gather(str(ray.get_runtime_context().get_node_id()))
    shared = {
        "startup_s": startup_s,
        "cores_per_worker": torch.get_num_threads(),
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    measured: list[dict[str, Any]] = []
    probes: list[dict[str, Any]] = []

    # Each repeat runs all cases, so that a slow phase of the machine affects all of them.
    def measure_repeat(repeat: int) -> None:
        baselines: dict[tuple[Any, ...], float] = {}
        for number, case in enumerate(plan.cases):
            times = _time_case(case, repeat, context)
            key = (*sorted(case.config.items()), case.num_timed_steps)
            if case.workers == 1:
                baselines[key] = times["step_s"]
            elif key not in baselines:
                baselines[key] = _time_case(case.single_worker, repeat, context)["step_s"]
            row = {"case": number, "repeat": repeat, **times, "alone_s": baselines[key], **shared}
            measured.append(row | {"num_nodes": len(set(nodes[: case.workers]))})
        probes.extend({"repeat": repeat, **row} for row in _probe(plan, context, vary_width=repeat == 0))

    for repeat in range(plan.repeats):
        measure_repeat(repeat)
    all_workers = context.communicator(plan.max_workers)
    num_disturbed = all_workers.broadcast_from_rank0(lambda: mark_disturbed(measured))
    for repeat in range(plan.repeats, plan.repeats + num_disturbed):
        measure_repeat(repeat)
    if rank != 0:
        return None
    mark_disturbed(measured)
    return {"measured": sorted(measured, key=lambda row: (row["case"], row["repeat"])), "probes": probes}


def mark_disturbed(measured: Sequence[dict[str, Any]]) -> int:
    """Set ``disturbed`` of every measurement; return the number of repeats with a disturbed case."""
    shortest: dict[tuple[int, str], float] = {}
    for row in measured:
        for name in ("step_s", "alone_s"):
            key = row["case"], name
            shortest[key] = min(row[name], shortest.get(key, row[name]))
    for row in measured:
        limits = {name: DISTURBED_FACTOR * shortest[row["case"], name] for name in ("step_s", "alone_s")}
        row["disturbed"] = any(row[name] > limit for name, limit in limits.items())
    return len({row["repeat"] for row in measured if row["disturbed"]})


def _time_case(case: BenchmarkCase, repeat: int, context: WorkerContext) -> dict[str, Any]:
    """Return the times of a step and its parts; workers beyond those of the case only wait."""
    times: dict[str, Any] = {"step_s": 0.0}
    if context.rank < case.workers:
        started = time.perf_counter()
        communicator = context.communicator(case.workers, case.gradient_sync)
        training = _training(case.training_config(repeat), context, communicator)
        training.run(0, NUM_WARMUP_STEPS - 1)
        with FlopCounterMode(display=False) as counter:
            training.run(NUM_WARMUP_STEPS - 1, NUM_WARMUP_STEPS)
        num_flop = sum(communicator.gather(counter.get_total_flops()))
        context.barrier(case.workers)
        warmup_s = time.perf_counter() - started

        def seconds_per_step(run: Callable[[int, int], object], num_steps: int) -> float:
            call = partial(run, NUM_WARMUP_STEPS, NUM_WARMUP_STEPS + num_steps)
            return context.seconds(case.workers, call) / num_steps

        step_s = seconds_per_step(training.run, case.num_timed_steps)
        metrics = {name: values[0] for name, values in training.evaluate().items()} if case.covers_all_steps else {}
        num_steps = max(1, case.num_timed_steps // PART_DIVISOR)
        with communicator.no_sync(training.wrapped_model):
            local_s = seconds_per_step(training.run, num_steps) if case.workers > 1 else step_s
        data_s = min(seconds_per_step(lambda start, end: _make_batches(training, start, end), num_steps), local_s)
        communicate_s = max(step_s - local_s, 0.0)
        num_bytes = _num_parameter_bytes(training)
        times = metrics | {
            "step_s": step_s,
            "communicate_s": communicate_s,
            "data_s": data_s,
            "compute_s": step_s - communicate_s - data_s,
            "warmup_s": warmup_s,
            "gradient_bytes": num_bytes,
            "flop_per_gradient_byte": num_flop / (case.workers if case.mode == "weak" else 1) / num_bytes,
        }
    context.barrier(max(context.groups))
    return times


def _make_batches(training: Training, start: int, end: int) -> None:
    task = training.task
    assert isinstance(task, ImageClassification)
    for indices in task.batch_indices(start, end):
        task.batch(indices)


def _probe(plan: Plan, context: WorkerContext, *, vary_width: bool) -> list[dict[str, Any]]:
    """Run the probes of a plan, with ``vary_width`` also for other networks; every worker calls this.

    Returns:
        On rank 0, rows of the predicted cases with ``probe`` and ``seconds``, and these columns:

        - ``compute``: a step of one worker on one of ``share`` shares of a batch (``width``, ``batch_size``, ``bytes``
          of the gradients);
        - ``ddp_overhead``: the overhead of DDP on one worker (``width``, ``batch_size``);
        - ``contention``: a step of each of several independent workers at the same time (``workers``, ``alone_s``: a
          step of a single one; ``width``);
        - ``all_reduce``: an all-reduce (``workers``, ``bytes``).
    """
    if not (cases := plan.predicted_cases):
        return []
    configs = [_probe_config(case.training_config(0)) for case in cases if case.mode == "strong"]
    configs += [_probe_config(case.single_worker.training_config(0)) for case in cases]
    measured = {_width(config): config for config in configs}
    if vary_width and configs[0]["model"] == "cnn" and not plan.is_quick:
        configs += [configs[0] | {"width": width} for width in WIDTHS]
    distinct = {tuple(sorted(config.items())): config for config in configs}
    rows: list[dict[str, Any]] = []
    if context.rank == 0:
        for config in distinct.values():
            rows += _probe_single_worker(config, context)
    context.barrier(max(context.groups))
    sizes = sorted({*SIZES, *(row["bytes"] for row in rows if row["probe"] == "compute")})
    sizes, single_s = context.communicator(plan.max_workers).broadcast_from_rank0(
        lambda: (sizes, {width: _step_s(config, context) for width, config in measured.items()})
    )
    for num_workers in sorted({*plan.worker_counts} - {1}):
        if context.rank < num_workers:
            probed = [
                _probe_contention(config, context, num_workers, single_s[width]) for width, config in measured.items()
            ]
            probed += [_probe_all_reduce(size, context, num_workers) for size in sizes]
            rows += probed if context.rank == 0 else []
        context.barrier(max(context.groups))
    return rows


def _num_parameter_bytes(training: Training) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in training.model.parameters())


def _width(config: Mapping[str, Any]) -> float:
    return float(config["width"]) if config["model"] == "cnn" else 1.0


def _probe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the same time for each step, whose initial weights are cheap."""
    return dict(config) | {"steps": 1_000_000, "initial_weights": "pytorch"}


def _probe_single_worker(config: Mapping[str, Any], context: WorkerContext) -> list[dict[str, Any]]:
    """Return the ``compute`` and ``ddp_overhead`` probes of one configuration."""
    num_bytes = _num_parameter_bytes(_training(config, context))
    columns = {"width": _width(config), "batch_size": config["batch_size"]}
    rows: list[dict[str, Any]] = []
    for share in SHARES:
        if share <= config["batch_size"]:
            seconds = _step_s(config, context, Communicator(0, share, allow_cuda_graphs=False))
            rows.append({"probe": "compute", **columns, "share": share, "bytes": num_bytes, "seconds": seconds})
    if context.groups[1] is not None:
        small = dict(config) | {"batch_size": max(1, config["batch_size"] // OVERHEAD_SHARE)}
        plain_s = _step_s(small, context)
        ddp_s = _step_s(small, context, context.communicator(1, always_wrap=True))
        rows.append({"probe": "ddp_overhead", **columns, "seconds": max(0.0, ddp_s - plain_s)})
    return rows


def _training(config: Mapping[str, Any], context: WorkerContext, communicator: Communicator | None = None) -> Training:
    return Training([config], context.images, context.device, communicator or Communicator(allow_cuda_graphs=False))


def _step_s(config: Mapping[str, Any], context: WorkerContext, communicator: Communicator | None = None) -> float:
    """Return the median seconds of a step of this worker alone."""
    training = _training(config, context, communicator)
    training.run(0, NUM_PROBE_WARMUP_STEPS)
    times: list[float] = []
    while len(times) < MIN_STEPS or (sum(times) < PROBE_S and len(times) < MAX_STEPS):
        start = NUM_PROBE_WARMUP_STEPS + len(times)
        times.append(context.seconds(1, partial(training.run, start, start + 1)))
    return statistics.median(times)


def _probe_contention(
    config: Mapping[str, Any], context: WorkerContext, num_workers: int, single_s: float
) -> dict[str, Any]:
    """Return the ``contention`` probe: each worker trains a model of its own at the same time."""
    training = _training(config, context)
    training.run(0, NUM_PROBE_WARMUP_STEPS)
    num_steps = max(MIN_STEPS, min(MAX_STEPS, int(PROBE_S / max(single_s, 1e-6))))
    call = partial(training.run, NUM_PROBE_WARMUP_STEPS, NUM_PROBE_WARMUP_STEPS + num_steps)
    seconds = context.seconds(num_workers, call) / num_steps
    columns = {"width": _width(config), "workers": num_workers}
    return {"probe": "contention", **columns, "alone_s": single_s, "seconds": seconds}


def _probe_all_reduce(num_bytes: int, context: WorkerContext, num_workers: int) -> dict[str, Any]:
    """Return the ``all_reduce`` probe of one size."""
    buffer = torch.zeros(max(1, num_bytes // 4), device=context.device)
    times: list[float] = []
    for _ in range(NUM_PROBE_WARMUP_STEPS + NUM_ALL_REDUCES):
        context.barrier(num_workers)
        times.append(context.seconds(1, partial(distributed.all_reduce, buffer, group=context.groups[num_workers])))
    seconds = statistics.median(times[NUM_PROBE_WARMUP_STEPS:])
    return {"probe": "all_reduce", "workers": num_workers, "bytes": num_bytes, "seconds": seconds}
