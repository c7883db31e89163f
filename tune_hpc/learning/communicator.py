"""What the processes of one training have in common; one process alone is a team of one.

The training loop is written for any number of workers that share each batch. All that they must do together it asks of
its communicator, and every worker asks the same in the same order. How several do it is in ``tune_hpc.scaling.communication``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import nn

Value = TypeVar("Value")


@dataclass
class Communicator:
    """One process alone.

    Attributes:
        rank: This worker's number, from 0.
        size: How many workers share each batch.
        allow_cuda_graphs: Whether a GPU may record a step and replay it.
    """

    rank: int = 0
    size: int = 1
    allow_cuda_graphs: bool = True

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return a model whose gradients are those of the whole batch once it went backward."""
        return model

    def after_step(self, model: nn.Module, step: int) -> None:
        """Do what is due after ``step`` updates of a model, where gradients are not what is exchanged."""

    def sync_parameters(self, model: nn.Module) -> None:
        """Give all workers the same parameters, where these may differ between two exchanges."""

    def mean(self, curves: np.ndarray) -> np.ndarray:
        """Return the mean over the workers of what each of them measured on its share."""
        return curves

    def broadcast_from_rank0(self, make: Callable[[], Value]) -> Value:
        """Return what the first worker makes; the others wait for it."""
        return make()
