"""What proposes an experiment's trials while it runs, and how configurations become trials."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tune_hpc.analysis.results import Results
from tune_hpc.learning.config import complete
from tune_hpc.search.experiment import ENDED, TRAIN, Experiment

Sample = Mapping[str, Any]


def samples_of(experiment: Experiment, configs: Iterable[Mapping[str, Any]], first: int = 0) -> list[dict[str, Any]]:
    """Return configurations, checked and complete, as samples: ``experiment``, ``trial_id``, ``config``.

    Args:
        experiment: What they belong to.
        configs: One a trial.
        first: The number of the first one.

    Raises:
        InvalidConfigError: a configuration that the trainable would refuse.
    """
    whole = complete if experiment.trainable == TRAIN else dict
    return [
        {"experiment": experiment.name, "trial_id": f"t{number:05d}", "config": whole(config)}
        for number, config in enumerate(configs, first)
    ]


def samples_left(experiment: Experiment, before: Results | None) -> list[dict[str, Any]]:
    """Return the trials of an experiment whose configurations are known beforehand, but those that have ended.

    Args:
        experiment: What is searched.
        before: What there is of the search already.

    Raises:
        InvalidConfigError: as for ``samples_of``.
    """
    everything = samples_of(experiment, experiment.configs())
    if before is None:
        return everything
    ended = set(before.trials.loc[before.trials["status"].isin(ENDED), "trial_id"])
    return [sample for sample in everything if sample["trial_id"] not in ended]


class Searcher(ABC):
    """Proposes one experiment's trials, by what became of earlier ones.

    Attributes:
        experiment: What is searched.
        config_keys: Those that the configurations proposed so far have.
        note_config_keys: Called with more of them.
        record_stopped: Called with a trial that had paused and goes on no more, and the steps that it has done.
    """

    experiment: Experiment
    config_keys: list[str]
    note_config_keys: Callable[[Sequence[str]], object] = staticmethod(lambda keys: None)
    record_stopped: Callable[[Sample, int], object] = staticmethod(lambda sample, steps: None)

    def configuration_number(self, trial_id: str) -> int:
        """Return the number of the configuration that a trial is of: one configuration has a trial for each seed."""
        return int(trial_id[1:]) // max(1, len(self.experiment.seeds))

    @property
    def is_waiting(self) -> bool:
        """Whether there is nothing to propose now, but may be when trials under way have ended or paused."""
        return False

    @abstractmethod
    def possible_data(self) -> list[str]:
        """Return the data sets that any proposal may ask for."""

    @abstractmethod
    def propose(self) -> list[dict[str, Any]]:
        """Return some trials to run now, as samples; none when there is nothing to do now.

        One that has ``until`` is to pause there, and comes back: ``stage`` then counts how often it began.
        """

    @abstractmethod
    def ended(self, trial_id: str, status: str, value: float | None, steps: int) -> None:
        """Say what became of a trial.

        Args:
            trial_id: The trial.
            status: ``finished``, ``stopped``, ``diverged`` or ``failed``; ``running`` where its state is kept and it is
                to go on later.
            value: The metric that ranks trials; ``None``: there is none.
            steps: How far it came.
        """
