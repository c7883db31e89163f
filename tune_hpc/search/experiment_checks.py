"""Checks of an experiment's fields, before anything runs."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tune_hpc.analysis.frames import (
    BUILT_IN_MEASURES,
    DERIVED,
    FIT_METRICS,
    IDENTITY,
    MEASURES,
    METRICS,
    TABLE_COLUMNS,
)
from tune_hpc.errors import InvalidConfigError, InvalidExperimentError, InvalidSpaceError
from tune_hpc.learning.config import OWNERS, TRIAL_KEYS, check_key
from tune_hpc.search.command import Command
from tune_hpc.search.object_reference import reference_to
from tune_hpc.search.options import ADAPTIVE, DESIGNS, MAX_TRIALS, POLICIES, SCHEDULERS, SEARCHERS
from tune_hpc.search.space.parameter import Parameter
from tune_hpc.search.space.space import Space
from tune_hpc.storage.trial_file import CONFIG

if TYPE_CHECKING:
    from tune_hpc.search.experiment import Experiment

#: Maximum number of values of a parameter for ``gp``, whose optimizer makes several arrays of all of them.
MAX_GP_VALUES = 10**6
TRAIN = "tune_hpc.learning.training:train"
#: Metrics of the model ``line``; models of images report all of ``METRICS``.
LINE_METRICS = ("train_loss", "W", "b")
#: Keys of the built-in trainable that may change during a trial: they affect neither the shapes of the network nor the
#: optimizer state.
CHANGEABLE_KEYS = tuple(
    key.name for key in TRIAL_KEYS.values() if key.kind is float and key.name not in ("width", "initial_accumulator")
)


#: Types of fields, from Python and in experiment.json, and subtypes that are no such values.
_TYPES: dict[type, tuple[str, ...]] = {
    str: (
        "name", "metric", "mode", "judge", "searcher", "scheduler", "keep_checkpoints", "title", "description",
        "source", "runner",
    ),
    int: ("search_seed", "num_samples"), bool: ("quick",), Mapping: ("metrics", "quick_values"), Space: ("space",),
    Iterable: ("seeds", "points_to_evaluate"),
}  # fmt: skip
_EXCLUDED: dict[type, tuple[type, ...]] = {int: (bool,), Iterable: (str, Mapping)}
#: Names of the types in messages.
_TYPE_NAMES: dict[type, str] = {
    str: "a text", int: "a whole number", bool: "true or false", Mapping: "a mapping", Space: "a Space",
    Iterable: "a list",
}  # fmt: skip


def check_types(experiment: "Experiment") -> None:
    """Raise if a field of an experiment has another type."""
    fields = [(name, kind, getattr(experiment, name)) for kind, names in _TYPES.items() for name in names]
    fields.append(("budget", int if isinstance(experiment.budget, int) else str, experiment.budget))
    for name, kind, value in fields:
        if name == "num_samples" and value is None:
            continue
        if not isinstance(value, kind) or isinstance(value, _EXCLUDED.get(kind, ())):
            raise InvalidExperimentError(f"{name} must be {_TYPE_NAMES[kind]}; got {value!r:.100}")


def check_experiment(experiment: "Experiment") -> None:
    """Raise if fields of an experiment contradict each other; see ``Experiment``."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", experiment.name):
        raise InvalidExperimentError(
            f"the name of an experiment is letters, digits, underscores, dots and hyphens; got {experiment.name!r}"
        )
    for name, mode in {
        "mode": experiment.mode,
        **{f"metrics[{name!r}]": mode for name, mode in experiment.metrics.items()},
    }.items():
        if mode not in ("min", "max"):
            raise InvalidExperimentError(f"{name} must be min or max; got {mode!r}")
    for name in (experiment.metric, *experiment.metrics):
        if not name or not name.isprintable():
            raise InvalidExperimentError(f"the name of a metric must be a word; got {name!r}")
        if name in experiment.space:
            raise InvalidExperimentError(f"{name} is a metric and a parameter; give one of them another name")
    if not re.fullmatch(r"last|best|mean_of_last_[1-9]\d{0,5}", experiment.judge):
        raise InvalidExperimentError(f"judge must be last, best or mean_of_last_K; got {experiment.judge!r}")
    for name, words in {"searcher": SEARCHERS, "scheduler": SCHEDULERS, "keep_checkpoints": POLICIES}.items():
        if getattr(experiment, name) not in words:
            raise InvalidExperimentError(f"{name} must be one of {', '.join(words)}; got {getattr(experiment, name)!r}")
    if experiment.scheduler != "none":
        _ = experiment.max_steps
    if "seed" in experiment.space and experiment.seeds:
        in_space = experiment.space.describe("seed")
        raise InvalidExperimentError(
            f"the seed is given twice: seed={in_space} in the space and seeds={list(experiment.seeds)}"
        )
    if not all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in experiment.seeds):
        raise InvalidExperimentError(f"a seed is a whole number from 0 to {2**31 - 1}; got {list(experiment.seeds)}")
    if len(set(experiment.seeds)) < len(experiment.seeds):
        raise InvalidExperimentError(f"each seed is given once; got {list(experiment.seeds)}")
    if experiment.search_seed < 0:
        raise InvalidExperimentError(f"search_seed must be at least 0; got {experiment.search_seed}")
    if experiment.search_seed >= 2**31:
        raise InvalidExperimentError(f"search_seed must be at most {2**31 - 1}; got {experiment.search_seed}")
    if experiment.num_samples is not None and experiment.num_samples < 1:
        raise InvalidExperimentError(f"num_samples must be at least 1; got {experiment.num_samples}")
    if experiment.searcher == "grid":
        if experiment.num_samples is not None:
            raise InvalidExperimentError(
                f"a grid runs every configuration once; got num_samples={experiment.num_samples}: "
                "leave it out, or choose another searcher, like random"
            )
    elif experiment.num_samples is None:
        raise InvalidExperimentError(f"a {experiment.searcher} search needs num_samples; it was left out")
    elif (
        experiment.searcher == "quasi_random"
        and experiment.space.size is not None
        and experiment.num_samples > experiment.space.size
    ):
        raise InvalidExperimentError(
            f"a quasi-random search tries no configuration twice; got num_samples={experiment.num_samples} for "
            f"{experiment.space.size} configurations: use fewer, or a grid"
        )
    points = experiment.points_to_evaluate
    if wrong := [point for point in points if not isinstance(point, Mapping)]:
        raise InvalidExperimentError(
            f"points_to_evaluate is a list of mappings of names to values; got {wrong[0]!r:.100}"
        )
    if len(points) > (experiment.num_samples or 0):
        raise InvalidExperimentError(
            f"points_to_evaluate has {len(points)} configurations, which count among "
            f"num_samples={experiment.num_samples}"
            + (": a grid has all of them; use another searcher" if experiment.searcher == "grid" else ": raise it")
        )
    _ = experiment.initial_configs
    if experiment.searcher in ADAPTIVE and not experiment.space.varying:
        raise InvalidExperimentError(f"{experiment.searcher} needs a parameter that varies; {experiment.name} has none")
    if experiment.searcher == "gp" and experiment.space.is_conditional:
        raise InvalidExperimentError("gp cannot model parameters with conditions; use tpe")
    if experiment.searcher == "gp":
        for name, parameter in experiment.space.parameters.items():
            if isinstance(parameter, Parameter) and (parameter.count or 0) > MAX_GP_VALUES:
                raise InvalidExperimentError(
                    f"gp lists all values of a parameter, at most {MAX_GP_VALUES}; {name} has {parameter.count}: use "
                    "tpe, or a range of floats"
                )
    if experiment.scheduler == "pbt":
        _check_population(experiment)
    configurations = experiment.space.size if experiment.searcher == "grid" else experiment.num_samples
    if configurations is not None and (num_trials := configurations * max(1, len(experiment.seeds))) > MAX_TRIALS:
        count = num_trials if num_trials < 2**63 else "more than 2**63"
        raise InvalidExperimentError(
            f"an experiment has at most {MAX_TRIALS} trials; {experiment.name} has {count}: narrow its space, "
            "or use fewer with num_samples"
        )
    if isinstance(experiment.trainable, Command):
        experiment.trainable.check(experiment.space, experiment.seeds)
    else:
        reference_to(experiment.trainable)
    built_in = () if experiment.trainable == TRAIN else BUILT_IN_MEASURES
    reserved = [name for name in (*IDENTITY, *MEASURES, *DERIVED, CONFIG, "step") if name not in built_in]
    reserved += [*TABLE_COLUMNS, f"{experiment.metric}_deviation"]
    if taken := [name for name in experiment.space if name in reserved]:
        raise InvalidSpaceError(
            f"{taken[0]} is a column of the results; rename the parameter (reserved: {', '.join(reserved)})"
        )
    metrics = [experiment.metric, *experiment.metrics]
    reserved = [*TABLE_COLUMNS, *IDENTITY, "host", "step", "seed", *(f"{name}_deviation" for name in metrics)]
    if taken := [name for name in metrics if name in reserved]:
        raise InvalidExperimentError(f"{taken[0]} is a column of the results; report it under another name")
    if experiment.trainable == TRAIN:
        _check_keys(experiment)
        _check_metric(experiment)
    _ = experiment.space | experiment.quick_values


def _check_population(experiment: "Experiment") -> None:
    if experiment.searcher in ADAPTIVE:
        raise InvalidExperimentError(
            f"pbt has its own search; got searcher={experiment.searcher}: use one of {', '.join(DESIGNS)}"
        )
    if not experiment.changeable_parameters:
        among = f", of {', '.join(CHANGEABLE_KEYS)}" if experiment.trainable == TRAIN else ""
        raise InvalidExperimentError(
            f"pbt changes parameters while trials run{among}; none of these varies in the space of {experiment.name}"
        )


def _check_metric(experiment: "Experiment") -> None:
    """Raise if the built-in trainable never reports the metric, which would show only at the end."""
    on_line = reachable_values(experiment.space, "model") == ["line"]
    known = [
        *(LINE_METRICS if on_line else METRICS),
        *(FIT_METRICS if "num_fit_images" in experiment.space else ()),
        *(name for name in MEASURES if name not in ("num_fused", "attempt", "host", "device", "ended_at")),
    ]
    if experiment.metric not in known:
        raise InvalidExperimentError(
            f"the metric of {experiment.name} must be one of {', '.join(known)}; got {experiment.metric!r}"
        )


def _check_keys(experiment: "Experiment") -> None:
    """Raise if the built-in trainable does not know a parameter, or does not use it with the owner's values."""
    for name in experiment.space:
        try:
            check_key(name)
        except InvalidConfigError as error:
            raise InvalidSpaceError(str(error)) from None
    for owner, keys in OWNERS.items():
        values = reachable_values(experiment.space, owner)
        for name in experiment.space:
            owners = [value for value, defaults in keys.items() if name in defaults]
            if owners and not set(owners) & set(values):
                raise InvalidSpaceError(
                    f"{name} belongs to {', '.join(owners)}; the space has {owner}={', '.join(values)}"
                )


def reachable_values(space: Space, name: str) -> list[Any]:
    """Return the values of a parameter with few values."""
    return space.reachable_values(name) if name in space else [TRIAL_KEYS[name].default]
