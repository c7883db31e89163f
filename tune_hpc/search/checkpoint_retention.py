"""Checkpoints that remain after the end of their trials.

A retained checkpoint is the file ``checkpoints/ID/STEP.checkpoint`` with the state that the trainable offered after a
number of steps. The policy of the experiment defines which of them remain:

    none    none
    best    those of the trials of the best configuration, each with the state whose metric counts: with the judge
            ``best`` that of the best step, otherwise the last one
    last    the last state of each trial
    all     the best and the last state of each trial

While the search runs, a trial has at most three of these files: the best state, the last one, and the best one at the
time of the checkpoint from which the trial would resume.
"""

import math
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from tune_hpc.analysis.aggregation import COMPLETED
from tune_hpc.analysis.checkpoints import nearest_step
from tune_hpc.errors import FolderError
from tune_hpc.search.trial_spec import RankedMetric
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter

MakeState = Callable[[], Mapping[str, Any]]


class TrialRetention:
    """Writes the retained checkpoints of one running trial.

    Args:
        folder: The experiment folder, with the attempt of the trial.
        writer: Reports of the trial, also those before it was resumed.
        metric: Metric that ranks trials.
        policy: One of ``options.POLICIES``.
    """

    def __init__(self, folder: ExperimentFolder, writer: TrialFileWriter, metric: RankedMetric, policy: str) -> None:
        self._folder = folder
        self._writer = writer
        self._metric = metric
        self._keeps_best = policy in ("best", "all") and metric.judge == "best"
        self._keeps_last = policy in ("last", "all") or (policy == "best" and metric.judge != "best")
        #: Best reported value with its first step, and the number of blocks of reports that were read for it.
        self._reported, self._reported_step, self._num_blocks = math.inf, 0, 0
        self._best_value = math.inf
        self._best: int | None = None
        self._last: int | None = None
        self._resumable: int | None = None
        self._offer: tuple[int, MakeState] | None = None

    @property
    def _trial_id(self) -> str:
        return str(self._writer.row["trial_id"])

    def offer(self, step: int, make_state: MakeState, is_last: bool | None = None) -> None:
        """Offer the state after a number of steps, whose metrics have been reported.

        Args:
            step: The number of steps.
            make_state: Returns the state.
            is_last: Whether the trial ends or pauses now; ``None``: unknown, so that the state may be requested later.
        """
        is_best = self._keeps_best and self._is_improved()
        if is_best or (self._keeps_last and is_last):
            self._write(step, make_state, is_best=is_best)
            self._offer = None
        else:
            self._offer = (step, make_state) if is_last is None else None

    def finish(self, status: str) -> None:
        """Write the last offered state if the policy requires it; delete all states of a failed trial.

        A storage that does not answer is reported in the log, and does not fail the trial.
        """
        try:
            # The states of a superseded attempt are those of another one by now.
            if not self._folder.is_superseded():
                self._finish(status)
        except FolderError as error:
            print(f"the retained states are not tidied up: {error}")

    def _finish(self, status: str) -> None:
        if status in ("failed", "diverged"):
            self.discard()
            return
        is_best = self._keeps_best and self._is_improved()
        if self._offer is not None and (self._keeps_last or is_best):
            try:
                self._write(*self._offer, is_best=is_best)
            except (Exception, SystemExit):  # noqa: BLE001 - functions of users may raise anything
                # The trainable has ended, and its results are complete.
                traceback.print_exc()
                print("the last state is not retained: make_state failed after the end of the trainable")
        self._resumable = None
        self._delete_superseded()

    def mark_resumable(self) -> None:
        """Record that the trial would resume from now on, so that the best state so far must stay."""
        self._resumable = self._best
        self._delete_superseded()

    def restore(self, step: int) -> None:
        """Delete the states after the step from which the trial resumes, and find the earlier ones."""
        self._reported, self._num_blocks = math.inf, 0
        self._is_improved()
        self._best_value = self._reported
        steps = self._folder.retained_steps(self._trial_id)
        for later in (one for one in steps if one > step):
            self._folder.storage.delete(self._folder.retained_checkpoint(self._trial_id, later))
        earlier = [one for one in steps if one <= step]
        if self._keeps_best:
            self._best = self._resumable = nearest_step(earlier, self._reported_step)
        self._last = max(earlier, default=None)

    def discard(self) -> None:
        """Delete all states of the trial."""
        self._folder.storage.delete_tree(self._folder.retained_checkpoints(self._trial_id))

    def _is_improved(self) -> bool:
        """Read new reports, and return whether the best value is better than that of the best retained state."""
        sign = 1.0 if self._metric.mode == "min" else -1.0
        for steps, metrics in self._writer.blocks[self._num_blocks :]:
            values = sign * metrics.get(self._metric.column, np.full(1, np.nan))
            if np.isfinite(values).any() and np.nanmin(values) < self._reported:
                first = int(np.nanargmin(values))
                self._reported, self._reported_step = float(values[first]), int(steps[first])
        self._num_blocks = len(self._writer.blocks)
        return self._reported < self._best_value

    def _write(self, step: int, make_state: MakeState, *, is_best: bool) -> None:
        """Write a state; a storage that rejects it is reported in the log, and does not fail the trial."""
        from tune_hpc.learning.checkpoint import save_state

        path = self._folder.retained_checkpoint(self._trial_id, step)
        try:
            if self._folder.is_superseded():
                return
            state = make_state()
            self._folder.storage.write_atomic(path, lambda file: save_state(file, state))
        except FolderError as error:
            print(f"the state after step {step} is not retained: {error}")
            return
        self._last = step
        if is_best:
            self._best, self._best_value = step, self._reported
        self._delete_superseded()

    def _delete_superseded(self) -> None:
        needed = {self._best, self._resumable, self._last if self._keeps_last else None} - {None}
        if needed:
            for step in self._folder.retained_steps(self._trial_id):
                if step not in needed:
                    with suppress(FolderError, OSError):  # The next state tries again.
                        self._folder.storage.delete(self._folder.retained_checkpoint(self._trial_id, step))


class SearchRetention:
    """Deletes the retained checkpoints of ended trials that the policy ``best`` does not keep.

    Trials of a configuration whose seeds have not all ended keep theirs.

    Args:
        folder: The experiment folder.
        num_seeds: Number of trials of each configuration.
        mode: ``min`` or ``max``.
        policy: One of ``options.POLICIES``; only ``best`` has an effect.
    """

    def __init__(self, folder: ExperimentFolder, num_seeds: int, mode: str, policy: str) -> None:
        self._folder = folder
        self._num_seeds = num_seeds
        self._sign = 1.0 if mode == "min" else -1.0
        self._is_active = policy == "best"
        self._values: dict[str, dict[str, float]] = {}
        self._best: str | None = None

    def record_end(self, trial_id: str, config: Mapping[str, Any], status: str, value: Any) -> None:
        """Record the end of a trial with the value of the metric that ranks trials.

        Args:
            trial_id: The trial.
            config: Its configuration.
            status: Its status; a failed or diverged trial excludes its configuration.
            value: The value; ``None`` or NaN if there is none.
        """
        if not self._is_active:
            return
        key = repr(sorted((name, repr(item)) for name, item in config.items() if name != "seed"))
        is_measured = status in COMPLETED and value is not None and math.isfinite(value)
        self._values.setdefault(key, {})[trial_id] = self._sign * value if is_measured else math.inf
        if len(self._values[key]) < self._num_seeds:
            return
        previous = self._best
        if self._score(key) < (math.inf if previous is None else self._score(previous)):
            self._best = key
        for loser in {previous, key} - {self._best, None}:
            for name in self._values[str(loser)]:
                self._folder.storage.delete_tree(self._folder.retained_checkpoints(name))

    def _score(self, key: str) -> float:
        values = list(self._values[key].values())
        return sum(values) / len(values)
