"""What a trial says while it runs, and where it goes: its record, its checkpoint, its log, and now and then Ray."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from tune_hpc.search.stop_request import StopRequest, StopRequested
from tune_hpc.storage.experiment_folder import write_atomic
from tune_hpc.storage.filesystem import pull, push
from tune_hpc.storage.trial_file import TrialFileWriter

#: Each report to Ray costs milliseconds; the progress bar needs no more than this.
REPORT_INTERVAL_S = 1.0
#: Metrics that are the best of what is reported under another name.
BEST_OF = {"best_valid_accuracy": "valid_accuracy", "best_test_accuracy": "test_accuracy"}
#: What a trial under way has reported is written down no more often than this, and never for more than one part in
#: this many of the time.
KEEP_INTERVAL_S = 5.0
KEEP_RATIO = 100


class Diverged(Exception):
    """Unwinds a trainable that reported a non-finite metric."""


@dataclass(frozen=True)
class MonitoredMetric:
    """What a scheduler is shown of a trial.

    Attributes:
        column: A metric that the trainable reports.
        is_best: Whether its best value so far, not its latest.
        mode: ``min`` or ``max``.
    """

    column: str
    is_best: bool
    mode: str

    def shown(self, value: float, before: float) -> float:
        """Return what is shown after a new value; ``before`` is what was shown last, NaN at first."""
        if not self.is_best or math.isnan(before):
            return value
        return min(value, before) if self.mode == "min" else max(value, before)


class Reporter:
    """The ``report`` that a trainable is given.

    Args:
        record: Where everything is kept.
        metric: The metric that must stay finite.
        forward: Called with the metric's latest value.
        decision: Shown what it watches, where a scheduler decides on the trial.
        keep: Called whenever something was reported; it writes the record down now and then.
    """

    def __init__(
        self,
        record: TrialFileWriter,
        metric: str,
        forward: Callable[[float], None],
        decision: SchedulerReporter | None = None,
        keep: Callable[[], object] = lambda: None,
    ) -> None:
        self.record = record
        self.metric = metric
        self._forward = forward
        self._decision = decision
        self._best = math.nan
        self._keep = keep

    def __call__(self, step: Any, metrics: Mapping[str, Any]) -> None:
        """Keep metrics at one step, or arrays of them at an array of steps.

        A non-finite value of the metric that ranks trials, or of a loss, ends the trial as diverged; what was reported
        for the steps before is kept.
        """
        steps = np.atleast_1d(np.asarray(step, dtype=np.int64))
        values = {name: _at(steps, name, value) for name, value in metrics.items()}
        finite = {
            name: np.isfinite(own) for name, own in values.items() if name == self.metric or name.endswith("loss")
        }
        num_finite = min((int(np.argmin([*own, False])) for own in finite.values()), default=len(steps))
        if num_finite:
            self.record.add(steps[:num_finite], {name: own[:num_finite] for name, own in values.items()})
        if num_finite < len(steps):
            broken = next(name for name, own in finite.items() if not own[num_finite])
            raise Diverged(f"non-finite {broken} at step {steps[num_finite]}")
        self._keep()
        if self._decision is None:
            if num_finite and (value := self._latest(values)) is not None:
                self._forward(value)
        # A scheduler wants every result to have what it watches, so nothing else is told beside.
        elif num_finite and self._decision.watched.column in values:
            self._decision(int(steps[-1]), float(values[self._decision.watched.column][-1]))

    def _latest(self, values: Mapping[str, np.ndarray]) -> float | None:
        """Return the metric that ranks trials as it stands; ``None`` where nothing new is known of it."""
        if self.metric in values:
            return float(values[self.metric][-1])
        column = BEST_OF.get(self.metric, self.metric)
        if column not in values:
            return None
        self._best = float(np.nanmax([self._best, *values[column]]))
        return self._best


def _at(steps: np.ndarray, name: str, value: Any) -> np.ndarray:
    """Return a metric as one number for each step."""
    try:
        return np.broadcast_to(np.asarray(value, dtype=float), steps.shape)
    except ValueError as error:
        raise ValueError(f"report takes one number for each step; {name} has {value!r} for {len(steps)}") from error


class TrialCheckpoint:
    """Keeps a trainable's state, and all it reported so far, in one file of the experiment folder.

    Args:
        path: The file.
        records: What each trial of a bundle reported; filled again by ``load``.
        interval_s: Seconds between two states that are kept.
        request: When it is made, the next state is kept and the trainable ends there; ``None``: there is none. The
            trial of a superseded attempt ends without keeping a state.
        until: The same from this step on; ``None``: to the end.

    Attributes:
        has_stopped: Whether it was so.
    """

    def __init__(
        self,
        path: Path,
        records: Sequence[TrialFileWriter],
        interval_s: float,
        request: StopRequest | None = None,
        until: int | None = None,
    ) -> None:
        self.path = path
        self.records = records
        self.interval_s = interval_s
        self.has_stopped = False
        self._request = request
        self._until = until
        self._saved_at = time.monotonic()

    def load(self) -> Mapping[str, Any] | None:
        """Return the latest state, or ``None``."""
        if not pull(self.path):
            return None
        from tune_hpc.learning.checkpoint import load_state

        kept = load_state(self.path)
        for record, reported in zip(self.records, kept["reported"], strict=True):
            record.blocks[:] = [
                (np.asarray(steps, np.int64), {name: np.asarray(values, float) for name, values in metrics.items()})
                for steps, metrics in reported
            ]
        return kept["state"]

    def save(self, step: int, make_state: Callable[[], Mapping[str, Any]]) -> None:
        """Keep a state, if the last one is old enough or the trial is to stop.

        Raises:
            StopRequested: the trial is to stop, and its state is kept.
        """
        is_asked = self._request is not None and self._request.is_made
        is_last = is_asked or (self._until is not None and step >= self._until)
        if not is_last and time.monotonic() - self._saved_at < self.interval_s:
            return
        if self._request is not None and not self._request.check():
            # Another attempt runs this trial now, from the state that was saved last.
            self.has_stopped = True
            raise StopRequested
        from tune_hpc.learning.checkpoint import save_state

        reported = [
            [
                (steps.tolist(), {name: values.tolist() for name, values in metrics.items()})
                for steps, metrics in record.blocks
            ]
            for record in self.records
        ]
        state = {"step": step, "state": make_state(), "reported": reported}
        write_atomic(self.path, lambda path: save_state(path, state))
        self._saved_at = time.monotonic()
        if is_last:
            self.has_stopped = True
            raise StopRequested


class _Log(io.TextIOBase):
    """A text file that is there from the first word on, and not before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.TextIOWrapper | None = None

    def write(self, text: str) -> int:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            pull(self.path)
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
        return self._file.write(text)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            # A trial does not fail because its log cannot be put where others see it.
            with suppress(OSError):
                push(self.path)
        super().close()


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Send what Python prints inside the block to a file."""
    with _Log(path) as log, redirect_stdout(log), redirect_stderr(log):
        yield


class SchedulerReporter:
    """Shows a scheduler what it watches of a trial; the call does not return where the trial is to end.

    Args:
        trial_id: The trial.
        watched: What is shown.
        keep: Called before, to keep what the trial has reported, for there may be no later moment.
        pace: What a step of the trial counts for the scheduler: more than 1 in a trial that has fewer than others.
    """

    def __init__(self, trial_id: str, watched: MonitoredMetric, keep: Callable[[], object], pace: float = 1.0) -> None:
        self.trial_id = trial_id
        self.watched = watched
        self.pace = pace
        self.step = 0
        self.value = math.nan
        self._keep = keep

    def __call__(self, step: int, value: float) -> None:
        """Show a value."""
        self.step, self.value = step, self.watched.shown(value, self.value)
        self._keep()
        tune.report({"members": [{"trial_id": self.trial_id, "value": value}], **self.shown()})

    def shown(self) -> dict[str, float]:
        """Return what the scheduler is shown now."""
        return {"step": self.step, "progress": self.step * self.pace, "value": self.value}


class Throttle:
    """Calls something every ``KEEP_INTERVAL_S`` at most, and so seldom that it takes a hundredth of the time at most.

    Args:
        call: What is called.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._due_at = time.monotonic() + KEEP_INTERVAL_S

    def __call__(self) -> None:
        """Call it, if it is due."""
        began = time.monotonic()
        if began < self._due_at:
            return
        self._call()
        ended = time.monotonic()
        self._due_at = ended + max(KEEP_INTERVAL_S, KEEP_RATIO * (ended - began))


class RayReporter:
    """Tells Ray now and then how the trials of a bundle fare."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}
        self._told_at = time.monotonic()

    def for_trial(self, trial_id: str) -> Callable[[float], None]:
        """Return what notes a trial's latest value, and passes all on about once a second."""

        def note(value: float) -> None:
            self._values[trial_id] = value
            if time.monotonic() - self._told_at >= REPORT_INTERVAL_S:
                self._told_at = time.monotonic()
                tune.report({"members": [{"trial_id": one, "value": value} for one, value in self._values.items()]})
                self._values.clear()

        return note

    def ended(self, rows: Sequence[Mapping[str, Any]], metric: str, more: Mapping[str, float]) -> None:
        """Tell how the trials of the bundle ended, and more: what a scheduler watches, how long a trial took.

        One that saved its state and stopped has the status ``running``; one that did not begin is not told of.
        """
        members = [
            {
                "trial_id": row["trial_id"],
                "status": row["status"],
                "value": _finite(row.get(metric)),
                "steps": row["steps_run"],
            }
            for row in rows
        ]
        tune.report({"members": members, "last": True, **more})


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
