"""Progress of a search: a bar on a terminal or a line a minute elsewhere, and ``progress.json`` in its folder."""

import contextlib
import io
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tune_hpc.errors import ConflictError, FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import now

#: Seconds between two lines without a terminal.
LINE_INTERVAL_S = 60.0
#: Seconds between two writes of the progress file after a change.
FILE_INTERVAL_S = 2.0
#: Seconds between two writes without a change, which show that the search runs.
FILE_IDLE_S = 20.0


@dataclass
class TrialCounts:
    """Counts of the trials of one experiment, or of several.

    Attributes:
        num_trials: Total number of trials.
        ended: Number of ended trials by status.
        running: Number of running trials.
        values: Latest value of each trial that has neither failed nor diverged, by experiment.
        best: Best of these values and its trial, by experiment.
        first_error: First failed trial and its error; empty without any.
        fractions: Fraction of its steps that a running trial has done, by trial, if its number of steps is known.
    """

    num_trials: int
    ended: Counter[str] = field(default_factory=Counter)
    running: int = 0
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    best: dict[str, tuple[float, str]] = field(default_factory=dict)
    first_error: str = ""
    fractions: dict[str, float] = field(default_factory=dict)

    @property
    def num_done(self) -> float:
        """Number of ended trials, and the fractions of running ones."""
        return self.num_ended + sum(self.fractions.values())

    @property
    def mean_fraction(self) -> float | None:
        """Mean fraction of its steps that a running trial has done; ``None`` if it is unknown."""
        return sum(self.fractions.values()) / len(self.fractions) if self.fractions else None

    @property
    def num_ended(self) -> int:
        """Number of ended trials."""
        return sum(self.ended.values())

    @classmethod
    def total(cls, parts: Collection["TrialCounts"]) -> "TrialCounts":
        """Return the sum of the counts of several experiments."""
        total = cls(sum(part.num_trials for part in parts))
        for number, part in enumerate(parts):
            total.ended.update(part.ended)
            total.fractions |= {f"{number} {name}": fraction for name, fraction in part.fractions.items()}
            total.running += part.running
            total.best |= part.best
        return total

    def record_value(self, experiment: str, trial_id: str, value: float | None, mode: str) -> None:
        """Record the latest value of a trial; one that is absent or not finite has no effect."""
        if value is None or not math.isfinite(value):
            return
        self.values.setdefault(experiment, {})[trial_id] = value
        best = self.best.get(experiment)
        if best is None or (value < best[0] if mode == "min" else value > best[0]):
            self.best[experiment] = (value, trial_id)
        elif best[1] == trial_id:
            self._find_best(experiment, mode)

    def discard_value(self, experiment: str, trial_id: str, mode: str) -> None:
        """Discard the value of a trial that failed or diverged."""
        self.values.get(experiment, {}).pop(trial_id, None)
        if self.best.get(experiment, (0.0, ""))[1] == trial_id:
            self._find_best(experiment, mode)

    def _find_best(self, experiment: str, mode: str) -> None:
        values = self.values[experiment]
        trial_id = (min if mode == "min" else max)(values, key=values.__getitem__, default=None)
        if trial_id is None:
            del self.best[experiment]
        else:
            self.best[experiment] = (values[trial_id], trial_id)

    def record_error(self, trial_id: str, error: str) -> None:
        """Record the error of a failed trial, if it is the first one."""
        if error and not self.first_error:
            self.first_error = f"{trial_id}: {error}"

    def summary(self) -> str:
        """Return the counts that are not zero as text, without finished trials."""
        at = "" if self.mean_fraction is None else f" at {self.mean_fraction:.0%} of their steps"
        words = [f"{self.running} running{at}"] if self.running else []
        words += [f"{count} {status}" for status, count in self.ended.items() if status != "finished" and count]
        return ", ".join(words)


class SearchProgress:
    """Shows the progress of all searches of a run.

    Args:
        counts: Counts of each experiment, which change while it runs.
        metrics: Metric that ranks trials, by experiment.
        stream: Output stream; default: standard error, so that standard output can be piped.
        clock: Monotonic clock in seconds.
        each_trial: Whether to show a line for each trial that ends, and no bar.
    """

    def __init__(
        self,
        counts: Collection[TrialCounts],
        metrics: dict[str, str],
        stream: Any = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        each_trial: bool = False,
    ) -> None:
        self._counts = counts
        self._each_trial = each_trial
        self._num_before = self._num_shown = TrialCounts.total(counts).num_ended
        self._metrics = metrics
        self._clock = clock
        self._started_at = self._line_at = clock()
        self._stream = stream or sys.stderr or io.StringIO()
        self._bar: Progress | None = None
        if self._stream.isatty() and not each_trial:
            self._bar = Progress(
                SpinnerColumn("line"),
                TextColumn("{task.fields[num_ended]}/{task.total:.0f} trials"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task("", total=TrialCounts.total(counts).num_trials, num_ended=self._num_before)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self.update()
            self._bar.stop()
        else:
            self._write_line(TrialCounts.total(self._counts))

    def update(self) -> None:
        """Show the current counts; without a bar, once a minute or after each trial."""
        total = TrialCounts.total(self._counts)
        if self._bar:
            self._bar.update(
                self._task, completed=total.num_done, num_ended=total.num_ended, description=self._description(total)
            )
        elif total.num_ended < total.num_trials and self._is_line_due(total.num_ended):
            self._line_at, self._num_shown = self._clock(), total.num_ended
            self._write_line(total)

    def _is_line_due(self, num_ended: int) -> bool:
        return self._clock() - self._line_at >= LINE_INTERVAL_S or (self._each_trial and num_ended > self._num_shown)

    def _description(self, total: TrialCounts) -> str:
        parts = [total.summary()]
        if len(total.best) == 1:
            ((experiment, (value, trial_id)),) = total.best.items()
            parts.append(f"best {self._metrics[experiment].removeprefix('best_')} {value:.4g} ({trial_id})")
        return "; ".join(part for part in parts if part)

    def _write_line(self, total: TrialCounts) -> None:
        elapsed = self._clock() - self._started_at
        left_s = _remaining_s(total, self._num_before, elapsed)
        left = f", about {left_s:.0f} s left" if left_s else ""
        text = f"{total.num_ended}/{total.num_trials} trials, {elapsed:.0f} s{left}"
        line = "; ".join(part for part in (text, self._description(total)) if part)
        # The reader of the stream may have ended, and the stream may be closed: the search continues.
        with contextlib.suppress(OSError, ValueError):
            print(line, file=self._stream, flush=True)


def _remaining_s(counts: TrialCounts, num_before: int, elapsed_s: float) -> float | None:
    """Return the estimated seconds to the end of all trials; ``None`` if nothing is known.

    Args:
        counts: The counts.
        num_before: Number of trials that ended before this run.
        elapsed_s: Seconds of this run.
    """
    num_done = counts.num_done - num_before
    return elapsed_s / num_done * (counts.num_trials - counts.num_done) if num_done > 0 else None


class ProgressFile:
    """Progress of one experiment in its folder, for readers elsewhere.

    ``progress.json`` has the keys ``num_trials``, ``ended`` (number by status), ``running``, ``best`` (best value so
    far and its trial, or null), ``first_error`` (first failed trial and its error, or empty), ``fraction`` (mean
    fraction of their steps that the running trials have done; null if unknown), ``elapsed_s`` (of this run),
    ``left_s`` (estimate; null if unknown) and ``at`` (UTC).

    Args:
        folder: The experiment folder.
        counts: Counts of the experiment, which change while it runs.
    """

    def __init__(self, folder: ExperimentFolder, counts: TrialCounts) -> None:
        self._folder = folder
        self._counts = counts
        self._started_at = time.monotonic()
        self._num_before = counts.num_ended
        self._state: object = None
        self._written_at = -FILE_IDLE_S

    def write(self, *, is_last: bool = False) -> None:
        """Write the file if it is due; a storage that does not answer has no effect."""
        state = (self._counts.num_ended, self._counts.running, dict(self._counts.best))
        moment = time.monotonic()
        interval_s = FILE_INTERVAL_S if state != self._state else FILE_IDLE_S
        if not is_last and moment - self._written_at < interval_s:
            return
        self._state, self._written_at = state, moment
        with contextlib.suppress(FolderError, ConflictError):
            self._folder.check_attempt()
            text = json.dumps(self._content(moment - self._started_at)) + "\n"
            self._folder.storage.write_atomic(self._folder.progress, text, is_durable=False)

    def _content(self, elapsed_s: float) -> dict[str, Any]:
        counts = self._counts
        left_s = _remaining_s(counts, self._num_before, elapsed_s)
        best = next(iter(counts.best.values()), None)
        return {
            "at": now(),
            "num_trials": counts.num_trials,
            "ended": {status: count for status, count in counts.ended.items() if count},
            "running": counts.running,
            "fraction": None if counts.mean_fraction is None else round(counts.mean_fraction, 3),
            "best": best and {"value": best[0], "trial_id": best[1]},
            "first_error": counts.first_error,
            "elapsed_s": round(elapsed_s, 1),
            "left_s": None if left_s is None else round(left_s, 1),
        }
