"""Typed records of trials: one trial, a group of trials, and what became of a trial."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple


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
        """Identifier of this run of the trial: the trial's own, with the stage for a trial that pauses."""
        return self.trial_id if self.stage is None else f"{self.trial_id}.{self.stage}"

    def until(self, max_step: int | None, stage: int) -> "TrialSpec":
        """Return the trial with a step at which it pauses."""
        return replace(self, max_step=max_step, stage=stage)


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
