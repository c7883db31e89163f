"""The search space: which parameters a trial has, and what values each may take.

A space is an immutable mapping from parameter name to a Ray Tune domain or a constant, so ``dict(space)`` is a Ray Tune
``param_space`` as it stands. It is checked when it is built, composes with ``|``, knows its size, becomes a grid, and
goes to and comes from plain JSON, so that a command line or a service never evaluates or unpickles anything:

    {"optimizer": {"choice": ["adam", "momentum"]}, "learning_rate": {"loguniform": [1e-4, 1e-1]}, "steps": 500}
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Domain

from tune_hpc.errors import InvalidSpaceError
from tune_hpc.learning.config import TRIAL_KEYS, Key
from tune_hpc.search.domains import all_values, check_domain, count, describe, domain_from_json, draw, to_plain


class Space(Mapping[str, Any]):
    """What may vary.

    Args:
        parameters: Ray Tune domains (``choice``, ``uniform``, ``loguniform``, ``randint``, ``randn`` and their
            quantized forms; ``grid_search`` is taken as ``choice``) and constants (numbers, strings, booleans).
        keys: What the values must satisfy, by parameter name. Names that are not in it are free. Pass ``{}`` for a
            trainable that gives another meaning to a key of ours.

    Raises:
        InvalidSpaceError: an empty choice, a value given twice, ``low >= high``, a bound that is not finite, the
            logarithm of a non-positive bound, a step without a multiple between the bounds, a value that its key does
            not allow, or a domain that plain data cannot express.
    """

    __slots__ = ("_keys", "_parameters")

    def __init__(self, parameters: Mapping[str, Any], *, keys: Mapping[str, Key] = TRIAL_KEYS) -> None:
        self._keys = keys
        self._parameters = {name: check_domain(name, value, keys.get(name)) for name, value in parameters.items()}

    def __getitem__(self, name: str) -> Any:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __or__(self, other: Mapping[str, Any]) -> Space:
        return Space({**self._parameters, **other}, keys=self._keys)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self._as_text() == other._as_text()

    def __hash__(self) -> int:
        return hash(self._as_text())

    def _as_text(self) -> str:
        # As text, for 1, 1.0 and True are equal in Python and not the same value here.
        return json.dumps(self.to_json(), sort_keys=True)

    def __repr__(self) -> str:
        return f"Space({', '.join(f'{name}={describe(value)}' for name, value in self.items())})"

    def without(self, *names: str) -> Space:
        """Return the space without some parameters."""
        return Space({name: value for name, value in self.items() if name not in names}, keys=self._keys)

    @property
    def varying(self) -> list[str]:
        """The parameters that are not constant."""
        return [name for name, value in self.items() if isinstance(value, Domain)]

    @property
    def size(self) -> int | None:
        """The number of distinct configurations; ``None`` when a parameter is continuous."""
        counts = [count(value) for value in self.values() if isinstance(value, Domain)]
        return None if None in counts else math.prod(one for one in counts if one is not None)

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield every configuration, the last parameter varying fastest.

        Raises:
            InvalidSpaceError: a parameter is continuous.
        """
        for name, value in self.items():
            if isinstance(value, Domain) and count(value) is None:
                raise InvalidSpaceError(
                    f"a grid needs finite parameters; {name} is {describe(value)}: list its values, or search at "
                    "random with num_samples"
                )
        for combination in itertools.product(
            *(all_values(value) if isinstance(value, Domain) else [value] for value in self.values())
        ):
            yield dict(zip(self, combination, strict=True))

    def as_grid(self) -> dict[str, Any]:
        """Return a Ray Tune ``param_space`` in which every finite parameter is a ``grid_search``.

        Raises:
            InvalidSpaceError: a parameter is continuous.
        """
        next(self.grid())
        return {
            name: tune.grid_search(all_values(value)) if isinstance(value, Domain) else value
            for name, value in self.items()
        }

    def sample(self, generator: np.random.Generator) -> dict[str, Any]:
        """Return one configuration drawn at random."""
        return {name: draw(value, generator) if isinstance(value, Domain) else value for name, value in self.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the space as plain JSON."""
        return {name: to_plain(name, value) for name, value in self.items()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], *, keys: Mapping[str, Key] = TRIAL_KEYS) -> Space:
        """Build a space from what ``to_json`` returned.

        Raises:
            InvalidSpaceError: an unknown domain, a wrong number of arguments, or a rule of ``Space`` broken.
        """
        if not isinstance(plain, Mapping):
            raise InvalidSpaceError(f"a space maps names to values, like {{'steps': 500}}; got {plain!r}")
        return cls({name: domain_from_json(name, value) for name, value in plain.items()}, keys=keys)
