"""What is learned: the line of Exercise 1, and the classification of images.

A task knows its data and its batches; it is a pure function of its configuration, apart from the dropout generator.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from tune_hpc.learning.batching import Batching
from tune_hpc.learning.data import ImageData, LineData

#: Images a forward pass of an evaluation: large enough for the matrix products, small enough for the caches.
EVALUATION_CHUNK = 250


class Task(Protocol):
    """What the training loop asks of a task.

    Attributes:
        num_steps: After how many steps the data end; ``None``: never.
        samples_per_step: Training samples a step.
        is_full_batch: Whether every step sees all the data, so that the loss is known after the last one, too.
    """

    num_steps: int | None
    samples_per_step: int
    is_full_batch: bool

    def epoch(self, step: int) -> int:
        """Return how many passes over the data are complete before a step."""

    def loss(self, model: nn.Module, step: int) -> torch.Tensor:
        """Return the loss of batch ``step``, a scalar on the device."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return metrics on data that are not trained on."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the next batches depend on beside the step."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""


class LineFit:
    """Exercise 1: the sum of squared errors over four points, all of them at every step."""

    num_steps: int | None = None
    samples_per_step = 4
    is_full_batch = True

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
        num_hidden: The model's units that dropout applies to.
        replica: This replica's number.
        num_replicas: How many share a batch.
    """

    is_full_batch = False

    def __init__(
        self,
        config: Mapping[str, Any],
        images: ImageData,
        device: torch.device,
        num_hidden: int,
        replica: int = 0,
        num_replicas: int = 1,
    ) -> None:
        self.dtype = getattr(torch, config["precision"])
        self.images = _on_device(images, device)
        self.batching = Batching(config["batching"], len(images.train_labels), config["batch_size"], config["seed"])
        self.dropout = config["dropout"]
        self.num_hidden = num_hidden
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
        images, labels, mask = self.batch(step)
        total = functional.cross_entropy(model(images, mask), labels, reduction="sum")
        return total * (self.num_replicas / self.samples_per_step)

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return this replica's images, labels and dropout mask of batch ``step``."""
        device = self.images.train_images.device
        chosen = self.batching.indices(step)[self.share].to(device)
        images = _as_input(self.images.train_images[chosen], self.dtype)
        mask = None
        if self.dropout and self.num_hidden:
            mask = torch.empty(self.samples_per_step, self.num_hidden, dtype=self.dtype, device=device)
            mask.bernoulli_(1 - self.dropout, generator=self.dropout_generator).div_(1 - self.dropout)
            mask = mask[self.share]
        return images, self.images.train_labels[chosen], mask

    @torch.inference_mode()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Return loss and accuracy on the validation and the test images."""
        metrics = {}
        for split in ("valid", "test"):
            images = getattr(self.images, f"{split}_images")[: self.num_evaluation_images]
            labels = getattr(self.images, f"{split}_labels")[: self.num_evaluation_images]
            # Bytes become floats a chunk at a time: reading floats from memory takes longer than making them.
            chunks = images.split(EVALUATION_CHUNK)
            logits = torch.cat([model(_as_input(chunk, self.dtype)) for chunk in chunks])
            metrics[f"{split}_loss"] = functional.cross_entropy(logits, labels).item()
            metrics[f"{split}_accuracy"] = (logits.argmax(1) == labels).double().mean().item()
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


def _as_input(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return bytes as fractions of full brightness."""
    return pixels.to(dtype).div_(255)
