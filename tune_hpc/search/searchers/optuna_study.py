"""Searchers that learn from the trials that ended: an Optuna study that is asked for configurations.

One configuration of ours is one trial of Optuna's, whatever the number of seeds it runs with: its value is the mean
over them. Parameters keep their names; one with several cases has a parameter of Optuna's for each, for the learning
rate of Adam and that of Momentum are two different things: ``learning_rate[optimizer=adam]``.
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

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune.search.sample import Categorical, Domain, Integer

from tune_hpc.analysis.results import Results
from tune_hpc.search.searchers.samplers import quasi_random_configs
from tune_hpc.search.space.conditional import Conditional
from tune_hpc.search.space.domains import bounds, cdf, clip, ppf, to_json
from tune_hpc.search.space.space import Space
from tune_hpc.search.trial_spec import TrialOutcome

#: So many configurations are spread evenly before the sampler's model has a say.
NUM_STARTUP = 10


def outcome_of_row(row: Mapping[Any, Any], metric: str) -> TrialOutcome:
    """Return the outcome of a trial from its row of the trials frame."""
    value, steps = row.get(metric), row.get("steps_run")
    num_steps = int(steps) if steps and steps == steps else 0
    return TrialOutcome(str(row["status"]), None if value is None else float(value), num_steps)


def configurations(results: Results, space: Space) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Return each configuration that a space admits, with the rows of its trials, one for each seed, in order."""
    found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for row in results.trials.astype(object).where(results.trials.notna(), None).to_dict("records"):
        named = {str(name): value for name, value in row.items()}
        config = space.config_in(named)
        if config is not None:
            found.setdefault(json.dumps(config), (config, []))[1].append(named)
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
    """Asks Optuna for configurations and tells it what became of them.

    Args:
        space: What may vary.
        sampler: ``tpe`` or ``gp``.
        mode: ``min`` or ``max``.
        seed: Fixes the proposals, as far as the order in which trials end does not.
    """

    def __init__(self, space: Space, sampler: str, mode: str, seed: int) -> None:
        self.space = space
        self.sampler = sampler
        self.mode = mode
        self.seed = seed
        self.parameters = dict(_parameters(space))
        self.study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
        self._startup: Iterator[dict[str, Any]] = iter(())
        self._asked: dict[int, optuna.Trial] = {}
        self._num_known = 0
        self._begun = False

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Return the number and the configuration of the next trial."""
        if not self._begun:
            # A search that is extended must not propose once more what the first part of it did.
            number = self._num_known
            self.study.sampler = _sampler(self.sampler, self.space, self.seed + number)
            self._startup = islice(quasi_random_configs(self.space, self.seed), number, None)
            self._begun = True
        return self._ask(next(self._startup, None) if self._num_known < NUM_STARTUP else None)

    def ask_retry(self, config: Mapping[str, Any]) -> int:
        """Take in a configuration that was proposed before and is yet to end; return its number."""
        return self._ask(config)[0]

    def _ask(self, config: Mapping[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """Ask for a certain configuration, or for what the sampler proposes."""
        with _quiet():
            if config is not None:
                self.study.enqueue_trial(self.as_params(config))
            trial = self.study.ask()
            self._num_known += 1
            self._asked[trial.number] = trial
            return trial.number, self._suggested(trial)

    def _suggested(self, trial: optuna.Trial) -> dict[str, Any]:
        config: dict[str, Any] = {}
        for name in self.space.order:
            case, value = self.space.case(name, config)
            if case is None:
                continue
            if isinstance(value, Domain):
                parameter = self.parameters[name, case]
                value = parameter.to_value(parameter.suggest(trial))
            config[name] = value
        return {name: config[name] for name in self.space if name in config}

    def as_params(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of Optuna's parameters for a configuration that the space admits."""
        params = {}
        for name in self.space.order:
            case, value = self.space.case(name, config)
            if case is not None and isinstance(value, Domain):
                parameter = self.parameters[name, case]
                params[parameter.name] = parameter.from_value(config[name])
        return params

    def tell(self, number: int, outcome: ConfigurationOutcome) -> None:
        """Say what became of the configuration that ``ask`` gave this number; the last word counts."""
        trial = self._asked.pop(number, None)
        if trial is None:
            self._replace(number, outcome)
            return
        if outcome.violation is not None:
            trial.set_constraint("diverged", outcome.violation)
        if outcome.state is TrialState.PRUNED:
            trial.report(outcome.mean, outcome.step)
        self.study.tell(trial, outcome.mean if outcome.state is TrialState.COMPLETE else None, state=outcome.state)

    def add(
        self,
        config: Mapping[str, Any],
        outcome: ConfigurationOutcome,
        curve: Mapping[int, float] | None = None,
        attributes: Mapping[str, Any] | None = None,
        took_s: float = 0.0,
    ) -> int:
        """Take in a configuration that was tried before.

        Args:
            config: One that the space admits.
            outcome: What became of it.
            curve: The metric at some steps, for those who look at the study.
            attributes: What else they are told.
            took_s: How long it took, until now.

        Returns:
            Its number.
        """
        trial = self._ended_trial(self.as_params(config), outcome, curve or {}, attributes or {})
        ended = datetime.now()
        trial.datetime_start, trial.datetime_complete = ended - timedelta(seconds=took_s), ended
        self.study.add_trial(trial)
        self._num_known += 1
        return self._num_known - 1

    def _ended_trial(
        self,
        params: dict[str, Any],
        outcome: ConfigurationOutcome,
        curve: Mapping[int, float],
        attributes: Mapping[str, Any],
    ) -> FrozenTrial:
        intermediate = dict(curve)
        if outcome.state is TrialState.PRUNED:
            # Samplers go by the last of them.
            before = {step: value for step, value in intermediate.items() if step < outcome.step}
            intermediate = before | {outcome.step: outcome.mean}
        return create_trial(
            state=outcome.state,
            value=outcome.mean if outcome.state is not TrialState.FAIL else None,
            params=params,
            distributions={one.name: one.distribution for one in self.parameters.values() if one.name in params},
            intermediate_values=intermediate,
            user_attrs=dict(attributes),
            constraints=None if outcome.violation is None else {"diverged": outcome.violation},
        )

    def _replace(self, number: int, outcome: ConfigurationOutcome) -> None:
        """Tell more of a configuration than before: Optuna takes one word, so a new study takes all the others'."""
        trials = self.trials
        trials[number] = self._ended_trial(trials[number].params, outcome, {}, {})
        study = optuna.create_study(direction=self.study.direction, sampler=self.study.sampler)
        study.add_trials(trials)
        self.study = study
        # Those under way are replaced, too, when they end: their trials belong to the former study.
        self._asked.clear()

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
        return ConfigurationOutcome(state, fmean(values), step, -1.0)

    @property
    def trials(self) -> list[FrozenTrial]:
        """What Optuna knows, in the order of the numbers."""
        return self.study.get_trials(deepcopy=False)


class StudyParameter:
    """One domain of a space as Optuna samples it.

    Attributes:
        name: Optuna's name for it.
        distribution: What Optuna draws from: the domain itself where Optuna has its like, else the fraction of its
            probability that lies below a value.
    """

    def __init__(self, name: str, domain: Domain) -> None:
        self.domain = domain
        with _quiet():
            self.distribution, self._is_fraction = _distribution(domain)
        self.name = f"{name} (quantile)" if self._is_fraction else name

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return Optuna's value."""
        own = self.distribution
        if isinstance(own, CategoricalDistribution):
            return trial.suggest_categorical(self.name, own.choices)
        if isinstance(own, IntDistribution):
            return trial.suggest_int(self.name, own.low, own.high, step=own.step, log=own.log)
        return trial.suggest_float(self.name, own.low, own.high, step=own.step, log=own.log)

    def to_value(self, suggested: Any) -> Any:
        """Return the domain's value for one of Optuna's."""
        if self._is_fraction:
            return ppf(self.domain, min(suggested, math.nextafter(1, 0)))
        if isinstance(self.domain, Categorical):
            return suggested
        return clip(self.domain, suggested)

    def from_value(self, value: Any) -> Any:
        """Return Optuna's value for one of the domain's."""
        if self._is_fraction:
            return cdf(self.domain, value)
        own = self.distribution
        # Optuna's upper bound may be another sum of the same steps, rounded otherwise.
        return value if isinstance(own, CategoricalDistribution) else min(max(value, own.low), own.high)


def _parameters(space: Space) -> Iterator[tuple[tuple[str, int], StudyParameter]]:
    """Yield a parameter of Optuna's for each domain of each case of a space: by the parameter's name and the case."""
    taken: set[str] = set()
    for name, value in space.items():
        cases = [case.value for case in value.cases] if isinstance(value, Conditional) else [value]
        for place, domain in enumerate(cases):
            if isinstance(domain, Domain):
                own = _parameter_name(space, name, place)
                # Conditions may read alike: on 0 and on "0", or where one never gets its turn.
                own = own if own not in taken else f"{own} (case {place + 1})"
                taken.add(own)
                yield (name, place), StudyParameter(own, domain)


def _parameter_name(space: Space, name: str, case: int) -> str:
    value = space[name]
    if not isinstance(value, Conditional) or len(value.cases) == 1:
        return name
    conditions = value.cases[case].conditions
    if not conditions:
        return name
    conditions_text = (f"{other}={','.join(map(str, values))}" for other, values in conditions.items())
    return f"{name}[{'&'.join(conditions_text)}]"


def _distribution(domain: Domain) -> tuple[CategoricalDistribution | IntDistribution | FloatDistribution, bool]:
    """Return what Optuna draws from, and whether these are fractions of a probability."""
    if isinstance(domain, Categorical):
        return CategoricalDistribution(domain.categories), False
    kind, (low, high, *step) = next(iter(to_json("", domain).items()))
    is_log = "log" in kind
    if kind == "randn" or (step and is_log):
        return FloatDistribution(0, 1), True
    if isinstance(domain, Integer):
        low, high = map(int, bounds(domain))
        return IntDistribution(low, high, log=is_log, step=int(step[0]) if step else 1), False
    return FloatDistribution(low, high, log=is_log, step=step[0] if step else None), False


def _sampler(name: str, space: Space, seed: int) -> optuna.samplers.BaseSampler:
    with _quiet():
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=NUM_STARTUP)
        return optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=NUM_STARTUP, multivariate=True, group=space.is_conditional
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna's remarks on its own experimental options from our users."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


optuna.logging.set_verbosity(optuna.logging.WARNING)
