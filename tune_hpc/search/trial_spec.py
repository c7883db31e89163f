"""Typed records of trials, which searchers, the driver and workers exchange."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tune_hpc.storage.trial_file import config_to_row

if TYPE_CHECKING:
    import ray

    from tune_hpc.search.user_code import PortableTrainable


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """One trial: a configuration with its seed.

    Attributes:
        experiment: Name of the experiment.
        trial_id: Identifier of the trial, unique in its experiment.
        config: Complete and validated configuration, the seed included.
        max_step: Step at which the trial saves its state and pauses; ``None``: it runs to its end.
        stage: Number of the pauses of the trial so far; ``None``: the trial does not pause.
    """

    experiment: str
    trial_id: str
    config: Mapping[str, Any]
    max_step: int | None = None
    stage: int | None = None

    @property
    def run_id(self) -> str:
        """Identifier of this run of the trial, which differs after each pause."""
        return self.trial_id if self.stage is None else f"{self.trial_id}.{self.stage}"

    def columns(self) -> dict[str, Any]:
        """Return the columns of the trial that are known before it runs."""
        return {"experiment": self.experiment, "trial_id": self.trial_id, **config_to_row(self.config)}


@dataclass(frozen=True, slots=True)
class TrialGroup:
    """Trials that one Ray trial runs: as one fused program, or one after another.

    Attributes:
        group_id: Name of the group, unique in its experiment.
        trials: The trials, all of one experiment; at least one.
        is_sequential: Whether the trials run one after another; otherwise they train as one fused program.
    """

    group_id: str
    trials: tuple[TrialSpec, ...]
    is_sequential: bool = False

    @property
    def experiment(self) -> str:
        """Name of the experiment of the trials."""
        return self.trials[0].experiment

    @classmethod
    def single(cls, trial: TrialSpec) -> "TrialGroup":
        """Return a group of one trial."""
        return cls(trial.run_id, (trial,))


class TrialOutcome(NamedTuple):
    """Result of a trial that ended or paused, as searchers and schedulers see it.

    Attributes:
        status: ``finished``, ``stopped``, ``diverged`` or ``failed``; ``running`` for a trial that paused.
        value: Value of the metric that ranks trials; ``None``: there is none.
        steps: Last step of the trial.
    """

    status: str
    value: float | None
    steps: int


@dataclass(frozen=True)
class RankedMetric:
    """Metric that ranks trials, and how its value follows from the reports of a trial.

    Attributes:
        column: Metric that the trainable reports.
        mode: ``min`` or ``max``.
        judge: ``last``, ``best``, or ``mean_of_last_K``: the last, the best, or the mean of the last K reported values.
    """

    column: str
    mode: str
    judge: str = "last"

    def retain(self, values: np.ndarray) -> np.ndarray:
        """Return those of the finite values on which the current value and all later ones depend."""
        values = values[np.isfinite(values)]
        if self.judge == "best" and len(values):
            return np.array([values.min() if self.mode == "min" else values.max()])
        num_last = 1 if self.judge in ("last", "best") else int(self.judge.rpartition("_")[2])
        return values[-num_last:]

    def value(self, values: np.ndarray) -> float:
        """Return the value for all values in the order of their steps; NaN without finite values."""
        retained = self.retain(values)
        return float(retained.mean()) if len(retained) else math.nan


@dataclass(frozen=True)
class WorkerPlacement:
    """Resources of the workers of a trial.

    Attributes:
        per_worker: Resources of each worker, as a Ray request.
        folder: Folder for the files of Ray Train.
        images: Data set of the trial in Ray's object store, as a list of one reference; empty without images.
    """

    per_worker: Mapping[str, float]
    folder: str
    images: "tuple[ray.ObjectRef, ...]" = ()


@dataclass(frozen=True)
class TrialContext:
    """Facts about an experiment that its trials need on any machine.

    Attributes:
        experiment: Name of the experiment.
        folder: URI of the experiment folder.
        trainable: The function, its reference, or its form for other processes.
        metric: Column that ranks trials.
        ranked: Reported metric that determines this column.
        attempt: Number of the attempt of the search.
        checkpoint_interval_s: Seconds between two checkpoints.
        monitored: Metric that a Ray Tune scheduler monitors; ``None``: no such scheduler.
        max_steps: Steps of a complete trial, as the scheduler counts them.
        budget: Parameter with the number of steps of a trial, or this number.
        keep_checkpoints: Policy of retained checkpoints (search/checkpoint_retention.py).
        placement: Resources of the workers; ``None``: a trial has no workers.
        time_limit_s: Time limit of a trial; ``None``: no limit.
    """

    experiment: str
    folder: str
    trainable: "str | Callable[..., Any] | PortableTrainable"
    metric: str
    ranked: RankedMetric
    attempt: int
    checkpoint_interval_s: float
    monitored: RankedMetric | None = None
    max_steps: int = 1
    budget: str | int = "steps"
    keep_checkpoints: str = "none"
    placement: WorkerPlacement | None = None
    time_limit_s: float | None = None


def budget_of(config: Mapping[str, Any], budget: str | int) -> float | None:
    """Return the number of steps of a trial of any trainable; ``None`` if its configuration does not have it."""
    steps = config.get(budget) if isinstance(budget, str) else budget
    return steps if isinstance(steps, int | float) and steps > 0 else None


def num_steps(config: Mapping[str, Any], budget: str | int, default: int) -> int:
    """Return the number of steps of a trial, as schedulers count them.

    Args:
        config: Its configuration.
        budget: Parameter with this number, or the number.
        default: The number without such a parameter.
    """
    return int(config.get(budget, default)) if isinstance(budget, str) else budget
