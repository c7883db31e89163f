"""Communicator interface between the workers of one training, and its default for a single process.

The training loop supports any number of workers that share each batch. It calls its communicator for everything that
they do together, and all workers make the same calls in the same order. ``tune_hpc.scaling.communication`` implements
the communicator of several processes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import nn

Value = TypeVar("Value")


@dataclass
class Communicator:
    """Communicator of a single process.

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
