"""What a search can be judged by: its configurations, or one line that says why there is nothing to judge.

Every analysis of a search begins here, so that all of them refuse alike: no trials, a column that nobody reported,
nothing but divergences.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tune_hpc.analysis.aggregation import aggregate_seeds, row_mask, sort_configurations
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError


def measured_configurations(results: Results, metrics: Sequence[str]) -> pd.DataFrame:
    """Return ``aggregate_seeds``; its index counts configurations in the order in which they first appear.

    Args:
        results: Any results.
        metrics: Columns that there must be, beside the experiment's metric.

    Raises:
        UnknownNameError: no trials, or no such column of numbers.
    """
    wanted = list(dict.fromkeys([*metrics, results.metric]))
    check_columns(results, wanted)
    return aggregate_seeds(results, wanted)


def check_columns(results: Results, columns: Sequence[str]) -> None:
    """Say in one line what is missing.

    Raises:
        UnknownNameError: no trials, or no such column of numbers.
    """
    if results.trials.empty:
        raise UnknownNameError(f"{results.name} has no trials")
    for name in columns:
        if name not in results.trials or not pd.api.types.is_numeric_dtype(results.trials[name]):
            numbers = ", ".join(map(str, results.trials.select_dtypes("number").columns))
            raise UnknownNameError(
                f"no column of numbers {name!r} in the trials of {results.name} ({final_status(results)}): {numbers}"
            )


def sort_by_metric(results: Results, configurations: pd.DataFrame) -> pd.DataFrame:
    """Return ``ranked`` of these configurations, the index kept.

    Raises:
        UnknownNameError: none has a value, or none without a seed that diverged.
    """
    best = sort_configurations(results, configurations)
    if best.empty:
        raise UnknownNameError(
            f"no configuration of {results.name} has a value of {results.metric} and no seed that diverged "
            f"({final_status(results)})"
        )
    return best


def filter_trials(results: Results, where: Mapping[str, Any] | None) -> Results:
    """Return the results of the trials that have certain configuration values.

    Raises:
        UnknownNameError: no trial has them.
    """
    if not where or results.trials.empty:
        return results
    inside = results.trials[row_mask(results.trials, where)]
    if inside.empty:
        raise UnknownNameError(f"no trial of {results.name} has {', '.join(f'{k}={v}' for k, v in where.items())}")
    return with_trials(results, inside)


def with_trials(results: Results, trials: pd.DataFrame) -> Results:
    """Return the results of some of the trials."""
    return Results(results.experiment, trials.reset_index(drop=True), results.history, results.folder)


def configuration_numbers(results: Results) -> pd.Series:
    """Return, for each trial, which row of ``aggregate_seeds`` its configuration is."""
    keys = [name for name in results.varying if name != "seed"]
    if not keys:
        return pd.Series(0, index=results.trials.index)
    return results.trials.groupby(keys, dropna=False, sort=False).ngroup()


def final_status(results: Results) -> str:
    """Return what became of the trials: 3 diverged, 1 failed."""
    return ", ".join(f"{count} {status}" for status, count in results.counts().items())
