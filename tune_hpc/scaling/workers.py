"""What each worker of a scaling measurement does, inside Ray Train.

The training step is the search's own (``learning.training.Training``); each worker takes its share of every batch.

Where a step's time goes is found by leaving out: the same steps without the exchange of gradients, and the batches
alone. So the parts add up to the step, and what overlaps counts as what it hides behind.
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
from tune_hpc.scaling.probes import WorkerContext, probe

#: The parts of a step are timed on so many steps of those that are timed as a whole: one of four.
PART_OF_STEPS = 4


def time_workers(config: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]] | None:
    """Time training steps on growing numbers of workers; run by every worker of a TorchTrainer.

    Args:
        config: ``plan`` (a ``Plan``), ``images`` (a list of one reference to the data set's arrays) and ``called_at``
            (when the trainer was called, in seconds since the epoch).

    Returns:
        On the first worker: ``measured``, one mapping for each case and repeat, the repeats of a case together:
        ``case`` and ``repeat`` (their numbers), ``step_s``, ``compute_s``, ``communicate_s``, ``data_s`` (a step's),
        ``alone_s`` (a step's on one worker, in the same repeat), ``warmup_s``, ``gradient_bytes``, ``startup_s``,
        ``cores_per_worker``, ``host``, ``num_nodes`` and ``device``, and where every step was run the metrics of the
        model that came of it; ``probes``, what ``probes.probe`` measured. Elsewhere ``None``.
    """
    from ray.train.torch import get_device

    startup_s = time.time() - config["called_at"]
    plan: Plan = config["plan"]
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    device = get_device()
    # One core a worker, whatever their number: else the cores would grow with the workers' absence.
    torch.set_num_threads(1)
    images = ImageData.from_arrays(ray.get(config["images"][0])).to(device)
    groups = {number: make_group(number) for number in sorted({1, plan.max_workers, *plan.numbers})}
    machine = WorkerContext(images, device, rank, groups)
    hosts = machine.communicator(plan.max_workers).gather(_node())
    timed: dict[tuple[int, int], dict[str, Any]] = {}
    probes: list[dict[str, Any]] = []
    # All cases in each repeat, so that a machine that slows down does so for all of them.
    for repeat in range(plan.repeats):
        alone: dict[tuple[Any, ...], float] = {}
        for number, case in enumerate(plan.cases):
            own = _time_case(case, repeat, machine)
            key = (*sorted(case.config.items()), case.num_timed_steps)
            if case.workers == 1:
                alone[key] = own["step_s"]
            elif key not in alone:
                alone[key] = _time_case(case.alone, repeat, machine)["step_s"]
            timed[number, repeat] = own | {"alone_s": alone[key]}
        probes += [{"repeat": repeat, **one} for one in probe(plan, machine, widths_too=repeat == 0)]
    if rank != 0:
        return None
    shared = {
        "startup_s": startup_s,
        "cores_per_worker": torch.get_num_threads(),
        "host": socket.gethostname(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }
    return {
        "measured": [
            {
                "case": number,
                "repeat": repeat,
                **timed[number, repeat],
                **shared,
                "num_nodes": len(set(hosts[: plan.cases[number].workers])),
            }
            for number in range(len(plan.cases))
            for repeat in range(plan.repeats)
        ],
        "probes": probes,
    }


def _node() -> str:
    """Return the id of Ray's node here: several may share a machine."""
    return str(ray.get_runtime_context().get_node_id())


def make_training(
    config: Mapping[str, Any],
    machine: WorkerContext,
    number: int,
    exchange: GradientSync | None = None,
) -> Training:
    """Return one worker's part of a training that ``number`` of them do together.

    Args:
        config: A completed configuration; its batch is what all of them see in a step.
        machine: This worker.
        number: How many there are.
        exchange: What they exchange, and how.
    """
    communicator = machine.communicator(number, exchange)
    return Training([config], machine.images, machine.device, communicator)


def _time_case(case: BenchmarkCase, repeat: int, machine: WorkerContext) -> dict[str, Any]:
    """Return what a step takes on a case's workers, and of what; the others wait and return nothing."""
    timed: dict[str, Any] = {"step_s": 0.0}
    if machine.rank < case.workers:
        began = time.perf_counter()
        training = make_training(case.training_config(repeat), machine, case.workers, case.exchange)
        communicator = training.communicator
        assert isinstance(communicator, DistributedCommunicator)
        training.run(0, NUM_WARMUP_STEPS)
        machine.in_step(case.workers)
        warmup_s = time.perf_counter() - began

        def seconds(run: Callable[[int, int], object], num_steps: int) -> float:
            machine.in_step(case.workers)
            started = time.perf_counter()
            run(NUM_WARMUP_STEPS, NUM_WARMUP_STEPS + num_steps)
            machine.in_step(case.workers)
            return (time.perf_counter() - started) / num_steps

        step_s = seconds(training.run, case.num_timed_steps)
        metrics = {name: own[0] for name, own in training.evaluate().items()} if case.is_whole else {}
        few = max(1, case.num_timed_steps // PART_OF_STEPS)
        with communicator.no_sync(training.wrapped_model):
            without_s = seconds(training.run, few) if case.workers > 1 else step_s
        data_s = min(seconds(lambda start, end: _batches(training, start, end), few), without_s)
        communicate_s = max(step_s - without_s, 0.0)
        timed = metrics | {
            "step_s": step_s,
            "communicate_s": communicate_s,
            "data_s": data_s,
            "compute_s": step_s - communicate_s - data_s,
            "warmup_s": warmup_s,
            "gradient_bytes": sum(one.numel() * one.element_size() for one in training.model.parameters()),
        }
    machine.wait_for_all()
    return timed


def _batches(training: Training, start: int, end: int) -> None:
    """Make the batches of some steps, and nothing of them."""
    task = training.task
    assert isinstance(task, ImageClassification)
    for chosen in task.batch_indices(start, end):
        task.batch(chosen)
