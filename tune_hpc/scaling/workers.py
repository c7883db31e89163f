"""What each worker of a scaling measurement does, inside Ray Train.

The training step is the search's own (``learning.training.Training``); each worker takes its share of every batch, and
DistributedDataParallel averages the gradients.

Where a step's time goes is found by leaving out: the same steps without the exchange of gradients, and the batches
alone. So the parts add up to the step, and what overlaps counts as what it hides behind.
"""

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import ray
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tune_hpc.learning.data import ImageData
from tune_hpc.learning.tasks import ImageClassification
from tune_hpc.learning.training import Training
from tune_hpc.scaling.plan import Case, Plan

#: Steps before the clock starts: allocations, and the gradients' first exchange.
NUM_WARMUP_STEPS = 3
#: The parts of a step are timed on so many steps of those that are timed as a whole: one of four.
PART_OF_STEPS = 4


def time_workers(config: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Time training steps on growing numbers of workers; run by every worker of a TorchTrainer.

    Args:
        config: ``plan`` (a ``Plan``), ``images`` (a list of one reference to the data set's arrays) and ``called_at``
            (when the trainer was called, in seconds since the epoch).

    Returns:
        On the first worker, one mapping for each case and repeat, the repeats of a case together: ``case`` and
        ``repeat`` (their numbers), ``step_s``, ``compute_s``, ``communicate_s``, ``data_s`` (a step's), ``alone_s`` (a
        step's on one worker, in the same repeat), ``warmup_s``, ``gradient_bytes``, ``startup_s``,
        ``cores_per_worker``, ``host`` and ``device``; elsewhere ``None``.
    """
    from ray.train.torch import get_device

    startup_s = time.time() - config["called_at"]
    plan: Plan = config["plan"]
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    device = get_device()
    # One core a worker, whatever their number: else the cores would grow with the workers' absence.
    torch.set_num_threads(1)
    images = ImageData.from_arrays(ray.get(config["images"][0])).to(device)
    groups = {number: make_group(number) for number in sorted({1, *(case.workers for case in plan.cases)})}
    timed: dict[tuple[int, int], dict[str, float]] = {}
    # All cases in each repeat, so that a machine that slows down does so for all of them.
    for repeat in range(plan.repeats):
        alone: dict[tuple[Any, ...], float] = {}
        for number, case in enumerate(plan.cases):
            own = _time_case(case, repeat, images, device, rank, groups)
            key = (*sorted(case.config.items()), case.num_timed_steps)
            if case.workers == 1:
                alone[key] = own["step_s"]
            elif key not in alone:
                alone[key] = _time_case(case.alone, repeat, images, device, rank, groups)["step_s"]
            timed[number, repeat] = own | {"alone_s": alone[key]}
    if rank != 0:
        return None
    shared = {
        "startup_s": startup_s,
        "cores_per_worker": torch.get_num_threads(),
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    return [
        {"case": number, "repeat": repeat, **timed[number, repeat], **shared}
        for number in range(len(plan.cases))
        for repeat in range(plan.repeats)
    ]


def make_group(number: int) -> Any:
    """Return the first workers as a process group; every worker calls this, ``None`` without any."""
    return distributed.new_group(list(range(number))) if distributed.is_initialized() else None


def make_training(
    config: Mapping[str, Any], images: ImageData, device: torch.device, rank: int, number: int, group: Any
) -> Training:
    """Return one worker's part of a training that ``number`` of them do together.

    Args:
        config: A completed configuration; its batch is what all of them see in a step.
        images: The data set.
        device: Where this worker computes.
        rank: Its number.
        number: How many there are.
        group: Their process group.
    """
    wrap = (lambda model: DistributedDataParallel(model, process_group=group)) if number > 1 else (lambda model: model)
    return Training([config], images, device, rank, number, wrap)


def _time_case(
    case: Case, repeat: int, images: ImageData, device: torch.device, rank: int, groups: Mapping[int, Any]
) -> dict[str, float]:
    """Return what a step takes on a case's workers, and of what; the others wait and return nothing."""
    timed: dict[str, float] = {"step_s": 0.0}
    if rank < case.workers:
        group = groups[case.workers]
        began = time.perf_counter()
        training = make_training(case.trained(repeat), images, device, rank, case.workers, group)
        training.run(0, NUM_WARMUP_STEPS)
        in_step(device, group)
        warmup_s = time.perf_counter() - began

        def seconds(run: Callable[[int, int], object], num_steps: int) -> float:
            in_step(device, group)
            started = time.perf_counter()
            run(NUM_WARMUP_STEPS, NUM_WARMUP_STEPS + num_steps)
            in_step(device, group)
            return (time.perf_counter() - started) / num_steps

        step_s = seconds(training.run, case.num_timed_steps)
        few = max(1, case.num_timed_steps // PART_OF_STEPS)
        model = training.wrapped_model
        with model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext():
            without_s = seconds(training.run, few) if case.workers > 1 else step_s
        data_s = min(seconds(lambda start, end: _batches(training, start, end), few), without_s)
        communicate_s = max(step_s - without_s, 0.0)
        timed = {
            "step_s": step_s,
            "communicate_s": communicate_s,
            "data_s": data_s,
            "compute_s": step_s - communicate_s - data_s,
            "warmup_s": warmup_s,
            "gradient_bytes": sum(one.numel() * one.element_size() for one in training.model.parameters()),
        }
    if distributed.is_initialized():
        distributed.barrier()
    return timed


def _batches(training: Training, start: int, end: int) -> None:
    """Make the batches of some steps, and nothing of them."""
    task = training.task
    assert isinstance(task, ImageClassification)
    for chosen in task.chosen(start, end):
        task.batch(chosen)


def in_step(device: torch.device, group: Any) -> None:
    """Wait until the device is idle and all workers of the group are here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    if group is not None:
        distributed.barrier(group)
