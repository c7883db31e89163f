"""Parameters that are there, or take other values, only where another parameter has certain values.

    Space({
        "optimizer": tune.choice(["adam", "momentum", "nesterov"]),
        "learning_rate": when(tune.loguniform(1e-4, 1e-2), optimizer="adam") | tune.loguniform(1e-3, 1),
        "momentum": when(tune.uniform(0.8, 0.99), optimizer=["momentum", "nesterov"]),
    })

Of several cases the first one that holds counts; where none does, the parameter is absent. As plain JSON:

    {"momentum": {"cases": [{"when": {"optimizer": ["momentum", "nesterov"]}, "value": {"uniform": [0.8, 0.99]}}]}}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune_hpc.errors import InvalidSpaceError
from tune_hpc.search.space.domains import contains, identity


@dataclass(frozen=True)
class Condition:
    """One case of a conditional parameter.

    Attributes:
        conditions: The values that each of some other parameters may have, all of which must hold; empty: always.
        value: A Ray Tune domain or a constant.
    """

    conditions: Mapping[str, tuple[Any, ...]]
    value: Any

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration, which has at least the parameters that this case names, is such a case."""
        return all(
            name in config and any(contains(value, config[name]) for value in values)
            for name, values in self.conditions.items()
        )


@dataclass(frozen=True)
class Conditional:
    """A parameter's cases, the first of which that holds counts."""

    cases: tuple[Condition, ...]

    def __or__(self, other: Any) -> Conditional:
        """Return these cases, then others; a domain or a constant stands for all that is left."""
        more = other.cases if isinstance(other, Conditional) else (Condition({}, other),)
        return Conditional(self.cases + more)

    @property
    def controlled_by(self) -> list[str]:
        """The parameters that decide which case holds."""
        return list(dict.fromkeys(name for case in self.cases for name in case.conditions))

    def restricted_to(self, possible: Callable[[str], Sequence[Any]]) -> Conditional | None:
        """Return the cases that can still hold, or ``None`` where there is none.

        Args:
            possible: Returns the values that a parameter may have.
        """
        cases = []
        for case in self.cases:
            left = {name: {identity(one) for one in possible(name)} for name in case.conditions}
            live = {
                name: tuple(value for value in values if identity(value) in left[name])
                for name, values in case.conditions.items()
            }
            if all(live.values()):
                cases.append(Condition(live, case.value))
        return Conditional(tuple(cases)) if cases else None


def when(value: Any, **conditions: Any) -> Conditional:
    """Return a parameter that is there only where others have certain values.

    Args:
        value: A Ray Tune domain or a constant.
        **conditions: By parameter name, the value that it must have, or a list of such values.

    Raises:
        InvalidSpaceError: no condition is given, or one without a value.
    """
    if not conditions:
        raise InvalidSpaceError("when takes at least one condition, like optimizer='adam'; got none")
    case = Condition({name: _as_values(name, given) for name, given in conditions.items()}, value)
    return Conditional((case,))


def conditional_from_json(name: str, cases: Any, read: Callable[[str, Any], Any]) -> Conditional:
    """Return what ``conditional_to_json`` returned.

    Args:
        name: The parameter.
        cases: A list of ``{"when": {NAME: [VALUE, ...]}, "value": VALUE}``.
        read: Returns the domain or constant that plain JSON describes.

    Raises:
        InvalidSpaceError: it has another form.
    """
    rule = f"{name}: cases is a list of {{'when': {{NAME: [VALUE, ...]}}, 'value': VALUE}}"
    if not isinstance(cases, list | tuple) or not cases:
        raise InvalidSpaceError(f"{rule}; got {cases!r}")
    found = []
    for case in cases:
        if not isinstance(case, Mapping) or set(case) != {"when", "value"} or not isinstance(case["when"], Mapping):
            raise InvalidSpaceError(f"{rule}; got {case!r}")
        conditions = {str(other): _as_values(str(other), given) for other, given in case["when"].items()}
        found.append(Condition(conditions, read(name, case["value"])))
    return Conditional(tuple(found))


def conditional_to_json(conditional: Conditional, write: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a conditional parameter as plain JSON."""
    return {
        "cases": [
            {"when": {name: list(values) for name, values in case.conditions.items()}, "value": write(case.value)}
            for case in conditional.cases
        ]
    }


def describe_conditional(conditional: Conditional, describe: Callable[[Any], str]) -> str:
    """Return a conditional parameter in words: ``uniform(0.8, 0.99) where optimizer is momentum or nesterov``."""
    return "; ".join(f"{describe(case.value)} {describe_conditions(case)}" for case in conditional.cases)


def describe_conditions(case: Condition) -> str:
    """Return when a case holds, in words: ``where optimizer is momentum or nesterov``, or ``elsewhere``."""
    conditions = [f"{name} is {' or '.join(map(str, values))}" for name, values in case.conditions.items()]
    return f"where {' and '.join(conditions)}" if conditions else "elsewhere"


def dependency_order(parameters: Mapping[str, Any]) -> list[str]:
    """Return the parameters' names, each after those that control it, otherwise as they stand.

    Raises:
        InvalidSpaceError: a condition on no parameter of the space, or conditions that go round in a circle.
    """
    waiting_for = {
        name: value.controlled_by if isinstance(value, Conditional) else [] for name, value in parameters.items()
    }
    for name, others in waiting_for.items():
        for other in others:
            if other not in parameters:
                raise InvalidSpaceError(
                    f"{name}: its condition is on {other}, which is no parameter of the space; there are "
                    f"{', '.join(parameters)}"
                )
    ordered: list[str] = []
    while len(ordered) < len(waiting_for):
        ready = [
            name
            for name, others in waiting_for.items()
            if name not in ordered and all(one in ordered for one in others)
        ]
        if not ready:
            circle = ", ".join(name for name in waiting_for if name not in ordered)
            raise InvalidSpaceError(f"conditions must not go round in a circle; those of {circle} do")
        ordered.append(ready[0])
    return ordered


def _as_values(name: str, given: Any) -> tuple[Any, ...]:
    values = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
    if not values:
        raise InvalidSpaceError(f"{name}: a condition names at least one value; got none")
    return values
