"""Capture of training steps as CUDA graphs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

#: Eager steps before the capture, in which libraries allocate memory; they are regular steps of the training.
NUM_EAGER_STEPS = 3


class CudaGraphCapture:
    """Capture of a training step as a CUDA graph, and its replay without Python and with one launch.

    A step of a small network is about a hundred kernels of microseconds, which a GPU executes faster than Python
    launches them.
    """

    @contextmanager
    def eager_stream(self) -> Iterator[None]:
        """Run the block on a side stream, as CUDA requires before a capture."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            yield
        torch.cuda.current_stream().wait_stream(side)

    def capture(self, step: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Capture one step without running it; return its replay, which advances the generators as the step does."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            step()
        return graph.replay


class CapturedSteps:
    """Captured steps of a training, which read batch and rates from tables at a position that they increment.

    Args:
        graph_capture: Capture of a step.
        step: Runs one update of a batch with learning rates, and writes its values to curves (quantities, members).
        make_curves: Makes a tensor for the curves of so many steps.
        generators: Random generators of the step.
        window: Maximum number of steps of a call of ``run``.
    """

    def __init__(
        self,
        graph_capture: CudaGraphCapture,
        step: Callable[[torch.Tensor, Sequence[Any], torch.Tensor], None],
        make_curves: Callable[[int], torch.Tensor],
        generators: Sequence[torch.Generator],
        window: int,
    ) -> None:
        self._graph_capture = graph_capture
        self._run_step = step
        self._make_curves = make_curves
        self._generators = generators
        self._window = window
        self._replay: Callable[[], None] | None = None
        self._num_eager = 0

    def run(self, indices: torch.Tensor, rates: Sequence[Any]) -> torch.Tensor:
        """Run the updates of a window; return their curves (quantities, members, steps)."""
        num_steps = len(indices)
        if self._replay is None:
            self._make_tables(indices, rates)
        for table, values in zip(self._tables, [indices, *rates], strict=True):
            table[:num_steps] = values
        self._position.zero_()
        for _ in range(num_steps):
            if self._replay is not None:
                self._replay()
            elif self._num_eager < NUM_EAGER_STEPS:
                self._num_eager += 1
                with self._graph_capture.eager_stream():
                    self._step()
            else:
                self._replay = self._graph_capture.capture(self._step, self._generators)
                self._replay()
        return self._curves[:, :, :num_steps].clone()

    def _make_tables(self, indices: torch.Tensor, rates: Sequence[Any]) -> None:
        self._tables = [values.new_empty(self._window, *values.shape[1:]) for values in (indices, *rates)]
        self._curves = self._make_curves(self._window)
        self._row = torch.empty_like(self._curves[:, :, 0])
        self._position = torch.zeros(1, dtype=torch.int64, device=indices.device)

    def _step(self) -> None:
        indices, *rates = (table.index_select(0, self._position)[0] for table in self._tables)
        self._run_step(indices, rates, self._row)
        self._curves.index_copy_(2, self._position, self._row[:, :, None])
        self._position += 1
