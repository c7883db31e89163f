"""Schedulers by name: Ray Tune's, with budgets in optimizer steps and defaults from the experiment's own.

A scheduler sees the metric that ranks trials while they run, and ends those that do badly. ``best_valid_accuracy`` is
seen as it grows; what is chosen on test images is never shown, validation images stand in for it.
"""

import math
from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from tune_hpc.analysis.results import Results
from tune_hpc.search.reporting import Watched

#: Of so many trials one is kept at each rung.
REDUCTION_FACTOR = 3
#: The first decision is made after this fraction of the steps.
GRACE = 1 / 27

#: What is watched of a metric that is known at the end only: the column of the history, and whether its best so far.
_WATCHED = {
    "best_valid_accuracy": ("valid_accuracy", True),
    "selected_test_accuracy": ("valid_accuracy", True),
    "best_test_accuracy": ("valid_accuracy", True),
    "test_accuracy": ("valid_accuracy", False),
    "test_loss": ("valid_loss", False),
}


def watched(metric: str, mode: str, reports_images: bool) -> Watched:
    """Return what is watched of a metric.

    Args:
        metric: What ranks trials.
        mode: ``min`` or ``max``.
        reports_images: Whether our own trainable runs on images; another one's metrics mean what they say.
    """
    column, is_best = _WATCHED.get(metric, (metric, False)) if reports_images else (metric, False)
    return Watched(column, is_best, mode)


def make_scheduler(name: str, mode: str, num_steps: int) -> TrialScheduler:
    """Return a scheduler of Ray Tune's, for results with ``step`` and ``value``.

    Args:
        name: One of ``experiment.SCHEDULERS`` but ``none``.
        mode: ``min`` or ``max``.
        num_steps: Steps of a whole trial.

    Returns:
        ``asha`` decides after 1/27, 1/9 and 1/3 of the steps, and lets one of three go on; ``median`` ends a trial
        whose best is worse than the median of the others' means so far, after the same 1/27.
    """
    grace = max(1, math.ceil(num_steps * GRACE))
    shown: dict[str, Any] = {"time_attr": "step", "metric": "value", "mode": mode}
    if name == "asha":
        return AsyncHyperBandScheduler(
            **shown, max_t=num_steps + 1, grace_period=grace, reduction_factor=REDUCTION_FACTOR, stop_last_trials=False
        )
    return MedianStoppingRule(**shown, grace_period=grace, min_samples_required=3)


class _Past:
    """A trial of an earlier run, as far as a scheduler asks."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id

    def __hash__(self) -> int:
        return hash(self.trial_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Past) and self.trial_id == other.trial_id


class _NobodyElse:
    """What a scheduler asks the search that it is part of, while it is told of the past."""

    @staticmethod
    def get_live_trials() -> list[Any]:
        """Return no trials that could use a pause."""
        return []


def tell_of_the_past(scheduler: TrialScheduler, before: Results, seen: Watched) -> None:
    """Show a scheduler what became of the trials of an earlier run, as if it had decided on them."""
    if seen.column not in before.history:
        return
    taken = before.history.dropna(subset=[seen.column])
    for trial_id, history in taken.groupby("trial_id", observed=True):
        past: Any = _Past(f"past.{trial_id}")
        search: Any = _NobodyElse
        scheduler.on_trial_add(search, past)
        result: Mapping[str, Any] = {}
        value = math.nan
        for step, latest in zip(history["step"], history[seen.column], strict=True):
            value = seen.shown(float(latest), value)
            result = {"step": int(step), "value": value}
            decision = scheduler.on_trial_result(search, past, dict(result))
            if decision == TrialScheduler.STOP and isinstance(scheduler, MedianStoppingRule):
                break  # It takes no more of a trial that it would have ended.
        scheduler.on_trial_complete(search, past, dict(result))
