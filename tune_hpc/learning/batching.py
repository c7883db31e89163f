"""Batching policies, the order in which a training visits the samples, and augmentation of its images.

A policy is an infinite stream of sample indices. Batch ``k`` consists of its elements ``k * batch_size`` to
``(k + 1) * batch_size``, a pure function of (policy, seed, step), so that a resumed trial needs no state.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn import functional

from tune_hpc.learning.config import BATCHING_POLICIES, IMAGE_SIDE, InvalidConfigError

Steps = TypeVar("Steps", int, np.ndarray)


class Batching:
    """Batches of sample indices by a policy; passes are complete, even if the batch size does not divide their length.

    ``single_pass`` and ``sequential`` follow the stored order; ``single_pass`` ends with the last full batch (the
    report's Table 4.1). ``shuffled`` has a new permutation in each pass, and ``random`` samples with replacement.

    Raises:
        InvalidConfigError: an unknown policy, or a batch larger than the data.
    """

    def __init__(self, policy: str, num_samples: int, batch_size: int, seed: int) -> None:
        if policy not in BATCHING_POLICIES:
            raise InvalidConfigError(f"batching must be one of {', '.join(BATCHING_POLICIES)}; got {policy!r}")
        if not 1 <= batch_size <= num_samples:
            raise InvalidConfigError(f"batch_size must be 1 to {num_samples}, the training samples; got {batch_size}")
        self.policy = policy
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self._passes: dict[int, torch.Tensor] = {}

    @property
    def num_batches(self) -> int | None:
        """Number of batches; ``None`` for an infinite stream."""
        return self.num_samples // self.batch_size if self.policy == "single_pass" else None

    def epoch(self, step: Steps) -> Steps:
        """Return the number of complete passes before batch ``step``, a number or an array."""
        return step * self.batch_size // self.num_samples

    def indices(self, step: int) -> torch.Tensor:
        """Return the samples of batch ``step``: int64 indices of shape (batch_size,).

        Raises:
            IndexError: the single pass has ended.
        """
        if self.num_batches is not None and step >= self.num_batches:
            raise IndexError(f"a single pass has {self.num_batches} batches of {self.batch_size}; got number {step}")
        epoch, start = divmod(step * self.batch_size, self.num_samples)
        end = start + self.batch_size
        first = self._pass(epoch)[start:end]
        if end <= self.num_samples:
            return first
        return torch.cat([first, self._pass(epoch + 1)[: end - self.num_samples]])

    def _pass(self, epoch: int) -> torch.Tensor:
        """Return the order of one pass; cache the latest two."""
        if self.policy in ("single_pass", "sequential"):
            epoch = 0
        if epoch not in self._passes:
            self._passes = {number: order for number, order in self._passes.items() if number == epoch - 1}
            self._passes[epoch] = self._order(epoch)
        return self._passes[epoch]

    def _order(self, epoch: int) -> torch.Tensor:
        if self.policy in ("single_pass", "sequential"):
            return torch.arange(self.num_samples)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.policy == "shuffled":
            return torch.randperm(self.num_samples, generator=generator)
        return torch.randint(self.num_samples, (self.num_samples,), generator=generator)


#: Random numbers for each image: shift to the right, shift down, rotation and scaling.
NUMBERS_PER_IMAGE = 4


class RandomAffine:
    """Random shift, rotation and scaling of images within bounds; pixels from outside the image are black.

    Each use of an image has new random parameters. An augmented batch is a pure function of the random numbers of the
    task's generators, so a CUDA graph can capture it.

    Args:
        config: ``max_shift`` (pixels), ``max_rotation`` (degrees) and ``max_scaling`` (fraction of the size).
        dtype: Type of the images.
        device: Device of the images.
    """

    def __init__(self, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> None:
        # The unit of grid_sample is half a side.
        shift = 2 * config["max_shift"] / IMAGE_SIDE
        bounds = [shift, shift, math.radians(config["max_rotation"]), config["max_scaling"]]
        self._bounds = torch.tensor(bounds, dtype=torch.float32, device=device)[:, None]
        centres = (2 * torch.arange(IMAGE_SIDE, dtype=dtype, device=device) + 1) / IMAGE_SIDE - 1
        down, right = torch.meshgrid(centres, centres, indexing="ij")
        self._positions = torch.stack([right.flatten(), down.flatten()])
        self._dtype = dtype

    @staticmethod
    def has_augmentation(config: Mapping[str, Any]) -> bool:
        """Return whether a configuration has any augmentation."""
        return any(config[name] for name in ("max_shift", "max_rotation", "max_scaling"))

    def __call__(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return augmented images, (S, N, 1, 28, 28).

        Args:
            images: (S, N, 1, 28, 28).
            noise: (S, 4, N) in [0, 1): positions of shift right, shift down, clockwise rotation and scaling between
                their bounds.
        """
        parameters = ((2 * noise - 1) * self._bounds).to(self._dtype).transpose(0, 1).flatten(1)
        right, down, angle, growth = parameters
        # grid_sample takes the source of each output pixel, which is the inverse transformation.
        cosine, sine = angle.cos() / (1 + growth), angle.sin() / (1 + growth)
        rotation = torch.stack([torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)], 1)
        positions = self._positions - torch.stack([right, down], 1)[:, :, None]
        sources = (rotation @ positions).transpose(1, 2).unflatten(1, (IMAGE_SIDE, IMAGE_SIDE))
        moved = functional.grid_sample(images.flatten(0, 1), sources, align_corners=False)
        return moved.unflatten(0, images.shape[:2])
