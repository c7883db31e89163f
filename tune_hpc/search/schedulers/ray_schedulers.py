"""Ray Tune's stopping schedulers, with budgets in optimizer steps.

A scheduler monitors the metric that ranks trials and stops bad trials. It sees the running best of
``best_valid_accuracy``. It never sees results on test images: the same metric on validation images takes their place.
If trials have different numbers of steps, the scheduler compares them at equal fractions of these.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from tune_hpc.analysis.results import Results
from tune_hpc.analysis.stability import GRACE, REDUCTION_FACTOR
from tune_hpc.errors import InvalidExperimentError
from tune_hpc.search.experiment import ENDED, TRAIN, Experiment
from tune_hpc.search.trial_spec import RankedMetric, TrialGroup

if TYPE_CHECKING:
    from tune_hpc.search.search_state import Search

#: Brackets of Hyperband: the first rung of each is at three times the steps of the previous bracket's.
NUM_BRACKETS = 3

#: Column and judge, by default that of the experiment, for metrics of the built-in trainable on test images.
_MONITORED = {
    "selected_test_accuracy": ("valid_accuracy", "best"),
    "best_test_accuracy": ("valid_accuracy", "best"),
    "test_accuracy": ("valid_accuracy", ""),
    "test_loss": ("valid_loss", ""),
}


def monitored_metric(experiment: Experiment) -> RankedMetric:
    """Return what a scheduler monitors: a metric on validation images instead of one on test images.

    A user's metrics are monitored as they are.
    """
    if experiment.trainable == TRAIN and experiment.metric in _MONITORED:
        column, judge = _MONITORED[experiment.metric]
        return RankedMetric(column, experiment.mode, judge or experiment.judge)
    return experiment.ranked_metric


def make_scheduler(name: str, mode: str, num_steps: int, seed: int) -> "ReplayMixin":
    """Return a Ray Tune scheduler for results with the keys ``progress`` and ``value``.

    Args:
        name: ``asha_stopping`` has rungs after 1/27, 1/9 and 1/3 of the steps, and promotes one of three trials.
            ``hyperband`` has three such brackets, which start at 1/27, 1/9 and 1/3. ``median`` stops a trial after
            1/27 of the steps if its best value is worse than the median of the other trials' running means.
        mode: ``min`` or ``max``.
        num_steps: Progress of a complete trial.
        seed: Seed of the assignment of trials to Hyperband's brackets.
    """
    grace = max(1, num_steps // GRACE)
    options: dict[str, Any] = {"time_attr": "progress", "metric": "value", "mode": mode}
    if name == "median":
        # A finite time slice would pause trials that the rule cannot judge yet; a paused trial restarts at step 0.
        return _Median(**options, grace_period=grace, min_samples_required=3, min_time_slice=math.inf)
    options |= {
        # No rung at the end: a trial that has come this far is not stopped.
        "max_t": max(1, min(num_steps, GRACE * grace) - 1),
        "grace_period": grace,
        "reduction_factor": REDUCTION_FACTOR,
        "stop_last_trials": False,
    }
    if name == "asha_stopping":
        return _AsyncHalving(**options)
    if name == "hyperband":
        return _Hyperband(seed, **options, brackets=NUM_BRACKETS)
    raise InvalidExperimentError(f"no class for the scheduler {name!r}; add it to make_scheduler")


class FifoMixin(FIFOScheduler):
    """Scheduler that runs trials in the order of their creation and lets every requested actor start.

    Ray Tune gives a free actor to the trial that its scheduler names. Ray Tune's own schedulers name the first waiting
    trial, even if an actor is starting for it: the trial moves to the free actor, and Ray Tune kills the starting one.
    With trials shorter than the start of an actor, 1.5 s, this repeats, and one of two slots may stay empty. Without a
    named trial, Ray Tune gives a free actor the next trial.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Name no trial; Ray Tune then starts all waiting trials in order."""


class ReplayMixin(FifoMixin):
    """Scheduler that receives the earlier results of a resumed trial right before its first new one.

    The trial continues from its last saved state, and may report steps again that it had reported before. Of these the
    scheduler must not have an earlier value, and must decide again: the process may have been killed before it stopped
    the trial.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._earlier: dict[str, list[dict[str, Any]]] = {}

    def defer(self, trial_id: str, results: list[dict[str, Any]]) -> None:
        """Replay the results of a trial when it has resumed."""
        self._earlier[trial_id] = results

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return the decision on a result."""
        if not math.isnan(result.get("value", math.nan)):
            self._replay(tune_controller, trial, result["progress"])
        return super().on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Record the last result of a trial."""
        self._replay(tune_controller, trial, math.inf)
        super().on_trial_complete(tune_controller, trial, result)

    def _replay(self, tune_controller: Any, trial: Any, progress: float) -> None:
        """Replay the earlier results before a progress; the trial continued after each of them."""
        for result in self._earlier.pop(trial_name(trial), ()):
            if result["progress"] < progress:
                super().on_trial_result(tune_controller, trial, result)
                # The median rule accepts no further results of a trial that it stops.
                getattr(self, "_stopped_trials", set()).discard(trial)


class _Median(ReplayMixin, MedianStoppingRule):
    """Ray Tune's median stopping rule, trials in order."""


class _AsyncHalving(ReplayMixin, AsyncHyperBandScheduler):
    """Ray Tune's asynchronous successive halving, trials in order."""


class _Hyperband(_AsyncHalving):
    """Asynchronous Hyperband in which the seed and the name of a trial determine its bracket.

    Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020.
    """

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self._seed = seed

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Assign a bracket; Ray Tune draws it from NumPy's global generator."""
        with _numpy_seed([self._seed, *trial_name(trial).encode()]):
            super().on_trial_add(tune_controller, trial)


def trial_name(trial: Any) -> str:
    """Return the name of a Ray trial, which is the same in every run of the search."""
    group: TrialGroup = trial.config["group"]
    return group.group_id


@contextmanager
def _numpy_seed(seed: list[int]) -> Iterator[None]:
    """Seed NumPy's global generator inside the block."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


class _StubTrial:
    """Trial that Ray Tune does not run, with the attributes that schedulers use."""

    def __init__(self, group: TrialGroup) -> None:
        self.trial_id = f"stub.{group.group_id}"
        self.config = {"group": group}

    def __hash__(self) -> int:
        return hash(self.trial_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _StubTrial) and self.trial_id == other.trial_id


class _StubController:
    """Tune controller without live trials."""

    @staticmethod
    def get_live_trials() -> list[Any]:
        """Return no trials."""
        return []


class StoppingScheduler:
    """A scheduler of Ray Tune that decides on trials which Ray Tune does not run: local and past ones."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler = scheduler
        self._controller: Any = _StubController

    @classmethod
    def of(cls, search: "Search") -> "StoppingScheduler | None":
        """Return the scheduler of a search; ``None`` if it has none that stops trials."""
        scheduler = search_scheduler(search)
        return None if scheduler is None else cls(scheduler)

    def add(self, group: TrialGroup) -> None:
        """Add a trial: a group of one."""
        self._scheduler.on_trial_add(self._controller, self._trial(group))

    def stops(self, group: TrialGroup, result: Mapping[str, Any]) -> bool:
        """Return whether the trial is stopped after a result with the keys ``progress`` and ``value``."""
        decision = self._scheduler.on_trial_result(self._controller, self._trial(group), dict(result))
        return decision == TrialScheduler.STOP

    def complete(self, group: TrialGroup, result: Mapping[str, Any]) -> None:
        """Record the end of a trial with its last result."""
        self._scheduler.on_trial_complete(self._controller, self._trial(group), dict(result))

    def _trial(self, group: TrialGroup) -> Any:
        return _StubTrial(group)


def search_scheduler(search: "Search") -> TrialScheduler | None:
    """Return the Ray Tune scheduler of a search, with the results of earlier trials; ``None``: it has none."""
    metric, experiment = search.monitored, search.experiment
    if metric is None:
        return None
    scheduler = make_scheduler(experiment.scheduler, experiment.mode, experiment.max_steps, experiment.search_seed)
    if search.before:
        replay_results(scheduler, search.before, metric, experiment.max_steps, experiment.budget)
    return scheduler


def replay_results(
    scheduler: ReplayMixin, before: Results, metric: RankedMetric, num_steps: int, budget: str | int = "steps"
) -> None:
    """Replay the results of an earlier run to a scheduler; those of an unfinished trial when it has resumed.

    Args:
        scheduler: Scheduler of ``make_scheduler``.
        before: Results of the earlier run.
        metric: Metric that the scheduler monitors.
        num_steps: Progress of a complete trial.
        budget: Parameter with the number of steps of a trial, or this number.
    """
    if metric.column not in before.history:
        return
    trials = before.trials
    trial_steps = dict(zip(trials["trial_id"], trials[budget], strict=True)) if budget in trials else {}
    unfinished = set(trials.loc[~trials["status"].isin(ENDED), "trial_id"])
    past = StoppingScheduler(scheduler)
    reported = before.history.dropna(subset=[metric.column])
    for trial_id, history in reported.groupby("trial_id", observed=True):
        pace = num_steps / trial_steps.get(trial_id, num_steps)
        results: list[dict[str, Any]] = []
        values = np.empty(0)
        for step, latest in zip(history["step"], history[metric.column], strict=True):
            values = metric.retain(np.append(values, latest))
            results.append({"progress": int(step) * pace, "value": metric.value(values)})
        if trial_id in unfinished:
            scheduler.defer(str(trial_id), results)
            continue
        group = TrialGroup(str(trial_id), ())
        past.add(group)
        for result in results:
            if past.stops(group, result) and isinstance(scheduler, MedianStoppingRule):
                break  # The rule accepts no further results of a trial that it stops.
        past.complete(group, result)
