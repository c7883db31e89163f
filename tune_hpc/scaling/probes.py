"""Micro-benchmarks for the step-time model.

No probe is a training step of several workers. One worker computes a share of a batch, without and with DDP. Several
workers train separate models at the same time, which measures contention. Buffers of several sizes are all-reduced.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from tune_hpc.learning.communicator import Communicator
from tune_hpc.learning.data import ImageData
from tune_hpc.learning.training import Training
from tune_hpc.scaling.communication import DistributedCommunicator
from tune_hpc.scaling.plan import GradientSync, Plan

#: Divisors of the batch in the ``compute`` probes.
SHARES = (1, 2, 4, 16, 64)
#: Widths of the network, for predictions between them.
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Bytes of the all-reduce probes, beside the gradients of the measured networks.
SIZES = (1 << 10, 1 << 16, 1 << 20, 1 << 22, 1 << 24)
#: Seconds and bounds on the steps of a probe.
PROBE_S = 0.4
MIN_STEPS, MAX_STEPS = 2, 20
NUM_WARMUP_STEPS = 2
NUM_ALL_REDUCES = 10
#: Divisor of the batch in the probe of the DDP overhead, which does not depend on the batch.
OVERHEAD_SHARE = 16


@dataclass(frozen=True)
class WorkerContext:
    """A worker and its process groups.

    Attributes:
        images: Data set on the device.
        device: Device of the worker.
        rank: Rank of the worker.
        groups: Process group of the first n workers by n; ``None`` values without torch.distributed.
    """

    images: ImageData
    device: torch.device
    rank: int
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

    def wait_for_all(self) -> None:
        """Wait until every worker is here."""
        self.barrier(max(self.groups))


def probe(plan: Plan, context: WorkerContext, *, vary_width: bool) -> list[dict[str, Any]]:
    """Run the probes of a plan; every worker calls this.

    Args:
        plan: Plan with the configurations to predict.
        context: This worker.
        vary_width: Whether networks of other widths are probed, too.

    Returns:
        On rank 0, rows with ``probe`` and ``seconds``, and these columns:

        - ``compute``: a step of one worker on one of ``share`` shares of a batch (``width``, ``batch_size``, ``bytes``
          of the gradients);
        - ``way``: the overhead of DDP on one worker (``width``, ``batch_size``);
        - ``crowd``: a step of each of several independent workers at the same time (``workers``, ``alone_s``: a step
          of a single one);
        - ``all_reduce``: an all-reduce (``workers``, ``bytes``).
    """
    configs = [_probe_config(case.training_config(0)) for case in plan.cases if case.mode == "strong"]
    configs += [_probe_config(case.single_worker.training_config(0)) for case in plan.cases]
    first = configs[0]
    if vary_width and first["model"] == "cnn" and not plan.is_quick:
        configs += [first | {"width": width} for width in WIDTHS]
    distinct = {tuple(sorted(config.items())): config for config in configs}
    rows: list[dict[str, Any]] = []
    if context.rank == 0:
        for config in distinct.values():
            rows += _probe_single_worker(config, context)
    context.wait_for_all()
    sizes = sorted({*SIZES, *(row["bytes"] for row in rows if row["probe"] == "compute")})
    sizes, single_s = context.communicator(plan.max_workers).broadcast_from_rank0(
        lambda: (sizes, _step_s(first, context))
    )
    for num_workers in sorted({*plan.worker_counts} - {1}):
        if context.rank < num_workers:
            probed = [_probe_contention(first, context, num_workers, single_s)]
            probed += [_probe_all_reduce(size, context, num_workers) for size in sizes]
            rows += probed if context.rank == 0 else []
        context.wait_for_all()
    return rows


def num_parameter_bytes(training: Training) -> int:
    """Return the size of the parameters, which is that of their gradients."""
    return sum(parameter.numel() * parameter.element_size() for parameter in training.model.parameters())


def _probe_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the same time for each step, whose initial weights are cheap."""
    return dict(config) | {"steps": 1_000_000, "initial_weights": "pytorch"}


def _probe_single_worker(config: Mapping[str, Any], context: WorkerContext) -> list[dict[str, Any]]:
    """Return the ``compute`` and ``way`` probes of one configuration."""
    num_bytes = num_parameter_bytes(_training(config, context))
    columns = {"width": config["width"] if config["model"] == "cnn" else 1.0, "batch_size": config["batch_size"]}
    rows: list[dict[str, Any]] = []
    for share in SHARES:
        if share <= config["batch_size"]:
            seconds = _step_s(config, context, Communicator(0, share, allow_cuda_graphs=False))
            rows.append({"probe": "compute", **columns, "share": share, "bytes": num_bytes, "seconds": seconds})
    if context.groups[1] is not None:
        small = dict(config) | {"batch_size": max(1, config["batch_size"] // OVERHEAD_SHARE)}
        plain_s = _step_s(small, context)
        ddp_s = _step_s(small, context, context.communicator(1, always_wrap=True))
        rows.append({"probe": "way", **columns, "seconds": max(0.0, ddp_s - plain_s)})
    return rows


def _training(config: Mapping[str, Any], context: WorkerContext, communicator: Communicator | None = None) -> Training:
    return Training([config], context.images, context.device, communicator or Communicator(allow_cuda_graphs=False))


def _step_s(config: Mapping[str, Any], context: WorkerContext, communicator: Communicator | None = None) -> float:
    """Return the median seconds of a step of this worker alone."""
    training = _training(config, context, communicator)
    training.run(0, NUM_WARMUP_STEPS)

    def step(number: int) -> None:
        training.run(NUM_WARMUP_STEPS + number, NUM_WARMUP_STEPS + number + 1)
        context.barrier(1)

    times: list[float] = []
    while len(times) < MIN_STEPS or (sum(times) < PROBE_S and len(times) < MAX_STEPS):
        context.barrier(1)
        times.append(_seconds(lambda: step(len(times))))
    return _median(times)


def _probe_contention(
    config: Mapping[str, Any], context: WorkerContext, num_workers: int, single_s: float
) -> dict[str, Any]:
    """Return the ``crowd`` probe: each worker trains a model of its own at the same time."""
    training = _training(config, context)
    training.run(0, NUM_WARMUP_STEPS)
    num_steps = max(MIN_STEPS, min(MAX_STEPS, int(PROBE_S / max(single_s, 1e-6))))

    def train() -> None:
        training.run(NUM_WARMUP_STEPS, NUM_WARMUP_STEPS + num_steps)
        context.barrier(num_workers)

    context.barrier(num_workers)
    return {"probe": "crowd", "workers": num_workers, "alone_s": single_s, "seconds": _seconds(train) / num_steps}


def _probe_all_reduce(num_bytes: int, context: WorkerContext, num_workers: int) -> dict[str, Any]:
    """Return the ``all_reduce`` probe of one size."""
    buffer = torch.zeros(max(1, num_bytes // 4), device=context.device)

    def all_reduce() -> None:
        distributed.all_reduce(buffer, group=context.groups[num_workers])
        if context.device.type == "cuda":
            torch.cuda.synchronize(context.device)

    times: list[float] = []
    for _ in range(NUM_WARMUP_STEPS + NUM_ALL_REDUCES):
        context.barrier(num_workers)
        times.append(_seconds(all_reduce))
    seconds = _median(times[NUM_WARMUP_STEPS:])
    return {"probe": "all_reduce", "workers": num_workers, "bytes": num_bytes, "seconds": seconds}


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))
