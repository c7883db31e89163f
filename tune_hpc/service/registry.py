"""Registered experiments, and the experiment of a request."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from tune_hpc.errors import InvalidExperimentError, InvalidSpaceError, RequestError, UnknownNameError
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.options import MAX_REQUEST_SAMPLES
from tune_hpc.search.space.space import Space
from tune_hpc.service.schemas import SearchRequest, SpaceDetail

#: Values of a parameter or a condition.
MAX_VALUES = 1000


class Registry:
    """Experiments that requests may start, by name.

    Args:
        experiments: Experiments of the operator.

    Raises:
        InvalidExperimentError: Two experiments have the same name.
    """

    def __init__(self, experiments: Iterable[Experiment]) -> None:
        self._by_name: dict[str, Experiment] = {}
        for experiment in experiments:
            if self._by_name.setdefault(experiment.name, experiment) != experiment:
                raise InvalidExperimentError(f"two registered experiments have the name {experiment.name}; rename one")
        self.describe = cache(self._describe)

    def __iter__(self) -> Iterator[Experiment]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Experiment:
        """Return an experiment.

        Raises:
            UnknownNameError: No experiment has this name.
        """
        if name not in self._by_name:
            raise UnknownNameError(f"no space has the name {name[:200]!r}; there are {', '.join(self._by_name)}")
        return self._by_name[name]

    def build_experiment(self, request: SearchRequest) -> Experiment:
        """Return the experiment of a request.

        Raises:
            UnknownNameError: No registered experiment has the name.
            InvalidSpaceError: A parameter does not allow a value.
            InvalidExperimentError: Fields of the request contradict each other.
            RequestError: The search has too many configurations for a request.
        """
        experiment = self[request.space]
        keys = experiment.space.value_keys
        if request.quick:
            experiment = experiment.quick_version()
        if request.parameters is not None:
            _check_size(request.parameters)
            experiment = experiment.replace(space=Space.from_json(request.parameters, keys=keys))
        if roles := [name for name, value in request.set.items() if isinstance(value, dict) and "role" in value]:
            raise InvalidSpaceError(
                f"{roles[0]}: set takes no role; give the whole space in parameters to change roles"
            )
        _check_size(request.set)
        values = _parse_parameters(request.set, experiment.space)
        built = replace(request.overrides(), quick=False).apply(experiment, values)
        num_configurations = built.num_trials / max(1, len(built.seeds))
        if num_configurations > MAX_REQUEST_SAMPLES:
            raise RequestError(
                f"a search that is started over HTTP has at most {MAX_REQUEST_SAMPLES} configurations; got "
                f"{num_configurations:.0f}: use fewer values, or tune-hpc submit"
            )
        return built

    def _describe(self, name: str) -> dict[str, Any]:
        """Return the description of an experiment, as in responses."""
        experiment = self[name]
        plain, quick = experiment.to_json(), experiment.quick_version()
        values = plain | {
            "quick_num_trials": quick.num_trials,
            "parameters": plain["space"],
            "quick_parameters": quick.space.to_json(),
            "varies": experiment.space.varying,
        }
        return {name: values[name] for name in SpaceDetail.model_fields}


def _parse_parameters(plain: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Return parameters from JSON; conditions may refer to other parameters of the space."""
    whole = Space.from_json({**space.to_json(), **plain}, keys=space.value_keys) if plain else {}
    return {name: whole[name] for name in plain}


def _check_size(plain: Mapping[str, Any]) -> None:
    """Reject lists that would take long to evaluate; the space bounds its conditions.

    Raises:
        InvalidSpaceError: A list is too long.
    """
    for name, value in plain.items():
        if (size := _longest_list(value)) > MAX_VALUES:
            raise InvalidSpaceError(f"{str(name)[:100]}: a list has at most {MAX_VALUES} values; got {size}: use fewer")


def _longest_list(value: Any) -> int:
    """Return the length of the longest list in plain data."""
    longest, waiting = 0, [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, Mapping):
            waiting.extend(current.values())
        elif isinstance(current, list):
            longest = max(longest, len(current))
            waiting.extend(current)
    return longest
