"""What each worker of a scaling measurement does, inside Ray Train.

The training step is the search's own (``learning.training.Training``); each worker takes its share of every batch, and
DistributedDataParallel averages the gradients.
"""

import socket
import time
from collections.abc import Mapping
from typing import Any

import ray
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tune_hpc.learning.data import ImageData
from tune_hpc.learning.training import Training

#: Steps before the clock starts: allocations, and the gradients' first exchange.
NUM_WARMUP_STEPS = 3


def time_workers(config: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Time training steps on growing numbers of workers; run by every worker of a TorchTrainer.

    Args:
        config: ``plan`` (the fields of ``tune_hpc.scaling.measure.Plan``), ``images`` (a list of one reference to the
            data set's arrays) and ``called_at`` (when the trainer was called, in seconds since the epoch).

    Returns:
        On the first worker, one mapping for each number of workers: ``workers``, ``timed_s``, ``one_worker_s`` (the
        same on one worker), ``startup_s``, ``warmup_s``, ``cores_per_worker``, ``host`` and ``device``; elsewhere
        ``None``.
    """
    from ray.train.torch import get_device

    startup_s = time.time() - config["called_at"]
    plan = config["plan"]
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    device = get_device()
    # One core a worker, whatever their number: else the cores would grow with the workers' absence.
    torch.set_num_threads(1)
    images = ImageData.from_arrays(ray.get(config["images"][0])).to(device)
    numbers = dict.fromkeys([1, *plan["workers"]])
    timed: dict[int, tuple[float, float]] = {}
    for number in numbers:
        timed[number] = _time_steps(plan, images, device, rank, number)
    if rank != 0:
        return None
    return [
        {
            "workers": number,
            "timed_s": timed[number][0],
            "one_worker_s": timed[1][0],
            "startup_s": startup_s,
            "warmup_s": timed[number][1],
            "cores_per_worker": torch.get_num_threads(),
            "host": socket.gethostname(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        }
        for number in plan["workers"]
    ]


def _time_steps(
    plan: Mapping[str, Any], images: ImageData, device: torch.device, rank: int, number: int
) -> tuple[float, float]:
    """Return the seconds of the timed steps and of the steps before, on ``number`` workers; the others wait."""
    group = distributed.new_group(list(range(number))) if distributed.is_initialized() else None
    seconds = (0.0, 0.0)
    if rank < number:
        wrap = (
            (lambda model: DistributedDataParallel(model, process_group=group)) if number > 1 else (lambda model: model)
        )
        training = Training([plan["config"]], images, device, rank, number, wrap)
        began = time.perf_counter()
        training.run(0, NUM_WARMUP_STEPS)
        _in_step(device, group, number)
        started = time.perf_counter()
        training.run(NUM_WARMUP_STEPS, NUM_WARMUP_STEPS + plan["num_timed_steps"])
        _in_step(device, group, number)
        seconds = (time.perf_counter() - started, started - began)
    if distributed.is_initialized():
        distributed.barrier()
    return seconds


def _in_step(device: torch.device, group: Any, number: int) -> None:
    """Wait until the device is idle and all workers of the group are here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if number > 1:
        distributed.barrier(group)
