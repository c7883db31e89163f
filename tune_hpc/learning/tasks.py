"""Tasks: data, batches and losses of all members of a stack, for line regression and image classification."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tune_hpc.learning.batching import NUMBERS_PER_IMAGE, Batching, RandomAffine
from tune_hpc.learning.data import ImageData
from tune_hpc.learning.evaluation import as_input, evaluate
from tune_hpc.learning.models import Model, parameter_type


class SeededRng:
    """Random numbers from one generator for each distinct seed of the members; streams 0 and 1 are independent.

    The numbers are float32 in every precision, so that all precisions drop the same units and move the same images.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, stream: int = 0) -> None:
        distinct = list(dict.fromkeys(seeds))
        # torch's CPU generator takes a seed of 32 bits, and those of a configuration have 31.
        self.generators = [torch.Generator(device).manual_seed(seed + stream * 2**31) for seed in distinct]
        self._positions = member_positions(seeds, distinct, device)
        self._device = device

    def draw(self, *shape: int) -> torch.Tensor:
        """Return numbers in [0, 1) of shape (M, *shape), or (1, *shape) if all members have one seed."""
        noise = torch.stack(
            [torch.rand(shape, dtype=torch.float32, device=self._device, generator=one) for one in self.generators]
        )
        return noise if self._positions is None else noise[self._positions]

    def state_dict(self) -> list[torch.Tensor]:
        """Return the states of the generators."""
        return [generator.get_state() for generator in self.generators]

    def load_state_dict(self, state: Sequence[Any]) -> None:
        """Restore the states of ``state_dict``."""
        for generator, generator_state in zip(self.generators, state, strict=True):
            generator.set_state(generator_state)


def member_positions(values: Sequence[int], distinct: Sequence[int], device: torch.device) -> torch.Tensor | None:
    """Return the index of each value in ``distinct``; ``None`` if there is only one distinct value."""
    if len(distinct) == 1:
        return None
    return torch.tensor([distinct.index(value) for value in values], device=device)


class LineRegression:
    """Exercise 1: sum of squared errors over four points, all of them in every step.

    The points, 1 to 4, lie on y = 1 - x. See ``ImageClassification`` for the methods.
    """

    samples_per_step = 4
    is_full_batch = True

    def __init__(self, configs: Sequence[Mapping[str, Any]], device: torch.device) -> None:
        x = torch.arange(1, 5, dtype=parameter_type(configs[0]["precision"]), device=device)
        self.x, self.y = torch.stack([x, torch.ones_like(x)]), 1 - x
        self.num_steps = None
        self.generators: list[torch.Generator] = []
        self._slopes = 2 * self.x.T.contiguous()

    def epochs(self, steps: np.ndarray) -> np.ndarray:
        """Return the number of passes before each step: one in each step."""
        return steps

    def batch_indices(self, start: int, end: int) -> torch.Tensor:
        """Return empty indices, because each step uses all points."""
        return torch.empty(end - start, 0, device=self.x.device)

    def losses(self, model: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        """Return the sums of squared errors, (M,)."""
        return (model(self.x) - self.y).square().sum(1)

    @torch.no_grad()
    def backward(self, model: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        """Return the losses and set the gradients; this formula is seven times faster than autograd."""
        coefficients: torch.Tensor = model.coefficients  # type: ignore[assignment]
        errors = coefficients @ self.x - self.y
        coefficients.grad = errors @ self._slopes
        return (errors * errors).sum(1)

    def evaluate(self, model: Model, num_threads: int = 1, *, is_last: bool = False) -> dict[str, list[float]]:
        """Return no metrics, because there are no validation and test data."""
        return {}

    def predictions(self, member: int) -> dict[str, np.ndarray]:
        """Return no predictions, because there are no test data."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore nothing."""


class ImageClassification:
    """Mean cross-entropy over batches of images.

    Members with one seed have the same batches and random numbers. If all members have one seed, a batch exists only
    once. Several replicas may share each batch: each of them generates the indices and random numbers of the whole
    batch and takes its slice, so the mean of their gradients is the gradient of the whole batch.

    Args:
        configs: Completed configurations with the same data, batch size, batching, augmentation, precision and
            evaluation.
        images: Data set on any device.
        device: Device of the computation.
        num_hidden: Number of units with dropout.
        replica: Number of this replica.
        num_replicas: Number of replicas that share a batch.

    Attributes:
        num_steps: Number of steps until the data end; ``None``: no limit.
        samples_per_step: Training samples in each step.
        is_full_batch: Whether a step uses all data, so that the loss after the last step is defined, too.
        generators: Random generators of a step.
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
        self.num_evaluation_images = dict.fromkeys(("valid", "test"), first["num_evaluation_images"])
        self.num_fit_images = first.get("num_fit_images")
        self.num_replicas = num_replicas
        self.share = slice(replica * batch_size // num_replicas, (replica + 1) * batch_size // num_replicas)
        self.num_steps = next(iter(self._streams.values())).num_batches
        self.samples_per_step = batch_size
        self._predictions = np.empty((len(configs), 0), np.uint8)

    def epochs(self, steps: np.ndarray) -> np.ndarray:
        """Return the number of complete passes over the data before each step."""
        return next(iter(self._streams.values())).epoch(steps)

    def batch_indices(self, start: int, end: int) -> torch.Tensor:
        """Return this replica's samples of the steps ``start`` to ``end``, (steps, streams, samples)."""
        streams = [
            torch.stack([stream.indices(step)[self.share] for step in range(start, end)])
            for stream in self._streams.values()
        ]
        return torch.stack(streams, dim=1).to(self.device)

    def backward(self, model: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        """Return the losses, (M,), and set the gradients of the parameters."""
        losses = self.losses(model, indices)
        # The parameters of a member affect only its own loss, so the gradient of the sum consists of all gradients.
        losses.sum().backward()
        return losses.detach()

    def losses(self, model: nn.Module, indices: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropies of a batch, (M,).

        Each of several replicas returns the sum of its share over the batch size, times the number of replicas.
        """
        images, labels, mask = self.batch(indices)
        with _products(self.device, self.precision):
            logits = model(images, mask)
        losses = functional.cross_entropy(
            logits.to(self.dtype), labels.expand(self.num_members, -1).contiguous(), reduction="none"
        )
        return losses.sum(1) * (self.num_replicas / self.samples_per_step)

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return this replica's slice of a batch.

        Args:
            indices: (streams, samples).

        Returns:
            Images (1 or M, N, 1, 28, 28), labels (1 or M, N) and dropout mask (M, num_hidden, N) or ``None``. All
            members share an axis of 1.
        """
        if self._stream_positions is not None:
            indices = indices[self._stream_positions]
        pixels = self.images.train_images.index_select(0, indices.flatten()).unflatten(0, indices.shape)
        labels = self.images.train_labels.index_select(0, indices.flatten()).unflatten(0, indices.shape)
        return self._augmented(as_input(pixels, self.dtype)), labels, self._mask()

    def _augmented(self, images: torch.Tensor) -> torch.Tensor:
        if "distortions" not in self._noise:
            return images
        noise = self._noise["distortions"].draw(NUMBERS_PER_IMAGE, self.samples_per_step)[:, :, self.share]
        # Members with different seeds may share the images, but not their augmentation.
        return self._augment(images.expand(len(noise), *images.shape[1:]), noise)

    def _mask(self) -> torch.Tensor | None:
        if "dropout" not in self._noise:
            return None
        noise = self._noise["dropout"].draw(self.num_hidden, self.samples_per_step)[:, :, self.share]
        return (noise >= self._dropout).to(self.dtype).div_(1 - self._dropout.to(self.dtype))

    def evaluate(self, model: Model, num_threads: int = 1, *, is_last: bool = False) -> dict[str, list[float]]:
        """Return the metrics of each member on the validation and test images; see ``evaluation.evaluate``.

        After the last step, those on training images follow, if the configuration requests them.
        """
        fit_images = {"fit": self.num_fit_images} if is_last and self.num_fit_images else {}
        num_images = self.num_evaluation_images | fit_images
        products = partial(_products, self.device, self.precision)
        metrics, self._predictions = evaluate(model, self.images, num_images, self.dtype, products, num_threads)
        return metrics

    def predictions(self, member: int) -> dict[str, np.ndarray]:
        """Return ``predictions`` and ``labels``: classes of the test images in the latest evaluation, (N,) uint8."""
        predictions = self._predictions[member]
        labels = self.images.test_labels[: len(predictions)].to(torch.uint8)
        return {"predictions": predictions, "labels": labels.cpu().numpy()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random generators."""
        return {name: noise.state_dict() for name, noise in self._noise.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``state_dict``."""
        for name, noise in self._noise.items():
            noise.load_state_dict(state[name])


#: Data, batches and losses of the members of a stack.
Task = LineRegression | ImageClassification


def _products(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context of matrix products in a precision."""
    if precision != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@lru_cache(maxsize=2)
def _on_device(images: ImageData, device: torch.device) -> ImageData:
    """Cache a data set on a device for the next trials of this process."""
    return images.to(device)
