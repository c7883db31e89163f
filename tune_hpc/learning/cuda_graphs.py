"""Training steps recorded once as a CUDA graph and replayed: no Python and one launch a step.

A small network's step is some hundred kernels of microseconds each, which a GPU finishes sooner than Python can ask for
the next. What a step reads (which images, which learning rate) it finds at a position in tables on the device, and
moves on by one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch

#: Steps that run eagerly before the recording, so that libraries have allocated what they need; they are real ones.
NUM_EAGER_STEPS = 3


class GraphCapture(Protocol):
    """What the training loop wants of a way to record steps."""

    def eager_stream(self) -> AbstractContextManager[None]:
        """Be where steps run that come before the recording."""

    def record(self, step: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Record one step without making it; return what makes it."""


class CudaRecorder:
    """Records steps on the current CUDA device."""

    @contextmanager
    def eager_stream(self) -> Iterator[None]:
        """Run the block on a stream of its own, as a recording must be preceded by."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            yield
        torch.cuda.current_stream().wait_stream(side)

    def record(self, step: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Record one step; the generators' states move on at each replay as they would eagerly."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            step()
        return graph.replay
