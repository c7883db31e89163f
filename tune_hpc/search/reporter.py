"""Argument ``report`` of a trainable: its metrics, for its file, its scheduler and the driver."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tune_hpc.analysis.frames import BUILT_IN_MEASURES, DERIVED, IDENTITY, MEASURES, TABLE_COLUMNS
from tune_hpc.search.stopping import TimeLimit
from tune_hpc.search.trial_spec import RankedMetric
from tune_hpc.storage.trial_file import CONFIG, TrialFileWriter

#: Sends a result of a trial to the driver.
Send = Callable[[Mapping[str, Any]], object]
#: Seconds between two reports to the driver, which cost milliseconds each; the progress bar needs no more.
REPORT_INTERVAL_S = 1.0
#: Columns of the results that no reported metric may have.
RESERVED = frozenset({*IDENTITY, *MEASURES, *DERIVED, *TABLE_COLUMNS, CONFIG, "step", "seed"}) - {*BUILT_IN_MEASURES}
#: Columns of every trial that a trainable may return.
RETURNABLE = frozenset({"status", "stop_reason", "steps_run", "train_s", "num_fused", *DERIVED})
#: Maximum step: floats represent all whole numbers up to it.
MAX_STEP = 2**53
#: Minimum seconds between two writes of the file of a running trial.
WRITE_INTERVAL_S = 5.0
#: Minimum ratio of the time between two writes and the duration of a write.
WRITE_RATIO = 100


class Diverged(BaseException):
    """Unwinds a trainable that reported a non-finite metric; ``except Exception`` in a trainable does not catch it."""


class SchedulerStop(BaseException):
    """Unwinds a trainable that a scheduler of Ray Tune stops."""


class JudgedValue:
    """Value of the metric that ranks a running trial, from all its reports so far.

    Args:
        writer: Reports of the trial, also those before it was resumed.
        metric: The metric.
    """

    def __init__(self, writer: TrialFileWriter, metric: RankedMetric) -> None:
        self._writer = writer
        self._metric = metric
        self._retained = np.empty(0)
        self._num_blocks = 0

    def update(self) -> float:
        """Return the current value; NaN if it is not known yet."""
        for _, metrics in self._writer.blocks[self._num_blocks :]:
            if self._metric.column in metrics:
                values = np.concatenate([self._retained, metrics[self._metric.column]])
                self._retained = self._metric.retain(values)
        self._num_blocks = len(self._writer.blocks)
        return self._metric.value(self._retained)


class Reporter:
    """The ``report`` argument of a trainable.

    Args:
        writer: Receives all metrics.
        metric: Metric that ranks trials; it must be finite.
        forward: Called with the current value of the metric, and the step.
        scheduler: Reports the monitored metric to a scheduler, if there is one.
        write: Called after each report; it writes the file of the trial from time to time.
        time_limit: Time limit of the trial.

    Attributes:
        divergence: The reason, if a metric was not finite. The trainable may have caught the exception.
    """

    def __init__(
        self,
        writer: TrialFileWriter,
        metric: RankedMetric,
        forward: Callable[[float, int], None],
        scheduler: SchedulerReporter | None = None,
        write: Callable[[], object] = lambda: None,
        time_limit: TimeLimit | None = None,
    ) -> None:
        self.writer = writer
        self.metric = metric
        self._forward = forward
        self._scheduler = scheduler
        self._judged = JudgedValue(writer, metric)
        self._write = write
        self._time_limit = time_limit or TimeLimit()
        self.divergence: Diverged | None = None
        self._last_steps: dict[str, int] = {}
        self._num_blocks = 0
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._is_closed = False

    def close(self) -> None:
        """Reject further reports, which a thread of the trainable may send after the end of the trial."""
        with self._lock:
            self._is_closed = True

    def __call__(self, step: Any, metrics: Mapping[str, Any]) -> None:
        """Record metrics at one step, or arrays of metrics at an array of steps.

        Raises:
            Diverged: A loss, or the metric that ranks trials, is not finite; earlier steps are recorded.
            TimeLimitReached: The time of the trial is over; the metrics are recorded.
            RuntimeError: The trial has ended, or this process is a child of the process of the trial.
            ValueError: The number of values is not the number of steps; a step is no whole number from 0 on, or not
                above the previous step of the metric; a metric has the name of a column of every trial.
        """
        if os.getpid() != self._process:
            raise RuntimeError("report was called in a child process; send the metrics to the process of the trial")
        with self._lock:
            if self._is_closed:
                raise RuntimeError("report was called after the end of the trial; wait for threads before returning")
            if self.divergence is not None:
                raise self.divergence
            self._record(step, metrics)

    def _record(self, step: Any, metrics: Mapping[str, Any]) -> None:
        steps = whole_steps(step)
        values = {name: _broadcast(steps, name, value) for name, value in metrics.items()}
        self._check(steps, values)
        finite = {
            name: np.isfinite(array)
            for name, array in values.items()
            if name == self.metric.column or name.endswith("loss")
        }
        num_finite = min((int(np.argmin([*array, False])) for array in finite.values()), default=len(steps))
        if num_finite:
            self.writer.add(steps[:num_finite], {name: array[:num_finite] for name, array in values.items()})
        if num_finite < len(steps):
            name = next(name for name, array in finite.items() if not array[num_finite])
            self.divergence = Diverged(f"non-finite {name} at step {steps[num_finite]}")
            raise self.divergence
        self._time_limit.check()
        self._write()
        value = self._judged.update()
        if self._scheduler is None:
            if num_finite and self.metric.column in values:
                self._forward(value, int(steps[num_finite - 1]))
        # A scheduler requires the monitored metric in every result, so that no other result is reported.
        elif num_finite and self._scheduler.metric.column in values:
            self._scheduler(int(steps[-1]), value)

    def _check(self, steps: np.ndarray, values: Mapping[str, np.ndarray]) -> None:
        """Check names and the order of steps, also after the writer got the reports of a saved state."""
        for name in values:
            _check_name(name, self.writer.row, RESERVED)
        for block_steps, metrics in self.writer.blocks[self._num_blocks :]:
            self._last_steps |= dict.fromkeys(metrics, int(block_steps[-1]))
        self._num_blocks = len(self.writer.blocks)
        for name in values:
            last = self._last_steps.get(name)
            if len(steps) and (np.any(np.diff(steps) <= 0) or (last is not None and steps[0] <= last)):
                raise ValueError(
                    f"report takes each step of a metric once, in ascending order; got {name} at step {steps[0]}"
                    + (f" after step {last}" if last is not None else "")
                )


def returned_columns(returned: Mapping[Any, Any], metric: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns that the function of a user returned, with the ranking metric as a number.

    Args:
        returned: What it returned.
        metric: Metric that ranks trials.
        row: Columns of the trial so far.

    Raises:
        Diverged: A loss, or the metric that ranks trials, is not finite.
        ValueError: A column has the name of another one, or a value that must be a number is none.
    """
    columns = dict(returned)
    for name, value in returned.items():
        _check_name(name, row, RESERVED - RETURNABLE)
        if name in (metric, "steps_run", "train_s") and type(value) not in (int, float):
            columns[name] = float(_broadcast(np.zeros(1), name, value)[0])
        if name == metric or name.endswith("loss") or name in ("steps_run", "train_s"):
            number = columns[name] = _to_64_bits(columns[name])
            if isinstance(number, float | np.floating) and not np.isfinite(number):
                raise Diverged(f"non-finite {name}, which the trainable returned")
    if "steps_run" in columns:
        columns["steps_run"] = int(whole_steps(columns["steps_run"])[0])
    return columns


def _to_64_bits(value: Any) -> Any:
    """Return a whole number of more than 64 bits, which files cannot contain, as infinity or the nearest float."""
    if not isinstance(value, int | np.integer) or -(2**63) <= value < 2**63:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _check_name(name: Any, row: Mapping[str, Any], reserved: Collection[str]) -> None:
    """Raise if a metric cannot have a name: the row of the trial, or that of every trial, has it."""
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ValueError(f"the name of a metric must be a word; got {name!r}")
    if name in reserved or (name in row and name not in RESERVED):
        kind = "a column of the results" if name in reserved else "a parameter"
        raise ValueError(f"got the metric {name!r}, which is {kind}; report it under another name")


def _to_array(value: Any) -> np.ndarray:
    """Return real numbers as an array; a tensor may be on a GPU, require a gradient or have any precision."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.double() if value.is_floating_point() else value
    if np.ma.isMaskedArray(value):
        value = np.ma.filled(value.astype(float), np.nan)
    array = np.asarray(value)
    if array.dtype.kind in "cmM":
        raise ValueError(f"{value!r} is no real number")
    return array


def whole_steps(step: Any) -> np.ndarray:
    """Return steps as whole numbers."""
    numbers = np.atleast_1d(_to_array(step))
    is_number = numbers.ndim == 1 and numbers.dtype.kind in "iuf"
    if not is_number or not np.all((numbers == np.floor(numbers)) & (numbers >= 0) & (numbers <= MAX_STEP)):
        raise ValueError(
            f"a step must be a whole number from 0 on, at most 2**53; got {step!r}: count steps, epochs or batches"
        )
    return numbers.astype(np.int64)


def _broadcast(steps: np.ndarray, name: str, value: Any) -> np.ndarray:
    """Return a metric as one number for each step, in memory of its own: the trainable may change its array."""
    try:
        array = _to_array(value)
        if array.dtype.kind in "SU" or (array.ndim == 0 and array.item() is None):
            raise ValueError(f"{value!r} is no number")
        return np.broadcast_to(array.astype(float), steps.shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"report takes one number for each step; {name} has {value!r} for {len(steps)}") from error


class SchedulerReporter:
    """Reports the monitored metric of a trial to the driver; the call does not return if the scheduler stops the trial.

    Args:
        send: Sends a result to the driver.
        trial_id: The trial.
        metric: The monitored metric.
        writer: Reports of the trial.
        write: Called before each report to write the file of the trial: a stopped trial has no later opportunity.
        pace: Progress of one step; above 1 in a trial with fewer steps than others.
    """

    def __init__(
        self,
        send: Send,
        trial_id: str,
        metric: RankedMetric,
        writer: TrialFileWriter,
        write: Callable[[], object],
        pace: float = 1.0,
    ) -> None:
        self._send = send
        self.trial_id = trial_id
        self.metric = metric
        self.pace = pace
        self.step = 0
        self.value = math.nan
        self._judged = JudgedValue(writer, metric)
        self._write = write

    def __call__(self, step: int, value: float) -> None:
        """Report the monitored metric, and the value of the metric that ranks trials."""
        self.step, self.value = step, self._judged.update()
        self._write()
        self._send({"trials": [{"trial_id": self.trial_id, "value": value, "steps": step}], **self.result()})

    def result(self) -> dict[str, float]:
        """Return the latest result for the scheduler."""
        return {"step": self.step, "progress": self.step * self.pace, "value": self.value}


class Throttle:
    """Limits the rate of a call to one in ``WRITE_INTERVAL_S``, and its share of the time to one in ``WRITE_RATIO``."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._due_at = time.monotonic() + WRITE_INTERVAL_S

    def __call__(self) -> None:
        """Call the function if it is due."""
        started = time.monotonic()
        if started < self._due_at:
            return
        self._call()
        ended = time.monotonic()
        self._due_at = ended + max(WRITE_INTERVAL_S, WRITE_RATIO * (ended - started))


class LiveReporter:
    """Reports the latest values and the ends of the trials of a group to the driver.

    A result has the key ``trials``, one mapping for each trial with ``trial_id``, ``value`` and ``steps``. In the
    result at the end of the group, which has the key ``last``, the mappings also have ``status``, and ``error`` if the
    trial failed.

    Args:
        send: Sends a result to the driver.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lines: dict[str, dict[str, Any]] = {}
        self._reported_at = time.monotonic()

    def for_trial(self, trial_id: str) -> Callable[[float, int], None]:
        """Return a function that takes value and step of a trial; about once a second, those of all are reported."""

        def forward(value: float, step: int) -> None:
            self._lines[trial_id] = {"trial_id": trial_id, "value": value, "steps": step}
            if time.monotonic() - self._reported_at >= REPORT_INTERVAL_S:
                self._reported_at = time.monotonic()
                self._send({"trials": list(self._lines.values())})
                self._lines.clear()

        return forward

    def report_end(self, rows: Sequence[Mapping[str, Any]], metric: str, more: Mapping[str, float]) -> None:
        """Report the end of a group.

        Args:
            rows: Rows of its trials. A trial that saved its state and stopped has the status ``running``; a trial that
                did not start has no row.
            metric: Metric that ranks trials.
            more: Further keys of the result.
        """
        trials = [
            {
                "trial_id": row["trial_id"],
                "status": row["status"],
                "value": _finite(row.get(metric)),
                "steps": row["steps_run"],
                **({"error": row["error"]} if "error" in row else {}),
            }
            for row in rows
        ]
        self._send({"trials": trials, "last": True, **more})


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
