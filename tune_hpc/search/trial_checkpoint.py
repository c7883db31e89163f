"""Checkpoint of a running trial: the state of its trainable, and the metrics that it has reported."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tune_hpc.search.stopping import StopRequest, StopRequested
from tune_hpc.storage.filesystem import Storage
from tune_hpc.storage.trial_file import TrialFileWriter


class TrialCheckpoint:
    """Checkpoint file of a trial or of a fused group; the ``checkpoint`` argument of a trainable.

    Args:
        path: The file.
        writers: Reported metrics of each trial; ``load`` restores them.
        interval_s: Seconds between two saved states.
        request: Stop request of the search; the next state after it is saved, and the trainable stops there. A trial of
            a superseded attempt stops without saving.
        max_step: Step from which on the trainable stops in the same way; ``None``: no such step.

    Attributes:
        has_stopped: Whether the trainable was stopped.
    """

    def __init__(
        self,
        path: Path,
        writers: Sequence[TrialFileWriter],
        interval_s: float,
        request: StopRequest | None = None,
        max_step: int | None = None,
    ) -> None:
        self.path = path
        self.writers = writers
        self.interval_s = interval_s
        self.has_stopped = False
        self._storage = Storage(path.parent)
        self._request = request
        self._max_step = max_step
        self._saved_at = time.monotonic()

    def load(self) -> Mapping[str, Any] | None:
        """Return the saved state, or ``None``."""
        if not self._storage.download(self.path):
            return None
        from tune_hpc.learning.checkpoint import load_state

        checkpoint = load_state(self.path)
        for writer, blocks in zip(self.writers, checkpoint["reported"], strict=True):
            writer.blocks[:] = [
                (np.asarray(steps, np.int64), {name: np.asarray(values, float) for name, values in metrics.items()})
                for steps, metrics in blocks
            ]
        return checkpoint["state"]

    def save(self, step: int, make_state: Callable[[], Mapping[str, Any]]) -> None:
        """Save a state if the previous one is old enough or the trial must stop.

        Raises:
            StopRequested: The trial must stop, and its state is saved.
        """
        is_requested = self._request is not None and self._request.is_made
        is_last = is_requested or (self._max_step is not None and step >= self._max_step)
        if not is_last and time.monotonic() - self._saved_at < self.interval_s:
            return
        if self._request is not None and not self._request.check():
            # Another attempt runs this trial now, from the previous state.
            self.has_stopped = True
            raise StopRequested
        from tune_hpc.learning.checkpoint import save_state

        reported = [
            [(steps.tolist(), {name: values.tolist() for name, values in metrics.items()}) for steps, metrics in blocks]
            for blocks in (writer.blocks for writer in self.writers)
        ]
        checkpoint = {"step": step, "state": make_state(), "reported": reported}
        self._storage.write_atomic(self.path, lambda path: save_state(path, checkpoint))
        self._saved_at = time.monotonic()
        if is_last:
            self.has_stopped = True
            raise StopRequested
