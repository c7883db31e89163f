"""Capture of a training step as a CUDA graph, and its replay without Python and with one launch.

A step of a small network is about a hundred kernels of microseconds, which a GPU executes faster than Python launches
them. A captured step reads its batch and learning rates from tables on the device, at a position that it increments.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

#: Eager steps before the capture, in which libraries allocate memory; they are regular steps of the training.
NUM_EAGER_STEPS = 3


class GraphCapture(Protocol):
    """Interface between the training loop and a capture of steps."""

    def eager_stream(self) -> AbstractContextManager[None]:
        """Return the context of the steps before the capture."""

    def capture(self, step: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Capture one step without running it; return its replay function."""


class CudaGraphCapture:
    """Capture on the current CUDA device."""

    @contextmanager
    def eager_stream(self) -> Iterator[None]:
        """Run the block on a side stream, as CUDA requires before a capture."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            yield
        torch.cuda.current_stream().wait_stream(side)

    def capture(self, step: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Capture one step; each replay advances the generators as an eager step does."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            step()
        return graph.replay
