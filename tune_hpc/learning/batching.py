"""The order in which training samples are visited, by the name of a batching policy.

Every policy is one endless stream of sample indices, made pass by pass; batch ``k`` is the stream's elements
``k * batch_size`` to ``(k + 1) * batch_size``. So a batch is a pure function of (policy, seed, step): resuming needs no
state, and each pass visits every sample exactly once even where the batch size does not divide the data.

    single_pass   the stored order, once; it ends with the last full batch (the report's Table 4.1)
    sequential    the stored order, again and again
    shuffled      a fresh permutation each pass
    random        drawn with replacement
"""

from typing import TypeVar

import numpy as np
import torch

from tune_hpc.learning.config import BATCHING_POLICIES, InvalidConfigError

Steps = TypeVar("Steps", int, np.ndarray)


class Batching:
    """Batches of sample indices.

    Args:
        policy: One of ``BATCHING_POLICIES``.
        num_samples: Training samples.
        batch_size: Samples a batch.
        seed: Fixes ``shuffled`` and ``random``.

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
        """How many batches there are; ``None`` for an endless stream."""
        return self.num_samples // self.batch_size if self.policy == "single_pass" else None

    def epoch(self, step: Steps) -> Steps:
        """Return how many passes over the data are complete before batch ``step``, a number or an array of them."""
        return step * self.batch_size // self.num_samples

    def indices(self, step: int) -> torch.Tensor:
        """Return the samples of batch ``step`` as int64 indices of shape (batch_size,).

        Raises:
            IndexError: a single pass is over.
        """
        if self.num_batches is not None and step >= self.num_batches:
            raise IndexError(
                f"a single pass has {self.num_batches} batches of {self.batch_size}; asked for number {step}"
            )
        epoch, start = divmod(step * self.batch_size, self.num_samples)
        end = start + self.batch_size
        first = self._pass(epoch)[start:end]
        if end <= self.num_samples:
            return first
        return torch.cat([first, self._pass(epoch + 1)[: end - self.num_samples]])

    def _pass(self, epoch: int) -> torch.Tensor:
        """Return the order of one pass, keeping only the latest two in memory."""
        if self.policy in ("single_pass", "sequential"):
            epoch = 0
        if epoch not in self._passes:
            self._passes = {kept: order for kept, order in self._passes.items() if kept == epoch - 1}
            self._passes[epoch] = self._order(epoch)
        return self._passes[epoch]

    def _order(self, epoch: int) -> torch.Tensor:
        if self.policy in ("single_pass", "sequential"):
            return torch.arange(self.num_samples)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        if self.policy == "shuffled":
            return torch.randperm(self.num_samples, generator=generator)
        return torch.randint(self.num_samples, (self.num_samples,), generator=generator)
