"""Conditional parameters: absent, or with another domain, depending on the values of other parameters.

    Space({
        "optimizer": tune.choice(["adam", "momentum", "nesterov"]),
        "learning_rate": when(tune.loguniform(1e-4, 1e-2), optimizer="adam") | tune.loguniform(1e-3, 1),
        "momentum": when(tune.uniform(0.8, 0.99), optimizer=["momentum", "nesterov"]),
    })

The first case whose conditions hold applies; without one, the parameter is absent. As plain JSON:

    {"momentum": {"cases": [{"when": {"optimizer": ["momentum", "nesterov"]}, "value": {"uniform": [0.8, 0.99]}}]}}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

from tune_hpc.errors import InvalidSpaceError
from tune_hpc.search.space.parameter import Parameter, identity

#: Maximum number of values of a parameter that are listed.
MAX_VALUES = 100_000


@dataclass(frozen=True)
class Condition:
    """One case of a conditional parameter.

    Attributes:
        conditions: Allowed values of other parameters, all of which must hold; empty: the case always applies.
        value: Ray Tune domain or constant; in a space, a ``Parameter``.
    """

    conditions: Mapping[str, tuple[Any, ...]]
    value: Any

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Return whether the case applies to a configuration that has the parameters of its conditions."""
        return all(
            name in config and identity(config[name]) in map(identity, values)
            for name, values in self.conditions.items()
        )

    def describe_conditions(self) -> str:
        """Return the conditions in words: ``where optimizer is momentum or nesterov``, or ``elsewhere``."""
        conditions = [f"{name} is {' or '.join(map(str, values))}" for name, values in self.conditions.items()]
        return f"where {' and '.join(conditions)}" if conditions else "elsewhere"


@dataclass(frozen=True)
class Conditional:
    """Cases of a parameter; the first one that holds applies."""

    cases: tuple[Condition, ...]

    def __or__(self, other: Any) -> Conditional:
        """Append further cases; a domain or a constant applies to everything else."""
        return Conditional(self.cases + (other.cases if isinstance(other, Conditional) else (Condition({}, other),)))

    @property
    def controlled_by(self) -> list[str]:
        """Parameters on which the cases depend."""
        return list(dict.fromkeys(name for case in self.cases for name in case.conditions))

    def restricted_to(self, reachable: Callable[[str], Sequence[Any]]) -> Conditional | None:
        """Return the cases that can still hold; ``None`` if there are none.

        Args:
            reachable: Returns the values that a parameter may have.
        """
        cases = []
        for case in self.cases:
            allowed = {name: {identity(value) for value in reachable(name)} for name in case.conditions}
            conditions = {
                name: tuple(value for value in values if identity(value) in allowed[name])
                for name, values in case.conditions.items()
            }
            if all(conditions.values()):
                cases.append(Condition(conditions, case.value))
        return Conditional(tuple(cases)) if cases else None

    def to_json(self) -> dict[str, Any]:
        """Return the cases, whose values are of type ``Parameter``, as plain JSON."""
        cases = []
        for case in self.cases:
            conditions = {name: list(values) for name, values in case.conditions.items()}
            cases.append({"when": conditions, "value": case.value.to_json()})
        return {"cases": cases}

    @classmethod
    def from_json(cls, name: str, cases: Any) -> Conditional:
        """Return the conditional parameter that plain JSON describes.

        Args:
            name: Name of the parameter.
            cases: A list of ``{"when": {NAME: [VALUE, ...]}, "value": VALUE}``.

        Raises:
            InvalidSpaceError: ``cases`` has another form.
        """
        rule = f"{name}: cases must be a list of {{'when': {{NAME: [VALUE, ...]}}, 'value': VALUE}}"
        if not isinstance(cases, list | tuple) or not cases:
            raise InvalidSpaceError(f"{rule}; got {cases!r}")
        found = []
        for case in cases:
            if not isinstance(case, Mapping) or set(case) != {"when", "value"} or not isinstance(case["when"], Mapping):
                raise InvalidSpaceError(f"{rule}; got {case!r}")
            conditions = {str(other): _as_values(str(other), values) for other, values in case["when"].items()}
            found.append(Condition(conditions, Parameter.from_json(name, case["value"])))
        return cls(tuple(found))

    def describe(self) -> str:
        """Return the cases in words: ``uniform(0.8, 0.99) where optimizer is momentum or nesterov``."""
        return "; ".join(f"{case.value.describe()} {case.describe_conditions()}" for case in self.cases)


def when(value: Any, **conditions: Any) -> Conditional:
    """Return a parameter that exists only for certain values of other parameters.

    Args:
        value: A Ray Tune domain or a constant.
        **conditions: By parameter name, the required value, or a list of allowed values.

    Raises:
        InvalidSpaceError: There is no condition, or one without a value.

    Example:
        >>> from ray import tune
        >>> from tune_hpc import Space, when
        >>> space = Space({
        ...     "optimizer": tune.choice(["adam", "momentum"]),
        ...     "learning_rate": when(0.001, optimizer="adam") | tune.choice([0.01, 0.1]),
        ...     "momentum": when(0.9, optimizer="momentum"),
        ... })
        >>> space.size
        3
    """
    if not conditions:
        raise InvalidSpaceError("when takes at least one condition, like optimizer='adam'; got none")
    return Conditional((Condition({name: _as_values(name, values) for name, values in conditions.items()}, value),))


def _as_values(name: str, values: Any) -> tuple[Any, ...]:
    found = tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)
    if not found:
        raise InvalidSpaceError(f"{name}: a condition needs at least one value; got none")
    return found


@dataclass(frozen=True)
class Branch:
    """A space without conditions: the parameters that exist for certain values of the controlling parameters."""

    parameters: Mapping[str, Parameter]

    @property
    def varying(self) -> dict[str, Parameter]:
        """The parameters that are not constant."""
        return {name: parameter for name, parameter in self.parameters.items() if not parameter.is_constant}

    @property
    def size(self) -> int | None:
        """Number of configurations; ``None``: a parameter is continuous."""
        counts = [parameter.count for parameter in self.parameters.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def config(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the configuration with these values of the varying parameters, in their order."""
        rest = iter(values)
        return {
            name: parameter.values[0] if parameter.is_constant else next(rest)
            for name, parameter in self.parameters.items()
        }

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield every configuration of a finite space, without a list of them; the last parameter varies fastest."""
        domains = [(parameter, range(parameter.count or 0)) for parameter in self.varying.values()]
        for number in range(self.size or 0):
            values = []
            for parameter, indices in reversed(domains):
                number, index = divmod(number, len(indices))
                values.append(parameter.value(index))
            yield self.config(values[::-1])


def reachable_values(name: str, parameter: Parameter | Conditional) -> list[Any]:
    """Return all values that a parameter may have in any case.

    Raises:
        InvalidSpaceError: The parameter is continuous or has too many values.
    """
    if isinstance(parameter, Conditional):
        found: dict[tuple[str, Any], Any] = {}
        for case in parameter.cases:
            for value in reachable_values(name, case.value):
                found.setdefault(identity(value), value)
        return list(found.values())
    if parameter.count is None:
        raise InvalidSpaceError(
            f"{name} is {parameter.describe()}; a parameter that is compared or controls others must be finite"
        )
    if parameter.count > MAX_VALUES:
        raise InvalidSpaceError(f"{name}: at most {MAX_VALUES} values can be listed; got {parameter.count}: use fewer")
    return parameter.all_values()


def check_given(
    name: str,
    given: Mapping[str, Any],
    parameter: Parameter | Conditional,
    domain: Parameter | None,
) -> None:
    """Check a given value of a parameter of a configuration whose other parameters are drawn.

    Args:
        name: Name of the parameter.
        given: The given values.
        parameter: The parameter.
        domain: Its domain beside the values of the parameters that control it; ``None``: it is absent.

    Raises:
        InvalidSpaceError: The value is outside the domain, or its condition depends on a value that is drawn.
    """
    subject = f"{name}={given[name]!r}"
    controls = parameter.controlled_by if isinstance(parameter, Conditional) else ()
    if drawn := [other for other in controls if other not in given]:
        raise InvalidSpaceError(f"{subject} depends on {drawn[0]}; give {drawn[0]} as well")
    if domain is None:
        raise InvalidSpaceError(f"{subject}: the space has the parameter only {parameter.describe()}")
    if not domain.contains(given[name]):
        raise InvalidSpaceError(f"{subject} is outside the space, which has {domain.describe()}")


def dependency_order(parameters: Mapping[str, Any]) -> list[str]:
    """Return the names of the parameters, each after those that control it, otherwise in the given order.

    Raises:
        InvalidSpaceError: A condition names no parameter of the space, or the conditions form a cycle.
    """
    controls: dict[str, list[str]] = {
        name: parameter.controlled_by if isinstance(parameter, Conditional) else []
        for name, parameter in parameters.items()
    }
    for name, others in controls.items():
        for other in others:
            if other not in parameters:
                raise InvalidSpaceError(
                    f"{name}: its condition is on {other}, which is no parameter of the space; parameters are "
                    f"{', '.join(parameters)}"
                )
    names, positions = list(controls), {name: position for position, name in enumerate(controls)}
    waiting = {name: set(others) for name, others in controls.items() if others}
    controlled: dict[str, list[str]] = {}
    for name, unmet in waiting.items():
        for other in unmet:
            controlled.setdefault(other, []).append(name)
    ordered: list[str] = []
    ready = [position for position, name in enumerate(names) if name not in waiting]
    while ready:
        ordered.append(names[heappop(ready)])
        for name in controlled.get(ordered[-1], ()):
            waiting[name].discard(ordered[-1])
            if not waiting[name]:
                del waiting[name]
                heappush(ready, positions[name])
    if waiting:
        raise InvalidSpaceError(f"conditions must not form a cycle; those of {', '.join(waiting)} do")
    return ordered
