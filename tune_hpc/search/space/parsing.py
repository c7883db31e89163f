"""Parser of parameters on a command line: ``--set KEY=VALUE``.

learning_rate=0.1                                        a constant
optimizer=adam,momentum                                  a choice
learning_rate=loguniform(1e-4, 1)                        a range
momentum[optimizer=momentum,nesterov]=uniform(0.8, 1)    only with one of these optimizers
learning_rate[optimizer=adam]=1e-3                       one case; further settings of the key are further cases

layers=[64, 64],[128]                                    a choice of lists
init=None,"1",auto                                       a choice of None, the text 1 and a word

A value is a literal of JSON or Python (a number, "text", true, None, a list, a mapping) or else a word. The parser
accepts this grammar only and evaluates nothing.
"""

import ast
import json
import re
import warnings
from collections.abc import Iterable
from typing import Any

from tune_hpc.errors import InvalidExperimentError, InvalidSpaceError
from tune_hpc.search.space.conditional import Conditional, when
from tune_hpc.search.space.parameter import Parameter

_SETTING = re.compile(r"\s*([^=\[\]\s]+)\s*(?:\[([^\]]*)\])?\s*=(.*)\Z", re.DOTALL)
#: Words that are values, in small letters.
_WORDS = {"true": True, "false": False, "none": None, "null": None}
_CALL = re.compile(r"\s*([A-Za-z_]\w*)\s*\(([^()]*)\)\s*\Z")


def parse_settings(settings: Iterable[str]) -> dict[str, Parameter | Conditional]:
    """Return the parameter or the cases of each key that is set.

    Raises:
        InvalidExperimentError: A setting has another form, or sets a key twice.
        InvalidSpaceError: A value is invalid.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        match = _SETTING.match(setting)
        if not match:
            raise InvalidExperimentError(f"--set takes KEY=VALUE or KEY[OTHER=VALUES]=VALUE; got {setting!r}")
        key, conditions, text = match.groups()
        value: Any = parse_parameter(key, text)
        if conditions is not None:
            value = when(value, **_conditions(setting, conditions))
        before = values.get(key)
        if key in values and not (isinstance(before, Conditional) and before.cases[-1].conditions):
            raise InvalidExperimentError(f"--set takes each key once; {key} is given twice")
        values[key] = before | value if key in values else value
    return values


def parse_parameter(name: str, text: str) -> Parameter:
    """Return the parameter for a text: ``0.1``, ``0.1,0.01``, ``loguniform(1e-4, 1)``, ``adam``.

    Raises:
        InvalidSpaceError: The text is empty, or names a domain that does not exist or does not accept the arguments.
    """
    if call := _CALL.match(text):
        kind, arguments = call.groups()
        return Parameter.from_json(name, {kind: _parse_list(name, arguments) if arguments.strip() else []})
    values = _parse_list(name, text)
    if len(values) == 1 and not isinstance(values[0], list | dict):
        return Parameter.from_json(name, values[0])
    return Parameter.from_json(name, {"choice": values})


def _conditions(setting: str, text: str) -> dict[str, Any]:
    conditions: dict[str, Any] = {}
    for condition in text.split("&"):
        name, equals, values = (part.strip() for part in condition.partition("="))
        if not name or not equals or name in conditions:
            raise InvalidExperimentError(
                f"--set takes conditions as KEY[OTHER=VALUES & ANOTHER=VALUES]=VALUE; got {setting!r}"
            )
        conditions[name] = _parse_list(name, values)
    return conditions


def _parse_list(name: str, text: str) -> list[Any]:
    parts = _split(text)
    if "" in parts:
        raise InvalidSpaceError(f"{name}: a value is missing in {text!r}")
    return [_parse_value(name, part) for part in parts]


def _split(text: str) -> list[str]:
    """Return the parts of a text between commas that are in no brackets and no quotes."""
    parts, depth, quote, is_escaped = [""], 0, "", False
    for character in text:
        if quote:
            quote = "" if character == quote and not is_escaped else quote
            is_escaped = character == "\\" and not is_escaped
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
            if character == "," and depth <= 0:
                parts.append("")
                continue
        parts[-1] += character
    return [part.strip() for part in parts]


def _parse_value(name: str, text: str) -> Any:
    """Return the value of a literal of JSON or Python, or a word."""
    lower = text.lower()
    if lower in _WORDS:
        return _WORDS[lower]
    if lower.lstrip("+-") in ("nan", "inf", "infinity"):
        return float(text)
    for parse in (json.loads, ast.literal_eval):
        try:
            with warnings.catch_warnings():
                # Python warns of texts like 1is and "\\d".
                warnings.simplefilter("ignore")
                return parse(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    if text.lstrip("+-").isdecimal() and len(text) > 20:
        raise InvalidSpaceError(f"{name}: a number must be finite and fit into 64 bits; got {text:.30}")
    if any(character in text for character in "()[]{}\"'"):
        # As words such texts would fail late or never.
        raise InvalidSpaceError(
            f"{name}: a value must be a number, a word, a list (1,2,3) or a range (uniform(0, 1)); got {text!r}"
        )
    return text
