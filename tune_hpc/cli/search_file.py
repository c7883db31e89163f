"""Search files: a search as data, ``tune-hpc run search.yaml``.

A file has the fields of a request to the HTTP service (service/schemas.py: SearchRequest), the other options of a run,
and a command with its pattern. Flags of the command line replace fields of the file.
"""

import argparse
import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tune_hpc.cli.options import OVERRIDES, RUN_OPTIONS, parse_duration
from tune_hpc.errors import InvalidExperimentError
from tune_hpc.search.options import Option, describe_value

#: Suffixes of search files.
SUFFIXES = (".yaml", ".yml", ".json")
#: Options by the key of a file, and the types of the other keys, in words.
_OPTIONS = OVERRIDES | RUN_OPTIONS
_TYPES = {
    "space": (str, "the name of an experiment, or package.module:attribute"),
    "command": (str, "a text"),
    "pattern": (str, "a text"),
    "parameters": (dict, "a mapping of names to values"),
    "set": (dict, "a mapping of names to values"),
}


def is_search_file(name: str) -> bool:
    """Return whether a name on the command line is that of a search file."""
    return name.endswith(SUFFIXES) and ":" not in name


def read_search_file(path: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Return ``space``, ``parameters`` and ``set`` of a search file; its other keys become flags that are not set.

    Raises:
        InvalidExperimentError: The file cannot be read, or has an unknown key or a value of another type.
    """
    plain = _load(path)
    keys = [*_TYPES, *_OPTIONS]
    for key, value in plain.items():
        if key not in keys:
            close = get_close_matches(str(key), keys, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise InvalidExperimentError(f"{path}: there is no key {key!r}; {hint}allowed are {', '.join(keys)}")
        try:
            value = _option_value(_OPTIONS[key], value) if key in _OPTIONS else value
        except argparse.ArgumentTypeError as error:
            raise InvalidExperimentError(f"{path}: {key}: {error}") from None
        if key in _TYPES and not isinstance(value, _TYPES[key][0]):
            raise InvalidExperimentError(f"{path}: {key} must be {_TYPES[key][1]}; got {value!r}")
        if (flag := getattr(flags, key, value)) is None or flag is False:
            setattr(flags, key, value)
    values = {key: _domains(plain[key]) for key in ("parameters", "set") if key in plain}
    return {"space": plain.get("space"), "parameters": None, "set": {}} | values


def _option_value(option: Option, value: Any) -> Any:
    """Return the value of an option.

    Raises:
        ArgumentTypeError: It is of another type.
    """
    if option.is_duration and isinstance(value, str):
        return parse_duration(value)
    if option.name == "budget" and type(value) is int:
        return str(value)
    if option.is_repeatable:
        kind = dict if option.is_mapping else str
        value = [value] if isinstance(value, kind) else value
        is_valid = isinstance(value, list) and all(isinstance(entry, kind) for entry in value)
    elif option.hint is bool or option.number is None:
        is_valid = isinstance(value, bool if option.hint is bool else str)
    else:
        is_number = isinstance(value, int) or (option.number is float and isinstance(value, float))
        is_valid = value in option.choices if isinstance(value, str | bool) else is_number
    if not is_valid:
        raise argparse.ArgumentTypeError(f"it must be {describe_value(option)}; got {value!r}")
    return value


def _domains(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters in the form of ``Space.to_json``; texts have the syntax of ``--set``, and lists are choices."""
    from tune_hpc.search.space.parsing import parse_parameter

    domains: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, str):
            parsed = parse_parameter(str(name), value).to_json()
            # A file has numbers, true and null without quotes.
            value = parsed if isinstance(parsed, str | dict) else value
        domains[str(name)] = {"choice": value} if isinstance(value, list) else value
    return domains


def _to_mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} is given twice")
    return mapping


def _load(path: str) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2: 1e-4 is a number, and off is a word."""

        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            if repeated := [key for key in keys if keys.count(key) > 1]:
                raise yaml.constructor.ConstructorError(None, None, f"{repeated[0]} is given twice", node.start_mark)
            return super().construct_mapping(node, deep)

    for tag, pattern, first in (
        ("bool", "true|True|false|False", "tTfF"),
        ("int", "[-+]?[0-9]+", "-+0123456789"),
        ("float", r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
        ("null", "~|null|Null|", ["~", "n", "N", ""]),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), list(first))
    Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
    try:
        text = Path(path).read_text(encoding="utf-8")
        plain = json.loads(text, object_pairs_hook=_to_mapping) if path.endswith(".json") else yaml.load(text, Loader)
    except OSError as error:
        raise InvalidExperimentError(f"{path} cannot be read: {error.strerror}; name a search file") from None
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise InvalidExperimentError(f"{path} is not valid YAML: {error.problem}{line}") from None
    except (ValueError, LookupError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise InvalidExperimentError(f"{path} is not valid: {error}") from None
    if not isinstance(plain, dict):
        raise InvalidExperimentError(f"{path} must be a mapping of keys like space and set; got {plain!r:.100}")
    return plain
