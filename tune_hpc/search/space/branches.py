"""What a space is in each case of its conditions, and which values a parameter may have in any of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune.search.sample import Domain

from tune_hpc.errors import InvalidSpaceError
from tune_hpc.search.space.conditional import Conditional
from tune_hpc.search.space.domains import all_values, count, describe, identity

#: Values of a parameter that are listed.
MAX_VALUES = 100_000


def possible_values(name: str, value: Any) -> list[Any]:
    """Return all values that a parameter may have, of whatever case.

    Raises:
        InvalidSpaceError: it is continuous.
    """
    if isinstance(value, Conditional):
        found: dict[tuple[bool, Any], Any] = {}
        for case in value.cases:
            for one in possible_values(name, case.value):
                found.setdefault(identity(one), one)
        return list(found.values())
    if not isinstance(value, Domain):
        return [value]
    size = count(value)
    if size is None:
        raise InvalidSpaceError(f"{name} is {describe(value)}; what others depend on, or is compared, lists its values")
    if size > MAX_VALUES:
        raise InvalidSpaceError(f"{name}: at most {MAX_VALUES} values can be listed; got {size}: use fewer")
    return all_values(value)


@dataclass(frozen=True)
class Branch:
    """What a space is where the parameters that conditions depend on have certain values.

    Attributes:
        parameters: The parameters that are there, each with its domain or constant, in the order of the space.
    """

    parameters: Mapping[str, Any]

    @property
    def domains(self) -> dict[str, Domain]:
        """The parameters that vary."""
        return {name: value for name, value in self.parameters.items() if isinstance(value, Domain)}

    @property
    def size(self) -> int | None:
        """The number of distinct configurations; ``None`` when a parameter is continuous."""
        counts = [count(domain) for domain in self.domains.values()]
        return None if None in counts else math.prod(one for one in counts if one is not None)

    def with_values(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the configuration in which the domains, in their order, have these values."""
        return {**self.parameters, **dict(zip(self.domains, values, strict=True))}
