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
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, Quantized

from tune_hpc.errors import InvalidConfigError, InvalidSpaceError
from tune_hpc.learning.config import TRIAL_KEYS, Key

#: Ray Tune's constructors by the name that plain JSON uses, each with the number of its arguments.
RANGES = {
    "uniform": 2, "loguniform": 2, "quniform": 3, "qloguniform": 3,
    "randint": 2, "lograndint": 2, "qrandint": 3, "qlograndint": 3, "randn": 2,
}  # fmt: skip

_CALL = re.compile(r"\s*([a-z]+)\s*\(([^()]*)\)\s*\Z")


class Space(Mapping[str, Any]):
    """What may vary.

    Args:
        parameters: Ray Tune domains (``choice``, ``uniform``, ``loguniform``, ``randint``, ``randn`` and their
            quantized forms; ``grid_search`` is taken as ``choice``) and constants (numbers, strings, booleans).
        keys: What the values must satisfy, by parameter name. Names that are not in it are free. Pass ``{}`` for a
            trainable that gives another meaning to a key of ours.

    Raises:
        InvalidSpaceError: an empty choice, a value given twice, ``low >= high``, the logarithm of a non-positive bound,
            a value that its key does not allow, or a domain that plain data cannot express.
    """

    __slots__ = ("_keys", "_parameters")

    def __init__(self, parameters: Mapping[str, Any], *, keys: Mapping[str, Key] = TRIAL_KEYS) -> None:
        self._keys = keys
        self._parameters = {name: _checked(name, value, keys.get(name)) for name, value in parameters.items()}

    def __getitem__(self, name: str) -> Any:
        return self._parameters[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters)

    def __len__(self) -> int:
        return len(self._parameters)

    def __or__(self, other: Mapping[str, Any]) -> Space:
        return Space({**self._parameters, **other}, keys=self._keys)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Space) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(json.dumps(self.to_json(), sort_keys=True))

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
        counts = [1 if not isinstance(value, Domain) else _count(value) for value in self.values()]
        return None if None in counts else math.prod(count for count in counts if count is not None)

    def grid(self) -> Iterator[dict[str, Any]]:
        """Yield every configuration, the last parameter varying fastest.

        Raises:
            InvalidSpaceError: a parameter is continuous.
        """
        for name, value in self.items():
            if isinstance(value, Domain) and _count(value) is None:
                raise InvalidSpaceError(
                    f"a grid needs finite parameters; {name} is {describe(value)}: use choice([...]), or num_samples"
                )
        values = [_values(value) if isinstance(value, Domain) else [value] for value in self.values()]
        for combination in itertools.product(*values):
            yield dict(zip(self, combination, strict=True))

    def as_grid(self) -> dict[str, Any]:
        """Return a Ray Tune ``param_space`` in which every finite parameter is a ``grid_search``.

        Raises:
            InvalidSpaceError: a parameter is continuous.
        """
        next(self.grid())
        return {
            name: tune.grid_search(_values(value)) if isinstance(value, Domain) else value
            for name, value in self.items()
        }

    def sample(self, generator: np.random.Generator) -> dict[str, Any]:
        """Return one configuration drawn at random."""
        return {
            name: _plain_value(value.sample(random_state=generator)) if isinstance(value, Domain) else value
            for name, value in self.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return the space as plain JSON."""
        return {name: _to_plain(name, value) for name, value in self.items()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], *, keys: Mapping[str, Key] = TRIAL_KEYS) -> Space:
        """Build a space from what ``to_json`` returned.

        Raises:
            InvalidSpaceError: an unknown domain, a wrong number of arguments, or a rule of ``Space`` broken.
        """
        return cls({name: domain_from_json(name, value) for name, value in plain.items()}, keys=keys)


def domain_from_json(name: str, plain: Any) -> Any:
    """Return the Ray Tune domain, or the constant, that plain JSON describes.

    Raises:
        InvalidSpaceError: no such domain, or arguments that it does not take.
    """
    if not isinstance(plain, Mapping):
        return plain
    allowed = ", ".join(["choice", *RANGES])
    if len(plain) != 1:
        raise InvalidSpaceError(
            f"{name}: one domain is wanted, like {{'choice': [1, 2]}} ({allowed}); got {dict(plain)}"
        )
    kind, arguments = next(iter(plain.items()))
    if kind != "choice" and kind not in RANGES:
        raise InvalidSpaceError(f"{name}: no domain is called {kind!r}; there are {allowed}")
    if not isinstance(arguments, list | tuple):
        raise InvalidSpaceError(f"{name}: {kind} takes a list; got {arguments!r}")
    if kind == "choice":
        return tune.choice(list(arguments))
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in arguments)
    if len(arguments) != RANGES[kind] or not numbers:
        raise InvalidSpaceError(f"{name}: {kind} takes {RANGES[kind]} numbers; got {list(arguments)}")
    if kind.startswith("q") and not arguments[2] > 0:
        raise InvalidSpaceError(f"{name}: the step of {kind} must be above 0; got {arguments[2]}")
    if "log" in kind and not arguments[0] > 0:
        raise InvalidSpaceError(f"{name}: the lower bound of {kind} must be above 0; got {arguments[0]}")
    return getattr(tune, kind)(*arguments)


def parse_domain(name: str, text: str) -> Any:
    """Read a value as it is written on a command line: ``0.1``, ``0.1,0.01``, ``loguniform(1e-4, 1)``, ``adam``.

    Raises:
        InvalidSpaceError: an empty value, or a domain that does not exist or does not take these arguments.
    """
    call = _CALL.match(text)
    if call:
        kind, arguments = call.groups()
        return domain_from_json(name, {kind: [_parse_scalar(one) for one in arguments.split(",") if one.strip()]})
    values = [_parse_scalar(one) for one in text.split(",")]
    if any(value == "" for value in values):
        raise InvalidSpaceError(f"{name}: a value is missing in {text!r}")
    return values[0] if len(values) == 1 else tune.choice(values)


def describe(value: Any) -> str:
    """Return a domain or constant as it is written on a command line: ``loguniform(0.0001, 1)``."""
    plain = _to_plain("", value)
    if not isinstance(plain, dict):
        return str(plain)
    kind, arguments = next(iter(plain.items()))
    return f"{kind}({', '.join(f'{one:g}' if isinstance(one, float) else str(one) for one in arguments)})"


def _parse_scalar(text: str) -> Any:
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _checked(name: str, value: Any, key: Key | None) -> Any:
    """Return ``value`` with its numbers in the kind that ``key`` wants, or raise."""
    if isinstance(value, Mapping) and set(value) == {"grid_search"}:
        value = tune.choice(list(value["grid_search"]))
    if not isinstance(value, Domain):
        return _checked_scalar(name, value, key)
    if isinstance(value, Categorical):
        categories = [_checked_scalar(name, one, key) for one in value.categories]
        if not categories:
            raise InvalidSpaceError(f"{name}: a choice needs at least one value; got none")
        if len(set(map(repr, categories))) < len(categories):
            raise InvalidSpaceError(f"{name}: a choice holds each value once; got {categories}")
        return tune.choice(categories)
    kind, arguments = next(iter(_to_plain(name, value).items()))
    if kind == "randn":
        if key is not None:
            raise InvalidSpaceError(f"{name} must be {key.allowed}; a normal distribution has no bounds: use uniform")
        return value
    low, high = arguments[:2]
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise InvalidSpaceError(f"{name}: {kind} needs a lower bound below the upper one; got {low}, {high}")
    if "log" in kind and low <= 0:
        raise InvalidSpaceError(f"{name}: the lower bound of {kind} must be above 0; got {low}")
    if key is not None:
        if key.kind is int and isinstance(value, Float):
            raise InvalidSpaceError(f"{name} must be {key.allowed}; {kind} gives fractions: use randint")
        # The whole-number domains leave their upper bound out, unless they are quantized.
        for bound in (low, high - 1 if kind in ("randint", "lograndint") else high):
            _checked_scalar(name, bound, key)
    return value


def _checked_scalar(name: str, value: Any, key: Key | None) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, bool | int | float | str):
        raise InvalidSpaceError(
            f"{name}: a value is a number, a string or true/false; got {value!r} of type {type(value).__name__}"
        )
    if key is None:
        return value
    try:
        return key.check(value)
    except InvalidConfigError as error:
        raise InvalidSpaceError(str(error)) from None


def _to_plain(name: str, value: Any) -> Any:
    if not isinstance(value, Domain):
        return value
    if isinstance(value, Categorical):
        return {"choice": list(value.categories)}
    if not isinstance(value, Float | Integer):
        raise InvalidSpaceError(
            f"{name}: a {type(value).__name__} domain cannot be written down as plain data; use choice"
        )
    sampler = value.get_sampler()
    quantum = [sampler.q] if isinstance(sampler, Quantized) else []
    inner = sampler.get_sampler() if isinstance(sampler, Quantized) else sampler
    shape = type(inner).__name__
    if shape == "_Normal":
        if quantum:
            raise InvalidSpaceError(f"{name}: qrandn cannot be written down as plain data; use randn")
        return {"randn": [inner.mean, inner.sd]}
    kind = ("q" if quantum else "") + ("log" if shape == "_LogUniform" else "")
    return {kind + ("randint" if isinstance(value, Integer) else "uniform"): [value.lower, value.upper, *quantum]}


def _values(domain: Domain) -> list[Any]:
    """Return all values of a finite domain."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    _, (low, high, *quantum) = next(iter(_to_plain("", domain).items()))
    if quantum:
        step = quantum[0]
        return list(range(math.ceil(low / step) * step, math.floor(high / step) * step + 1, step))
    return list(range(low, high))


def _count(domain: Domain) -> int | None:
    return None if isinstance(domain, Float) else len(_values(domain))


def _plain_value(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
