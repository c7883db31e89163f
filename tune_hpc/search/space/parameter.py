"""Parameter of a search space: a constant, a list of values, or a range of numbers.

A Ray Tune domain is converted to a ``Parameter`` once, when a space is built, and back by ``as_ray``. As plain JSON a
parameter is ``{KIND: ARGUMENTS}``, such as ``{"loguniform": [1e-4, 1]}``; a constant is itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, TypeGuard

import numpy as np
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, Quantized

from tune_hpc.errors import InvalidConfigError, InvalidSpaceError
from tune_hpc.learning.config import ConfigKey

#: Ray Tune's constructors of ranges, with the number of their arguments.
RANGES = {
    "uniform": 2, "loguniform": 2, "quniform": 3, "qloguniform": 3,
    "randint": 2, "lograndint": 2, "qrandint": 3, "qlograndint": 3, "randn": 2,
}  # fmt: skip
#: Maximum number of levels of a nested value.
MAX_DEPTH = 50


@dataclass(frozen=True)
class Parameter:
    """Validated domain of one parameter.

    Attributes:
        kind: ``constant``, ``choice``, or one of ``RANGES``.
        values: The constant, or the values of a choice.
        low: Lower bound of a range; of ``randn`` the mean.
        high: Upper bound of a range, as Ray Tune takes it; of ``randn`` the standard deviation.
        step: Distance between the values of a range; ``None``: not given.
    """

    kind: str
    values: tuple[Any, ...] = ()
    low: Any = None
    high: Any = None
    step: Any = None

    @classmethod
    def from_value(cls, name: str, value: Any, key: ConfigKey | None = None) -> Parameter:
        """Return the parameter for a Ray Tune domain, a ``grid_search``, a constant, or another parameter.

        Args:
            name: Name of the parameter.
            value: The value.
            key: Type and bounds that the values must have; ``None``: any.

        Raises:
            InvalidSpaceError: The value breaks a rule of ``Space``.
        """
        check_name(name)
        if isinstance(value, Mapping) and set(value) == {"grid_search"}:
            return cls._choice(name, value["grid_search"], key)
        if isinstance(value, Domain):
            value = cls._from_ray(name, value)
        if isinstance(value, Parameter) and value.is_constant:
            value = value.values[0]
        if not isinstance(value, Parameter):
            return cls("constant", (check_constant(name, value, key),))
        if value.kind == "choice":
            return cls._choice(name, value.values, key)
        return cls._range(name, value.kind, value._arguments, key)

    @classmethod
    def from_json(cls, name: str, plain: Any) -> Parameter:
        """Return the parameter that plain JSON describes.

        Raises:
            InvalidSpaceError: There is no such domain, or it does not accept these arguments.
        """
        if not isinstance(plain, Mapping):
            return cls.from_value(name, plain)
        allowed = ", ".join(["choice", *RANGES])
        if len(plain) != 1:
            raise InvalidSpaceError(
                f"{name}: give one domain, like {{'choice': [1, 2]}} (allowed are {allowed}); got {dict(plain)}"
            )
        kind, arguments = next(iter(plain.items()))
        if kind != "choice" and kind not in RANGES:
            raise InvalidSpaceError(f"{name}: there is no domain {kind!r}; allowed are {allowed}")
        if not isinstance(arguments, list | tuple):
            raise InvalidSpaceError(f"{name}: {kind} takes a list; got {arguments!r}")
        return cls._choice(name, arguments) if kind == "choice" else cls._range(name, kind, arguments)

    @classmethod
    def _from_ray(cls, name: str, domain: Domain) -> Parameter:
        """Return the parameter for a Ray Tune domain, not yet validated."""
        if isinstance(domain, Categorical):
            return cls("choice", tuple(domain.categories))
        if not isinstance(domain, Float | Integer):
            raise InvalidSpaceError(
                f"{name}: a {type(domain).__name__} domain (sample_from) cannot be repeated by a resumed search; use "
                "when for parameters that depend on others, and compute derived values in the trainable"
            )
        sampler, step = domain.get_sampler(), None
        if isinstance(sampler, Quantized):
            sampler, step = sampler.get_sampler(), sampler.q
        shape = type(sampler).__name__
        if shape == "_Normal":
            if step is not None:
                raise InvalidSpaceError(f"{name}: qrandn has no plain form; use randn")
            return cls("randn", low=sampler.mean, high=sampler.sd)
        kind = ("" if step is None else "q") + ("log" if shape == "_LogUniform" else "")
        kind += "randint" if isinstance(domain, Integer) else "uniform"
        return cls(kind, low=domain.lower, high=domain.upper, step=step)

    @classmethod
    def _choice(cls, name: str, values: Any, key: ConfigKey | None = None) -> Parameter:
        if not isinstance(values, list | tuple):
            raise InvalidSpaceError(f"{name}: choice takes a list; got {values!r}")
        checked = tuple(_check_value(name, value, key) for value in values)
        if not checked:
            raise InvalidSpaceError(f"{name}: choice needs at least one value; got none")
        if len({identity(value) for value in checked}) < len(checked):
            raise InvalidSpaceError(f"{name}: choice takes each value once; got {', '.join(map(_as_word, checked))}")
        return cls("choice", checked)

    @classmethod
    def _range(cls, name: str, kind: str, arguments: Iterable[Any], key: ConfigKey | None = None) -> Parameter:
        """Validate the arguments of a range before Ray Tune does: its messages do not name the parameter."""
        numbers = [number.item() if isinstance(number, np.generic) else number for number in arguments]
        got = f"got {', '.join(map(repr, numbers)) or 'none'}"
        if len(numbers) != RANGES[kind] or not all(_is_number(number) for number in numbers):
            raise InvalidSpaceError(f"{name}: {kind} takes {RANGES[kind]} numbers; {got}")
        if not all(map(_fits_64_bits, numbers)) or not math.isfinite(float(numbers[1]) - float(numbers[0])):
            raise InvalidSpaceError(f"{name}: {kind} takes finite numbers of 64 bits; {got}")
        if kind.endswith("randint"):
            if not all(float(number).is_integer() for number in numbers):
                remedy = kind.replace("randint", "uniform")
                raise InvalidSpaceError(f"{name}: {kind} takes whole numbers; {got}: use {remedy}")
            numbers = [int(number) for number in numbers]
        parameter = cls(kind, (), *numbers)
        if kind == "randn":
            if parameter.high <= 0:
                raise InvalidSpaceError(f"{name}: the standard deviation of randn must be above 0; {got}")
        elif parameter.low >= parameter.high:
            raise InvalidSpaceError(f"{name}: the lower bound of {kind} must be below the upper one; {got}")
        if parameter.is_log and parameter.low <= 0:
            raise InvalidSpaceError(f"{name}: the lower bound of {kind} must be above 0; {got}")
        if parameter.step is not None and parameter.step <= 0:
            raise InvalidSpaceError(f"{name}: the step of {kind} must be above 0; {got}")
        try:
            parameter.as_ray()
        except (ValueError, OverflowError) as error:
            raise InvalidSpaceError(f"{name}: the bounds of {kind} must be multiples of its step; {got}") from error
        if parameter.count == 0:
            raise InvalidSpaceError(f"{name}: no multiple of the step of {kind} lies between its bounds; {got}")
        if key is not None:
            parameter._check_key(name, key)
        return parameter

    def _check_key(self, name: str, key: ConfigKey) -> None:
        """Check that a range stays within the type and bounds of a key."""
        if self.kind == "randn":
            raise InvalidSpaceError(f"{name} must be {key.allowed}; a normal distribution has no bounds: use uniform")
        if key.kind is int and not self.is_integer:
            remedy = self.kind.replace("uniform", "randint")
            raise InvalidSpaceError(f"{name} must be {key.allowed}; {self.kind} gives fractions: use {remedy}")
        for bound in self.bounds:
            check_constant(name, bound, key)

    @property
    def is_constant(self) -> bool:
        """Return whether the parameter has a fixed value."""
        return self.kind == "constant"

    @property
    def is_log(self) -> bool:
        """Return whether a range is uniform in the logarithm."""
        return "log" in self.kind

    @property
    def is_integer(self) -> bool:
        """Return whether a range has whole numbers only."""
        return self.kind.endswith("randint")

    @property
    def _arguments(self) -> list[Any]:
        """Arguments of Ray Tune's constructor."""
        if self.kind not in RANGES:
            return list(self.values)
        return [self.low, self.high] if self.step is None else [self.low, self.high, self.step]

    def as_ray(self) -> Any:
        """Return a new Ray Tune domain; of a constant, its value."""
        if self.is_constant:
            return self.values[0]
        return tune.choice(self._arguments) if self.kind == "choice" else getattr(tune, self.kind)(*self._arguments)

    def to_json(self) -> Any:
        """Return the parameter as plain JSON."""
        return self.values[0] if self.is_constant else {self.kind: self._arguments}

    def describe(self) -> str:
        """Return the parameter as written on a command line: ``loguniform(0.0001, 1)``."""
        words = ", ".join(map(_as_word, self._arguments))
        return words if self.is_constant else f"{self.kind}({words})"

    @property
    def _multiples(self) -> range | None:
        """Factors of the step that give the values of a range; ``None``: it is continuous."""
        if self.is_integer:
            step = self._step
            # Ray Tune excludes the upper bound, except with a step above 1.
            return range(-(-self.low // step), (self.high if step > 1 else self.high - 1) // step + 1)
        return None if self.step is None else range(round(self.low / self.step), round(self.high / self.step) + 1)

    @property
    def _step(self) -> Any:
        return 1 if self.step is None else self.step

    def _factor(self, number: float) -> int:
        """Return the factor of the multiple that is nearest to a number; exact for whole numbers of 64 bits."""
        if isinstance(number, int) and isinstance(self._step, int):
            return (2 * number + self._step) // (2 * self._step)
        return round(number / self._step)

    def _multiple(self, factor: int) -> Any:
        """Return a multiple of the step, within the bounds after rounding."""
        low, high = self.bounds
        value = min(max(factor * self._step, low), high)
        return value if self.is_integer else float(value)

    @property
    def count(self) -> int | None:
        """Number of values; ``None``: the range is continuous."""
        if self.kind not in RANGES:
            return len(self.values)
        return None if self._multiples is None else self._multiples.stop - self._multiples.start

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value of a range."""
        if self.kind == "randn":
            return -math.inf, math.inf
        if self.is_integer and (multiples := self._multiples):
            return multiples.start * self._step, (multiples.stop - 1) * self._step
        return self.low, self.high

    def value(self, index: int) -> Any:
        """Return the value of an index, from 0 on, of a parameter that is not continuous."""
        if self.kind not in RANGES:
            return self.values[index]
        assert self._multiples is not None, self.describe()
        return self._multiple(self._multiples[index])

    def all_values(self) -> list[Any]:
        """Return all values of a parameter that is not continuous."""
        return [self.value(index) for index in range(self.count or 0)]

    def sample(self, generator: np.random.Generator) -> Any:
        """Return a random value, as Ray Tune draws it."""
        if self.is_constant:
            return self.values[0]
        value = self.as_ray().sample(random_state=generator)
        value = value.item() if isinstance(value, np.generic) else value
        if self.kind == "choice":
            return value
        # exp(log(x)) and multiples of a step are rounded: the last bits may be wrong.
        return self.clip(value)

    def ppf(self, fraction: float) -> Any:
        """Return the quantile of a fraction, which is at least 0 and below 1 (percent point function).

        Evenly spaced fractions give values that are evenly spaced in probability.
        """
        if self.kind not in RANGES:
            return self.values[int(fraction * len(self.values))]
        if self.kind == "randn":
            return NormalDist(self.low, self.high).inv_cdf(min(max(fraction, 1e-12), 1 - 1e-12))
        if multiples := self._multiples:
            if self.is_log:
                # Each multiple represents all numbers that are rounded down to it.
                first, last = math.log(multiples.start), math.log(multiples.stop)
                index = int(math.exp(first + fraction * (last - first)) * (1 + 1e-12)) - multiples.start
            else:
                index = int(fraction * (multiples.stop - multiples.start))
            return self._multiple(min(multiples.start + index, multiples.stop - 1))
        if self.is_log:
            value = math.exp(math.log(self.low) + fraction * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + fraction * (self.high - self.low)
        return float(min(max(value, self.low), self.high))

    def cdf(self, value: Any) -> float:
        """Return a fraction whose quantile is the value; for ``randn`` and logarithmic ranges with a step."""
        if self.kind == "randn":
            return NormalDist(self.low, self.high).cdf(value)
        multiples = self._multiples
        assert multiples is not None, self.describe()
        first, last = math.log(multiples.start), math.log(multiples.stop)
        return (math.log(round(value / self._step) + 0.5) - first) / (last - first)

    def clip(self, number: float) -> Any:
        """Return the value of a range that is nearest to a number."""
        if multiples := self._multiples:
            return self._multiple(min(max(self._factor(number), multiples.start), multiples.stop - 1))
        low, high = self.bounds
        return float(min(max(number, low), high))

    def as_member(self, value: Any) -> Any:
        """Return a value that the parameter may have, as the domain has it: 192 for 192.0, 3 * 0.1 for 0.3."""
        if self.kind in RANGES:
            return float(value) if self._multiples is None else self.clip(value)
        return next(one for one in self.values if identity(one) == identity(value))

    def contains(self, candidate: Any) -> bool:
        """Return whether the parameter may have a value; ``True`` is not 1."""
        if self.kind not in RANGES:
            return identity(candidate) in map(identity, self.values)
        if not _is_number(candidate) or not _fits_64_bits(candidate):
            return False
        if self.kind == "randn":
            return True
        low, high = self.bounds
        if not low <= candidate <= high or (self.is_integer and candidate != int(candidate)):
            return False
        if multiples := self._multiples:
            factor = self._factor(candidate)
            multiple = self._multiple(factor)
            # Users write 0.3, and the third multiple of 0.1 is 0.30000000000000004.
            is_close = candidate == multiple or (
                not self.is_integer and math.isclose(candidate, multiple, rel_tol=1e-12)
            )
            return factor in multiples and is_close
        return True


def check_name(name: Any) -> None:
    """Check the name of a parameter.

    Raises:
        InvalidSpaceError: It is empty or no text, or has line breaks or other control characters.
    """
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InvalidSpaceError(f"the name of a parameter must be a word; got {name!r}")


def check_constant(name: str, value: Any, key: ConfigKey | None = None) -> Any:
    """Return a constant, converted to the type of ``key``.

    Raises:
        InvalidSpaceError: It is no number, string or Boolean, or the key does not allow it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and not isinstance(value, bool | int | float | str):
        remedy = ""
        if isinstance(value, list | tuple):
            remedy = ": for several values use choice, and for a list as one value choice([[64, 64]])"
        elif isinstance(value, Mapping):
            remedy = ": give each entry its own parameter, like model.depth, or use choice([{...}])"
        raise InvalidSpaceError(
            f"{name}: a value must be a number, a string, true/false or None; got {value!r} of type "
            f"{type(value).__name__}{remedy}"
        )
    if _is_number(value) and not _fits_64_bits(value):
        raise InvalidSpaceError(f"{name}: a number must be finite and fit into 64 bits; got {value!s:.30}")
    if isinstance(value, str) and not _is_unicode(value):
        raise InvalidSpaceError(f"{name}: a text must be valid Unicode; got {value!r}")
    if key is None:
        return value
    try:
        return key.check(value)
    except InvalidConfigError as error:
        raise InvalidSpaceError(str(error)) from None


def _check_value(name: str, value: Any, key: ConfigKey | None, depth: int = 0) -> Any:
    """Return a value of a choice: a constant, or a list or mapping of constants, which JSON can represent."""
    if depth > MAX_DEPTH:
        raise InvalidSpaceError(f"{name}: a value has at most {MAX_DEPTH} levels of lists; got {value!r:.100}")
    if key is None and isinstance(value, list | tuple):
        return [_check_value(name, one, key, depth + 1) for one in value]
    is_domain = isinstance(value, Mapping) and len(value) == 1 and set(value) <= {"choice", "grid_search", *RANGES}
    if key is None and isinstance(value, Mapping) and not is_domain and all(isinstance(entry, str) for entry in value):
        return {check_constant(name, entry): _check_value(name, one, key, depth + 1) for entry, one in value.items()}
    return check_constant(name, value, key)


def identity(value: Any) -> tuple[str, Any]:
    """Return a hashable key that is equal for equal values; ``True`` is not 1."""
    if isinstance(value, list | dict):
        return "json", json.dumps(value, sort_keys=True)
    return "bool" if isinstance(value, bool) else "", value


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits_64_bits(number: float) -> bool:
    """Return whether NumPy, Parquet and JSON can represent a number."""
    return -(2**63) <= number < 2**63 if isinstance(number, int) else math.isfinite(number)


def _is_unicode(text: str) -> bool:
    """Return whether files can contain a text: it has no half of a surrogate pair, which JSON allows."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _as_word(value: Any) -> str:
    if value is None or isinstance(value, bool | list | dict):
        return json.dumps(value)
    # The short form, if it is exact.
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
