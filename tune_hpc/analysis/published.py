"""Published numbers beside measured ones, with a verdict on each.

A published number is one run, rounded: it agrees where one more run of ours could have given it, and differs where it
could not. Without at least three seeds of ours, or where these change nothing, nobody can tell how much runs differ;
then it agrees where it is ours to the digits that were printed, or for accuracies within what the number of test images
alone leaves open.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import aggregate_seeds, row_mask, sort_configurations
from tune_hpc.analysis.formatting import format_config, format_value
from tune_hpc.analysis.intervals import Interval, accuracy_error, student_interval
from tune_hpc.analysis.results import Results

AGREES, DIFFERS, INCONCLUSIVE, NOT_COMPARABLE = "agrees", "differs", "cannot tell", "not comparable"
#: With fewer seeds than this the spread of runs is anybody's guess.
MIN_SEEDS = 3
CONFIDENCE = 0.95
#: Images of MNIST's test set.
_NUM_TEST_IMAGES = 10_000


def compare_to_published(results: Results) -> pd.DataFrame:
    """Hold every published number against the trials that it speaks of.

    Returns:
        One row per published number: ``where`` (text), ``metric``, ``published``, ``measured`` (mean over seeds),
        ``low`` and ``high`` (of the mean; 95 %, Student's), ``deviation``, ``num_seeds``, ``num_diverged``,
        ``difference`` (measured - published), ``verdict`` (``agrees``, ``differs``, ``cannot tell``, or ``not
        comparable``: a quick run, another size, or seconds of another machine), ``best_over`` with ``measured_best``,
        ``published_best`` and ``best_agrees`` where the number is a best one, ``note`` (why there is no measurement, or
        what is not comparable), ``quick``, ``source``.
    """
    published = list(results.experiment.get("published") or ())
    configurations = aggregate_seeds(results, [results.metric, *(one["metric"] for one in published)])
    everywhere = _common(published)
    rows = [_compare_one(one, results, configurations, everywhere) for one in published]
    columns = "where metric published measured low high deviation num_seeds num_diverged difference verdict best_over "
    columns += "measured_best published_best best_agrees note quick source"
    df = pd.DataFrame(rows, columns=columns.split())
    return df.astype({"best_agrees": "boolean", "num_seeds": "int64", "num_diverged": "int64"})


def _common(published: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the conditions that all published numbers share, and that therefore tell none from another."""
    if len(published) < 2:
        return set()
    first = published[0]["where"]
    return {name for name in first if all(one["where"].get(name) == first[name] for one in published)}


def _compare_one(
    one: Mapping[str, Any], results: Results, configurations: pd.DataFrame, everywhere: set[str]
) -> dict[str, Any]:
    where, metric, over = one["where"], one["metric"], one.get("best_over")
    told = {name: value for name, value in where.items() if name not in everywhere} or where
    named = list(one.get("best_values") or ()) if over else []
    row: dict[str, Any] = {
        "where": format_config(told), "metric": metric, "published": float(one["value"]), "measured": np.nan,
        "low": np.nan, "high": np.nan, "deviation": np.nan, "num_seeds": 0, "num_diverged": 0, "difference": np.nan,
        "verdict": None, "best_over": over, "measured_best": None,
        "published_best": ", ".join(map(format_value, named)) or None, "best_agrees": None, "note": "",
        "quick": bool(results.experiment.get("quick")), "source": one.get("source", ""),
    }  # fmt: skip
    found = configurations[row_mask(configurations, where)]
    row["num_diverged"] = int(found["num_diverged"].sum())
    free = [
        name
        for name in results.varied_parameters
        if name not in {over, "seed"} and len(found[name].drop_duplicates()) > 1
    ]
    if found.empty:
        return row | {"note": "no such trial"}
    if free:
        return row | {"note": f"trials there also differ in {', '.join(free)}"}
    chosen = sort_configurations(results, found) if over else found
    if chosen.empty or np.isnan(chosen[metric].iloc[0]):
        return row | {"note": "diverged" if row["num_diverged"] else f"no trial finished with a value of {metric}"}
    best = chosen.iloc[0]
    row |= {"measured": best[metric], "deviation": best[f"{metric}_deviation"], "num_seeds": int(best["num_seeds"])}
    row["difference"] = row["measured"] - row["published"]
    interval = student_interval(row["measured"], row["deviation"], row["num_seeds"], CONFIDENCE)
    row |= {"low": interval.low, "high": interval.high, "verdict": NOT_COMPARABLE}
    size = {name: value for name, value in (one.get("size") or {}).items() if name in chosen}
    other = {name: best[name] for name, value in size.items() if not row_mask(chosen.head(1), {name: value}).all()}
    if other:
        row["note"] = f"measured with {format_config(other)}"
    elif not row["quick"] and not metric.endswith("_s"):
        images = best.get("num_evaluation_images", np.nan) if metric.endswith("accuracy") else np.nan
        row["verdict"] = verdict(
            row["published"], interval, row["num_seeds"], resolution=one.get("resolution", 0.0),
            num_images=None if np.isnan(images) else int(min(images, _NUM_TEST_IMAGES)),
        )  # fmt: skip
    if over:
        row["measured_best"] = best.get(over)
        # Where none of the published best values was tried, as in a range, nothing can be said of them.
        if any(row_mask(found, {over: value}).any() for value in named):
            row["best_agrees"] = any(row_mask(chosen.head(1), {over: value}).all() for value in named)
    return row


def verdict(
    published: float, measured: Interval, num_seeds: int, *, resolution: float = 0.0, num_images: int | None = None
) -> str:
    """Return whether a published single run agrees with what was measured.

    Args:
        published: The number.
        measured: Our mean, and its interval of 95 %.
        num_seeds: How many seeds that stands on.
        resolution: The last digit that was printed: 0.001 of 99.1 %.
        num_images: Of an accuracy: images that it was taken on.
    """
    distance = abs(published - measured.mean) - resolution / 2
    if distance <= 1e-9:
        return AGREES
    if num_seeds >= MIN_SEEDS and not np.isnan(measured.half):
        return AGREES if distance <= measured.prediction_interval(num_seeds).half else DIFFERS
    if num_images and distance <= 1.96 * accuracy_error(measured.mean, num_images):
        return AGREES
    return INCONCLUSIVE
