"""Batching policies: the order in which a training visits the samples.

Each policy is an infinite stream of sample indices, generated pass by pass. Batch ``k`` consists of its elements
``k * batch_size`` to ``(k + 1) * batch_size``. So a batch is a pure function of (policy, seed, step), and a resumed
trial needs no state. Each pass visits every sample once, even if the batch size does not divide the number of samples.

    single_pass   stored order, once; ends with the last full batch (the report's Table 4.1)
    sequential    stored order, repeated
    shuffled      new permutation in each pass
    random        sampled with replacement
"""

from typing import TypeVar

import numpy as np
import torch

from tune_hpc.learning.config import BATCHING_POLICIES, InvalidConfigError

Steps = TypeVar("Steps", int, np.ndarray)


class Batching:
    """Batches of sample indices by a batching policy.

    Args:
        policy: One of ``BATCHING_POLICIES``.
        num_samples: Number of training samples.
        batch_size: Samples in each batch.
        seed: Seed of ``shuffled`` and ``random``.

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
