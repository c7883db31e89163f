"""The search space: which parameters a trial has, and what values each may take.

A space is an immutable mapping from parameter name to a Ray Tune domain, a constant, or cases of these (conditions.py).
Without cases ``dict(space)`` is a Ray Tune ``param_space`` as it stands. A space is checked when it is built, composes
with ``|``, knows its size, becomes a grid, and goes to and comes from plain JSON, so that a command line or a service
never evaluates or unpickles anything:

    {"optimizer": {"choice": ["adam", "momentum"], "role": "scientific"},
     "learning_rate": {"loguniform": [1e-4, 1e-1]},
     "momentum": {"cases": [{"when": {"optimizer": ["momentum"]}, "value": {"uniform": [0.8, 0.99]}}]},
     "steps": 500}

Roles say what a parameter is varied for: a **scientific** one is what is compared, a **nuisance** one is tuned for each
of the things compared, a **fixed** one has one value for all.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Domain

from tune_hpc.errors import InvalidSpaceError
from tune_hpc.learning.config import TRIAL_KEYS, ConfigKey
from tune_hpc.search.space.branches import Branch, possible_values
from tune_hpc.search.space.conditional import (
    Condition,
    Conditional,
    conditional_from_json,
    conditional_to_json,
    dependency_order,
    describe_conditional,
    describe_conditions,
)
from tune_hpc.search.space.domains import (
    all_values,
    check_constant,
    check_domain,
    contains,
    count,
    describe,
    domain_from_json,
    identity,
    sample,
    to_json,
)

ROLES = ("scientific", "nuisance", "fixed")
#: Combinations of the values on which conditions depend: a space is evaluated once for each.
MAX_BRANCHES = 10_000
_ABSENT = object()


class Space(Mapping[str, Any]):
    """What may vary.

    Args:
        parameters: Ray Tune domains (``choice``, ``uniform``, ``loguniform``, ``randint``, ``randn`` and their
            quantized forms; ``grid_search`` is taken as ``choice``), constants (numbers, strings, booleans), and cases
            of these made with ``when``.
        keys: What the values must satisfy, by parameter name. Names that are not in it are free. Pass ``{}`` for a
            trainable that gives another meaning to a key of ours.
        roles: ``scientific``, ``nuisance`` or ``fixed`` by parameter name; by default what varies is a nuisance and
            what does not is fixed.

    Raises:
        InvalidSpaceError: an empty choice, a value given twice, ``low >= high``, a bound that is not finite, the
            logarithm of a non-positive bound, a step without a multiple between the bounds, a value that its key does
            not allow, a domain that plain data cannot express, a condition that can never hold, or a role that
            contradicts the parameter.
    """

    __slots__ = ("_keys", "_order", "_parameters", "_scientific")

    def __init__(
        self,
        parameters: Mapping[str, Any],
        *,
        keys: Mapping[str, ConfigKey] = TRIAL_KEYS,
        roles: Mapping[str, str] | None = None,
    ) -> None:
        self._keys = keys
        self._parameters = {name: self._checked(name, value) for name, value in parameters.items()}
        self._order = dependency_order(self._parameters)
        for name, value in self._parameters.items():
            if isinstance(value, Conditional):
                self._check_cases(name, value)
        self._check_branches()
        checked_roles = {name: self._checked_role(name, role) for name, role in (roles or {}).items()}
        self._scientific = tuple(name for name in self if checked_roles.get(name) == "scientific")

    def _checked(self, name: str, value: Any) -> Any:
        if not isinstance(value, Conditional):
            return check_domain(name, value, self._keys.get(name))
        return Conditional(
            tuple(
                Condition(
                    {
                        other: tuple(check_constant(other, one, self._keys.get(other)) for one in values)
                        for other, values in case.conditions.items()
                    },
                    check_domain(name, case.value, self._keys.get(name)),
                )
                for case in value.cases
            )
        )

    def _check_cases(self, name: str, value: Conditional) -> None:
        for place, case in enumerate(value.cases):
            if not case.conditions and place < len(value.cases) - 1:
                raise InvalidSpaceError(f"{name}: a case without a condition comes last; it is number {place + 1}")
            for other, values in case.conditions.items():
                possible = {identity(one): one for one in self.possible(other)}
                if never := [one for one in values if identity(one) not in possible]:
                    first = ", ".join(map(str, list(possible.values())[:20]))
                    raise InvalidSpaceError(
                        f"{name}: its condition {other}={never[0]} never holds; {other} is one of {first}"
                        f"{' and others' if len(possible) > 20 else ''}"
                    )

    def _check_branches(self) -> None:
        if (number := math.prod(len(self.possible(name)) for name in self.controls)) > MAX_BRANCHES:
            raise InvalidSpaceError(
                f"conditions depend on at most {MAX_BRANCHES} combinations of values; those on "
                f"{', '.join(sorted(self.controls))} have {number}: use fewer conditions or values"
            )

    @property
    def controls(self) -> set[str]:
        """Parameters on which conditions depend."""
        return {other for value in self.values() if isinstance(value, Conditional) for other in value.controlled_by}

    def _checked_role(self, name: str, role: str) -> str:
        if role not in ROLES:
            raise InvalidSpaceError(f"{name}: a role is one of {', '.join(ROLES)}; got {role!r}")
        if name not in self._parameters:
            raise InvalidSpaceError(
                f"{name} has a role and is no parameter of the space; there are {', '.join(self._parameters)}"
            )
        if (name in self.varying) == (role == "fixed"):
            raise InvalidSpaceError(
                f"{name}: a fixed parameter has one value, and any other several; got {role} for {self.describe(name)}"
            )
        if role == "scientific" and not isinstance(self[name], Domain):
            raise InvalidSpaceError(f"{name}: what is compared has no conditions; got {self.describe(name)}")
        if role == "scientific":
            self.possible(name)
        return role

    def __getitem__(self, name: str) -> Any:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __or__(self, other: Mapping[str, Any]) -> Space:
        """Return the space with some parameters changed or added.

        Cases that can no longer hold are gone, and so is a parameter that has no other.
        """
        merged = {**self._parameters, **{name: self._checked(name, value) for name, value in other.items()}}
        live = dict(merged)
        for name in dependency_order(merged):
            value = merged[name]
            if not isinstance(value, Conditional) or name in other:
                continue
            left = value.restricted_to(lambda one: possible_values(one, live[one]) if one in live else [])
            if left is None:
                del live[name]
            else:
                live[name] = left
        scientific = [*self._scientific, *(other._scientific if isinstance(other, Space) else ())]
        roles = {name: "scientific" for name in scientific if isinstance(live.get(name), Domain)}
        return Space(live, keys=self._keys, roles=roles)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self._as_text() == other._as_text()

    def __hash__(self) -> int:
        return hash(self._as_text())

    def _as_text(self) -> str:
        # As text, for 1, 1.0 and True are equal in Python and not the same value here.
        return json.dumps(self.to_json(), sort_keys=True)

    def __repr__(self) -> str:
        return f"Space({', '.join(f'{name}={self.describe(name)}' for name in self)})"

    def without(self, *names: str) -> Space:
        """Return the space without some parameters.

        Raises:
            InvalidSpaceError: another parameter has a condition on one of them.
        """
        kept = {name: value for name, value in self.items() if name not in names}
        return Space(kept, keys=self._keys, roles=dict.fromkeys(set(self._scientific).intersection(kept), "scientific"))

    @property
    def varying(self) -> list[str]:
        """The parameters that are not constant."""
        return [name for name, value in self.items() if isinstance(value, Domain | Conditional)]

    @property
    def value_keys(self) -> Mapping[str, ConfigKey]:
        """What the values must satisfy, by parameter name."""
        return self._keys

    @property
    def scientific(self) -> tuple[str, ...]:
        """The parameters whose values are to be compared."""
        return self._scientific

    def role(self, name: str) -> str:
        """Return what a parameter is varied for: ``scientific``, ``nuisance`` or ``fixed``."""
        if name in self._scientific:
            return "scientific"
        return "nuisance" if name in self.varying else "fixed"

    def possible(self, name: str) -> list[Any]:
        """Return all values that a parameter may have.

        Raises:
            InvalidSpaceError: it is continuous.
        """
        return possible_values(name, self[name])

    def describe(self, name: str) -> str:
        """Return a parameter as it is written on a command line, its conditions in words."""
        value = self[name]
        return describe_conditional(value, describe) if isinstance(value, Conditional) else describe(value)

    def cases(self, name: str) -> list[tuple[str, Any]]:
        """Return each case of a parameter with conditions: when it holds, in words, and its domain or constant.

        Of one without conditions there is none.
        """
        value = self[name]
        return [(describe_conditions(one), one.value) for one in value.cases] if isinstance(value, Conditional) else []

    @property
    def is_conditional(self) -> bool:
        """Whether any parameter has conditions."""
        return any(isinstance(value, Conditional) for value in self.values())

    def branches(self) -> Iterator[Branch]:
        """Yield each combination of the values on which conditions depend; one, where there are no conditions."""
        ordered = [name for name in self._order if name in self.controls]

        def chosen(config: dict[str, Any], rest: Sequence[str]) -> Iterator[dict[str, Any]]:
            if not rest:
                yield config
                return
            value = self._value(rest[0], config)
            for one in [_ABSENT] if value is _ABSENT else possible_values(rest[0], value):
                yield from chosen(config if one is _ABSENT else {**config, rest[0]: one}, rest[1:])

        for config in chosen({}, ordered):
            parameters = {name: config[name] if name in config else self._value(name, config) for name in self}
            yield Branch({name: value for name, value in parameters.items() if value is not _ABSENT})

    @property
    def order(self) -> Sequence[str]:
        """The parameters, each after those on which it depends."""
        return tuple(self._order)

    def case(self, name: str, config: Mapping[str, Any]) -> tuple[int | None, Any]:
        """Return which case of a parameter holds, and its domain or constant.

        Args:
            name: The parameter.
            config: A configuration that has at least the parameters that ``name`` depends on.

        Returns:
            The case's place, 0 for a parameter without conditions; ``None`` and ``None`` where it is absent.
        """
        value = self[name]
        if not isinstance(value, Conditional):
            return 0, value
        place = next((place for place, case in enumerate(value.cases) if case.holds(config)), None)
        return place, None if place is None else value.cases[place].value

    def _value(self, name: str, config: Mapping[str, Any]) -> Any:
        """Return a parameter's domain or constant beside the values of those that control it."""
        place, value = self.case(name, config)
        return _ABSENT if place is None else value

    @property
    def size(self) -> int | None:
        """The number of distinct configurations; ``None`` when a parameter is continuous."""
        sizes = [branch.size for branch in self.branches()]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield every configuration, the last parameter varying fastest; one branch of the conditions after another.

        Raises:
            InvalidSpaceError: a parameter is continuous.
        """
        for name, value in ((name, value) for branch in self.branches() for name, value in branch.domains.items()):
            if count(value) is None:
                raise InvalidSpaceError(
                    f"a grid needs finite parameters; {name} is {describe(value)}: list its values, or search at "
                    "random with num_samples"
                )
        for branch in self.branches():
            for combination in itertools.product(*map(all_values, branch.domains.values())):
                yield branch.with_values(combination)

    def as_grid(self) -> dict[str, Any]:
        """Return a Ray Tune ``param_space`` in which every finite parameter is a ``grid_search``.

        Raises:
            InvalidSpaceError: a parameter is continuous, or has conditions, which Ray Tune does not know.
        """
        if self.is_conditional:
            raise InvalidSpaceError("Ray Tune has no conditions; take the configurations of grid()")
        next(self.grid())
        return {
            name: tune.grid_search(all_values(value)) if isinstance(value, Domain) else value
            for name, value in self.items()
        }

    def sample(self, generator: np.random.Generator) -> dict[str, Any]:
        """Return one configuration drawn at random; a parameter with conditions is drawn after what it depends on."""
        config: dict[str, Any] = {}
        for name in self._order:
            value = self._value(name, config)
            if value is not _ABSENT:
                config[name] = sample(value, generator) if isinstance(value, Domain) else value
        return {name: config[name] for name in self if name in config}

    def admits(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration has exactly the parameters that its conditions ask for, each inside its domain."""
        if unknown := set(config).difference(self):
            return not unknown
        for name in self._order:
            value = self._value(name, config)
            if (value is _ABSENT) != (name not in config):
                return False
            if value is not _ABSENT and not contains(value, config[name]):
                return False
        return True

    def config_in(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the configuration that a row of a trials frame has under this space; ``None`` where it has none.

        Args:
            row: By column; what the space does not know is left out.
        """
        config: dict[str, Any] = {}
        for name in self._order:
            value = self._value(name, config)
            if value is _ABSENT:
                continue
            if name not in row or not contains(value, row[name]):
                return None
            config[name] = row[name]
        return {name: config[name] for name in self if name in config}

    def to_json(self) -> dict[str, Any]:
        """Return the space as plain JSON."""
        plain = {
            name: conditional_to_json(value, partial(to_json, name))
            if isinstance(value, Conditional)
            else to_json(name, value)
            for name, value in self.items()
        }
        return {
            name: value | {"role": "scientific"} if name in self._scientific else value for name, value in plain.items()
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], *, keys: Mapping[str, ConfigKey] = TRIAL_KEYS) -> Space:
        """Build a space from what ``to_json`` returned.

        Raises:
            InvalidSpaceError: an unknown domain, a wrong number of arguments, or a rule of ``Space`` broken.
        """
        if not isinstance(plain, Mapping):
            raise InvalidSpaceError(f"a space maps names to values, like {{'steps': 500}}; got {plain!r}")
        roles = {name: value["role"] for name, value in plain.items() if isinstance(value, Mapping) and "role" in value}
        parameters = {}
        for name, value in plain.items():
            if name in roles:
                value = {key: one for key, one in value.items() if key != "role"}
            if isinstance(value, Mapping) and set(value) == {"cases"}:
                parameters[name] = conditional_from_json(name, value["cases"], domain_from_json)
            else:
                parameters[name] = domain_from_json(name, value)
        return cls(parameters, keys=keys, roles=roles)
