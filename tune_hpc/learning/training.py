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
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tune_hpc.learning.batching import Batching
from tune_hpc.learning.config import OPTIMIZER_DEFAULTS, complete
from tune_hpc.learning.data import ImageData, LineData, load_images
from tune_hpc.learning.models import build_model
from tune_hpc.learning.optimizers import build_optimizer
from tune_hpc.learning.schedules import build_schedule

#: A trial has diverged when its loss is not finite, or this many times its first one (or 1, if that is more): a softmax
#: regression at an absurd rate stays finite for ever, and nothing that far out was ever seen to come back.
DIVERGENCE_FACTOR = 1e4

#: Images a forward pass of an evaluation: large enough for the matrix products, small enough for the caches.
EVALUATION_CHUNK = 500

Report = Callable[[Any, Mapping[str, Any]], None]


class Checkpoint(Protocol):
    """Where a trainable leaves its state, and finds it again."""

    def load(self) -> Mapping[str, Any] | None:
        """Return the latest state, or ``None``."""

    def save(self, step: int, make_state: Callable[[], Mapping[str, Any]]) -> None:
        """Offer a state; it is made only when it is wanted now."""


class LineFit:
    """Exercise 1: the sum of squared errors over four points, all of them at every step."""

    num_steps: int | None = None
    samples_per_step = 4

    def __init__(self, config: Mapping[str, Any], device: torch.device) -> None:
        data = LineData(dtype=getattr(torch, config["precision"]))
        self.x, self.y = data.x.to(device), data.y.to(device)

    def epoch(self, step: int) -> int:
        """Every step is a pass over the data."""
        return step

    def loss(self, model: nn.Module, step: int) -> torch.Tensor:
        """Return the summed squared error, a scalar."""
        return (model(self.x) - self.y).square().sum()

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """There are no points beside the training points."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing here changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing here changes."""


class ImageClassification:
    """Mean cross-entropy over batches of images.

    Several replicas may share each batch: every one draws the whole batch and its dropout mask and takes its own slice,
    so the mean over replicas of their gradients is the gradient of the whole batch.

    Args:
        config: A completed configuration.
        images: The data set, on any device.
        device: Where to compute.
        replica: This replica's number.
        num_replicas: How many share a batch.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        images: ImageData,
        device: torch.device,
        replica: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.dtype = getattr(torch, config["precision"])
        self.images = _on_device(images, device)
        self.batching = Batching(config["batching"], len(images.train_labels), config["batch_size"], config["seed"])
        self.dropout = config["dropout"]
        self.dropout_generator = torch.Generator(device).manual_seed(config["seed"])
        self.num_evaluation_images = config["num_evaluation_images"]
        self.num_replicas = num_replicas
        batch_size = config["batch_size"]
        self.share = slice(replica * batch_size // num_replicas, (replica + 1) * batch_size // num_replicas)
        self.num_steps = self.batching.num_batches
        self.samples_per_step = batch_size

    def epoch(self, step: int) -> int:
        """Return how many passes are complete before a step."""
        return self.batching.epoch(step)

    def loss(self, model: nn.Module, step: int) -> torch.Tensor:
        """Return the mean cross-entropy of batch ``step``, a scalar.

        Of several replicas each returns its share's sum over the batch size, times the number of replicas.
        """
        images, labels, mask = self.batch(model, step)
        total = functional.cross_entropy(model(images, mask), labels, reduction="sum")
        return total * (self.num_replicas / self.samples_per_step)

    def batch(self, model: nn.Module, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return this replica's images, labels and dropout mask of batch ``step``."""
        device = self.images.train_images.device
        chosen = self.batching.indices(step)[self.share].to(device)
        images = _as_input(self.images.train_images[chosen], self.dtype)
        num_hidden = getattr(model, "module", model).num_hidden
        mask = None
        if self.dropout and num_hidden:
            mask = torch.empty(self.samples_per_step, num_hidden, dtype=self.dtype, device=device)
            mask.bernoulli_(1 - self.dropout, generator=self.dropout_generator).div_(1 - self.dropout)
            mask = mask[self.share]
        return images, self.images.train_labels[chosen], mask

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return loss and accuracy on the validation and the test images."""
        metrics = {}
        for split in ("valid", "test"):
            images, labels = _evaluation_split(self.images, split, self.num_evaluation_images, self.dtype)
            loss = torch.zeros((), dtype=torch.float64, device=images.device)
            correct = torch.zeros((), dtype=torch.int64, device=images.device)
            for chunk, chunk_labels in zip(images.split(EVALUATION_CHUNK), labels.split(EVALUATION_CHUNK), strict=True):
                logits = model(chunk)
                loss += functional.cross_entropy(logits, chunk_labels, reduction="sum")
                correct += (logits.argmax(1) == chunk_labels).sum()
            metrics[f"{split}_loss"] = loss.item() / len(labels)
            metrics[f"{split}_accuracy"] = correct.item() / len(labels)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return what the next batches depend on beside the step."""
        return {"dropout": self.dropout_generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        self.dropout_generator.set_state(state["dropout"])


@lru_cache(maxsize=2)
def _on_device(images: ImageData, device: torch.device) -> ImageData:
    """Keep a data set on a device from one trial of this process to the next."""
    return images.to(device)


@lru_cache(maxsize=4)
def _evaluation_split(images: ImageData, split: str, num: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep an evaluation split as floats: converting it costs a small model more than the evaluation itself."""
    return _as_input(getattr(images, f"{split}_images")[:num], dtype), getattr(images, f"{split}_labels")[:num]


def _as_input(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return bytes as fractions of full brightness."""
    return pixels.to(dtype).div_(255)


class Training:
    """A model, its optimizer and its task: everything that changes during a run, one step at a time.

    Args:
        config: A completed configuration.
        task: What is learned.
        device: Where to compute.
        wrap: Applied to the model before its first use, for instance to synchronise gradients between replicas.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        task: LineFit | ImageClassification,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    ) -> None:
        self.task = task
        self.model = build_model(config).to(device)
        self.wrapped_model = wrap(self.model)
        self.optimizer = build_optimizer(
            config["optimizer"],
            self.model.parameters(),
            config["learning_rate"],
            **{name: config[name] for name in OPTIMIZER_DEFAULTS[config["optimizer"]]},
        )
        self.schedule = build_schedule(config, task.epoch)
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
        ``status`` (finished or diverged), ``stop_reason`` in words, ``steps_run``, ``setup_s``, ``train_s``, ``eval_s``,
        ``samples_per_s`` and ``device``.

    Raises:
        InvalidConfigError: a rule of the configuration is broken.
        DataUnavailableError: the data set is not here and cannot be fetched.
    """
    entered = time.perf_counter()
    config = complete(config)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if config["data"] == "line":
        task: LineFit | ImageClassification = LineFit(config, place)
    else:
        task = ImageClassification(config, images or load_images(config["data"]), place)
    training = Training(config, task, place)
    num_steps = config["steps"] if task.num_steps is None else min(config["steps"], task.num_steps)
    progress: dict[str, Any] = {"step": 0, "first_loss": math.nan, "train_s": 0.0, "eval_s": 0.0}

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
        diverged_at = _first_divergence(curves["train_loss"], progress["first_loss"])
        healthy = len(curves["train_loss"]) if diverged_at is None else diverged_at
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
        "samples_per_s": steps_run * task.samples_per_step / train_s if train_s else math.nan,
        "device": _device_name(place),
    }


def _evaluation_steps(num_steps: int, num_evaluations: int) -> list[int]:
    """Return the steps after which the model is evaluated: evenly spaced, the last one included."""
    points = min(num_steps, num_evaluations)
    return [round(num_steps * (point + 1) / points) for point in range(points)]


def _run_block(training: Training, start: int, end: int, *, is_last: bool) -> dict[str, np.ndarray]:
    """Make the updates ``start`` to ``end`` and return one curve for each quantity.

    The loss after the very last update is known, too, where it needs no further batch: on the line. Nothing is read off
    the device before the block is done.
    """
    traced = training.traced
    with_last = is_last and isinstance(training.task, LineFit)
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


def _first_divergence(losses: np.ndarray, first_loss: float) -> int | None:
    """Return the index of the first loss that counts as diverged, or ``None``."""
    limit = DIVERGENCE_FACTOR * max(1.0, first_loss) if math.isfinite(first_loss) else math.inf
    healthy = np.isfinite(losses) & (losses <= limit)
    return None if healthy.all() else int(np.argmin(healthy))


def _divergence(loss: float, step: int) -> str:
    if not math.isfinite(loss):
        return f"non-finite loss at step {step}"
    return f"loss {loss:.3g} at step {step}, over {DIVERGENCE_FACTOR:g} times the first"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
