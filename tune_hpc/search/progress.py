"""How far a search is: a bar on a terminal, a line a minute elsewhere."""

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

#: Seconds between two lines where there is no terminal.
LINE_INTERVAL_S = 60.0


@dataclass
class TrialCounts:
    """What is known of an experiment under way, or of several together.

    Attributes:
        num_trials: Trials in all.
        ended: How many ended with each status.
        running: How many are under way.
        best: The best value of each experiment so far, with its trial.
    """

    num_trials: int
    ended: Counter[str] = field(default_factory=Counter)
    running: int = 0
    best: dict[str, tuple[float, str]] = field(default_factory=dict)

    @property
    def num_ended(self) -> int:
        """How many trials ended, whatever their status."""
        return sum(self.ended.values())

    @classmethod
    def of_all(cls, tallies: Collection["TrialCounts"]) -> "TrialCounts":
        """Return what is known of several experiments together."""
        whole = cls(sum(one.num_trials for one in tallies))
        for one in tallies:
            whole.ended.update(one.ended)
            whole.running += one.running
            whole.best |= one.best
        return whole

    def note_value(self, experiment: str, trial_id: str, value: float | None, mode: str) -> None:
        """Take a value into account; one that is absent or not finite counts for nothing."""
        if value is None or not math.isfinite(value):
            return
        best = self.best.get(experiment)
        if best is None or (value < best[0] if mode == "min" else value > best[0]):
            self.best[experiment] = (value, trial_id)

    def counts(self) -> str:
        """Return the counts in words, leaving out what there is none of."""
        words = [f"{self.running} running"] if self.running else []
        words += [f"{count} {status}" for status, count in self.ended.items() if status != "finished" and count]
        return ", ".join(words)


class SearchProgress:
    """Shows tallies as one.

    Args:
        tallies: What to show, one for each experiment; they change under way.
        metrics: The metric that ranks trials, by experiment.
        stream: Where to show it; standard error by default, so that output can be piped.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        tallies: Collection[TrialCounts],
        metrics: dict[str, str],
        stream: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tallies = tallies
        self.metrics = metrics
        self._clock = clock
        self._began = self._line_at = clock()
        self._stream = stream or sys.stderr
        self._bar: Progress | None = None
        if self._stream.isatty():
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f} trials"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )
            self._task = self._bar.add_task("", total=self.tally.num_trials)

    @property
    def tally(self) -> TrialCounts:
        """What is shown."""
        return TrialCounts.of_all(self.tallies)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self.update()
            self._bar.stop()
        else:
            self._write_line()

    def update(self) -> None:
        """Show the tally as it stands; without a terminal, once a minute."""
        tally = self.tally
        if self._bar:
            self._bar.update(self._task, completed=tally.num_ended, description=self._description(tally))
        elif tally.num_ended < tally.num_trials and self._clock() - self._line_at >= LINE_INTERVAL_S:
            self._line_at = self._clock()
            self._write_line()

    def _description(self, tally: TrialCounts) -> str:
        parts = [tally.counts()]
        if len(tally.best) == 1:
            ((experiment, (value, trial_id)),) = tally.best.items()
            parts.append(f"best {self.metrics[experiment]} {value:.4g} ({trial_id})")
        return "; ".join(part for part in parts if part)

    def _write_line(self) -> None:
        tally = self.tally
        elapsed = self._clock() - self._began
        done, total = tally.num_ended, tally.num_trials
        left = f", about {elapsed / done * (total - done):.0f} s left" if 0 < done < total else ""
        text = f"{done}/{total} trials, {elapsed:.0f} s{left}"
        print("; ".join(part for part in (text, self._description(tally)) if part), file=self._stream, flush=True)
