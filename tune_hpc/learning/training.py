"""The training loop, for a single model and for fused ones. It imports neither Ray nor pandas.

``train(config, report)`` is a trainable: a function of a configuration and a callable ``report(step, metrics)``.
``step`` is a number of updates, or a 1-D array of such numbers with arrays of metrics: the loop reports curves in
blocks. Metrics at ``step`` describe the state after this number of updates; ``train_loss`` is the loss of the next
batch, before its update. A trainable may take the keywords ``checkpoint``, ``images`` and ``device`` of ``train``, and
return a mapping of columns for its row.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from tune_hpc.errors import InvalidConfigError, TimeLimitReached
from tune_hpc.learning.config import complete
from tune_hpc.learning.cuda_graphs import CapturedSteps, CudaGraphCapture
from tune_hpc.learning.data import ImageData, load_images
from tune_hpc.learning.fusion import check_fusible
from tune_hpc.learning.models import build_model
from tune_hpc.learning.optimizers.stacked import OptimizerStack, stack_order
from tune_hpc.learning.stack_member import MemberProgress, Report
from tune_hpc.learning.tasks import ImageClassification, LineRegression, Task

Value = TypeVar("Value")


@dataclass
class Communicator:
    """Communicator between the workers that share each batch of a training; by default a single process.

    All workers make the same calls in the same order. ``tune_hpc.scaling.communication`` implements several processes.

    Attributes:
        rank: Number of this worker, from 0.
        size: Number of workers that share each batch.
        allow_cuda_graphs: Whether steps may be captured as CUDA graphs.
    """

    rank: int = 0
    size: int = 1
    allow_cuda_graphs: bool = True

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return a model whose backward pass leaves the gradients of the whole batch."""
        return model

    def after_step(self, model: nn.Module, step: int) -> None:
        """Average parameters after ``step`` updates, if gradients are not averaged."""

    def sync_parameters(self, model: nn.Module) -> None:
        """Give all workers the same parameters, if they may differ."""

    def mean(self, curves: np.ndarray) -> np.ndarray:
        """Return the mean of the workers' values."""
        return curves

    def broadcast_from_rank0(self, make: Callable[[], Value]) -> Value:
        """Return the value that rank 0 makes."""
        return make()


class Checkpoint(Protocol):
    """Storage for the state of a trainable."""

    def load(self) -> Mapping[str, Any] | None:
        """Return the latest state, or ``None``."""

    def save(self, step: int, make_state: Callable[[], Mapping[str, Any]]) -> None:
        """Offer a state; ``make_state`` is called only if a checkpoint is due."""

    def keep(
        self, step: int, make_state: Callable[[], Mapping[str, Any]], *, is_last: bool | None = None, member: int = 0
    ) -> None:
        """Offer a state of one member of a stack that may remain after the training."""


class Training:
    """A stack of models with its optimizers and its task.

    Args:
        configs: Completed configurations that differ only in ``fusion.MEMBER_KEYS``; one for a single model.
        images: Data set of the configurations; ``None`` for the line.
        device: Device of the computation.
        communicator: By default that of a single process.
        graph_capture: By default CUDA graphs, if device and communicator allow them.

    Attributes:
        num_steps: Number of steps; less than ``steps`` if a single pass over the data ends earlier.
        curves: Names of the curves of ``run``.
    """

    #: Steps whose batches and learning rates are computed at a time.
    WINDOW = 1024

    def __init__(
        self,
        configs: Sequence[Mapping[str, Any]],
        images: ImageData | None,
        device: torch.device,
        communicator: Communicator | None = None,
        graph_capture: CudaGraphCapture | None = None,
    ) -> None:
        order = stack_order(configs)
        self._positions = [order.index(member) for member in range(len(configs))]
        configs = [configs[member] for member in order]
        self.precision = configs[0]["precision"]
        self.device = device
        self.communicator = communicator or Communicator()
        self.model = build_model(configs).to(device)
        self.wrapped_model = self.communicator.wrap(self.model)
        self.task: Task
        if images is None:
            self.task = LineRegression(configs, device)
        else:
            self.task = ImageClassification(
                configs, images, device, self.model.num_hidden, self.communicator.rank, self.communicator.size
            )
        steps = configs[0]["steps"]
        self.num_steps = steps if self.task.num_steps is None else min(steps, self.task.num_steps)
        if graph_capture is None and device.type == "cuda" and self.communicator.allow_cuda_graphs:
            graph_capture = CudaGraphCapture()
        self._captured = (
            CapturedSteps(graph_capture, self._step, self._make_curves, self.task.generators, self.WINDOW)
            if graph_capture
            else None
        )
        parameters = list(self.model.parameters())
        self.optimizers = OptimizerStack(configs, parameters, rates_on_device=graph_capture is not None)
        self._parts: dict[str, Any] = {"model": self.model, "optimizers": self.optimizers, "task": self.task}
        self.curves = ["train_loss", *self.model.recorded_parameters]

    def run(self, start: int, end: int) -> np.ndarray:
        """Run the updates ``start`` to ``end``, counted from 0, without synchronization with the device.

        Returns:
            Curves (quantities, members, steps): the loss of each batch before its update, and the recorded parameters;
            for several workers their mean.
        """
        blocks = [np.empty((len(self.curves), len(self._positions), 0))]
        with _matrix_products(self.precision):
            for first in range(start, end, self.WINDOW):
                last = min(end, first + self.WINDOW)
                indices = self.task.batch_indices(first, last)
                steps = np.arange(first, last)
                rates = self.optimizers.rates(steps, self.task.epochs(steps), self.num_steps)
                window = self._captured.run(indices, rates) if self._captured else self._run(first, indices, rates)
                blocks.append(window.cpu().numpy())
        return self.communicator.mean(np.concatenate(blocks, axis=2)[:, self._positions])

    def loss_at(self, step: int) -> np.ndarray:
        """Return the curves of ``run`` at one step, without an update."""
        curves = self._make_curves(1)
        with torch.no_grad(), _matrix_products(self.precision):
            self._record_parameters(curves[:, :, 0])
            curves[0, :, 0] = self.task.losses(self.model, self.task.batch_indices(step, step + 1)[0])
        return self.communicator.mean(curves.cpu().numpy()[:, self._positions])

    def evaluate(self, num_threads: int = 1, *, is_last: bool = False) -> dict[str, list[float]]:
        """Return the metrics of each member on validation and test data; rank 0 measures them.

        After the last step (``is_last``), they include those on training images if the configuration requests them.
        """
        self.communicator.sync_parameters(self.model)
        with _matrix_products(self.precision):
            metrics = self.communicator.broadcast_from_rank0(
                lambda: self.task.evaluate(self.model, num_threads, is_last=is_last)
            )
        return {name: [values[position] for position in self._positions] for name, values in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which a resumed run continues to the same bits."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def member_state(self, member: int) -> dict[str, Any]:
        """Return copies of the parameters of one member, without the axis of the stack, and its predictions.

        The predictions are those of the latest evaluation of this process, and rank 0 evaluates.
        """
        position = self._positions[member]
        weights = {name: tensor.detach()[position].cpu().clone() for name, tensor in self.model.named_parameters()}
        return {"weights": weights, **self.task.predictions(position)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``state_dict``."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])

    def _make_curves(self, num_steps: int) -> torch.Tensor:
        return torch.empty(len(self.curves), len(self._positions), num_steps, dtype=torch.float64, device=self.device)

    def _run(self, first: int, indices: torch.Tensor, rates: Sequence[Any]) -> torch.Tensor:
        curves = self._make_curves(len(indices))
        for number, (step_indices, *step_rates) in enumerate(zip(indices, *rates, strict=True)):
            self._step(step_indices, step_rates, curves[:, :, number])
            self.communicator.after_step(self.model, first + number + 1)
        return curves

    def _step(self, indices: torch.Tensor, rates: Sequence[Any], curves: torch.Tensor) -> None:
        """Run one update and write loss and parameters before it to ``curves`` (quantities, members)."""
        self._record_parameters(curves)
        for parameter in self.optimizers.parameters:
            parameter.grad = None
        curves[0] = self.task.backward(self.wrapped_model, indices)
        self.optimizers.step(rates)

    def _record_parameters(self, curves: torch.Tensor) -> None:
        for row, column in enumerate(self.model.recorded_parameters.values(), start=1):
            curves[row] = self.optimizers.parameters[0].detach()[:, column]


@contextmanager
def _matrix_products(precision: str) -> Iterator[None]:
    """Enable TF32 products on GPUs inside the block if the precision is tf32, else disable them."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
    previous = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, previous, strict=True):
            backend.fp32_precision = precision


def train(
    config: Mapping[str, Any],
    report: Report,
    *,
    checkpoint: Checkpoint | None = None,
    images: ImageData | None = None,
    device: str | torch.device | None = None,
    communicator: Communicator | None = None,
    evaluation_threads: int = 1,
) -> dict[str, Any]:
    """Train one model.

    Args:
        config: Keys of ``tune_hpc.learning.config``; missing keys take their defaults.
        report: Gets blocks of ``train_loss`` (and ``W`` and ``b`` of the line) at every step, and ``valid_loss``,
            ``valid_accuracy``, ``test_loss`` and ``test_accuracy`` at ``num_evaluations`` steps; with
            ``num_fit_images``, ``fit_loss`` and ``fit_accuracy`` after the last step.
        checkpoint: Provides a state to resume from, and is offered one after every evaluation.
        images: Data set of ``config["data"]``; by default it is loaded, and downloaded if necessary.
        device: Device of the computation; by default a GPU if there is one.
        communicator: Communicator of the workers, each of which calls this function; by default a single process.
        evaluation_threads: Number of threads of the evaluations; the metrics do not depend on it.

    Returns:
        ``status`` (finished or diverged), ``stop_reason``, ``steps_run``, ``setup_s``, ``train_s``, ``eval_s``,
        ``samples_per_s``, ``num_fused`` and ``device``.

    Raises:
        InvalidConfigError: the configuration breaks a rule.
        DataUnavailableError: the data set is missing and cannot be downloaded.
    """
    return train_fused(
        [config],
        [report],
        checkpoint=checkpoint,
        images=images,
        device=device,
        communicator=communicator,
        evaluation_threads=evaluation_threads,
    )[0]


def train_fused(
    configs: Sequence[Mapping[str, Any]],
    reports: Sequence[Report],
    *,
    checkpoint: Checkpoint | None = None,
    images: ImageData | None = None,
    device: str | torch.device | None = None,
    communicator: Communicator | None = None,
    evaluation_threads: int = 1,
) -> list[dict[str, Any]]:
    """Train several models as one program; ``train`` is the case of one model and describes the arguments.

    The configurations differ only in ``fusion.MEMBER_KEYS``. A member that diverges ends, without an effect on the
    others. The durations in the rows are shares of the program's time.

    Raises:
        InvalidConfigError: a configuration breaks a rule, or the members differ in another key.
        DataUnavailableError: the data set is missing and cannot be downloaded.
    """
    entered = time.perf_counter()
    completed = [complete(config) for config in configs]
    check_fusible(completed)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if completed[0]["data"] == "line":
        images = None
    elif images is None:
        images = load_images(completed[0]["data"])
    size = communicator.size if communicator else 1
    if (workers := completed[0].get("workers", size)) != size:
        raise InvalidConfigError(
            f"workers={workers} needs Ray, in a search or a scaling measurement; the number of processes is {size}"
        )
    training = Training(completed, images, device, communicator)
    num_steps = training.num_steps
    members = [MemberProgress(report) for _, report in zip(completed, reports, strict=True)]
    num_done = 0
    if (state := checkpoint.load() if checkpoint else None) is not None:
        training.load_state_dict(state["training"])
        num_done = state["step"]
        for member, member_state in zip(members, state["members"], strict=True):
            member.load_state_dict(member_state)
    setup_s = time.perf_counter() - entered

    stop_reason = (
        "all steps done" if num_steps == completed[0]["steps"] else f"single pass over after {num_steps} steps"
    )
    is_stopped = False
    for end in _evaluation_steps(num_steps, completed[0]["num_evaluations"]):
        active = [number for number, member in enumerate(members) if member.status == "finished"]
        if end <= num_done or not active:
            continue
        started = time.perf_counter()
        curves = training.run(num_done, end)
        if end == num_steps and training.task.is_full_batch:
            curves = np.concatenate([curves, training.loss_at(end)], axis=2)
        train_s = time.perf_counter() - started
        for number in active:
            member_curves = dict(zip(training.curves, curves[:, number], strict=True))
            members[number].take_block(num_done, end, member_curves, train_s / len(active))
        num_done = end
        active = [number for number in active if members[number].status == "finished"]
        if not active:
            break
        started = time.perf_counter()
        metrics = training.evaluate(evaluation_threads, is_last=end == num_steps)
        eval_s = time.perf_counter() - started
        for number in active:
            member_metrics = {name: values[number] for name, values in metrics.items()}
            members[number].take_evaluation(end, member_metrics, eval_s / len(active))
            if checkpoint and members[number].status == "finished":
                checkpoint.keep(
                    end,
                    functools.partial(_kept_state, training, completed[number], number, end),
                    is_last=end == num_steps,
                    member=number,
                )
        if checkpoint and end < num_steps:
            try:
                checkpoint.save(end, functools.partial(_state, training, members, end))
            except TimeLimitReached:
                is_stopped, stop_reason = True, "time limit"
                break

    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    shared = {"setup_s": setup_s / len(members), "num_fused": len(members), "device": device_name}
    rows = [member.row(stop_reason, training.task.samples_per_step) | shared for member in members]
    return [row | {"status": "stopped"} if is_stopped and row["status"] == "finished" else row for row in rows]


def _kept_state(training: Training, config: Mapping[str, Any], member: int, step: int) -> dict[str, Any]:
    return {"config": dict(config), "step": step, **training.member_state(member)}


def _state(training: Training, members: Sequence[MemberProgress], step: int) -> dict[str, Any]:
    return {
        "training": training.state_dict(),
        "step": step,
        "members": [member.state_dict() for member in members],
    }


def _evaluation_steps(num_steps: int, num_evaluations: int) -> list[int]:
    """Return the steps of the evaluations: evenly spaced, including the last step."""
    points = min(num_steps, num_evaluations)
    return [round(num_steps * (point + 1) / points) for point in range(points)]
