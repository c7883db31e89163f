"""Worker function of a scaling measurement.

The training step is that of a search (``learning.training.Training``); each worker takes its share of every batch.

The parts of a step are found by omission: the same steps without gradient synchronization, and the batches alone. So
the parts add up to the step, and communication that overlaps with computation counts as computation.
"""

import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch
from torch import distributed

from tune_hpc.learning.data import ImageData
from tune_hpc.learning.tasks import ImageClassification
from tune_hpc.learning.training import Training
from tune_hpc.scaling.communication import DistributedCommunicator, make_group
from tune_hpc.scaling.plan import NUM_WARMUP_STEPS, BenchmarkCase, GradientSync, Plan
from tune_hpc.scaling.probes import WorkerContext, num_parameter_bytes, probe

#: The parts of a step are timed on a quarter of the timed steps.
PART_DIVISOR = 4


def time_workers(config: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]] | None:
    """Time training steps on several numbers of workers; the function of every worker of a TorchTrainer.

    Args:
        config: ``plan`` (a ``Plan``), ``images`` (a list of one reference to the arrays of the data set) and
            ``called_at`` (start of the trainer in seconds since the epoch).

    Returns:
        On rank 0 ``measured`` and ``probes``, else ``None``. ``measured`` has a mapping for each case and repeat:
        ``case`` and ``repeat`` (numbers); seconds for each step in ``step_s``, ``compute_s``, ``communicate_s``,
        ``data_s`` and ``alone_s`` (on one worker in the same repeat); ``warmup_s``, ``startup_s``, ``gradient_bytes``,
        ``cores_per_worker``, ``host``, ``num_nodes`` and ``device``. Cases that run every step have the metrics of the
        model, too. ``probes`` has the rows of ``probes.probe``.
    """
    from ray.train.torch import get_device

    startup_s = time.time() - config["called_at"]
    plan: Plan = config["plan"]
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    device = get_device()
    # One core for each worker; otherwise fewer workers would have more cores.
    torch.set_num_threads(1)
    images = ImageData.from_arrays(ray.get(config["images"][0])).to(device)
    groups = {number: make_group(number) for number in sorted({1, plan.max_workers, *plan.worker_counts})}
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
    for repeat in range(plan.repeats):
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
        probes += [{"repeat": repeat, **row} for row in probe(plan, context, vary_width=repeat == 0)]
    if rank != 0:
        return None
    return {"measured": sorted(measured, key=lambda row: (row["case"], row["repeat"])), "probes": probes}


def make_training(
    config: Mapping[str, Any], context: WorkerContext, num_workers: int, gradient_sync: GradientSync | None = None
) -> Training:
    """Return the part of one worker in a training on several workers.

    Args:
        config: Completed configuration; ``batch_size`` is that of all workers.
        context: This worker.
        num_workers: Number of workers.
        gradient_sync: Options of the gradient synchronization.
    """
    communicator = context.communicator(num_workers, gradient_sync)
    return Training([config], context.images, context.device, communicator)


def _time_case(case: BenchmarkCase, repeat: int, context: WorkerContext) -> dict[str, Any]:
    """Return the times of a step and its parts; workers beyond those of the case only wait."""
    times: dict[str, Any] = {"step_s": 0.0}
    if context.rank < case.workers:
        started = time.perf_counter()
        training = make_training(case.training_config(repeat), context, case.workers, case.gradient_sync)
        communicator = training.communicator
        assert isinstance(communicator, DistributedCommunicator)
        training.run(0, NUM_WARMUP_STEPS)
        context.barrier(case.workers)
        warmup_s = time.perf_counter() - started

        def seconds_per_step(run: Callable[[int, int], object], num_steps: int) -> float:
            context.barrier(case.workers)
            started = time.perf_counter()
            run(NUM_WARMUP_STEPS, NUM_WARMUP_STEPS + num_steps)
            context.barrier(case.workers)
            return (time.perf_counter() - started) / num_steps

        step_s = seconds_per_step(training.run, case.num_timed_steps)
        metrics = {name: values[0] for name, values in training.evaluate().items()} if case.covers_all_steps else {}
        num_steps = max(1, case.num_timed_steps // PART_DIVISOR)
        with communicator.no_sync(training.wrapped_model):
            local_s = seconds_per_step(training.run, num_steps) if case.workers > 1 else step_s
        data_s = min(seconds_per_step(lambda start, end: _make_batches(training, start, end), num_steps), local_s)
        communicate_s = max(step_s - local_s, 0.0)
        times = metrics | {
            "step_s": step_s,
            "communicate_s": communicate_s,
            "data_s": data_s,
            "compute_s": step_s - communicate_s - data_s,
            "warmup_s": warmup_s,
            "gradient_bytes": num_parameter_bytes(training),
        }
    context.wait_for_all()
    return times


def _make_batches(training: Training, start: int, end: int) -> None:
    task = training.task
    assert isinstance(task, ImageClassification)
    for indices in task.batch_indices(start, end):
        task.batch(indices)
