"""What values one parameter may take: Ray Tune domains, checked, counted, written down as plain data and read again.

Every domain has the form ``{KIND: ARGUMENTS}`` as plain JSON and ``KIND(ARGUMENTS)`` on a command line; text is read by
this grammar alone, and never evaluated.
"""

import math
import re
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Any, TypeGuard

import numpy as np
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, Quantized

from tune_hpc.errors import InvalidConfigError, InvalidSpaceError
from tune_hpc.learning.config import ConfigKey

#: Ray Tune's constructors by the name that plain JSON uses, each with the number of its arguments.
RANGES = {
    "uniform": 2, "loguniform": 2, "quniform": 3, "qloguniform": 3,
    "randint": 2, "lograndint": 2, "qrandint": 3, "qlograndint": 3, "randn": 2,
}  # fmt: skip

_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*\(([^()]*)\)\s*\Z")


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
    return _range(name, kind, arguments)


def parse_domain(name: str, text: str) -> Any:
    """Read a value as it is written on a command line: ``0.1``, ``0.1,0.01``, ``loguniform(1e-4, 1)``, ``adam``.

    Raises:
        InvalidSpaceError: an empty value, or a domain that does not exist or does not take these arguments.
    """
    call = _CALL.match(text)
    if call:
        kind, arguments = call.groups()
        return domain_from_json(name, {kind: parse_list(name, arguments) if arguments.strip() else []})
    if any(bracket in text for bracket in "()[]{}"):
        # Taken as words these would fail later, or never.
        raise InvalidSpaceError(
            f"{name}: a value is a number, a word, a list (1,2,3) or a range (uniform(0, 1)); got {text!r}"
        )
    values = parse_list(name, text)
    return values[0] if len(values) == 1 else tune.choice(values)


def describe(value: Any) -> str:
    """Return a domain or constant as it is written on a command line: ``loguniform(0.0001, 1)``."""
    plain = to_json("", value)
    if not isinstance(plain, dict):
        return _as_word(plain)
    kind, arguments = next(iter(plain.items()))
    return f"{kind}({', '.join(map(_as_word, arguments))})"


def _as_word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # The shorter form, where it loses nothing.
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def parse_list(name: str, text: str) -> list[Any]:
    """Read values with commas between them.

    Raises:
        InvalidSpaceError: a value is missing.
    """
    values = [_parse_scalar(one) for one in text.split(",")]
    if any(value == "" for value in values):
        raise InvalidSpaceError(f"{name}: a value is missing in {text!r}")
    return values


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


def check_domain(name: str, value: Any, key: ConfigKey | None) -> Any:
    """Return a parameter's domain or constant, its numbers in the kind that ``key`` wants.

    Raises:
        InvalidSpaceError: a rule that ``Space`` names is broken.
    """
    if not isinstance(name, str) or not name:
        raise InvalidSpaceError(f"a parameter's name is a word; got {name!r}")
    if isinstance(value, Mapping) and set(value) == {"grid_search"}:
        return _choice(name, value["grid_search"], key)
    if not isinstance(value, Domain):
        return check_constant(name, value, key)
    if isinstance(value, Categorical):
        return _choice(name, value.categories, key)
    kind, arguments = next(iter(to_json(name, value).items()))
    domain = _range(name, kind, arguments)
    if key is None:
        return domain
    if kind == "randn":
        raise InvalidSpaceError(f"{name} must be {key.allowed}; a normal distribution has no bounds: use uniform")
    if key.kind is int and isinstance(domain, Float):
        raise InvalidSpaceError(
            f"{name} must be {key.allowed}; {kind} gives fractions: use {kind.replace('uniform', 'randint')}"
        )
    for bound in bounds(domain):
        check_constant(name, bound, key)
    return domain


def _choice(name: str, values: Iterable[Any], key: ConfigKey | None) -> Domain:
    if not isinstance(values, list | tuple):
        raise InvalidSpaceError(f"{name}: a choice takes a list; got {values!r}")
    categories = [check_constant(name, one, key) for one in values]
    if not categories:
        raise InvalidSpaceError(f"{name}: a choice needs at least one value; got none")
    if len({identity(one) for one in categories}) < len(categories):
        raise InvalidSpaceError(f"{name}: a choice holds each value once; got {', '.join(map(_as_word, categories))}")
    return tune.choice(categories)


def _range(name: str, kind: str, arguments: Iterable[Any]) -> Domain:
    """Return a domain of numbers, its arguments checked before Ray sees them: its complaints name no parameter."""
    numbers = [one.item() if isinstance(one, np.generic) else one for one in arguments]
    got = f"got {', '.join(map(repr, numbers)) or 'none'}"
    if len(numbers) != RANGES[kind] or not all(_is_number(one) for one in numbers):
        raise InvalidSpaceError(f"{name}: {kind} takes {RANGES[kind]} numbers; {got}")
    if not all(map(_matches_type, numbers)) or not math.isfinite(float(numbers[1]) - float(numbers[0])):
        raise InvalidSpaceError(f"{name}: {kind} takes finite numbers of 64 bits; {got}")
    if kind == "randn":
        if numbers[1] <= 0:
            raise InvalidSpaceError(f"{name}: the deviation of randn must be above 0; {got}")
        return tune.randn(*numbers)
    if kind.endswith("randint"):
        if not all(float(one).is_integer() for one in numbers):
            raise InvalidSpaceError(
                f"{name}: {kind} takes whole numbers; {got}: use {kind.replace('randint', 'uniform')}"
            )
        numbers = [int(one) for one in numbers]
    low, high, *step = numbers
    if low >= high:
        raise InvalidSpaceError(f"{name}: {kind} needs a lower bound below the upper one; {got}")
    if "log" in kind and low <= 0:
        raise InvalidSpaceError(f"{name}: the lower bound of {kind} must be above 0; {got}")
    if step and step[0] <= 0:
        raise InvalidSpaceError(f"{name}: the step of {kind} must be above 0; {got}")
    try:
        domain = getattr(tune, kind)(*numbers)
    except (ValueError, OverflowError) as error:
        raise InvalidSpaceError(f"{name}: the bounds of {kind} must be multiples of its step; {got}") from error
    if count(domain) == 0:
        raise InvalidSpaceError(f"{name}: no multiple of the step of {kind} lies between its bounds; {got}")
    return domain


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _matches_type(number: float) -> bool:
    """Whether Parquet and numpy can hold a number, and JSON can write it."""
    return -(2**63) <= number < 2**63 if isinstance(number, int) else math.isfinite(number)


def check_constant(name: str, value: Any, key: ConfigKey | None) -> Any:
    """Return a constant in the kind that ``key`` wants.

    Raises:
        InvalidSpaceError: it is none of number, string and boolean, or its key does not allow it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, bool | int | float | str):
        remedy = ": for several values use choice" if isinstance(value, list | tuple) else ""
        raise InvalidSpaceError(
            f"{name}: a value is a number, a string or true/false; got {value!r} of type {type(value).__name__}{remedy}"
        )
    if _is_number(value) and not _matches_type(value):
        raise InvalidSpaceError(f"{name}: a number must be finite and fit into 64 bits; got {value!s:.30}")
    if key is None:
        return value
    try:
        return key.check(value)
    except InvalidConfigError as error:
        raise InvalidSpaceError(str(error)) from None


def to_json(name: str, value: Any) -> Any:
    """Return a domain as ``{KIND: ARGUMENTS}``, and a constant as it is.

    Raises:
        InvalidSpaceError: a domain that plain data cannot express.
    """
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


def count(domain: Domain) -> int | None:
    """Return how many values a domain has; ``None`` when it is continuous."""
    if isinstance(domain, Categorical):
        return len(domain.categories)
    stepped = _multiples(domain)
    return stepped and stepped[0].stop - stepped[0].start


def all_values(domain: Domain) -> list[Any]:
    """Return all values of a domain that is not continuous."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    stepped = _multiples(domain)
    assert stepped, "continuous"
    return [_multiple(domain, multiple) for multiple in stepped[0]]


def sample(domain: Domain, generator: np.random.Generator) -> Any:
    """Return one value drawn at random."""
    value = domain.sample(random_state=generator)
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(domain, Categorical):
        return value
    # exp(log(x)) and multiples of a step are rounded: the last bit may lie outside.
    low, high = bounds(domain)
    return min(max(value, low), high)


def ppf(domain: Domain, fraction: float) -> Any:
    """Return the value below which a domain has a given fraction of its probability.

    So points that fill a unit cube evenly become configurations that fill a space evenly.

    Args:
        domain: Any that a space takes.
        fraction: At least 0, below 1.
    """
    if isinstance(domain, Categorical):
        return domain.categories[int(fraction * len(domain.categories))]
    kind, (low, high, *_) = next(iter(to_json("", domain).items()))
    if kind == "randn":
        return NormalDist(low, high).inv_cdf(min(max(fraction, 1e-12), 1 - 1e-12))
    stepped = _multiples(domain)
    if stepped:
        multiples, _ = stepped
        if "log" in kind:
            # Each multiple stands for all numbers that are rounded down to it.
            first, last = math.log(multiples.start), math.log(multiples.stop)
            place = int(math.exp(first + fraction * (last - first)) * (1 + 1e-12)) - multiples.start
        else:
            place = int(fraction * len(multiples))
        return _multiple(domain, multiples[min(place, len(multiples) - 1)])
    if "log" in kind:
        value = math.exp(math.log(low) + fraction * (math.log(high) - math.log(low)))
    else:
        value = low + fraction * (high - low)
    return float(min(max(value, low), high))


def cdf(domain: Domain, value: Any) -> float:
    """Return a fraction of which ``ppf`` makes this value: for a normal or a stepped logarithmic domain."""
    kind, (mean, deviation, *_) = next(iter(to_json("", domain).items()))
    if kind == "randn":
        return NormalDist(mean, deviation).cdf(value)
    stepped = _multiples(domain)
    assert stepped, kind
    multiples, step = stepped
    first, last = math.log(multiples.start), math.log(multiples.stop)
    return (math.log(round(value / step) + 0.5) - first) / (last - first)


def clip(domain: Domain, number: float) -> Any:
    """Return the value of a range that is nearest to a number."""
    stepped = _multiples(domain)
    if not stepped:
        low, high = bounds(domain)
        return float(min(max(number, low), high))
    multiples, step = stepped
    return _multiple(domain, min(max(round(number / step), multiples.start), multiples.stop - 1))


def _multiple(domain: Domain, multiple: int) -> Any:
    """Return a multiple of a domain's step, kept within its bounds where it was rounded."""
    stepped = _multiples(domain)
    assert stepped
    low, high = bounds(domain)
    value = min(max(multiple * stepped[1], low), high)
    return float(value) if isinstance(domain, Float) else value


def identity(value: Any) -> tuple[bool, Any]:
    """Return what two equal constants have in common; True is not 1."""
    return isinstance(value, bool), value


def contains(value: Any, candidate: Any) -> bool:
    """Whether a domain, or a constant, may have a value; True is not 1."""
    if not isinstance(value, Domain):
        return isinstance(candidate, bool) == isinstance(value, bool) and bool(candidate == value)
    if isinstance(value, Categorical):
        return any(contains(one, candidate) for one in value.categories)
    if not _is_number(candidate) or not _matches_type(candidate):
        return False
    if next(iter(to_json("", value))) == "randn":
        return True
    low, high = bounds(value)
    if not low <= candidate <= high or (isinstance(value, Integer) and candidate != int(candidate)):
        return False
    stepped = _multiples(value)
    if not stepped:
        return True
    multiples, step = stepped
    near = round(candidate / step)
    return near in multiples and bool(candidate == _multiple(value, near))


def _multiples(domain: Domain) -> tuple[range, float] | None:
    """Return a step, and by which numbers to multiply it for every value; ``None`` when the domain is continuous."""
    kind, (low, high, *quantum) = next(iter(to_json("", domain).items()))
    step = quantum[0] if quantum else 1
    if isinstance(domain, Integer):
        # Ray leaves the upper bound out, unless a step above 1 is given.
        return range(-(-low // step), (high if step > 1 else high - 1) // step + 1), step
    if kind == "randn" or not quantum:
        return None
    return range(round(low / step), round(high / step) + 1), step


def bounds(domain: Domain) -> tuple[float, float]:
    """Return the lowest and the highest value of a range."""
    if isinstance(domain, Float):
        return domain.lower, domain.upper
    stepped = _multiples(domain)
    assert stepped
    multiples, step = stepped
    return multiples.start * step, (multiples.stop - 1) * step
