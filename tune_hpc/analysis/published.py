"""Compare measured values with published numbers.

A published number is a single run, rounded. It agrees if it lies in the prediction interval of one more of our runs,
and differs otherwise. That interval needs at least three seeds with different values. Without it, a number agrees if it
equals ours to the printed digits, or if an accuracy is within the binomial error of the test images; else the
comparison is inconclusive.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import aggregate_seeds, row_mask, searched_parameters, sort_configurations
from tune_hpc.analysis.formatting import format_config, format_value
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
