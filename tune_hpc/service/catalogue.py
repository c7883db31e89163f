"""The experiments that may be asked for, by name: those that the operator registered, and no others."""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from tune_hpc.errors import InvalidExperimentError, InvalidSpaceError, UnknownNameError
from tune_hpc.search.asked import as_asked
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.space import Space
from tune_hpc.service.bodies import NewSearch

#: Combinations of the values on which conditions depend: a space is walked through once for each.
MAX_BRANCHES = 1000


class Catalogue:
    """What there is to run.

    Args:
        experiments: All that may be asked for.

    Raises:
        InvalidExperimentError: two are called the same.
    """

    def __init__(self, experiments: Iterable[Experiment]) -> None:
        self._by_name: dict[str, Experiment] = {}
        for one in experiments:
            if self._by_name.setdefault(one.name, one) != one:
                raise InvalidExperimentError(f"two registered experiments are called {one.name}; rename one of them")
        self.describe = cache(self._describe)

    def __iter__(self) -> Iterator[Experiment]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Experiment:
        """Return an experiment.

        Raises:
            UnknownNameError: nothing is called so.
        """
        if name not in self._by_name:
            raise UnknownNameError(f"no space is called {name!r}; there are {', '.join(self._by_name)}")
        return self._by_name[name]

    def asked(self, body: NewSearch) -> Experiment:
        """Return the experiment that a request describes.

        Raises:
            UnknownNameError: nothing is called so.
            InvalidSpaceError: a value that its parameter does not allow.
            InvalidExperimentError: wishes that contradict one another.
        """
        experiment = self[body.space]
        keys = experiment.space.keys_of_values
        if body.quick:
            experiment = experiment.as_quick()
        if body.parameters is not None:
            _check_branches(body.parameters)
            experiment = experiment.replace(space=Space.from_json(body.parameters, keys=keys))
        if beyond := [name for name in body.set if isinstance(body.set[name], dict) and "role" in body.set[name]]:
            raise InvalidSpaceError(f"{beyond[0]}: a role is given in parameters, with the whole space; not in set")
        _check_branches({**experiment.space.to_json(), **body.set})
        values = dict(_parameters(body.set, experiment.space))
        return as_asked(
            experiment,
            values,
            searcher=body.searcher,
            num_samples=body.num_samples,
            scheduler=body.scheduler,
            seeds=body.seeds,
            search_seed=body.search_seed,
            metric=body.metric,
            mode=body.mode,
        )

    def _describe(self, name: str) -> dict[str, Any]:
        """Return what is told of an experiment."""
        experiment = self[name]
        plain = experiment.to_json()
        told = {
            key: plain[key]
            for key in (
                "name", "title", "description", "source", "metric", "mode", "searcher", "num_samples", "scheduler",
                "seeds", "num_trials",
            )
        }  # fmt: skip
        quick = experiment.as_quick()
        told["quick_num_trials"] = quick.num_trials
        told["parameters"] = plain["space"]
        told["quick_parameters"] = quick.space.to_json()
        told["varies"] = experiment.space.varying
        return told


def _parameters(plain: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Return parameters as the space would have them, which reads conditions on its own parameters, too."""
    whole = Space.from_json({**space.to_json(), **plain}, keys=space.keys_of_values) if plain else {}
    return {name: whole[name] for name in plain}


def _check_branches(plain: Mapping[str, Any]) -> None:
    """Refuse conditions whose combinations nobody could walk through."""
    controls = {
        other
        for value in plain.values()
        if isinstance(value, Mapping) and isinstance(value.get("cases"), list)
        for case in value["cases"]
        if isinstance(case, Mapping) and isinstance(case.get("when"), Mapping)
        for other in case["when"]
    }
    widths = [_width(plain.get(name)) for name in controls]
    if math.prod(widths) > MAX_BRANCHES:
        raise InvalidSpaceError(
            f"conditions depend on at most {MAX_BRANCHES} combinations of values; those on "
            f"{', '.join(sorted(map(str, controls)))} have {math.prod(widths)}: use fewer conditions or values"
        )


def _width(value: Any) -> int:
    """Return how many values a parameter has that others depend on; 1 for what will be refused anyway."""
    if not isinstance(value, Mapping):
        return 1
    if isinstance(value.get("cases"), list):
        return max((_width(case.get("value")) for case in value["cases"] if isinstance(case, Mapping)), default=1)
    arguments = next((one for kind, one in value.items() if kind != "role"), None)
    if not isinstance(arguments, list) or not arguments:
        return 1
    if "choice" in value:
        return len(arguments)
    numbers = [one for one in arguments if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) < 2 or any(not math.isfinite(one) for one in numbers):
        return 1
    return max(1, int(min(numbers[1] - numbers[0], 1e9)))
