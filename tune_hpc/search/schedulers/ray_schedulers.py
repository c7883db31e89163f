"""Schedulers by name: Ray Tune's, with budgets in optimizer steps and defaults from the experiment's own.

A scheduler sees the metric that ranks trials while they run, and ends those that do badly. ``best_valid_accuracy`` is
seen as it grows; what is chosen on test images is never shown, validation images stand in for it. Where the space gives
trials different numbers of steps, each is judged at the same part of its own.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from tune_hpc.analysis.results import Results
from tune_hpc.search.reporter import MonitoredMetric

#: Of so many trials one is kept at each rung.
REDUCTION_FACTOR = 3
#: The first decision is made after the steps divided by this.
GRACE = 27
#: Hyperband's brackets: the first decides as early as ASHA does, each other one only after three times as many steps.
NUM_BRACKETS = 3

#: What is watched of a metric that is known at the end only: the column of the history, and whether its best so far.
_WATCHED = {
    "best_valid_accuracy": ("valid_accuracy", True),
    "selected_test_accuracy": ("valid_accuracy", True),
    "best_test_accuracy": ("valid_accuracy", True),
    "test_accuracy": ("valid_accuracy", False),
    "test_loss": ("valid_loss", False),
}


def watched(metric: str, mode: str, reports_images: bool) -> MonitoredMetric:
    """Return what is watched of a metric.

    Args:
        metric: What ranks trials.
        mode: ``min`` or ``max``.
        reports_images: Whether our own trainable runs on images; another one's metrics mean what they say.
    """
    column, is_best = _WATCHED.get(metric, (metric, False)) if reports_images else (metric, False)
    return MonitoredMetric(column, is_best, mode)


def make_scheduler(name: str, mode: str, num_steps: int, seed: int) -> TrialScheduler:
    """Return a scheduler of Ray Tune's, for results with ``progress`` and ``value``.

    Args:
        name: One of ``experiment.STOPPING``.
        mode: ``min`` or ``max``.
        num_steps: The progress of a whole trial.
        seed: Fixes in which bracket of Hyperband a trial is.

    Returns:
        ``asha_stopping`` decides after 1/27, 1/9 and 1/3 of the steps, and lets one of three go on; ``hyperband`` does
        the same in three brackets, of which the second begins at 1/9 and the third at 1/3; ``median`` ends a trial
        whose best is worse than the median of the others' means so far, after the same 1/27.
    """
    grace = max(1, num_steps // GRACE)
    shown: dict[str, Any] = {"time_attr": "progress", "metric": "value", "mode": mode}
    if name == "median":
        # It would pause, while others wait, whom it cannot judge yet; such a trial begins anew at its first step.
        return _Median(**shown, grace_period=grace, min_samples_required=3, min_time_slice=math.inf)
    halving: dict[str, Any] = shown | {
        # No rung at the end of a trial: one that has come so far is not ended.
        "max_t": max(1, min(num_steps, GRACE * grace) - 1),
        "grace_period": grace,
        "reduction_factor": REDUCTION_FACTOR,
        "stop_last_trials": False,
    }
    if name == "asha_stopping":
        return _Halving(**halving)
    return _Hyperband(seed, **halving, brackets=NUM_BRACKETS)


class FifoMixin(FIFOScheduler):
    """Runs trials in the order in which they were added, and lets each process that was asked for come up.

    Ray Tune has a free process run the trial that its scheduler names before all others. The one that the schedulers
    of its own name is the first that waits, be it for a process that is just starting: that trial moves to the free
    process, and the starting one is killed. Where trials take less than the start, 1.5 s, this goes on and on, and of
    two slots one may stay empty throughout. Where no trial is named, a free process is given the next one.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Name no trial; Ray Tune then starts each one that waits, in order."""


class _Median(FifoMixin, MedianStoppingRule):
    """Ray Tune's median rule, trials in order."""


class _Halving(FifoMixin, AsyncHyperBandScheduler):
    """Ray Tune's asynchronous successive halving, trials in order."""


class _Hyperband(_Halving):
    """Asynchronous Hyperband, in which a trial's bracket depends on the seed and its name alone.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020.
    """

    def __init__(self, seed: int, **own: Any) -> None:
        super().__init__(**own)
        self._seed = seed

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Put a trial into a bracket: it draws from NumPy's global generator, which gets its state back."""
        with _seeded(self._seed, trial_name(trial)):
            super().on_trial_add(tune_controller, trial)


def trial_name(trial: Any) -> str:
    """Return what we call a trial, in this run or an earlier one."""
    return str(trial.config["bundle_id"])


@contextmanager
def _seeded(seed: int, name: str) -> Iterator[None]:
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed([seed, *name.encode()])  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


class _Past:
    """A trial of an earlier run, as far as a scheduler asks."""

    def __init__(self, name: str) -> None:
        self.trial_id = f"past.{name}"
        self.config = {"bundle_id": name}

    def __hash__(self) -> int:
        return hash(self.trial_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Past) and self.trial_id == other.trial_id


class _EmptyTrialController:
    """What a scheduler asks the search that it is part of, while it is told of the past."""

    @staticmethod
    def get_live_trials() -> list[Any]:
        """Return no trials that could use a pause."""
        return []


def replay_results(scheduler: TrialScheduler, before: Results, seen: MonitoredMetric, num_steps: int) -> None:
    """Show a scheduler what became of the trials of an earlier run, as if it had decided on them.

    Args:
        scheduler: Of ``make_scheduler``.
        before: The earlier run.
        seen: What the scheduler is shown.
        num_steps: Steps of a whole trial, as the scheduler counts them.
    """
    if seen.column not in before.history:
        return
    known = "steps" in before.trials
    own_steps = dict(zip(before.trials["trial_id"], before.trials["steps"], strict=True)) if known else {}
    taken = before.history.dropna(subset=[seen.column])
    for trial_id, history in taken.groupby("trial_id", observed=True):
        past: Any = _Past(str(trial_id))
        pace = num_steps / own_steps.get(trial_id, num_steps)
        search: Any = _EmptyTrialController
        scheduler.on_trial_add(search, past)
        result: Mapping[str, Any] = {}
        value = math.nan
        for step, latest in zip(history["step"], history[seen.column], strict=True):
            value = seen.shown(float(latest), value)
            result = {"progress": int(step) * pace, "value": value}
            decision = scheduler.on_trial_result(search, past, dict(result))
            if decision == TrialScheduler.STOP and isinstance(scheduler, MedianStoppingRule):
                break  # It takes no more of a trial that it would have ended.
        scheduler.on_trial_complete(search, past, dict(result))
