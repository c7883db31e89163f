"""Optuna study for ask-and-tell over a space with conditional parameters.

One Optuna trial is one configuration, whatever its number of seeds; its value is the mean over them. Parameters keep
their names. Each case of a conditional parameter is an Optuna parameter, such as ``learning_rate[optimizer=adam]``:
learning rates of different optimizers are not comparable.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.search.experiment import ENDED, Experiment
from tune_hpc.search.experiment_json import experiment_from_json
from tune_hpc.search.space.conditional import Conditional
from tune_hpc.search.space.parameter import Parameter, identity
from tune_hpc.search.space.samplers import quasi_random_configs
from tune_hpc.search.space.space import Space
from tune_hpc.search.trial_spec import TrialOutcome
from tune_hpc.storage.trial_file import row_to_config

#: Number of quasi-random configurations before Optuna's sampler suggests any.
NUM_STARTUP = 10

#: Metric values of one trial by step.
Curve = Mapping[int, float]


def outcome_of_row(row: Mapping[Any, Any], metric: str) -> TrialOutcome:
    """Return the outcome of a trial from its row of the trials frame."""
    value, steps = row.get(metric), row.get("steps_run")
    num_steps = int(steps) if steps and steps == steps else 0
    return TrialOutcome(str(row["status"]), None if value is None else float(value), num_steps)


def configurations(results: Results, space: Space) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return each configuration that is a member of a space, with the rows of its trials, one for each seed."""
    found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for values in results.trials.astype(object).where(results.trials.notna(), None).to_dict("records"):
        row = {str(name): value for name, value in values.items()}
        config = space.config_in(row_to_config(row))
        if config is not None:
            found.setdefault(json.dumps(config), (config, []))[1].append(row)
    return list(found.values())


@dataclass(frozen=True)
class ConfigurationOutcome:
    """Outcome of a configuration over its seeds, as Optuna records it.

    Attributes:
        state: ``COMPLETE``, ``PRUNED`` or ``FAIL``.
        mean: Mean of the metric over the seeds.
        step: Last step that all seeds reached.
        violation: Constraint value, above 0 for an infeasible configuration; ``None``: unknown.
    """

    state: TrialState
    mean: float
    step: int
    violation: float | None


class AskTellStudy:
    """Study that suggests configurations of a space and learns from their outcomes.

    Args:
        space: The space.
        sampler: ``tpe`` or ``gp``.
        mode: ``min`` or ``max``.
        seed: Seed of the suggestions; they also depend on the order in which trials end.
        storage: Storage of the study; ``None``: in memory.
        name: Name of the study in the storage.
    """

    def __init__(
        self,
        space: Space,
        sampler: str,
        mode: str,
        seed: int,
        storage: str | BaseStorage | None = None,
        name: str | None = None,
    ) -> None:
        self.space = space
        self.sampler = sampler
        self.mode = mode
        self.seed = seed
        self.parameters = _study_parameters(space)
        self.study = optuna.create_study(
            direction="minimize" if mode == "min" else "maximize", storage=storage, study_name=name
        )
        self._startup: Iterator[dict[str, Any]] | None = None
        self._open: dict[int, optuna.Trial] = {}
        self._num_trials = 0

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Return number and configuration of the next trial.

        The random numbers depend on the seed and the number of the trial only, so that a resumed search suggests what
        an undisturbed one does.
        """
        (seed,) = np.random.SeedSequence([self.seed, self._num_trials]).generate_state(1)
        self.study.sampler = _sampler(self.sampler, self.space, int(seed))
        if self._startup is None:
            # An extended search must not repeat the suggestions of its first part.
            self._startup = islice(quasi_random_configs(self.space, self.seed), self._num_trials, None)
        return self._ask(next(self._startup, None) if self._num_trials < NUM_STARTUP else None)

    def ask_given(self, config: Mapping[str, Any]) -> int:
        """Add a given configuration, which has not ended; return its number."""
        return self._ask(config)[0]

    def _ask(self, config: Mapping[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """Start a trial of a given configuration, or of a suggestion of the sampler."""
        with _without_warnings():
            if config is not None:
                self.study.enqueue_trial(self._as_params(config))
            trial = self.study.ask()
            self._num_trials += 1
            self._open[trial.number] = trial
            return trial.number, self._suggest(trial)

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        config: dict[str, Any] = {}
        for name in self.space.dependency_order:
            if case := self.space.case(name, config):
                number, domain = case
                parameter = self.parameters.get((name, number))
                config[name] = parameter.suggest(trial) if parameter else domain.values[0]
        return {name: config[name] for name in self.space if name in config}

    def _as_params(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the Optuna parameters of a configuration that is a member of the space."""
        params = {}
        for name in self.space.dependency_order:
            case = self.space.case(name, config)
            if case and (parameter := self.parameters.get((name, case[0]))):
                params[parameter.name] = parameter.from_value(config[name])
        return params

    def tell(self, number: int, outcome: ConfigurationOutcome) -> None:
        """Record the outcome of the configuration of a number; a later outcome replaces an earlier one."""
        trial = self._open.pop(number, None)
        if trial is None:
            self._replace(number, outcome)
            return
        if outcome.violation is not None:
            trial.set_constraint("diverged", outcome.violation)
        if outcome.state is TrialState.PRUNED:
            trial.report(outcome.mean, outcome.step)
        self.study.tell(trial, outcome.mean if outcome.state is TrialState.COMPLETE else None, state=outcome.state)

    def add(self, config: Mapping[str, Any], outcome: ConfigurationOutcome) -> int:
        """Add a configuration with its outcome; return its number."""
        return self._add(self._ended_trial(self._as_params(config), outcome))

    def add_trials(
        self, config: Mapping[str, Any], trials: Sequence[tuple[Mapping[str, Any], Curve]], metric: str
    ) -> int:
        """Add a configuration with everything that Optuna's dashboard shows of its trials; return its number.

        Args:
            config: The configuration, a member of the space.
            trials: Row and curve of each of its trials, one for each seed, all of which have ended.
            metric: Metric that ranks the trials.
        """
        rows = [row for row, _ in trials]
        attributes = {"trial_ids": [row["trial_id"] for row in rows], "statuses": [row["status"] for row in rows]}
        if errors := [row["error"] for row in rows if row.get("error")]:
            attributes["errors"] = errors
        steps = sorted(set.intersection(*(set(curve) for _, curve in trials)))
        mean_curve = {step: sum(curve[step] for _, curve in trials) / len(trials) for step in steps}
        outcome = self.aggregate([outcome_of_row(row, metric) for row in rows])
        trial = self._ended_trial(self._as_params(config), outcome, mean_curve, attributes)
        duration_s = max(sum(row.get(name) or 0.0 for name in ("setup_s", "train_s", "eval_s")) for row in rows)
        ends = [row["ended_at"] for row in rows if isinstance(row.get("ended_at"), str)]
        # Optuna has local times. Rows of early releases have none.
        ended = datetime.fromisoformat(max(ends)).astimezone().replace(tzinfo=None) if ends else datetime.now()
        trial.datetime_complete = ended
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=duration_s)
        return self._add(trial)

    def _add(self, trial: FrozenTrial) -> int:
        self.study.add_trial(trial)
        self._num_trials += 1
        return self._num_trials - 1

    def _ended_trial(
        self,
        params: dict[str, Any],
        outcome: ConfigurationOutcome,
        curve: Curve | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> FrozenTrial:
        intermediate = dict(curve or {})
        if outcome.state is TrialState.PRUNED:
            # Samplers use the last intermediate value.
            intermediate = {step: value for step, value in intermediate.items() if step < outcome.step}
            intermediate[outcome.step] = outcome.mean
        return create_trial(
            state=outcome.state,
            value=outcome.mean if outcome.state is not TrialState.FAIL else None,
            params=params,
            distributions={one.name: one.distribution for one in self.parameters.values() if one.name in params},
            intermediate_values=intermediate,
            user_attrs=dict(attributes or {}),
            constraints=None if outcome.violation is None else {"diverged": outcome.violation},
        )

    def _replace(self, number: int, outcome: ConfigurationOutcome) -> None:
        """Replace an outcome: Optuna accepts one per trial, so the other trials move to a new study."""
        trials = self.trials
        trials[number] = self._ended_trial(trials[number].params, outcome)
        study = optuna.create_study(direction=self.study.direction, sampler=self.study.sampler)
        study.add_trials(trials)
        self.study = study
        # Open trials belong to the former study; their outcomes replace them as well.
        self._open.clear()

    def aggregate(self, outcomes: Sequence[TrialOutcome]) -> ConfigurationOutcome:
        """Return the outcome of a configuration.

        A diverged trial makes it infeasible, and a stopped one pruned. After a failed trial, nothing is known.

        Args:
            outcomes: Outcomes of its trials, one for each seed.
        """
        statuses = {outcome.status for outcome in outcomes}
        step = min(outcome.steps for outcome in outcomes)
        if "diverged" in statuses:
            worst = math.inf if self.mode == "min" else -math.inf
            return ConfigurationOutcome(TrialState.COMPLETE, worst, step, 1.0)
        values = [outcome.value for outcome in outcomes if outcome.value is not None and math.isfinite(outcome.value)]
        if "failed" in statuses or not values:
            return ConfigurationOutcome(TrialState.FAIL, math.nan, step, None)
        state = TrialState.PRUNED if "stopped" in statuses else TrialState.COMPLETE
        return ConfigurationOutcome(state, _mean(values), step, -1.0)

    @property
    def trials(self) -> list[FrozenTrial]:
        """Trials of the study by number."""
        return self.study.get_trials(deepcopy=False)


def _mean(values: Sequence[float]) -> float:
    try:
        return fmean(values)
    except OverflowError:
        return sum(value / len(values) for value in values)


def study_of(
    results: Results, storage: str | BaseStorage | None = None, curves: Mapping[str, Curve] | None = None
) -> optuna.Study:
    """Return the Optuna study of a search, without trials that have not ended.

    Args:
        results: Results of the search, finished or not.
        storage: Storage of the study, under the name of the experiment; ``None``: in memory.
        curves: Metric values by step, by trial identifier.

    Raises:
        UnknownNameError: The trials have no column of the metric.
    """
    experiment = experiment_from_json(results.experiment)
    if results.metric not in results.trials:
        raise UnknownNameError(f"no trial of {results.name} reported {results.metric}")
    study = study_of_experiment(experiment, storage)
    for config, rows in configurations(results, experiment.space):
        if all(row["status"] in ENDED for row in rows):
            trials = [(row, (curves or {}).get(row["trial_id"], {})) for row in rows]
            study.add_trials(config, trials, results.metric)
    return study.study


def study_of_experiment(experiment: Experiment, storage: str | BaseStorage | None = None) -> AskTellStudy:
    """Return a study of an experiment for recorded trials; it does not suggest any."""
    name = None if storage is None else experiment.name
    return AskTellStudy(experiment.space, "tpe", experiment.mode, experiment.search_seed, storage, name)


class StudyParameter:
    """One domain of a space as Optuna samples it.

    Attributes:
        name: Name of the Optuna parameter.
        distribution: The domain if Optuna has an equivalent, otherwise the quantile of a value.
    """

    def __init__(self, name: str, domain: Parameter) -> None:
        self.domain = domain
        self._is_quantile = domain.kind == "randn" or (domain.is_log and domain.step is not None)
        self._choices = _choices(domain.values)
        with _without_warnings():
            self.distribution = FloatDistribution(0, 1) if self._is_quantile else self._distribution()
        self.name = f"{name} (quantile)" if self._is_quantile else name

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return the value of the domain that Optuna suggests."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            choice = trial.suggest_categorical(self.name, distribution.choices)
            return self.domain.values[self._choices.index(choice)]
        suggest: Any = trial.suggest_int if isinstance(distribution, IntDistribution) else trial.suggest_float
        suggested = suggest(
            self.name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
        if self._is_quantile:
            return self.domain.ppf(min(suggested, math.nextafter(1, 0)))
        return self.domain.clip(suggested)

    def from_value(self, value: Any) -> Any:
        """Return Optuna's value for a value of the domain."""
        if self._is_quantile:
            return self.domain.cdf(value)
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return self._choices[[*map(identity, self.domain.values)].index(identity(value))]
        # Optuna rounds multiples of a step differently: the upper bound may differ in the last bit.
        return min(max(value, distribution.low), distribution.high)

    def _distribution(self) -> CategoricalDistribution | IntDistribution | FloatDistribution:
        if self.domain.kind == "choice":
            return CategoricalDistribution(self._choices)
        low, high = self.domain.bounds
        if self.domain.is_integer:
            return IntDistribution(int(low), int(high), log=self.domain.is_log, step=self.domain.step or 1)
        return FloatDistribution(low, high, log=self.domain.is_log, step=self.domain.step)


def _choices(values: Sequence[Any]) -> list[Any]:
    """Return Optuna's choices for some values: lists and mappings are JSON texts.

    All are JSON texts if two would be equal otherwise, such as 1 and true, or [1] and "[1]".
    """
    choices = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
    return choices if len(set(choices)) == len(choices) else [json.dumps(value) for value in values]


def _study_parameters(space: Space) -> dict[tuple[str, int], StudyParameter]:
    """Return the Optuna parameter for each varying domain, by name of the parameter and number of the case."""
    found: dict[tuple[str, int], StudyParameter] = {}
    names: set[str] = set()
    for name, parameter in space.parameters.items():
        cases = [case.value for case in parameter.cases] if isinstance(parameter, Conditional) else [parameter]
        for number, domain in enumerate(cases):
            if not domain.is_constant:
                full_name = _full_name(name, parameter, number)
                # Conditions may look alike: on 0 and on "0".
                full_name = full_name if full_name not in names else f"{full_name} (case {number + 1})"
                names.add(full_name)
                found[name, number] = StudyParameter(full_name, domain)
    return found


def _full_name(name: str, parameter: Parameter | Conditional, number: int) -> str:
    """Return the name of a parameter with the conditions of one of several cases."""
    if not isinstance(parameter, Conditional) or len(parameter.cases) == 1:
        return name
    conditions = parameter.cases[number].conditions
    texts = [f"{other}={','.join(map(str, values))}" for other, values in conditions.items()]
    return f"{name}[{'&'.join(texts)}]" if texts else name


def _sampler(name: str, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    with _without_warnings():
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=NUM_STARTUP)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=NUM_STARTUP, multivariate=True, group=space.is_conditional
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress Optuna's warnings about its experimental options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


optuna.logging.set_verbosity(optuna.logging.WARNING)
