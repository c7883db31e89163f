"""Search space: the parameters of a trial and their domains.

A space is an immutable mapping from parameter name to a Ray Tune domain, a constant, or cases (``when``). Without cases
``dict(space)`` is a Ray Tune ``param_space``. A space is validated when it is built, composes with ``|``, has a size if
it is finite, and becomes a grid. It round-trips through plain JSON, so that nothing is evaluated or unpickled:

    {"optimizer": {"choice": ["adam", "momentum"], "role": "scientific"},
     "learning_rate": {"loguniform": [1e-4, 1e-1]},
     "momentum": {"cases": [{"when": {"optimizer": ["momentum"]}, "value": {"uniform": [0.8, 0.99]}}]},
     "steps": 500}

A parameter has a role: the values of a **scientific** parameter are compared, a **nuisance** parameter is tuned for
each of these values, and a **fixed** parameter has one value.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from ray import tune

from tune_hpc.errors import InvalidSpaceError
from tune_hpc.learning.config import ConfigKey
from tune_hpc.search.space.conditional import (
    Branch,
    Condition,
    Conditional,
    check_given,
    dependency_order,
    reachable_values,
)
from tune_hpc.search.space.parameter import Parameter, check_constant, check_name, identity

ROLES = ("scientific", "nuisance", "fixed")
#: Maximum number of combinations of controlling values: a space is evaluated once for each.
MAX_BRANCHES = 10_000


class Space(Mapping[str, Any]):
    """Validated search space.

    Args:
        parameters: By name, a Ray Tune domain, a constant (number, string, Boolean) or the result of ``when``.
        keys: Types and bounds of values by name; by default any value is allowed. An experiment of the built-in
            trainable applies the keys of this trainable.
        roles: By name, ``scientific``, ``nuisance`` or ``fixed``; by default a parameter that varies is a nuisance.

    Raises:
        InvalidSpaceError: A choice is empty or repeats a value, bounds are inconsistent, a value violates its key, or
            a domain has no plain form. A condition can never hold, or a role contradicts its parameter.

    Example:
        >>> from ray import tune
        >>> from tune_hpc import Space
        >>> space = Space({"optimizer": tune.choice(["adam", "momentum"]), "learning_rate": tune.loguniform(1e-4, 1)})
        >>> narrow = space | {"learning_rate": tune.choice([0.01, 0.1])}
        >>> narrow.size
        4
        >>> narrow.to_json()["learning_rate"]
        {'choice': [0.01, 0.1]}
    """

    __slots__ = ("_keys", "_order", "_parameters", "_scientific")

    def __init__(
        self,
        parameters: Mapping[str, Any],
        *,
        keys: Mapping[str, ConfigKey] | None = None,
        roles: Mapping[str, str] | None = None,
    ) -> None:
        self._keys = keys or {}
        self._parameters = {name: self._validated(name, value) for name, value in parameters.items()}
        self._order = dependency_order(self._parameters)
        for name, parameter in self._parameters.items():
            if isinstance(parameter, Conditional):
                self._check_cases(name, parameter)
        num_branches = math.prod(len(self.reachable_values(name)) for name in self.controls)
        if num_branches > MAX_BRANCHES:
            raise InvalidSpaceError(
                f"conditions depend on at most {MAX_BRANCHES} combinations of values; those on "
                f"{', '.join(sorted(self.controls))} have {num_branches}: use fewer conditions or values"
            )
        for name, role in (roles or {}).items():
            self._check_role(name, role)
        self._scientific = tuple(name for name in self if (roles or {}).get(name) == "scientific")

    def _validated(self, name: str, value: Any) -> Parameter | Conditional:
        key = self._keys.get(name)
        if not isinstance(value, Conditional):
            return Parameter.from_value(name, value, key)
        cases = []
        for case in value.cases:
            conditions = {
                other: tuple(check_constant(other, value, self._keys.get(other)) for value in values)
                for other, values in case.conditions.items()
            }
            cases.append(Condition(conditions, Parameter.from_value(name, case.value, key)))
        return Conditional(tuple(cases))

    def _check_cases(self, name: str, parameter: Conditional) -> None:
        for number, case in enumerate(parameter.cases, start=1):
            if not case.conditions and number < len(parameter.cases):
                raise InvalidSpaceError(f"{name}: a case without a condition must be the last; it is number {number}")
            for other, values in case.conditions.items():
                reachable = {identity(value): value for value in self.reachable_values(other)}
                if never := [value for value in values if identity(value) not in reachable]:
                    first = ", ".join(map(str, list(reachable.values())[:20]))
                    raise InvalidSpaceError(
                        f"{name}: its condition {other}={never[0]} never holds; {other} is one of {first}"
                        f"{' and others' if len(reachable) > 20 else ''}"
                    )

    def _check_role(self, name: str, role: str) -> None:
        if role not in ROLES:
            raise InvalidSpaceError(f"{name}: a role must be one of {', '.join(ROLES)}; got {role!r}")
        if name not in self._parameters:
            raise InvalidSpaceError(
                f"{name} has a role but is no parameter of the space; parameters are {', '.join(self)}"
            )
        if (name in self.varying) == (role == "fixed"):
            raise InvalidSpaceError(
                f"{name}: a fixed parameter has one value, and any other several; got {role} for {self.describe(name)}"
            )
        if role == "scientific":
            if isinstance(self._parameters[name], Conditional):
                raise InvalidSpaceError(
                    f"{name}: a scientific parameter must not have conditions; got {self.describe(name)}"
                )
            self.reachable_values(name)

    def __getitem__(self, name: str) -> Any:
        parameter = self._parameters[name]
        return parameter.as_ray() if isinstance(parameter, Parameter) else parameter

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __or__(self, other: Mapping[str, Any]) -> Space:
        """Return the space with some parameters changed or added.

        Cases that can no longer hold are dropped, as is a parameter without a remaining case.
        """
        merged = self._parameters | {name: self._validated(name, value) for name, value in other.items()}
        remaining = dict(merged)

        def reachable(name: str) -> list[Any]:
            return reachable_values(name, remaining[name]) if name in remaining else []

        for name in dependency_order(merged):
            parameter = merged[name]
            if isinstance(parameter, Conditional) and name not in other:
                restricted = parameter.restricted_to(reachable)
                if restricted is None:
                    del remaining[name]
                else:
                    remaining[name] = restricted
        scientific = [*self._scientific, *(other._scientific if isinstance(other, Space) else ())]
        varying = [
            name
            for name, parameter in remaining.items()
            if isinstance(parameter, Parameter) and not parameter.is_constant
        ]
        return Space(remaining, keys=self._keys, roles=dict.fromkeys(set(scientific).intersection(varying), ROLES[0]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self._as_text() == other._as_text()

    def __hash__(self) -> int:
        return hash(self._as_text())

    def _as_text(self) -> str:
        # Text, because 1, 1.0 and True are equal in Python but are different values here.
        return json.dumps(self.to_json(), sort_keys=True)

    def __repr__(self) -> str:
        return f"Space({', '.join(f'{name}={self.describe(name)}' for name in self)})"

    def without(self, *names: str) -> Space:
        """Return the space without some parameters.

        Raises:
            InvalidSpaceError: Another parameter has a condition on one of them.
        """
        rest = {name: parameter for name, parameter in self._parameters.items() if name not in names}
        return Space(rest, keys=self._keys, roles=dict.fromkeys(set(self._scientific).intersection(rest), ROLES[0]))

    def with_keys(self, keys: Mapping[str, ConfigKey]) -> Space:
        """Return the space with types and bounds of values.

        Raises:
            InvalidSpaceError: A value violates its key.
        """
        return Space(self._parameters, keys=keys, roles=dict.fromkeys(self._scientific, ROLES[0]))

    @property
    def varying(self) -> list[str]:
        """The parameters that are not constant."""
        return [
            name
            for name, parameter in self._parameters.items()
            if isinstance(parameter, Conditional) or not parameter.is_constant
        ]

    @property
    def parameters(self) -> Mapping[str, Parameter | Conditional]:
        """The parameters by name."""
        return MappingProxyType(self._parameters)

    @property
    def value_keys(self) -> Mapping[str, ConfigKey]:
        """Types and bounds of values by parameter name."""
        return self._keys

    @property
    def scientific(self) -> tuple[str, ...]:
        """The parameters whose values are compared."""
        return self._scientific

    def role(self, name: str) -> str:
        """Return the role of a parameter: ``scientific``, ``nuisance`` or ``fixed``."""
        if name in self._scientific:
            return "scientific"
        return "nuisance" if name in self.varying else "fixed"

    @property
    def controls(self) -> set[str]:
        """Parameters on which conditions depend."""
        conditional = [value for value in self._parameters.values() if isinstance(value, Conditional)]
        return {name for parameter in conditional for name in parameter.controlled_by}

    @property
    def is_conditional(self) -> bool:
        """Return whether any parameter has conditions."""
        return any(isinstance(parameter, Conditional) for parameter in self._parameters.values())

    @property
    def dependency_order(self) -> Sequence[str]:
        """The parameters, each after those on which it depends."""
        return tuple(self._order)

    def reachable_values(self, name: str) -> list[Any]:
        """Return all values that a parameter may have.

        Raises:
            InvalidSpaceError: The parameter is continuous.
        """
        return reachable_values(name, self._parameters[name])

    def describe(self, name: str) -> str:
        """Return a parameter as written on a command line, with its conditions in words."""
        return self._parameters[name].describe()

    def cases(self, name: str) -> list[tuple[str, Parameter]]:
        """Return the conditions, in words, and the domain of each case of a conditional parameter."""
        parameter = self._parameters[name]
        if isinstance(parameter, Parameter):
            return []
        return [(case.describe_conditions(), case.value) for case in parameter.cases]

    def case(self, name: str, config: Mapping[str, Any]) -> tuple[int, Parameter] | None:
        """Return number and domain of the case of a parameter that applies; ``None``: the parameter is absent.

        Args:
            name: Name of the parameter.
            config: A configuration that has at least the parameters on which ``name`` depends.
        """
        parameter = self._parameters[name]
        if isinstance(parameter, Parameter):
            return 0, parameter
        return next(((n, case.value) for n, case in enumerate(parameter.cases) if case.holds(config)), None)

    def domain(self, name: str, config: Mapping[str, Any]) -> Parameter | None:
        """Return the domain of a parameter beside the other values of a configuration; ``None``: it is absent."""
        case = self.case(name, config)
        return case and case[1]

    def branches(self) -> Iterator[Branch]:
        """Yield the space for each combination of controlling values; without conditions, once."""
        configs: list[dict[str, Any]] = [{}]
        for name in self._order:
            if name in self.controls:
                configs = [config | values for config in configs for values in self._choices(name, config)]
        for config in configs:
            parameters = {name: self.domain(name, config) for name in self}
            parameters |= {name: Parameter("constant", (value,)) for name, value in config.items()}
            yield Branch({name: parameter for name, parameter in parameters.items() if parameter})

    def _choices(self, name: str, config: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the values of a controlling parameter beside those of a configuration."""
        domain = self.domain(name, config)
        return [{name: value} for value in reachable_values(name, domain)] if domain else [{}]

    @property
    def size(self) -> int | None:
        """Number of distinct configurations; ``None``: a parameter is continuous."""
        sizes = [branch.size for branch in self.branches()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield every configuration, branch by branch; the last parameter varies fastest.

        Raises:
            InvalidSpaceError: A parameter is continuous.
        """
        for branch in self.branches():
            if infinite := [name for name, parameter in branch.varying.items() if parameter.count is None]:
                raise InvalidSpaceError(
                    f"a grid needs finite parameters; {infinite[0]} is {branch.parameters[infinite[0]].describe()}: "
                    "list its values, or search at random with num_samples"
                )
        for branch in self.branches():
            yield from branch.grid()

    def as_grid(self) -> dict[str, Any]:
        """Return a Ray Tune ``param_space`` in which every finite parameter is a ``grid_search``.

        Raises:
            InvalidSpaceError: A parameter is continuous, or has conditions, which Ray Tune does not support.
        """
        if self.is_conditional:
            raise InvalidSpaceError("Ray Tune does not support conditions; use the configurations of grid()")
        next(self.grid())
        (branch,) = self.branches()
        return {
            name: parameter.values[0] if parameter.is_constant else tune.grid_search(self.reachable_values(name))
            for name, parameter in branch.parameters.items()
        }

    def sample(self, generator: np.random.Generator, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
        """Return a random configuration; a conditional parameter is drawn after those that control it.

        Args:
            generator: Random numbers.
            given: Values of some parameters, which are not drawn.

        Raises:
            InvalidSpaceError: A given value is outside the space, or its condition depends on a value that is drawn.
        """
        if unknown := [name for name in given if name not in self._parameters]:
            raise InvalidSpaceError(f"{unknown[0]} is no parameter of the space, which has {', '.join(self)}")
        config: dict[str, Any] = {}
        for name in self._order:
            domain = self.domain(name, config)
            if name in given:
                check_given(name, given, self._parameters[name], domain)
            if domain:
                config[name] = domain.as_member(given[name]) if name in given else domain.sample(generator)
        return {name: config[name] for name in self if name in config}

    def admits(self, config: Mapping[str, Any]) -> bool:
        """Return whether a configuration is a member: exactly the parameters that exist, each within its domain."""
        return self.config_in(config) == config

    def config_in(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the configuration in a row under this space, with the types of its domains; ``None``: it has none.

        Args:
            row: Values by name, as from ``trial_file.row_to_config``; names that are no parameters are ignored.
        """
        config: dict[str, Any] = {}
        for name in self._order:
            if domain := self.domain(name, config):
                if name not in row or not domain.contains(row[name]):
                    return None
                config[name] = domain.as_member(row[name])
        return {name: config[name] for name in self if name in config}

    def to_json(self) -> dict[str, Any]:
        """Return the space as plain JSON."""
        plain = {name: parameter.to_json() for name, parameter in self._parameters.items()}
        return plain | {name: plain[name] | {"role": "scientific"} for name in self._scientific}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], *, keys: Mapping[str, ConfigKey] | None = None) -> Space:
        """Return the space that ``to_json`` describes.

        Raises:
            InvalidSpaceError: A domain or its arguments are unknown, or a rule of ``Space`` is broken.
        """
        if not isinstance(plain, Mapping):
            raise InvalidSpaceError(f"a space maps names to values, like {{'steps': 500}}; got {plain!r}")
        roles, parameters = {}, {}
        for name, value in plain.items():
            check_name(name)
            if isinstance(value, Mapping) and "role" in value:
                roles[name] = value["role"]
                value = {key: argument for key, argument in value.items() if key != "role"}
            is_conditional = isinstance(value, Mapping) and set(value) == {"cases"}
            parameters[name] = (
                Conditional.from_json(name, value["cases"]) if is_conditional else Parameter.from_json(name, value)
            )
        return cls(parameters, keys=keys, roles=roles)
