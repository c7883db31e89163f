"""Published sentences, each checked with a number.

A claim is data (``search.declared.Claim``): which number is read off the history of which trials, and what must hold
of these numbers. Here they are read.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import COMPLETED, row_mask
from tune_hpc.analysis.formatting import display_name, format_number, format_value
from tune_hpc.analysis.results import Results


def check_claims(results: Results) -> pd.DataFrame:
    """Return every claim of an experiment with the numbers that it stands or falls with.

    Returns:
        One row per claim: ``claim``, ``measure`` (in words), ``numbers`` (as text, one for each value), ``holds``
        (missing where a trial is missing or shorter than the claim needs), ``source``.
    """
    rows = []
    for one in results.experiment.get("claims") or ():
        numbers = claim_numbers(results, one)
        told = ", ".join(f"{format_value(value)}: {_text(number)}" for value, number in numbers.items())
        known = not numbers.isna().any()
        rows.append(
            {
                "claim": one["text"], "measure": describe_measure(one), "numbers": told,
                "holds": RELATIONS[one["relation"]](numbers.to_numpy(float), one["bound"]) if known else None,
                "source": one["source"],
            }
        )  # fmt: skip
    df = pd.DataFrame(rows, columns=["claim", "measure", "numbers", "holds", "source"])
    return df.astype({"holds": "boolean"})


def claim_numbers(results: Results, claim: Mapping[str, Any]) -> pd.Series:
    """Return the number of each value that a claim speaks of: the median of its trials; missing where there is none."""
    numbers = {}
    trials = results.trials
    for value in claim["values"]:
        own = trials[row_mask(trials, {claim["parameter"]: value}) & trials["status"].isin(COMPLETED)]
        measured = [_measured(results, trial_id, claim) for trial_id in own["trial_id"]]
        numbers[value] = float(np.median(measured)) if measured else np.nan
    return pd.Series(numbers, dtype=float)


def _measured(results: Results, trial_id: str, claim: Mapping[str, Any]) -> float:
    history, metric = results.history, claim["metric"]
    if metric not in history:
        return np.nan
    own = history.loc[history["trial_id"] == trial_id, ["step", metric]].dropna().sort_values("step")
    if own.empty or own["step"].iloc[-1] < claim["steps"]:
        return np.nan
    own = own[own["step"] <= claim["steps"]]
    return float(MEASURES[claim["measure"]](own["step"].to_numpy(), own[metric].to_numpy(float), claim))


def _at_the_end(step: np.ndarray, x: np.ndarray, claim: Mapping[str, Any]) -> float:
    return float(x[-1])


def _remaining_fraction(step: np.ndarray, x: np.ndarray, claim: Mapping[str, Any]) -> float:
    return float(x[-1] / x[0])


def _settling_step(step: np.ndarray, x: np.ndarray, claim: Mapping[str, Any]) -> float:
    outside = np.flatnonzero(np.abs(x - claim["target"]) > claim["tolerance"])
    if len(outside) == 0:
        return float(step[0])
    return float(step[outside[-1] + 1]) if outside[-1] + 1 < len(step) else np.inf


def _crossings(step: np.ndarray, x: np.ndarray, claim: Mapping[str, Any]) -> float:
    away = x - claim["target"]
    side = np.sign(away[np.abs(away) > claim["tolerance"]])
    return float(np.count_nonzero(np.diff(side)))


def _reversals(step: np.ndarray, x: np.ndarray, claim: Mapping[str, Any]) -> float:
    direction = np.sign(np.diff(x))
    return float(np.count_nonzero(np.diff(direction[direction != 0])))


def _max_departure(step: np.ndarray, x: np.ndarray, claim: Mapping[str, Any]) -> float:
    away = np.abs(x - claim["target"])
    return float(away.max() - away[0])


def _max_departure_step(step: np.ndarray, x: np.ndarray, claim: Mapping[str, Any]) -> float:
    return float(step[int(np.argmax(np.abs(x - claim["target"])))])


#: What can be read off a metric up to some step: by name, from its steps and values.
MEASURES: dict[str, Callable[[np.ndarray, np.ndarray, Mapping[str, Any]], float]] = {
    "value": _at_the_end,
    "part_left": _remaining_fraction,
    "settled_at": _settling_step,
    "crossings": _crossings,
    "reversals": _reversals,
    "wrong_way": _max_departure,
    "wrong_until": _max_departure_step,
}
#: What may hold of numbers, and the bound.
RELATIONS: dict[str, Callable[[np.ndarray, float], bool]] = {
    "rising": lambda numbers, bound: bool((np.diff(numbers) > 0).all()),
    "falling": lambda numbers, bound: bool((np.diff(numbers) < 0).all()),
    "first_lowest": lambda numbers, bound: bool((numbers[0] < numbers[1:]).all()),
    "at_most": lambda numbers, bound: bool((numbers <= bound).all()),
    "above": lambda numbers, bound: bool((numbers > bound).all()),
    "some_above_first": lambda numbers, bound: bool((numbers[1:] > numbers[0]).any()),
}


def describe_measure(claim: Mapping[str, Any]) -> str:
    """Return what a claim is measured by: step from which W stays within 0.01 of -1, in 1000 steps."""
    metric = display_name(claim["metric"])
    target, tolerance = format_number(claim["target"]), format_number(claim["tolerance"])
    what = {
        "value": f"{metric} at step {claim['steps']}",
        "part_left": f"part of the first {metric} that is left at step {claim['steps']}",
        "settled_at": f"step from which {metric} stays within {tolerance} of {target}, in {claim['steps']} steps",
        "crossings": f"how often {metric} crosses {target} by more than {tolerance}, in {claim['steps']} steps",
        "reversals": f"how often {metric} turns round in {claim['steps']} steps",
        "wrong_way": f"how much farther than at first {metric} gets from {target}",
        "wrong_until": f"step at which {metric} is farthest from {target}, in {claim['steps']} steps",
    }
    return what[claim["measure"]]


def _text(number: float) -> str:
    if np.isnan(number):
        return "not measured"
    return "never" if np.isinf(number) else format_number(number, 3)
