"""Labels for values of parameters that a column cannot distinguish: ``None`` and an absent parameter, 1 and "1"."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from tune_hpc.analysis.aggregation import searched_parameters
from tune_hpc.analysis.formatting import format_value
from tune_hpc.storage.trial_file import CONFIG

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results


def with_value_labels(results: "Results") -> "Results":
    """Return the results for tables and figures, with texts for the values of parameters that would look alike.

    A parameter that is ``None`` in a trial, or a text that looks like another value, has labels: ``None``, ``1``,
    ``"1"``. A trial without the parameter keeps a missing value. Other parameters are unchanged.
    """
    trials = results.trials
    if CONFIG not in trials or trials[CONFIG].isna().any():
        return results
    configs = [json.loads(text) for text in trials[CONFIG]]
    columns = {name: _labels(name, configs) for name in searched_parameters(results) if name != results.metric}
    new = {name: pd.Series(labels, trials.index, dtype="str") for name, labels in columns.items() if labels}
    return results.with_trials(trials.assign(**new)) if new else results


def _labels(name: str, configs: list[Mapping[str, Any]]) -> list[str | None]:
    """Return the label of each value, ``None`` without one; an empty list if labels are not necessary."""
    values = {json.dumps(config[name]): config[name] for config in configs if name in config}
    plain = {key: _label(value) for key, value in values.items()}
    numbers = Counter(plain.values())
    alike = {key: value for key, value in values.items() if numbers[plain[key]] > 1}
    if not any(isinstance(value, str) for value in alike.values()) and "null" not in values:
        return []
    # As JSON, a text has quotation marks and a number all its digits.
    labels = plain | {key: key for key, value in alike.items() if type(value) in (str, int, float)}
    return [labels[json.dumps(config[name])] if name in config else None for config in configs]


def _label(value: Any) -> str:
    if value is None:
        return "None"
    return json.dumps(value) if isinstance(value, list | dict) else format_value(value)
