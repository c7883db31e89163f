"""Searcher interface, and the trials that belong to configurations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tune_hpc.analysis.results import Results
from tune_hpc.learning.config import complete
from tune_hpc.search.experiment import ENDED, TRAIN, Experiment
from tune_hpc.search.trial_spec import TrialOutcome, TrialSpec


def trial_specs(experiment: Experiment, configs: Iterable[Mapping[str, Any]], first: int = 0) -> list[TrialSpec]:
    """Return one trial for each configuration.

    The configurations of the built-in trainable are completed and validated here, once.

    Args:
        experiment: Experiment of the trials.
        configs: Configurations, seeds included.
        first: Number of the first trial.

    Raises:
        InvalidConfigError: The built-in trainable does not accept a configuration.
    """
    finish = complete if experiment.trainable == TRAIN else dict
    return [
        TrialSpec(experiment.name, f"t{number:05d}", finish(config)) for number, config in enumerate(configs, first)
    ]


def remaining_trials(experiment: Experiment, before: Results | None) -> list[TrialSpec]:
    """Return the trials of an experiment that have not ended; its configurations are known beforehand.

    Args:
        experiment: Experiment of the trials.
        before: Results of the search so far.

    Raises:
        InvalidConfigError: As for ``trial_specs``.
    """
    trials = trial_specs(experiment, experiment.configs())
    if before is None:
        return trials
    ended = set(before.trials.loc[before.trials["status"].isin(ENDED), "trial_id"])
    return [trial for trial in trials if trial.trial_id not in ended]


def merged_config_keys(trials: Iterable[TrialSpec]) -> list[str]:
    """Return the keys of the configurations of some trials, each once, in the order of their first use."""
    return list(dict.fromkeys(key for trial in trials for key in trial.config))


class Searcher(ABC):
    """Suggests the trials of one experiment while the search runs.

    Attributes:
        experiment: The experiment.
        config_keys: Keys of the configurations suggested so far.
        note_config_keys: Called with further keys.
        record_stopped: Called with a paused trial that is stopped for good, and with its last step.
    """

    experiment: Experiment
    config_keys: list[str]
    note_config_keys: Callable[[Sequence[str]], object] = staticmethod(lambda keys: None)
    record_stopped: Callable[[TrialSpec, int], object] = staticmethod(lambda trial, steps: None)

    def configuration_number(self, trial_id: str) -> int:
        """Return the number of a trial's configuration, which has one trial for each seed."""
        return int(trial_id[1:]) // max(1, len(self.experiment.seeds))

    @property
    def has_pending(self) -> bool:
        """Return whether running trials must end or pause before there may be another suggestion."""
        return False

    def possible_data(self) -> list[str]:
        """Return the names of the data sets that any suggestion may use."""
        space = self.experiment.space
        if "data" in space:
            return [str(name) for name in space.reachable_values("data")]
        models = space.reachable_values("model") if "model" in space else [complete({})["model"]]
        return [str(complete({"model": model})["data"]) for model in models]

    def write_initial_state(self) -> None:  # noqa: B027 - most searchers have none
        """Write what a resumed search needs beside its trials, once its folder is claimed."""

    @abstractmethod
    def suggest(self) -> list[TrialSpec]:
        """Return the next trials to run; an empty list if there are none at present.

        A trial with a ``max_step`` pauses there and is suggested again with the next ``stage``.
        """

    @abstractmethod
    def on_trial_complete(self, trial_id: str, outcome: TrialOutcome) -> None:
        """Record the outcome of a trial that ended or paused."""
