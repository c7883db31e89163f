"""Repeated searches of two methods, compared with the search as the unit."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import measured_configurations, sort_by_metric
from tune_hpc.analysis.comparison import INCONCLUSIVE
from tune_hpc.analysis.concatenation import check_same_metric
from tune_hpc.analysis.intervals import default_margin, non_inferiority, welch_interval
from tune_hpc.analysis.results import Results

_VERDICTS = {True: "no worse", False: "worse", None: INCONCLUSIVE}


def compare_searches(
    first: Sequence[Results], second: Sequence[Results], metric: str | None = None, margin: float | None = None
) -> pd.DataFrame:
    """Compare a method of search with another one, each repeated with different search seeds.

    The value of a search is the mean of its best configuration over the seeds. The seeds of one search are no repeats
    of its method, because they share its choice. ``Results.compare`` of a concatenation compares the configurations
    that single searches chose.

    Args:
        first: Searches with the method.
        second: Searches with the method that it is compared with, by the same experiment's metric.
        metric: A column of the trials; by default the experiment's metric, which selects the best configurations and
            is biased by the selection.
        margin: Largest irrelevant difference; by default 0.005 for an accuracy, otherwise 5 % of the second mean.

    Returns:
        One row: ``num_first`` and ``num_second`` searches, ``first`` and ``second`` (means over the searches),
        ``difference`` (first less second), ``low`` and ``high`` (95 %; Welch's), ``margin``, and ``verdict`` on the
        first: ``no worse`` (the interval excludes a loss of the margin), ``worse`` (it excludes 0), else
        ``inconclusive``, as with a single search.

    Raises:
        UnknownNameError: There are no searches, or they rank trials by different metrics, or one has no such column or
            no value.

    Example:
        >>> from tune_hpc import compare_searches, load
        >>> stored, shuffled = (load(f"docs/results/exercise2.softmax{end}") for end in ("", ".shuffled"))
        >>> compare_searches([stored], [shuffled], "test_accuracy")["verdict"].tolist()
        ['inconclusive']
    """
    for searches in (first, second, [*first, *second]):
        check_same_metric(searches)
    metric = metric or first[0].metric
    values = [np.array([_best_mean(results, metric) for results in searches]) for searches in (first, second)]
    found = welch_interval(values[0], values[1])
    margin = default_margin(metric, values[1].mean()) if margin is None else margin
    lead = (-found.high, -found.low) if first[0].is_lower_better(metric) else (found.low, found.high)
    row = {
        "num_first": len(first), "num_second": len(second), "first": values[0].mean(), "second": values[1].mean(),
        "difference": found.mean, "low": found.low, "high": found.high, "margin": margin,
        "verdict": _VERDICTS[non_inferiority(*lead, margin)],
    }  # fmt: skip
    return pd.DataFrame([row])


def _best_mean(results: Results, metric: str) -> float:
    """Return a metric of the best configuration by the experiment's metric, as the mean over its seeds."""
    return float(sort_by_metric(results, measured_configurations(results, [metric]))[metric].iloc[0])
