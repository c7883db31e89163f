"""Parameters as they are written on a command line, one setting each.

learning_rate=0.1                                        a constant
optimizer=adam,momentum                                  a choice
learning_rate=loguniform(1e-4, 1)                        a range
momentum[optimizer=momentum,nesterov]=uniform(0.8, 1)    only where the optimizer is one of these
learning_rate[optimizer=adam]=1e-3                       one case of several: the settings of one key are its cases
"""

import re
from collections.abc import Iterable
from typing import Any

from tune_hpc.errors import InvalidExperimentError
from tune_hpc.search.space.conditional import Conditional, when
from tune_hpc.search.space.domains import parse_domain, parse_list

_SETTING = re.compile(r"\s*([^=\[\]\s]+)\s*(?:\[([^\]]*)\])?\s*=(.*)\Z", re.DOTALL)


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Return the domain, constant or cases of each key that is set.

    Raises:
        InvalidExperimentError: a setting of another form, or a key that is given twice.
        InvalidSpaceError: a value that cannot be read.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        match = _SETTING.match(setting)
        if not match:
            raise InvalidExperimentError(f"--set takes KEY=VALUE or KEY[OTHER=VALUES]=VALUE; got {setting!r}")
        key, condition, text = match.groups()
        value = parse_domain(key, text)
        if condition is not None:
            value = when(value, **_conditions(setting, condition))
        before = values.get(key)
        if key in values and not (isinstance(before, Conditional) and before.cases[-1].conditions):
            raise InvalidExperimentError(f"--set gives each key once; {key} is given twice")
        values[key] = before | value if key in values else value
    return values


def _conditions(setting: str, text: str) -> dict[str, Any]:
    conditions: dict[str, Any] = {}
    for one in text.split("&"):
        name, equals, values = (part.strip() for part in one.partition("="))
        if not name or not equals or name in conditions:
            raise InvalidExperimentError(
                f"--set takes conditions as KEY[OTHER=VALUES & ANOTHER=VALUES]=VALUE; got {setting!r}"
            )
        conditions[name] = parse_list(name, values)
    return conditions
