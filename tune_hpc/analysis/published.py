"""Compare measured values with published numbers and claims.

A published number is a single run, rounded. It agrees if it lies in the prediction interval of one more of our runs,
and differs otherwise. That interval needs at least three seeds with different values. Without it, a number agrees if it
equals ours to the printed digits, or if an accuracy is within the binomial error of the test images; else the
comparison is inconclusive.

A claim (``search.report_spec.Claim``) names a number to measure on the history of certain trials, and a relation that
these numbers must satisfy.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import COMPLETED, aggregate_seeds, row_mask, searched_parameters, sort_configurations
from tune_hpc.analysis.formatting import display_name, format_config, format_number, format_value
from tune_hpc.analysis.intervals import Interval, accuracy_error, student_interval
from tune_hpc.analysis.results import Results

AGREES, DIFFERS, INCONCLUSIVE, NOT_COMPARABLE = "agrees", "differs", "inconclusive", "not comparable"
#: Minimum number of seeds for a prediction interval.
MIN_SEEDS = 3
CONFIDENCE = 0.95
#: Number of test images of MNIST.
_NUM_TEST_IMAGES = 10_000
_NUMBER_COLUMNS = (
    "where", "metric", "published", "measured", "low", "high", "deviation", "num_seeds", "num_diverged", "difference",
    "verdict", "best_over", "measured_best", "published_best", "best_agrees", "note", "quick", "source",
)  # fmt: skip


def compare_to_published(results: Results) -> pd.DataFrame:
    """Compare every published number with the trials that it describes.

    Returns:
        One row per published number: ``where`` (text), ``metric``, ``published``, ``measured`` (mean over seeds),
        ``low`` and ``high`` (of the mean; 95 %, Student's), ``deviation``, ``num_seeds``, ``num_diverged``,
        ``difference`` (measured - published), ``verdict`` (``agrees``, ``differs``, ``inconclusive``, or ``not
        comparable``: a quick run, another size, or seconds of another machine), ``best_over`` with ``measured_best``,
        ``published_best`` and ``best_agrees`` for the best of several values, ``note`` (reason for a missing
        measurement or comparison), ``quick``, ``source``.

    Example:
        >>> from tune_hpc import compare_to_published, load
        >>> published = compare_to_published(load("docs/results/exercise2.softmax.shuffled"))
        >>> published["verdict"].value_counts().to_dict()
        {'agrees': 12, 'differs': 6}
    """
    published = list(results.experiment.get("published") or ())
    configurations = aggregate_seeds(results, [results.metric, *(number["metric"] for number in published)])
    shared = _shared_conditions(published)
    rows = [_compare_one(number, results, configurations, shared) for number in published]
    df = pd.DataFrame(rows, columns=list(_NUMBER_COLUMNS))
    return df.astype({"best_agrees": "boolean", "num_seeds": "int64", "num_diverged": "int64"})


def _shared_conditions(published: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the conditions that all published numbers have in common."""
    first = published[0]["where"] if published else {}
    return {name for name in first if all(number["where"].get(name) == first[name] for number in published)}


def _compare_one(
    number: Mapping[str, Any], results: Results, configurations: pd.DataFrame, shared: set[str]
) -> dict[str, Any]:
    where, metric, over = number["where"], number["metric"], number.get("best_over")
    best_values = list(number.get("best_values") or ()) if over else []
    row: dict[str, Any] = dict.fromkeys(_NUMBER_COLUMNS, np.nan) | {
        "where": format_config({name: value for name, value in where.items() if name not in shared} or where),
        "metric": metric, "published": float(number["value"]), "num_seeds": 0, "verdict": None, "best_over": over,
        "measured_best": None, "published_best": ", ".join(map(format_value, best_values)) or None,
        "best_agrees": None, "note": "", "quick": bool(results.experiment.get("quick")),
        "source": number.get("source", ""),
    }  # fmt: skip
    found = configurations[row_mask(configurations, where)]
    row["num_diverged"] = int(found["num_diverged"].sum())
    free = [name for name in searched_parameters(results) if name != over and len(found[name].drop_duplicates()) > 1]
    if found.empty:
        return row | {"note": "no such trial"}
    if free:
        return row | {"note": f"trials there also differ in {', '.join(free)}"}
    ranked = sort_configurations(results, found) if over else found
    if ranked.empty or np.isnan(ranked[metric].iloc[0]):
        return row | {"note": "diverged" if row["num_diverged"] else f"no trial finished with a value of {metric}"}
    best = ranked.iloc[0]
    row |= {"measured": best[metric], "deviation": best[f"{metric}_deviation"], "num_seeds": int(best["num_seeds"])}
    row["difference"] = row["measured"] - row["published"]
    interval = student_interval(row["measured"], row["deviation"], row["num_seeds"], CONFIDENCE)
    row |= {"low": interval.low, "high": interval.high, "verdict": NOT_COMPARABLE}
    size = {name: value for name, value in (number.get("size") or {}).items() if name in ranked}
    other_size = {name: best[name] for name, value in size.items() if not _has(ranked, name, value)}
    if other_size:
        row["note"] = f"measured with {format_config(other_size)}"
    elif not row["quick"] and not metric.endswith("_s"):
        images = best.get("num_evaluation_images", np.nan) if metric.endswith("accuracy") else np.nan
        row["verdict"] = verdict(
            row["published"], interval, row["num_seeds"], resolution=number.get("resolution", 0.0),
            num_images=None if np.isnan(images) else int(min(images, _NUM_TEST_IMAGES)),
        )  # fmt: skip
    if over:
        row["measured_best"] = best.get(over)
        # Unknown if none of the published best values was tried, as in a range.
        if any(row_mask(found, {over: value}).any() for value in best_values):
            row["best_agrees"] = any(_has(ranked, over, value) for value in best_values)
    return row


def _has(ranked: pd.DataFrame, name: str, value: Any) -> bool:
    """Return whether the best configuration has a value."""
    return bool(row_mask(ranked.head(1), {name: value}).all())


def verdict(
    published: float, measured: Interval, num_seeds: int, *, resolution: float = 0.0, num_images: int | None = None
) -> str:
    """Return whether a published single run agrees with a mean over seeds with its 95 % interval.

    The resolution is the unit of the last printed digit: 0.001 for 99.1 %. Only an accuracy has a number of images.
    """
    distance = abs(published - measured.mean) - resolution / 2
    if distance <= 1e-9:
        return AGREES
    if num_seeds >= MIN_SEEDS and not np.isnan(measured.half):
        return AGREES if distance <= measured.prediction_interval(num_seeds).half else DIFFERS
    if num_images and distance <= 1.96 * accuracy_error(measured.mean, num_images):
        return AGREES
    return INCONCLUSIVE


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
