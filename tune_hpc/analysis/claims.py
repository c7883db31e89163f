"""Check published statements (claims).

A claim (``search.report_spec.Claim``) names a number for each value of a parameter, and a relation of these numbers.
The number is a result of a trial, or a measure of its history. A value is represented by its best configuration, with
the seeds as repeats. A claim holds, does not hold, or is inconclusive, because

- a number is missing;
- numbers differ by less than the rounding error of float32, relative to the initial value of their curve;
- the 95 % intervals over the seeds leave it open. Differences have the simultaneous intervals of ``linear_model``, and
  numbers beside a bound have Student's (Bonferroni), speed-ups and efficiencies on a log scale. Trials without random
  numbers need no repeats.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    COMPLETED,
    aggregate_seeds,
    configuration_numbers,
    row_mask,
    sort_configurations,
)
from tune_hpc.analysis.formatting import display_name, format_config, format_metric, format_number, format_value
from tune_hpc.analysis.intervals import ROUNDING, Interval, mean_interval
from tune_hpc.analysis.linear_model import all_differences
from tune_hpc.analysis.published import is_random_run
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.speedup import RATIOS, ratio_interval

CONFIDENCE = 0.95
#: Reasons for an inconclusive claim.
NOT_MEASURED, WITHIN_ROUNDING = "not measured", "differences within rounding error"
NEITHER_REACHED = "neither reaches the target"
SEEDS_UNDECIDED, SINGLE_SEED = "seeds do not decide", "a single seed does not decide"
COLUMNS = ("claim", "measure", "rule", "numbers", "holds", "note", "source")

_Claim = Mapping[str, Any]
#: Ends of the names of durations and of their ratios, which vary from run to run.
_TIMED = ("_s", *RATIOS)
#: Outcome of a comparison: whether it is true, or the reason for an inconclusive one.
_Outcome = bool | str


def check_claims(results: Results) -> pd.DataFrame:
    """Check every claim of an experiment.

    Returns:
        One row per claim: ``claim``, ``measure`` (description), ``rule`` (the relation with its bound), ``numbers``
        (text, one number per value, with half of its 95 % interval over seeds, or with the bounds of that of a ratio),
        ``holds`` (missing: inconclusive), ``note`` (reason for an inconclusive claim), ``source``.

    Example:
        >>> from tune_hpc import check_claims, load
        >>> check_claims(load("docs/results/exercise1_2ndpart"))[["rule", "holds", "note"]].iloc[2].tolist()
        ['rising', <NA>, 'differences within rounding error (4.7e-05)']
    """
    return claims_frame([check_claim(results, claim) for claim in results.experiment.get("claims") or ()])


def claims_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows of ``check_claim`` as the frame of ``check_claims``."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"holds": "boolean"})


def check_claim(results: Results, claim: _Claim) -> dict[str, Any]:
    """Check a claim; see ``check_claims``."""
    measured = measure_trials(results, claim)
    samples = measured.pivot_table("number", "seed", "value").reindex(columns=range(len(claim["values"])))
    rounding = measured.groupby("value")["rounding"].max().reindex(samples.columns, fill_value=0.0)
    is_random = bool(measured["is_random"].any())
    holds, note = _decide(claim, samples, rounding.to_numpy(), is_random)
    texts = []
    for position, value in enumerate(claim["values"]):
        interval = _interval(samples[position], claim["metric"], CONFIDENCE)
        texts.append(f"{format_value(value)}: {_text(interval, claim, is_random)}")
    return {
        "claim": claim["text"], "measure": describe_measure(claim), "rule": describe_rule(claim),
        "numbers": ", ".join(texts), "holds": holds, "note": note, "source": claim["source"],
    }  # fmt: skip


def measure_trials(results: Results, claim: _Claim) -> pd.DataFrame:
    """Measure the trials of the best configuration for each value of a claim.

    Returns:
        One row per measured trial: ``value`` (its position in the claim), ``seed``, ``number``, ``rounding`` (possible
        error of the number), ``is_random`` (whether another run could give another number).
    """
    rows = []
    for position, value in enumerate(claim["values"]):
        trials = _best_trials(results, {**(claim.get("where") or {}), claim["parameter"]: value})
        for trial in trials.to_dict("records"):
            number, scale = _measure(results, trial, claim)
            is_random = claim["metric"].endswith(_TIMED) or is_random_run(results, cast("dict[str, Any]", trial))
            if not np.isnan(number):
                rows.append((position, trial.get("seed", trial["trial_id"]), number, ROUNDING * scale, is_random))
    return pd.DataFrame(rows, columns=["value", "seed", "number", "rounding", "is_random"])


def _best_trials(results: Results, where: Mapping[str, Any]) -> pd.DataFrame:
    """Return the completed trials of the best configuration with certain values."""
    found = results.with_trials(results.trials[row_mask(results.trials, where)])
    if found.trials.empty:
        return found.trials
    best = sort_configurations(found, aggregate_seeds(found, [results.metric])).index[:1]
    return found.trials[configuration_numbers(found).isin(best) & found.trials["status"].isin(COMPLETED)]


def _measure(results: Results, trial: Mapping[Any, Any], claim: _Claim) -> tuple[float, float]:
    """Return the number of a trial and the scale of its rounding error; NaN if the trial is too short."""
    history, metric = results.history, claim["metric"]
    has_curve = metric in history and pd.api.types.is_numeric_dtype(history[metric])
    if claim["measure"] == RESULT:
        is_long_enough = not claim["steps"] or trial.get("steps_run", 0) >= claim["steps"]
        value = trial.get(metric)
        number = float(value) if is_long_enough and isinstance(value, int | float) else np.nan
        if not has_curve:
            return number, abs(number)
        curve = history.loc[history["trial_id"] == trial["trial_id"], metric].dropna()
        return number, abs(float(curve.iloc[0])) if len(curve) > 1 else abs(number)
    if not has_curve:
        return np.nan, 0.0
    curve = history.loc[history["trial_id"] == trial["trial_id"], ["step", metric]].dropna().sort_values("step")
    if curve.empty or curve["step"].iloc[-1] < claim["steps"]:
        return np.nan, 0.0
    curve = curve[curve["step"] <= claim["steps"]]
    measure, scale, _ = _measure_of(claim)
    values = curve[metric].to_numpy(float)
    return float(measure(curve["step"].to_numpy(), values, claim)), float(scale(values))


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


#: Measure of a trial instead of its history: the column of the trials frame.
RESULT = "result"
_Scale = Callable[[np.ndarray], float]
_Measure = tuple[Callable[[np.ndarray, np.ndarray, _Claim], float], _Scale, str]
_initial: _Scale = lambda x: abs(x[0])  # noqa: E731
_exact: _Scale = lambda x: 0.0  # noqa: E731
#: Measures: functions of the steps and values of a metric, scales of their rounding errors, and descriptions.
MEASURES: dict[str, _Measure] = {
    "value": (lambda step, x, claim: x[-1], _initial, "{metric} at step {steps}"),
    "remaining_fraction": (
        lambda step, x, claim: x[-1] / x[0],
        lambda x: 1.0,
        "fraction of the initial {metric} that remains at step {steps}",
    ),
    "settling_step": (
        _settling_step,
        _exact,
        "step from which {metric} stays within {tolerance} of {target}, in {steps} steps",
    ),
    "crossings": (
        _crossings,
        _exact,
        "number of crossings of {target} by {metric}, by more than {tolerance}, in {steps} steps",
    ),
    "reversals": (_reversals, _exact, "number of reversals of {metric} in {steps} steps"),
    "max_departure": (
        lambda step, x, claim: np.abs(x - claim["target"]).max() - abs(x[0] - claim["target"]),
        _initial,
        "maximum distance of {metric} from {target}, less the initial distance",
    ),
    "max_departure_step": (
        lambda step, x, claim: step[np.argmax(np.abs(x - claim["target"]))],
        _exact,
        "step of the maximum distance of {metric} from {target}, in {steps} steps",
    ),
}
#: Names of measures in folders of earlier versions.
_OLD_NAMES = {
    "part_left": "remaining_fraction", "settled_at": "settling_step", "wrong_way": "max_departure",
    "wrong_until": "max_departure_step",
}  # fmt: skip
#: Pairs of positions of ``count`` numbers, of which the first must be the lower one, and the printed rule.
ORDERS: dict[str, tuple[Callable[[int], list[tuple[int, int]]], str]] = {
    "rising": (lambda count: [(i, i + 1) for i in range(count - 1)], "rising"),
    "falling": (lambda count: [(i + 1, i) for i in range(count - 1)], "falling"),
    "first_lowest": (lambda count: [(0, i) for i in range(1, count)], "first lowest"),
    "first_highest": (lambda count: [(i, 0) for i in range(1, count)], "first highest"),
    "some_above_first": (lambda count: [(0, i) for i in range(1, count)], "some above the first"),
}
#: Comparisons of each number, or its distance from the target, with the bound, and the printed rule.
BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "at_most": (operator.le, "each at most {bound}"),
    "below": (operator.lt, "each below {bound}"),
    "above": (operator.gt, "each above {bound}"),
    "within": (operator.le, "each within {bound} of {target}"),
}


RELATIONS = (*ORDERS, *BOUNDS)
MEASURE_NAMES = (RESULT, *MEASURES, *_OLD_NAMES)


def _decide(claim: _Claim, samples: pd.DataFrame, rounding: np.ndarray, is_random: bool) -> tuple[bool | None, str]:
    """Return whether a claim holds, and the reason if it is inconclusive.

    Args:
        claim: The claim.
        samples: Numbers, seeds by values.
        rounding: Possible rounding error of each value's numbers.
        is_random: Whether the seeds are a sample.
    """
    is_order = claim["relation"] in ORDERS
    if samples.isna().all().any() or samples.empty or samples.shape[1] < 1 + is_order:
        return None, NOT_MEASURED
    outcomes = (_compare_pairs if is_order else _compare_with_bound)(claim, samples, rounding, is_random)
    decisive = claim["relation"] == "some_above_first"
    if decisive in outcomes:
        return decisive, ""
    reasons = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if not reasons:
        return not decisive, ""
    return None, SINGLE_SEED if len(samples) == 1 and SEEDS_UNDECIDED in reasons else reasons[0]


def _compare_pairs(claim: _Claim, samples: pd.DataFrame, rounding: np.ndarray, is_random: bool) -> list[_Outcome]:
    """Return, for each pair of an order, whether the first number is lower."""
    table = samples.to_numpy(float)
    table = np.log(table) if claim["metric"] in RATIOS else table
    means = pd.DataFrame(table).mean().to_numpy()
    with np.errstate(invalid="ignore"):
        difference = np.subtract.outer(means, means)
    half = np.full(difference.shape, np.nan if is_random else 0.0)
    if is_random and not np.isinf(table).any():
        found = all_differences(table, lower_is_better=True, confidence=CONFIDENCE)
        difference, half = found.difference, found.half
    outcomes: list[_Outcome] = []
    for low, high in ORDERS[claim["relation"]][0](len(rounding)):
        lead, error = difference[high, low], rounding[low] + rounding[high]
        if np.isnan(lead):
            outcomes.append(NEITHER_REACHED)
        elif abs(lead) <= error and error > 0:
            outcomes.append(f"{WITHIN_ROUNDING} ({error:.2g})")
        elif np.isnan(half[high, low]) or (is_random and abs(lead) <= half[high, low]):
            outcomes.append(SEEDS_UNDECIDED)
        else:
            outcomes.append(bool(lead > 0))
    return outcomes


def _compare_with_bound(claim: _Claim, samples: pd.DataFrame, rounding: np.ndarray, is_random: bool) -> list[_Outcome]:
    """Return, for each number, whether it satisfies the bound."""
    is_satisfied, bound = BOUNDS[claim["relation"]][0], claim["bound"]
    confidence = 1 - (1 - CONFIDENCE) / len(rounding)
    outcomes: list[_Outcome] = []
    for position, error in enumerate(rounding):
        interval = _interval(samples[position], claim["metric"], confidence)
        ends = np.array([interval.low, interval.high] if is_random else [interval.mean] * 2)
        if claim["relation"] == "within":
            distances = np.abs(ends - claim["target"])
            is_inside = ends[0] < claim["target"] < ends[1]
            ends = np.array([0.0 if is_inside else distances.min(), distances.max()])
        lower, upper = (bool(is_satisfied(end, bound)) for end in ends)
        if np.isnan(ends).any() or lower != upper:
            outcomes.append(SEEDS_UNDECIDED)
        elif 0 < np.abs(ends - bound).min() <= error:
            outcomes.append(f"{WITHIN_ROUNDING} ({error:.2g})")
        else:
            outcomes.append(lower)
    return outcomes


def _interval(sample: pd.Series, metric: str, confidence: float) -> Interval:
    """Return a mean over seeds with its interval, whose bounds are NaN if they are unknown."""
    sample = sample.dropna()
    if sample.empty or np.isinf(sample).any():
        return Interval(float(sample.mean()), np.nan, np.nan)
    return ratio_interval(sample, confidence) if metric in RATIOS else mean_interval(sample, confidence)


def _measure_of(claim: _Claim) -> _Measure:
    name: str = claim["measure"]
    return MEASURES[_OLD_NAMES.get(name, name)]


def describe_measure(claim: _Claim) -> str:
    """Describe the measure of a claim, like ``step from which W stays within 0.01 of -1, in 1000 steps``."""
    metric, steps = display_name(claim["metric"]), claim["steps"]
    if claim["measure"] == RESULT:
        text = f"{metric} in {format_number(steps)} steps" if steps else metric
    else:
        text = _measure_of(claim)[2].format(metric=metric, **_formatted(claim, "target", "tolerance", "steps"))
    where = {name: value for name, value in (claim.get("where") or {}).items() if name != "steps"}
    return f"{text}, {format_config(where)}" if where else text


def describe_rule(claim: _Claim) -> str:
    """Describe the relation of a claim with its bound, like ``each at most 0.5``."""
    relation = claim["relation"]
    rule = (ORDERS.get(relation) or BOUNDS[relation])[1]
    return str(rule.format(**_formatted(claim, "bound", "target")))


def _formatted(claim: _Claim, *names: str) -> dict[str, str]:
    return {name: format_number(claim[name]) for name in names}


def _text(interval: Interval, claim: _Claim, is_random: bool) -> str:
    number = interval.mean
    if np.isnan(number):
        return NOT_MEASURED
    if np.isinf(number):
        return "never"
    text = format_metric(number, claim["metric"]) if claim["measure"] == RESULT else format_number(number, 3)
    if np.isnan(interval.half) or not is_random:
        return text
    if claim["metric"] in RATIOS:
        return f"{text} ({interval.low:.3g} to {interval.high:.3g})"
    return f"{text} ± {interval.half:.2g}"
