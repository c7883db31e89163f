"""THE training loop. It knows of the outside only what its caller hands it, and imports neither Ray nor pandas.

``train(config, report)`` is a trainable: any function of a configuration and of a callable
``report(step, metrics)``. ``step`` is a number of updates, or a 1-D array of such numbers with arrays of metrics to
match: the loop keeps per-step curves on the device and hands them over a block at a time. What is reported at ``step``
describes the state after that many updates; a ``train_loss`` there is the loss of the next batch, before it is used.

A trainable may also take, by keyword, ``checkpoint`` (``load() -> state or None``, ``save(step, make_state)``),
``images`` (the data set of ``config["data"]``, shared by all trials of a machine) and ``device``; and it may return a
mapping of columns for its row, as ``train`` does.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from tune_hpc.learning.config import OPTIMIZER_DEFAULTS, complete
from tune_hpc.learning.data import ImageData, load_images
from tune_hpc.learning.models import build_model
from tune_hpc.learning.optimizers import build_optimizer
from tune_hpc.learning.schedules import build_schedule
from tune_hpc.learning.tasks import ImageClassification, LineFit, Task

#: A trial has diverged when its loss is not finite, or so many steps in a row this many times its first one (or 1, if
#: that is more). A softmax regression at an absurd rate stays finite for ever; the worst of Exercise 2's 72 trials with
#: that model reaches 26. One step is not enough: the cnn with Adam at 0.5 starts at 10, jumps to 5e6, and is back soon.
DIVERGENCE_FACTOR = 1e4
DIVERGENCE_STEPS = 5

Report = Callable[[Any, Mapping[str, Any]], None]


class Checkpoint(Protocol):
    """Where a trainable leaves its state, and finds it again."""

    def load(self) -> Mapping[str, Any] | None:
        """Return the latest state, or ``None``."""

    def save(self, step: int, make_state: Callable[[], Mapping[str, Any]]) -> None:
        """Offer a state; it is made only when it is wanted now."""


class Training:
    """A model, its optimizer and its task: everything that changes during a run, one step at a time.

    Args:
        config: A completed configuration.
        images: The data set that it names; not needed for the line.
        device: Where to compute.
        replica: This replica's number.
        num_replicas: How many share each batch.
        wrap: Applied to the model before its first use, for instance to average gradients over replicas.

    Attributes:
        num_steps: How many steps there are: fewer than asked for where a single pass over the data ends before.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        images: ImageData | None,
        device: torch.device,
        replica: int = 0,
        num_replicas: int = 1,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> None:
        self.model = build_model(config).to(device)
        self.wrapped_model = wrap(self.model)
        self.task: Task
        if images is None:
            self.task = LineFit(config, device)
        else:
            self.task = ImageClassification(config, images, device, self.model.num_hidden, replica, num_replicas)
        self.num_steps = config["steps"] if self.task.num_steps is None else min(config["steps"], self.task.num_steps)
        self.optimizer = build_optimizer(
            config["optimizer"],
            self.model.parameters(),
            config["learning_rate"],
            **{name: config[name] for name in OPTIMIZER_DEFAULTS[config["optimizer"]]},
        )
        self.schedule = build_schedule(config, self.task.epoch)
        self.traced = {name: getattr(self.model, attribute) for name, attribute in self.model.traced.items()}

    def step(self, step: int) -> torch.Tensor:
        """Make update number ``step``, counted from 0, and return the batch's loss before it, on the device."""
        rate = self.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self.task.loss(self.wrapped_model, step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def evaluate(self) -> dict[str, float]:
        """Return the metrics on held-out data, at the present parameters."""
        return self.task.evaluate(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a run needs to go on to the same last bit."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "task": self.task.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.task.load_state_dict(state["task"])


def train(
    config: Mapping[str, Any],
    report: Report,
    *,
    checkpoint: Checkpoint | None = None,
    images: ImageData | None = None,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Train one model.

    Args:
        config: Keys of ``tune_hpc.learning.config``; what is left out takes its default.
        report: Called with blocks of ``train_loss`` (and ``W`` and ``b`` of the line) at every step, and with
            ``valid_loss``, ``valid_accuracy``, ``test_loss`` and ``test_accuracy`` at about 50 points of the run.
        checkpoint: Asked once for a state to go on from, and offered one after every evaluation.
        images: The data set that ``config["data"]`` names; loaded, and fetched if need be, when absent.
        device: Where to compute; by default a GPU if there is one.

    Returns:
        ``status`` (finished or diverged), ``stop_reason`` in words, ``steps_run``, ``setup_s``, ``train_s``,
        ``eval_s``, ``samples_per_s`` and ``device``.

    Raises:
        InvalidConfigError: a rule of the configuration is broken.
        DataUnavailableError: the data set is not here and cannot be fetched.
    """
    entered = time.perf_counter()
    config = complete(config)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if config["data"] == "line":
        images = None
    elif images is None:
        images = load_images(config["data"])
    training = Training(config, images, place)
    num_steps = training.num_steps
    progress: dict[str, Any] = {"step": 0, "first_loss": math.nan, "num_over": 0, "train_s": 0.0, "eval_s": 0.0}

    state = checkpoint.load() if checkpoint else None
    if state is not None:
        training.load_state_dict(state["training"])
        progress = dict(state["progress"])
    setup_s = time.perf_counter() - entered

    stop_reason = "all steps done" if num_steps == config["steps"] else f"single pass over after {num_steps} steps"
    status = "finished"
    for end in _evaluation_steps(num_steps, config["num_evaluations"]):
        start = progress["step"]
        if end <= start:
            continue
        began = time.perf_counter()
        curves = _run_block(training, start, end, is_last=end == num_steps)
        progress["train_s"] += time.perf_counter() - began
        if start == 0:
            progress["first_loss"] = float(curves["train_loss"][0])
        diverged_at, progress["num_over"] = _first_divergence(
            curves["train_loss"], progress["first_loss"], progress["num_over"]
        )
        healthy = len(curves["train_loss"]) if diverged_at is None else diverged_at
        if healthy:
            report(np.arange(start, start + healthy), {name: curve[:healthy] for name, curve in curves.items()})
        if diverged_at is not None:
            progress["step"] = start + diverged_at
            status, stop_reason = "diverged", _divergence(float(curves["train_loss"][diverged_at]), progress["step"])
            break
        progress["step"] = end
        began = time.perf_counter()
        metrics = training.evaluate()
        progress["eval_s"] += time.perf_counter() - began
        if not all(math.isfinite(value) for value in metrics.values()):
            status, stop_reason = "diverged", f"non-finite evaluation loss at step {end}"
            break
        if metrics:
            report(end, metrics)
        if checkpoint and end < num_steps:
            checkpoint.save(end, lambda: {"training": training.state_dict(), "progress": dict(progress)})

    steps_run, train_s = progress["step"], progress["train_s"]
    return {
        "status": status,
        "stop_reason": stop_reason,
        "steps_run": steps_run,
        "setup_s": setup_s,
        "train_s": train_s,
        "eval_s": progress["eval_s"],
        "samples_per_s": steps_run * training.task.samples_per_step / train_s if train_s else math.nan,
        "device": _device_name(place),
    }


def _evaluation_steps(num_steps: int, num_evaluations: int) -> list[int]:
    """Return the steps after which the model is evaluated: evenly spaced, the last one included."""
    points = min(num_steps, num_evaluations)
    return [round(num_steps * (point + 1) / points) for point in range(points)]


def _run_block(training: Training, start: int, end: int, *, is_last: bool) -> dict[str, np.ndarray]:
    """Make the updates ``start`` to ``end`` and return one curve for each quantity.

    The loss after the very last update is there, too, where it needs no further batch. Nothing is read off the device
    before the block is done.
    """
    traced = training.traced
    with_last = is_last and training.task.is_full_batch
    device = next(training.model.parameters()).device
    curves = torch.empty(1 + len(traced), end - start + with_last, dtype=torch.float64, device=device)
    for row, step in enumerate(range(start, end)):
        for line, parameter in enumerate(traced.values(), start=1):
            curves[line, row] = parameter.detach()[0]
        curves[0, row] = training.step(step)
    if with_last:
        for line, parameter in enumerate(traced.values(), start=1):
            curves[line, -1] = parameter.detach()[0]
        with torch.no_grad():
            curves[0, -1] = training.task.loss(training.model, end)
    names = ["train_loss", *traced]
    return dict(zip(names, curves.cpu().numpy(), strict=True))


def _first_divergence(losses: np.ndarray, first_loss: float, num_over: int) -> tuple[int | None, int]:
    """Return the index at which a block of losses counts as diverged, or ``None``.

    Also return how many losses in a row are over the limit at the block's end, for the next one; ``num_over`` is that
    of the block before.
    """
    limit = DIVERGENCE_FACTOR * max(1.0, first_loss)
    for index, loss in enumerate(losses):
        num_over = num_over + 1 if loss > limit else 0
        if not math.isfinite(loss) or num_over == DIVERGENCE_STEPS:
            return index, num_over
    return None, num_over


def _divergence(loss: float, step: int) -> str:
    if not math.isfinite(loss):
        return f"non-finite loss at step {step}"
    return f"loss {loss:.3g} at step {step}, for {DIVERGENCE_STEPS} steps over {DIVERGENCE_FACTOR:g} times the first"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
