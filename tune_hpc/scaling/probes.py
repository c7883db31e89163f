"""Short measurements of a machine, from which ``model.py`` predicts what several workers will take.

None of them is a training step of several workers. One worker alone computes a share of a batch; it goes the way of
several by itself, which shows what that way costs; each worker trains a model of its own, which shows what neighbours
cost; and numbers of several sizes are averaged, nothing else.
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

#: Into how many shares a batch is cut for one worker that computes one of them.
SHARES = (1, 2, 4, 16, 64)
#: Widths of the network that are looked at, so that the answer for others is no guess.
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Bytes that are averaged, beside what the networks at hand have.
SIZES = (1 << 10, 1 << 16, 1 << 20, 1 << 22, 1 << 24)
#: A probe takes so long, and so many steps, at least and at most.
PROBE_S = 0.4
MIN_STEPS, MAX_STEPS = 2, 20
NUM_WARMUP_STEPS = 2
#: What goes the way of several by itself needs no large batch.
SMALL_SHARE = 16


@dataclass(frozen=True)
class WorkerContext:
    """One worker, and how it meets the others.

    Attributes:
        images: The data set, on its device.
        device: Where it computes.
        rank: Its number.
        groups: Process groups of the first so many workers; ``None`` where there is only one worker.
    """

    images: ImageData
    device: torch.device
    rank: int
    groups: Mapping[int, Any]

    def communicator(
        self, number: int, exchange: GradientSync | None = None, *, always_wrap: bool = False
    ) -> DistributedCommunicator:
        """Return this worker as one of the first ``number``."""
        return DistributedCommunicator(
            self.rank,
            number,
            group=self.groups[number],
            device=self.device,
            exchange=exchange or GradientSync(),
            always_wrap=always_wrap,
        )

    def in_step(self, number: int) -> None:
        """Wait until the device is idle and the first ``number`` workers are here."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if number > 1 and self.groups[number] is not None:
            distributed.barrier(self.groups[number])

    def wait_for_all(self) -> None:
        """Wait until every worker is here."""
        self.in_step(max(self.groups))


def probe(plan: Plan, machine: WorkerContext, *, widths_too: bool) -> list[dict[str, Any]]:
    """Measure what a prediction needs; every worker calls this.

    Args:
        plan: Its configurations are those of which something is wanted.
        machine: This worker.
        widths_too: Whether networks of other widths are looked at, too.

    Returns:
        On the first worker, mappings with ``probe`` and ``seconds``, and beside them: ``compute`` (``width``,
        ``batch_size``, ``share``: a step of one worker alone with one of so many shares of the batch; ``bytes``: of
        the gradients), ``way`` (``width``: what the way of several costs one alone), ``crowd`` (``workers``: a step of
        each, all alone but at the same time; share 1 of the first configuration) and ``all_reduce`` (``workers``,
        ``bytes``).
    """
    configs = [_as_alone(case.training_config(0)) for case in plan.cases if case.mode == "strong"]
    configs += [_as_alone(case.alone.training_config(0)) for case in plan.cases]
    wanted = {_key(config): config for config in configs}
    first = next(iter(wanted.values()))
    if widths_too and first["model"] == "cnn" and not plan.is_quick:
        for width in WIDTHS:
            other = first | {"width": width}
            wanted.setdefault(_key(other), other)
    found: list[dict[str, Any]] = []
    if machine.rank == 0:
        for config in wanted.values():
            found += _alone(config, machine)
    machine.wait_for_all()
    sizes = sorted({*SIZES, *(one["bytes"] for one in found if one["probe"] == "compute")})
    sizes, alone_s = machine.communicator(plan.max_workers).broadcast_from_rank0(lambda: (sizes, _step_s(first, machine, 1)))
    for number in sorted({*plan.numbers} - {1}):
        if machine.rank < number:
            own = [_crowd(first, machine, number, alone_s), *(_all_reduce(size, machine, number) for size in sizes)]
            found += own if machine.rank == 0 else []
        machine.wait_for_all()
    return found


def _key(config: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted(config.items()))


def _as_alone(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what matters to a step's time: not the weights at its start, of which PyTorch draws its own sooner."""
    return dict(config) | {"steps": 1_000_000, "initial_weights": "pytorch"}


def _alone(config: Mapping[str, Any], machine: WorkerContext) -> list[dict[str, Any]]:
    """Return what one worker takes for shares of a batch, and what the way of several costs it."""
    training = Training([config], machine.images, machine.device, Communicator(allow_cuda_graphs=False))
    size = sum(one.numel() * one.element_size() for one in training.model.parameters())
    known = {"width": config["width"] if config["model"] == "cnn" else 1.0, "batch_size": config["batch_size"]}
    found: list[dict[str, Any]] = [
        {"probe": "compute", **known, "share": share, "bytes": size, "seconds": _step_s(config, machine, share)}
        for share in SHARES
        if share <= config["batch_size"]
    ]
    if machine.groups[1] is not None:
        small = dict(config) | {"batch_size": max(1, config["batch_size"] // SMALL_SHARE)}
        plainly = _step_s(small, machine, 1)
        wrapped = machine.communicator(1, always_wrap=True)
        found.append({"probe": "way", **known, "seconds": max(0.0, _step_s(small, machine, 1, wrapped) - plainly)})
    return found


def _step_s(config: Mapping[str, Any], machine: WorkerContext, share: int, communicator: Communicator | None = None) -> float:
    """Return what a step takes one worker with one of so many shares of a batch."""
    training = Training(
        [config], machine.images, machine.device, communicator or Communicator(0, share, allow_cuda_graphs=False)
    )
    training.run(0, NUM_WARMUP_STEPS)
    return _seconds(lambda step: training.run(step, step + 1), machine)


def _seconds(call: Callable[[int], object], machine: WorkerContext) -> float:
    """Return the median of some calls' seconds."""
    taken: list[float] = []
    while len(taken) < MIN_STEPS or (sum(taken) < PROBE_S and len(taken) < MAX_STEPS):
        machine.in_step(1)
        began = time.perf_counter()
        call(NUM_WARMUP_STEPS + len(taken))
        machine.in_step(1)
        taken.append(time.perf_counter() - began)
    return _median(taken)


def _median(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def _num_steps(step_s: float) -> int:
    return max(MIN_STEPS, min(MAX_STEPS, int(PROBE_S / max(step_s, 1e-6))))


def _crowd(config: Mapping[str, Any], machine: WorkerContext, number: int, alone_s: float) -> dict[str, Any]:
    """Return what a step takes where each of some workers trains by itself, at the same time."""
    training = Training([config], machine.images, machine.device, Communicator(allow_cuda_graphs=False))
    training.run(0, NUM_WARMUP_STEPS)
    num_steps = _num_steps(alone_s)
    machine.in_step(number)
    began = time.perf_counter()
    training.run(NUM_WARMUP_STEPS, NUM_WARMUP_STEPS + num_steps)
    machine.in_step(number)
    seconds = (time.perf_counter() - began) / num_steps
    return {"probe": "crowd", "workers": number, "alone_s": alone_s, "seconds": seconds}


def _all_reduce(size: int, machine: WorkerContext, number: int) -> dict[str, Any]:
    """Return what it takes some workers to average so many bytes."""
    numbers = torch.zeros(max(1, size // 4), device=machine.device)
    taken: list[float] = []
    for _ in range(NUM_WARMUP_STEPS + 10):
        machine.in_step(number)
        began = time.perf_counter()
        distributed.all_reduce(numbers, group=machine.groups[number])
        if machine.device.type == "cuda":
            torch.cuda.synchronize(machine.device)
        taken.append(time.perf_counter() - began)
    return {"probe": "all_reduce", "workers": number, "bytes": size, "seconds": _median(taken[NUM_WARMUP_STEPS:])}
