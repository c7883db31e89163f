"""Argument ``checkpoint`` of a trainable: the state of a trial, from which it resumes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tune_hpc.errors import FolderError
from tune_hpc.search.checkpoint_retention import MakeState, TrialRetention
from tune_hpc.search.reporter import whole_steps
from tune_hpc.search.stopping import StopRequest, StopRequested, TimeLimit
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
        may_pause: Whether the trainable may stop there now: the metric on which a scheduler decides must be known.
        time_limit: Time limit of the trial or the group; the time of the run that saved a state counts.
        retentions: Retention of each trial's states after its end; empty: none are retained.

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
        may_pause: Callable[[], bool] = lambda: True,
        time_limit: TimeLimit | None = None,
        retentions: Sequence[TrialRetention] = (),
    ) -> None:
        self.path = path
        self.writers = writers
        self.interval_s = interval_s
        self.has_stopped = False
        self._storage = Storage(path.parent)
        self._request = request
        self._max_step = max_step
        self._may_pause = may_pause
        self._time_limit = time_limit or TimeLimit()
        self._keepers = retentions
        self._keeps_saved_states = True
        self._saved_at = time.monotonic()

    def load(self) -> Mapping[str, Any] | None:
        """Return the saved state, or ``None``.

        Raises:
            StopRequested: The storage does not answer, so that the trial starts when the search is resumed. Or the
                state is that of the step at which the trial stops: its process was killed right after it.
            FolderError: The file is damaged.
        """
        try:
            is_saved = self._storage.download(self.path)
        except FolderError as error:
            print(f"the trial does not start: {error}")
            self.has_stopped = True
            raise StopRequested from None
        if not is_saved:
            for retention in self._keepers:
                retention.discard()
            return None
        from tune_hpc.learning.checkpoint import load_state

        checkpoint = load_state(self.path)
        if not isinstance(checkpoint, dict):
            raise FolderError(f"{self.path} is no checkpoint of a trial; delete it to restart the trial")
        self._time_limit.add(checkpoint.get("elapsed_s", 0.0))
        for writer, blocks in zip(self.writers, checkpoint["reported"], strict=True):
            writer.blocks[:] = [
                (np.asarray(steps, np.int64), {name: np.asarray(values, float) for name, values in metrics.items()})
                for steps, metrics in blocks
            ]
        for retention in self._keepers:
            retention.restore(checkpoint["step"])
        if self._pauses_at(checkpoint["step"]):
            self.has_stopped = True
            raise StopRequested
        return checkpoint["state"]

    def keep(self, step: int, make_state: MakeState, *, is_last: bool | None = None, member: int = 0) -> None:
        """Offer a state that may remain after the end of the trial, instead of the states that ``save`` offers.

        Args:
            step: Number of steps; their metrics have been reported.
            make_state: Returns the state. It may be called later, even after the end of the trainable.
            is_last: Whether the trial ends with this state; with a value, ``make_state`` is called now or never.
            member: Number of the trial in a fused group.
        """
        self._keeps_saved_states = False
        step = _whole_step(step)
        self._keep(step, make_state, is_last, member)

    def _keep(self, step: int, make_state: MakeState, is_last: bool | None, member: int) -> None:
        if self._keepers:
            self._keepers[member].offer(step, make_state, True if self._stops_at(step) else is_last)

    def _stops_at(self, step: int) -> bool:
        """Return whether the trial must save its state at a step and stop."""
        is_requested = self._request is not None and self._request.is_made
        return is_requested or self._pauses_at(step)

    def _pauses_at(self, step: int) -> bool:
        """Return whether a scheduler pauses the trial at a step."""
        return self._max_step is not None and step >= self._max_step and self._may_pause()

    def save(self, step: int, make_state: MakeState) -> None:
        """Save a state if the previous one is old enough or the trial must stop.

        A storage that rejects the state is reported in the log, and does not fail the trial: the previous state stays.

        Raises:
            StopRequested: The trial must stop, and its state is saved.
            TimeLimitReached: The time of the trial is over.
        """
        step = _whole_step(step)
        if self._keeps_saved_states:
            self._keep(step, make_state, None, 0)
        self._time_limit.check()
        is_last = self._stops_at(step)
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
        checkpoint = {
            "step": step, "elapsed_s": self._time_limit.elapsed_s, "state": make_state(), "reported": reported
        }  # fmt: skip
        try:
            self._storage.write_atomic(self.path, lambda path: save_state(path, checkpoint))
        except FolderError as error:
            print(f"the state after step {step} is not saved: {error}")
        else:
            for retention in self._keepers:
                retention.mark_resumable()
        self._saved_at = time.monotonic()
        if is_last:
            self.has_stopped = True
            raise StopRequested


def _whole_step(step: Any) -> int:
    steps = whole_steps(step)
    if len(steps) != 1:
        raise ValueError(f"a state has one step; got {step!r}")
    return int(steps[0])
