"""An experiment: a trainable over a space, with its metric, searcher, scheduler, published numbers and figures.

An experiment is data. ``tune_hpc.search.runner.run`` runs it. ``to_json`` returns the contents of experiment.json, on
which the analysis is based.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, islice
from typing import Any

import numpy as np

from tune_hpc.errors import InvalidExperimentError, InvalidSpaceError
from tune_hpc.learning.config import OWNERS, TRIAL_KEYS, owned_keys
from tune_hpc.search.command import Command
from tune_hpc.search.experiment_checks import (
    CHANGEABLE_KEYS,
    TRAIN,
    check_experiment,
    check_types,
    reachable_values,
)
from tune_hpc.search.object_reference import reference_to
from tune_hpc.search.options import ADAPTIVE
from tune_hpc.search.report_spec import Claim, Figure, Published, Table
from tune_hpc.search.space.samplers import quasi_random_configs, random_configs
from tune_hpc.search.space.space import Space
from tune_hpc.search.trial_spec import RankedMetric, num_steps

#: Statuses of trials that ended.
ENDED = ("finished", "stopped", "diverged", "failed")
#: Metrics that are the best values of a reported metric.
BEST_OF = {"best_valid_accuracy": "valid_accuracy", "best_test_accuracy": "test_accuracy"}
#: Maximum number of configurations of a quick run, except for a grid.
QUICK_SAMPLES = 8
#: Fields that folders of early releases lack, with their meaning there.
ADDED_FIELDS: Mapping[str, Any] = {
    "claims": [],
    "metrics": {},
    "judge": "last",
    "budget": "steps",
    "keep_checkpoints": "best",
    "points_to_evaluate": [],
}
#: Fields with several records.
RECORDS = {"published": Published, "claims": Claim, "figures": Figure, "tables": Table}


@dataclass(frozen=True)
class Experiment:
    """A trainable over a space.

    Attributes:
        name: Letters, digits, underscores, hyphens and dots; a dot separates an exercise from its stage.
        space: The search space.
        trainable: A function ``(config, report)``, its reference ``package.module:function``, or a ``Command``.
        metric: Column of the trials frame that ranks trials.
        mode: ``min`` or ``max``.
        metrics: Whether a small or a large value of another metric is better: ``{"latency_ms": "min"}``.
        judge: Value of the metric that counts: ``last``, ``best``, or ``mean_of_last_K`` of the values that a trial
            reports. The column of the metric in the trials frame has this value.
        budget: Parameter with the number of steps of a trial, or this number; only schedulers need it.
        keep_checkpoints: States that remain after the search: ``none``; ``best``, of the trials of the best
            configuration; ``last``, of each trial; or ``all``, the best and the last of each trial.
        seeds: Every configuration runs once with each seed, as ``config["seed"]``. Empty if the space has the parameter
            ``seed``, or if the trainable has no seed.
        searcher: ``auto`` (``random`` with ``num_samples``, otherwise ``grid``), ``grid`` (every configuration),
            ``random``, ``quasi_random`` (a scrambled Sobol sequence), or an adaptive searcher of Optuna: ``tpe`` or
            ``gp``. The attribute is never ``auto``.
        num_samples: Number of configurations; not for a grid.
        points_to_evaluate: Configurations that run first, and count among ``num_samples``; not for a grid. Parameters
            that are left out are drawn from the space.
        search_seed: Seed of the searcher, at least 0. The suggestions of ``tpe`` and ``gp`` also depend on the order in
            which trials end.
        scheduler: Early-stopping scheduler. ``none``; ``asha``, which promotes the best third (schedulers/asha.py);
            ``asha_stopping``, ``hyperband`` or ``median``, which stop bad trials (schedulers/ray_schedulers.py); or
            ``pbt``, in which bad trials copy better ones (schedulers/pbt.py).
        title: One line for tables and reports.
        description: Purpose and method, in a few sentences.
        source: Publication of the experiment.
        published: Published numbers.
        claims: Published sentences that can be checked.
        figures: Figures of the report.
        tables: Tables of the report beyond the standard ones.
        quick_values: Changes of a quick run to the space; without them it is the whole experiment, except that it has
            at most ``QUICK_SAMPLES`` samples.
        quick: Whether this is a quick run, whose numbers are not comparable with published ones.
        runner: ``search``, ``scaling``, or ``package.module:function``.

    Raises:
        InvalidExperimentError: Fields contradict each other, or there are more than ``MAX_TRIALS`` trials.
        InvalidSpaceError: The trainable does not know a parameter, or the space does not allow a quick value.

    Example:
        >>> from ray import tune
        >>> from tune_hpc import Experiment, Space
        >>> space = Space({"optimizer": tune.choice(["adam", "momentum"]), "learning_rate": 0.01})
        >>> Experiment("optimizers", space, seeds=(0, 1, 2)).num_trials
        6
    """

    name: str
    space: Space
    trainable: str | Callable[..., Any] = TRAIN
    metric: str = "test_accuracy"
    mode: str = "max"
    metrics: Mapping[str, str] = field(default_factory=dict)
    judge: str = "last"
    budget: str | int = "steps"
    keep_checkpoints: str = "best"
    seeds: tuple[int, ...] = (0,)
    searcher: str = "auto"
    num_samples: int | None = None
    points_to_evaluate: Sequence[Mapping[str, Any]] = ()
    search_seed: int = 0
    scheduler: str = "none"
    title: str = ""
    description: str = ""
    source: str = ""
    published: tuple[Published, ...] = ()
    claims: tuple[Claim, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    quick_values: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False
    runner: str = "search"

    def __post_init__(self) -> None:
        check_types(self)
        object.__setattr__(self, "seeds", tuple(self.seeds))
        object.__setattr__(self, "quick_values", dict(self.quick_values))
        object.__setattr__(self, "points_to_evaluate", tuple(self.points_to_evaluate))
        object.__setattr__(self, "runner", runner_name(self.runner))
        if self.trainable == TRAIN and self.space.value_keys is not TRIAL_KEYS:
            object.__setattr__(self, "space", self.space.with_keys(TRIAL_KEYS))
        object.__setattr__(self, "metrics", dict(self.metrics))
        if "seed" in self.space and self.seeds == (0,):
            object.__setattr__(self, "seeds", ())
        if self.searcher == "auto":
            object.__setattr__(self, "searcher", "grid" if self.num_samples is None else "random")
        check_experiment(self)

    def replace(self, **changes: Any) -> Experiment:
        """Return the experiment with some of its fields changed."""
        return replace(self, **changes)

    def with_values(self, values: Mapping[str, Any]) -> Experiment:
        """Return the experiment with some parameters of its space changed or added.

        With another optimizer or schedule, the keys that only the previous one had are removed.
        """
        return replace(self, **self.changed_by(values))

    def changed_by(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that change with some parameters: space, description and values of a quick run."""
        space = self.space | values
        quick_values = {name: value for name, value in self.quick_values.items() if name not in values}
        for owner, keys in OWNERS.items():
            if self.trainable == TRAIN and owner in values:
                used = {name for value in reachable_values(space, owner) for name in keys[value]} | {*values}
                space = space.without(*(name for name in owned_keys(owner) if name in self.space and name not in used))
        names = [name for name in values if name not in self.space or space.describe(name) != self.space.describe(name)]
        if not names or not self.description:
            return {"space": space, "quick_values": quick_values}
        changes = ", ".join(f"{name}={space.describe(name)}" for name in names)
        description = f"{self.description} Changed here: {changes}."
        return {"space": space, "quick_values": quick_values, "description": description}

    def quick_version(self) -> Experiment:
        """Return the experiment with fewer steps and values, marked as a quick run; itself if it has no fewer."""
        num_samples = None if self.num_samples is None else min(self.num_samples, QUICK_SAMPLES)
        if not self.quick_values and num_samples == self.num_samples:
            return self
        points = [
            {name: value for name, value in point.items() if name not in self.quick_values}
            for point in self.points_to_evaluate[:num_samples]
        ]
        space = self.space | self.quick_values
        return replace(self, space=space, num_samples=num_samples, points_to_evaluate=points, quick=True)

    @property
    def changeable_parameters(self) -> list[str]:
        """Parameters that population-based training may change: they vary, and no other parameter depends on them."""
        fixed = {"seed", self.budget, *self.space.controls}
        changeable = CHANGEABLE_KEYS if self.trainable == TRAIN else self.space
        return [name for name in self.space.varying if name not in fixed and name in changeable]

    @property
    def max_steps(self) -> int:
        """Maximum number of steps of a trial.

        Raises:
            InvalidExperimentError: The space does not define it.
        """
        if isinstance(self.budget, int):
            values: list[Any] = [self.budget]
        elif self.budget in self.space:
            values = self.space.reachable_values(self.budget)
        else:
            values = [TRIAL_KEYS["steps"].default] if self.trainable == TRAIN else []
        if not values or not all(isinstance(value, int) and value >= 1 for value in values):
            raise InvalidExperimentError(
                f"a scheduler counts steps, and {self.name} has no parameter {self.budget} with whole numbers from 1 "
                "on: name the parameter with the last step of a trial, or give this step, as budget (--budget epochs)"
            )
        return int(max(values))

    def num_steps(self, config: Mapping[str, Any]) -> int:
        """Return the number of steps of a trial, as schedulers count them."""
        return num_steps(config, self.budget, self.max_steps)

    @property
    def ranked_metric(self) -> RankedMetric:
        """The reported metric that ranks trials."""
        if self.metric in BEST_OF:
            return RankedMetric(BEST_OF[self.metric], self.mode, "best")
        return RankedMetric(self.metric, self.mode, self.judge)

    @property
    def num_trials(self) -> int:
        """Number of trials."""
        configurations = self.space.size if self.searcher == "grid" else self.num_samples
        if configurations is None:
            next(self.space.grid())
        return int(configurations or 0) * max(1, len(self.seeds))

    def configs(self) -> Iterator[dict[str, Any]]:
        """Yield the configuration of every trial, in the order of their starts.

        The order is that of the space, each configuration with all its seeds in turn: the same on every machine.

        Raises:
            InvalidSpaceError: A grid over a continuous parameter.
            InvalidExperimentError: The searcher is adaptive.
        """
        if self.searcher in ADAPTIVE:
            raise InvalidExperimentError(
                f"the configurations of an adaptive searcher ({self.searcher}) are not known in advance"
            )
        if self.searcher == "grid":
            configurations: Iterator[dict[str, Any]] = self.space.grid()
        else:
            initial = self.initial_configs
            stream = (random_configs if self.searcher == "random" else quasi_random_configs)(
                self.space, self.search_seed
            )
            if self.searcher == "quasi_random" and initial:
                seen = {json.dumps(config) for config in initial}
                stream = (config for config in stream if json.dumps(config) not in seen)
            configurations = islice(chain(initial, stream), self.num_samples)
        for configuration in configurations:
            yield from self.with_seeds(configuration)

    @property
    def initial_configs(self) -> list[dict[str, Any]]:
        """The configurations of ``points_to_evaluate``, completed with values that depend on the search seed only.

        Raises:
            InvalidSpaceError: A value is outside the space.
        """
        try:
            return [
                self.space.sample(np.random.default_rng([self.search_seed, number]), point)
                for number, point in enumerate(self.points_to_evaluate)
            ]
        except InvalidSpaceError as error:
            raise InvalidSpaceError(f"points_to_evaluate: {error}") from None

    def with_seeds(self, configuration: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return a configuration once with each seed."""
        return [{**configuration, "seed": seed} for seed in self.seeds] or [dict(configuration)]

    def to_json(self) -> dict[str, Any]:
        """Return the contents of experiment.json that describe the experiment."""
        plain, trainable = {entry.name: getattr(self, entry.name) for entry in fields(self)}, self.trainable
        for name in RECORDS:
            plain[name] = [asdict(record) for record in plain[name]]
        return plain | {
            "seeds": list(self.seeds),
            "points_to_evaluate": list(self.points_to_evaluate),
            "space": self.space.to_json(),
            **(trainable.to_json() if isinstance(trainable, Command) else {"trainable": reference_to(trainable)}),
            "quick_values": (self.space.without(*self.space) | self.quick_values).to_json(),
            "num_trials": self.num_trials,
        }


def runner_name(runner: str) -> str:
    """Return the name of a runner; folders of earlier releases have references to functions."""
    for name in ("search", "scaling"):
        if runner.startswith(f"tune_hpc.{name}."):
            return name
    return runner
