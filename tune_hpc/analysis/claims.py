"""Check published statements (claims).

A claim (``search.report_spec.Claim``) names a number to measure on the history of certain trials, and a relation that
these numbers must satisfy.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import COMPLETED, row_mask
from tune_hpc.analysis.formatting import display_name, format_number, format_value
from tune_hpc.analysis.results import Results

_Claim = Mapping[str, Any]


def check_claims(results: Results) -> pd.DataFrame:
    """Check every claim of an experiment.

    Returns:
        One row per claim: ``claim``, ``measure`` (description), ``numbers`` (text, one number per value), ``holds``
        (missing if a trial is missing or too short), ``source``.
    """
    rows = []
    for claim in results.experiment.get("claims") or ():
        numbers = claim_numbers(results, claim)
        holds = None if numbers.isna().any() else RELATIONS[claim["relation"]](numbers.to_numpy(float), claim["bound"])
        text = ", ".join(f"{format_value(value)}: {_text(number)}" for value, number in numbers.items())
        rows.append((claim["text"], describe_measure(claim), text, holds, claim["source"]))
    return pd.DataFrame(rows, columns=["claim", "measure", "numbers", "holds", "source"]).astype({"holds": "boolean"})


def claim_numbers(results: Results, claim: _Claim) -> pd.Series:
    """Return the number for each parameter value of a claim: the median over its trials; missing without trials."""
    numbers, trials = {}, results.trials
    for value in claim["values"]:
        is_measured = row_mask(trials, {claim["parameter"]: value}) & trials["status"].isin(COMPLETED)
        measured = [_measure(results, trial_id, claim) for trial_id in trials.loc[is_measured, "trial_id"]]
        numbers[value] = float(np.median(measured)) if measured else np.nan
    return pd.Series(numbers, dtype=float)


def _measure(results: Results, trial_id: str, claim: _Claim) -> float:
    history, metric = results.history, claim["metric"]
    if metric not in history:
        return np.nan
    curve = history.loc[history["trial_id"] == trial_id, ["step", metric]].dropna().sort_values("step")
    if curve.empty or curve["step"].iloc[-1] < claim["steps"]:
        return np.nan
    curve = curve[curve["step"] <= claim["steps"]]
    return float(_measure_of(claim)[0](curve["step"].to_numpy(), curve[metric].to_numpy(float), claim))


def _settling_step(step: np.ndarray, x: np.ndarray, claim: _Claim) -> float:
    outside = np.flatnonzero(np.abs(x - claim["target"]) > claim["tolerance"])
    if len(outside) == 0:
        return float(step[0])
    return float(step[outside[-1] + 1]) if outside[-1] + 1 < len(step) else np.inf


def _crossings(step: np.ndarray, x: np.ndarray, claim: _Claim) -> float:
    distance = x - claim["target"]
    side = np.sign(distance[np.abs(distance) > claim["tolerance"]])
    return float(np.count_nonzero(np.diff(side)))


def _reversals(step: np.ndarray, x: np.ndarray, claim: _Claim) -> float:
    direction = np.sign(np.diff(x))
    return float(np.count_nonzero(np.diff(direction[direction != 0])))


_Measure = tuple[Callable[[np.ndarray, np.ndarray, _Claim], float], str]
#: Measures of a metric up to some step: functions of its steps and values, and descriptions.
MEASURES: dict[str, _Measure] = {
    "value": (lambda step, x, claim: x[-1], "{metric} at step {steps}"),
    "remaining_fraction": (
        lambda step, x, claim: x[-1] / x[0],
        "fraction of the initial {metric} that remains at step {steps}",
    ),
    "settling_step": (
        _settling_step,
        "step from which {metric} stays within {tolerance} of {target}, in {steps} steps",
    ),
    "crossings": (
        _crossings,
        "number of crossings of {target} by {metric}, by more than {tolerance}, in {steps} steps",
    ),
    "reversals": (_reversals, "number of reversals of {metric} in {steps} steps"),
    "max_departure": (
        lambda step, x, claim: np.abs(x - claim["target"]).max() - abs(x[0] - claim["target"]),
        "maximum distance of {metric} from {target}, less the initial distance",
    ),
    "max_departure_step": (
        lambda step, x, claim: step[np.argmax(np.abs(x - claim["target"]))],
        "step of the maximum distance of {metric} from {target}, in {steps} steps",
    ),
}
#: Names of measures in folders of earlier versions.
_OLD_NAMES = {
    "part_left": "remaining_fraction", "settled_at": "settling_step", "wrong_way": "max_departure",
    "wrong_until": "max_departure_step",
}  # fmt: skip
#: Relations of the numbers and the bound.
RELATIONS: dict[str, Callable[[np.ndarray, float], bool]] = {
    "rising": lambda numbers, bound: bool((np.diff(numbers) > 0).all()),
    "falling": lambda numbers, bound: bool((np.diff(numbers) < 0).all()),
    "first_lowest": lambda numbers, bound: bool((numbers[0] < numbers[1:]).all()),
    "at_most": lambda numbers, bound: bool((numbers <= bound).all()),
    "above": lambda numbers, bound: bool((numbers > bound).all()),
    "some_above_first": lambda numbers, bound: bool((numbers[1:] > numbers[0]).any()),
}


def _measure_of(claim: _Claim) -> _Measure:
    name: str = claim["measure"]
    return MEASURES[_OLD_NAMES.get(name, name)]


def describe_measure(claim: _Claim) -> str:
    """Describe the measure of a claim, like ``step from which W stays within 0.01 of -1, in 1000 steps``."""
    values = {name: format_number(claim[name]) for name in ("target", "tolerance", "steps")}
    return _measure_of(claim)[1].format(metric=display_name(claim["metric"]), **values)


def _text(number: float) -> str:
    if np.isnan(number):
        return "not measured"
    return "never" if np.isinf(number) else format_number(number, 3)
