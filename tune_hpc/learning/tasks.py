"""What is learned: the line of Exercise 1, and the classification of images.

A task supports its data and its batches, those of every member of a stack. It is a pure function of its configurations,
apart from the generators of dropout and distortions.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tune_hpc.learning.augmentation import NUMBERS_PER_IMAGE, RandomAffine
from tune_hpc.learning.batching import Batching
from tune_hpc.learning.data import ImageData, LineData
from tune_hpc.learning.evaluation import as_input, evaluate
from tune_hpc.learning.models import Model, parameter_type
from tune_hpc.learning.seeded_rng import SeededRng, member_positions


class Task(Protocol):
    """What the training loop asks of a task.

    Attributes:
        num_steps: After how many steps the data end; ``None``: never.
        samples_per_step: Training samples a step.
        is_full_batch: Whether every step sees all the data, so that the loss is known after the last one, too.
        generators: What a step draws from.
    """

    num_steps: int | None
    samples_per_step: int
    is_full_batch: bool
    generators: list[torch.Generator]

    def epochs(self, steps: np.ndarray) -> np.ndarray:
        """Return how many passes over the data are complete before each of some steps."""

    def batch_indices(self, start: int, end: int) -> torch.Tensor:
        """Return which samples the steps ``start`` to ``end`` see, on the device: (steps, streams, samples)."""

    def backward(self, model: nn.Module, chosen: torch.Tensor) -> torch.Tensor:
        """Return each member's loss on a batch, (M,), and leave the gradients at the parameters."""

    def losses(self, model: nn.Module, chosen: torch.Tensor) -> torch.Tensor:
        """Return each member's loss on a batch, (M,)."""

    def evaluate(self, model: Model) -> dict[str, list[float]]:
        """Return each member's metrics on data that are not trained on."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the next batches depend on beside the step."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""


class LineRegression:
    """Exercise 1: the sum of squared errors over four points, all of them at every step."""

    num_steps: int | None = None
    samples_per_step = 4
    is_full_batch = True

    def __init__(self, configs: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        data = LineData(dtype=parameter_type(configs[0]["precision"]))
        self.x, self.y = torch.stack([data.x, torch.ones_like(data.x)]).to(device), data.y.to(device)
        self.generators: list[torch.Generator] = []
        self._slopes = 2 * self.x.T.contiguous()

    def epochs(self, steps: np.ndarray) -> np.ndarray:
        """Every step is a pass over the data."""
        return steps

    def batch_indices(self, start: int, end: int) -> torch.Tensor:
        """Nothing is chosen: all points are seen."""
        return torch.empty(end - start, 0, device=self.x.device)

    def losses(self, model: nn.Module, chosen: torch.Tensor) -> torch.Tensor:
        """Return the summed squared errors, (M,)."""
        return (model(self.x) - self.y).square().sum(1)

    @torch.no_grad()
    def backward(self, model: nn.Module, chosen: torch.Tensor) -> torch.Tensor:
        """Return the losses, and leave the gradients: written out, since autograd takes seven times as long."""
        coefficients: torch.Tensor = model.coefficients  # type: ignore[assignment]
        errors = coefficients @ self.x - self.y
        coefficients.grad = errors @ self._slopes
        return (errors * errors).sum(1)

    def evaluate(self, model: Model) -> dict[str, list[float]]:
        """There are no points beside the training points."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Nothing here changes."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing here changes."""


class ImageClassification:
    """Mean cross-entropy over batches of images.

    Members of one seed see the same batches and draw the same noise; where all members do, a batch is there once, for
    all of them. Several replicas may share each batch: every one draws the whole batch and its noise and takes its own
    slice, so the mean over replicas of their gradients is the gradient of the whole batch.

    Args:
        configs: Completed configurations, alike in data, batch size, batching, distortions, precision and evaluation.
        images: The data set, on any device.
        device: Where to compute.
        num_hidden: The model's units that dropout applies to.
        replica: This replica's number.
        num_replicas: How many share a batch.
    """

    is_full_batch = False

    def __init__(
        self,
        configs: Sequence[Mapping[str, Any]],
        images: ImageData,
        device: torch.device,
        num_hidden: int,
        replica: int = 0,
        num_replicas: int = 1,
    ) -> None:
        first = configs[0]
        self.num_members = len(configs)
        self.precision = first["precision"]
        self.dtype = parameter_type(self.precision)
        self.device = device
        self.images = _on_device(images, device)
        batch_size = first["batch_size"]
        seeds = [config["seed"] for config in configs]
        self._streams = {
            seed: Batching(first["batching"], len(images.train_labels), batch_size, seed)
            for seed in (seeds if first["batching"] in ("shuffled", "random") else seeds[:1])
        }
        self._stream_positions = member_positions(seeds, list(self._streams), device)
        self._noise: dict[str, SeededRng] = {}
        self.num_hidden = num_hidden
        if num_hidden and any(config["dropout"] for config in configs):
            self._noise["dropout"] = SeededRng(seeds, device)
            dropout = torch.tensor([config["dropout"] for config in configs], dtype=torch.float32, device=device)
            self._dropout = dropout[:, None, None]
        if RandomAffine.has_augmentation(first):
            self._noise["distortions"] = SeededRng(seeds, device, stream=1)
            self._augment = RandomAffine(first, self.dtype, device)
        self.generators = [generator for noise in self._noise.values() for generator in noise.generators]
        self.num_evaluation_images = first["num_evaluation_images"]
        self.num_replicas = num_replicas
        self.share = slice(replica * batch_size // num_replicas, (replica + 1) * batch_size // num_replicas)
        self.num_steps = next(iter(self._streams.values())).num_batches
        self.samples_per_step = batch_size

    def epochs(self, steps: np.ndarray) -> np.ndarray:
        """Return how many passes are complete before each of some steps."""
        return next(iter(self._streams.values())).epoch(steps)

    def batch_indices(self, start: int, end: int) -> torch.Tensor:
        """Return the images of the steps ``start`` to ``end``: (steps, streams, samples), this replica's share."""
        streams = [
            torch.stack([stream.indices(step)[self.share] for step in range(start, end)])
            for stream in self._streams.values()
        ]
        return torch.stack(streams, dim=1).to(self.device)

    def backward(self, model: nn.Module, chosen: torch.Tensor) -> torch.Tensor:
        """Return the losses, (M,), and leave the gradients at the parameters."""
        losses = self.losses(model, chosen)
        # Each member's parameters meet its own loss only: the gradient of the sum is the gradients of all.
        losses.sum().backward()
        return losses.detach()

    def losses(self, model: nn.Module, chosen: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropies of a batch, (M,).

        Of several replicas each returns its share's sum over the batch size, times the number of replicas.
        """
        images, labels, mask = self.batch(chosen)
        with _products(self.device, self.precision):
            logits = model(images, mask)
        each = functional.cross_entropy(
            logits.to(self.dtype), labels.expand(self.num_members, -1).contiguous(), reduction="none"
        )
        return each.sum(1) * (self.num_replicas / self.samples_per_step)

    def batch(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return this replica's share of a batch.

        Args:
            chosen: (streams, samples).

        Returns:
            Images (1 or M, N, 1, 28, 28), labels (1 or M, N) and dropout mask (M, num_hidden, N) or ``None``; an axis
            of 1 is shared by all members.
        """
        if self._stream_positions is not None:
            chosen = chosen[self._stream_positions]
        pixels = self.images.train_images.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
        labels = self.images.train_labels.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
        return self._augmented(as_input(pixels, self.dtype)), labels, self._mask()

    def _augmented(self, images: torch.Tensor) -> torch.Tensor:
        if "distortions" not in self._noise:
            return images
        noise = self._noise["distortions"].draw(NUMBERS_PER_IMAGE, self.samples_per_step)[:, :, self.share]
        # Members of several seeds may share the images, but never what is done to them.
        return self._augment(images.expand(len(noise), *images.shape[1:]), noise)

    def _mask(self) -> torch.Tensor | None:
        if "dropout" not in self._noise:
            return None
        noise = self._noise["dropout"].draw(self.num_hidden, self.samples_per_step)[:, :, self.share]
        return (noise >= self._dropout).to(self.dtype).div_(1 - self._dropout.to(self.dtype))

    def evaluate(self, model: Model) -> dict[str, list[float]]:
        """Return each member's loss and accuracy on the validation and the test images."""
        return evaluate(
            model, self.images, self.num_evaluation_images, self.dtype, partial(_products, self.device, self.precision)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the next batches depend on beside the step."""
        return {name: noise.state_dict() for name, noise in self._noise.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        for name, noise in self._noise.items():
            noise.load_state_dict(state[name])


def _products(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Make matrix products in the type that the configuration names."""
    if precision != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@lru_cache(maxsize=2)
def _on_device(images: ImageData, device: torch.device) -> ImageData:
    """Keep a data set on a device from one trial of this process to the next."""
    return images.to(device)
