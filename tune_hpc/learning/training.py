"""THE training loop. It supports of the outside only what its caller hands it, and imports neither Ray nor pandas.

``train(config, report)`` is a trainable: any function of a configuration and of a callable
``report(step, metrics)``. ``step`` is a number of updates, or a 1-D array of such numbers with arrays of metrics to
match: the loop keeps per-step curves on the device and hands them over a block at a time. What is reported at ``step``
describes the state after that many updates; a ``train_loss`` there is the loss of the next batch, before it is used.

A trainable may also take, by keyword, ``checkpoint`` (``load() -> state or None``, ``save(step, make_state)``),
``images`` (the data set of ``config["data"]``, shared by all trials of a machine) and ``device``; and it may return a
mapping of columns for its row, as ``train`` does.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning.communicator import Communicator
from tune_hpc.learning.config import complete
from tune_hpc.learning.cuda_graphs import NUM_EAGER_STEPS, CudaRecorder, GraphCapture
from tune_hpc.learning.data import ImageData, load_images
from tune_hpc.learning.fusion import check_fusible
from tune_hpc.learning.models import build_model
from tune_hpc.learning.optimizers.stacked import OptimizerStack, stack_order
from tune_hpc.learning.stack_member import MemberProgress, Report
from tune_hpc.learning.tasks import ImageClassification, LineRegression, Task


class Checkpoint(Protocol):
    """Where a trainable leaves its state, and finds it again."""

    def load(self) -> Mapping[str, Any] | None:
        """Return the latest state, or ``None``."""

    def save(self, step: int, make_state: Callable[[], Mapping[str, Any]]) -> None:
        """Offer a state; it is made only when it is wanted now."""


class Training:
    """A stack of models, their optimizers and their task: everything that changes during a run.

    Args:
        configs: Completed configurations, alike in all but ``fusion.MEMBER_KEYS``; one for a model alone.
        images: The data set that they name; not needed for the line.
        device: Where to compute.
        communicator: The workers that share each batch; by default one alone.
        recorder: Records a step, to replay it; by default on a CUDA device, where the team may record.

    Attributes:
        num_steps: How many steps there are: fewer than asked for where a single pass over the data ends before.
        curves: What ``run`` returns, by name.
    """

    #: Steps whose batches and learning rates are laid out at a time.
    WINDOW = 1024

    def __init__(
        self,
        configs: Sequence[Mapping[str, Any]],
        images: ImageData | None,
        device: torch.device,
        communicator: Communicator | None = None,
        recorder: GraphCapture | None = None,
    ) -> None:
        order = stack_order(configs)
        self._places = [order.index(member) for member in range(len(configs))]
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
        if recorder is None and device.type == "cuda" and self.communicator.allow_cuda_graphs:
            recorder = CudaRecorder()
        self._recorded = _RecordedSteps(self, recorder) if recorder else None
        self.optimizers = OptimizerStack(configs, list(self.model.parameters()), rates_on_device=recorder is not None)
        self.curves = ["train_loss", *self.model.recorded_parameters]

    def run(self, start: int, end: int) -> np.ndarray:
        """Make the updates ``start`` to ``end``, counted from 0.

        Nothing is read off the device before they are done.

        Returns:
            Curves (quantities, members, steps): the loss of each batch before its update, and the traced parameters;
            of several workers their mean.
        """
        blocks = [np.empty((len(self.curves), len(self._places), 0))]
        with _matrix_products(self.precision):
            for first in range(start, end, self.WINDOW):
                last = min(end, first + self.WINDOW)
                chosen = self.task.batch_indices(first, last)
                steps = np.arange(first, last)
                rates = self.optimizers.rates(steps, self.task.epochs(steps), self.num_steps)
                window = self._recorded.run(chosen, rates) if self._recorded else self._run(first, chosen, rates)
                blocks.append(window.cpu().numpy())
        return self.communicator.mean(np.concatenate(blocks, axis=2)[:, self._places])

    def loss_at(self, step: int) -> np.ndarray:
        """Return what ``run`` would at one step, without an update; its batch is needed for the loss."""
        curves = self._make_curves(1)
        with torch.no_grad(), _matrix_products(self.precision):
            self._trace(curves[:, :, 0])
            curves[0, :, 0] = self.task.losses(self.model, self.task.batch_indices(step, step + 1)[0])
        return self.communicator.mean(curves.cpu().numpy()[:, self._places])

    def evaluate(self) -> dict[str, list[float]]:
        """Return each member's metrics on held-out data, at the present parameters; the first worker measures them."""
        self.communicator.sync_parameters(self.model)
        with _matrix_products(self.precision):
            metrics = self.communicator.broadcast_from_rank0(lambda: self.task.evaluate(self.model))
        return {name: [values[place] for place in self._places] for name, values in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on to the same last bit."""
        return {
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "task": self.task.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.task.load_state_dict(state["task"])

    def _make_curves(self, num_steps: int) -> torch.Tensor:
        return torch.empty(len(self.curves), len(self._places), num_steps, dtype=torch.float64, device=self.device)

    def _run(self, first: int, chosen: torch.Tensor, rates: Sequence[Any]) -> torch.Tensor:
        curves = self._make_curves(len(chosen))
        for row, (batch, *own) in enumerate(zip(chosen, *rates, strict=True)):
            self._step(batch, own, curves[:, :, row])
            self.communicator.after_step(self.model, first + row + 1)
        return curves

    def _step(self, chosen: torch.Tensor, rates: Sequence[Any], curves: torch.Tensor) -> None:
        """Make one update and write the state before it into ``curves`` (quantities, members)."""
        self._trace(curves)
        for parameter in self.optimizers.parameters:
            parameter.grad = None
        curves[0] = self.task.backward(self.wrapped_model, chosen)
        self.optimizers.step(rates)

    def _trace(self, curves: torch.Tensor) -> None:
        for line, column in enumerate(self.model.recorded_parameters.values(), start=1):
            curves[line] = self.optimizers.parameters[0].detach()[:, column]


class _RecordedSteps:
    """Steps of a training by replay: each finds its batch and rates at a position in tables, and moves on by one."""

    def __init__(self, training: Training, recorder: GraphCapture) -> None:
        self._training = training
        self._recorder = recorder
        self._replay: Callable[[], None] | None = None
        self._num_eager = 0

    def run(self, chosen: torch.Tensor, rates: Sequence[Any]) -> torch.Tensor:
        """Make the updates of a window, see ``Training._run``."""
        num_steps = len(chosen)
        if self._replay is None:
            self._make_tables(chosen, rates)
        for table, part in zip(self._tables, [chosen, *rates], strict=True):
            table[:num_steps] = part
        self._position.zero_()
        for _ in range(num_steps):
            if self._replay is not None:
                self._replay()
            elif self._num_eager < NUM_EAGER_STEPS:
                self._num_eager += 1
                with self._recorder.eager_stream():
                    self._step()
            else:
                self._replay = self._recorder.record(self._step, self._training.task.generators)
                self._replay()
        return self._curves[:, :, :num_steps].clone()

    def _make_tables(self, chosen: torch.Tensor, rates: Sequence[Any]) -> None:
        window = self._training.WINDOW
        self._tables = [one.new_empty(window, *one.shape[1:]) for one in (chosen, *rates)]
        self._curves = self._training._make_curves(window)
        self._row = torch.empty_like(self._curves[:, :, 0])
        self._position = torch.zeros(1, dtype=torch.int64, device=chosen.device)

    def _step(self) -> None:
        chosen, *rates = (table.index_select(0, self._position)[0] for table in self._tables)
        self._training._step(chosen, rates, self._row)
        self._curves.index_copy_(2, self._position, self._row[:, :, None])
        self._position += 1


@contextmanager
def _matrix_products(precision: str) -> Iterator[None]:
    """Let GPUs make float32 products in TF32 where the configuration says so, and nowhere else."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.fp32_precision = was


def train(
    config: Mapping[str, Any],
    report: Report,
    *,
    checkpoint: Checkpoint | None = None,
    images: ImageData | None = None,
    device: str | torch.device | None = None,
    communicator: Communicator | None = None,
) -> dict[str, Any]:
    """Train one model.

    Args:
        config: Keys of ``tune_hpc.learning.config``; what is left out takes its default.
        report: Called with blocks of ``train_loss`` (and ``W`` and ``b`` of the line) at every step, and with
            ``valid_loss``, ``valid_accuracy``, ``test_loss`` and ``test_accuracy`` at about 50 points of the run.
        checkpoint: Asked once for a state to go on from, and offered one after every evaluation.
        images: The data set that ``config["data"]`` names; loaded, and fetched if need be, when absent.
        device: Where to compute; by default a GPU if there is one.
        communicator: The workers that train the model together, each of which calls this; by default one alone.

    Returns:
        ``status`` (finished or diverged), ``stop_reason`` in words, ``steps_run``, ``setup_s``, ``train_s``,
        ``eval_s``, ``samples_per_s``, ``num_fused`` and ``device``.

    Raises:
        InvalidConfigError: a rule of the configuration is broken.
        DataUnavailableError: the data set is not here and cannot be fetched.
    """
    return train_fused(
        [config], [report], checkpoint=checkpoint, images=images, device=device, communicator=communicator
    )[0]


def train_fused(
    configs: Sequence[Mapping[str, Any]],
    reports: Sequence[Report],
    *,
    checkpoint: Checkpoint | None = None,
    images: ImageData | None = None,
    device: str | torch.device | None = None,
    communicator: Communicator | None = None,
) -> list[dict[str, Any]]:
    """Train several models as one program; see ``train``, which is the case of one.

    A member that diverges ends there, and changes nothing for the others.

    Args:
        configs: One for each member, alike in all but ``fusion.MEMBER_KEYS``.
        reports: One for each member.
        checkpoint: Of all members together.
        images: The data set of all members.
        device: Where to compute.
        communicator: The workers that train them together.

    Returns:
        One row for each member. Durations are a member's share of the time: they add up to the program's.

    Raises:
        InvalidConfigError: a rule of a configuration is broken, or the members differ where they must not.
        DataUnavailableError: the data set is not here and cannot be fetched.
    """
    entered = time.perf_counter()
    completed = [complete(config) for config in configs]
    check_fusible(completed)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if completed[0]["data"] == "line":
        images = None
    elif images is None:
        images = load_images(completed[0]["data"])
    size = communicator.size if communicator else 1
    if (asked := completed[0].get("workers", size)) != size:
        raise InvalidConfigError(
            f"workers={asked} train by way of Ray, in a search or a scaling measurement; {size} called this"
        )
    training = Training(completed, images, place, communicator)
    num_steps = training.num_steps
    members = [MemberProgress(report) for _, report in zip(completed, reports, strict=True)]
    done = 0
    if (state := checkpoint.load() if checkpoint else None) is not None:
        training.load_state_dict(state["training"])
        done = state["step"]
        for member, kept in zip(members, state["members"], strict=True):
            member.load_state_dict(kept)
    setup_s = time.perf_counter() - entered

    for end in _evaluation_steps(num_steps, completed[0]["num_evaluations"]):
        under_way = [number for number, member in enumerate(members) if member.status == "finished"]
        if end <= done or not under_way:
            continue
        began = time.perf_counter()
        curves = training.run(done, end)
        if end == num_steps and training.task.is_full_batch:
            curves = np.concatenate([curves, training.loss_at(end)], axis=2)
        train_s = time.perf_counter() - began
        for number in under_way:
            own = dict(zip(training.curves, curves[:, number], strict=True))
            members[number].take_block(done, end, own, train_s / len(under_way))
        done = end
        under_way = [number for number in under_way if members[number].status == "finished"]
        if not under_way:
            break
        began = time.perf_counter()
        metrics = training.evaluate()
        eval_s = time.perf_counter() - began
        for number in under_way:
            own_metrics = {name: values[number] for name, values in metrics.items()}
            members[number].take_evaluation(end, own_metrics, eval_s / len(under_way))
        if checkpoint and end < num_steps:
            checkpoint.save(end, functools.partial(_state, training, members, end))

    all_done = "all steps done" if num_steps == completed[0]["steps"] else f"single pass over after {num_steps} steps"
    shared = {"setup_s": setup_s / len(members), "num_fused": len(members), "device": _device_name(place)}
    return [member.row(all_done, training.task.samples_per_step) | shared for member in members]


def _state(training: Training, members: Sequence[MemberProgress], step: int) -> dict[str, Any]:
    return {
        "training": training.state_dict(),
        "step": step,
        "members": [member.state_dict() for member in members],
    }


def _evaluation_steps(num_steps: int, num_evaluations: int) -> list[int]:
    """Return the steps after which the model is evaluated: evenly spaced, the last one included."""
    points = min(num_steps, num_evaluations)
    return [round(num_steps * (point + 1) / points) for point in range(points)]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
