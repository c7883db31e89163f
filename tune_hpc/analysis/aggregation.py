"""Trials that share a configuration, taken together.

Only trials that finished or were stopped count as measurements; one that diverged, failed or still runs leaves a
missing value, never an error. Repeats of a configuration under several seeds are one row: the mean, and the sample
deviation where there are at least two. A configuration of which any seed diverged is never chosen as the best.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

COMPLETED = ("finished", "stopped")


def aggregate_seeds(results: Results, metrics: Sequence[str]) -> pd.DataFrame:
    """Return one row per configuration, its repeats under several seeds taken together.

    Args:
        results: Any results.
        metrics: Numeric columns of the trials; one that is absent is missing everywhere.

    Returns:
        Every configuration column but ``seed``; ``num_seeds`` (of healthy trials), ``num_diverged``, ``num_failed``;
        for each metric its mean and ``METRIC_deviation``.
    """
    trials = results.trials
    keys = [name for name in results.varied_parameters if name != "seed"]
    healthy = trials["status"].isin(COMPLETED)
    df = trials[keys].copy()
    group = df.groupby(keys, dropna=False, sort=False).ngroup() if keys else pd.Series(0, index=df.index)
    seeds = trials["seed"] if "seed" in trials else pd.Series(range(len(trials)), index=trials.index)
    columns: dict[str, Any] = {
        "num_seeds": seeds.where(healthy).groupby(group).nunique(),
        "num_diverged": (trials["status"] == "diverged").groupby(group).sum(),
        "num_failed": (trials["status"] == "failed").groupby(group).sum(),
    }
    for metric in dict.fromkeys(metrics):
        values = numeric_column(trials, metric).where(healthy).groupby(group)
        columns |= {metric: values.mean(), f"{metric}_deviation": values.std()}
    configurations = df.groupby(group)[keys].first() if keys else pd.DataFrame(index=columns["num_seeds"].index)
    for name in keys:  # groupby.first() skips missing values; here a missing one is the key's own
        configurations[name] = df[name].groupby(group).head(1).to_numpy()
    for name in results.config_columns:
        if name not in keys and name != "seed" and len(trials):
            configurations[name] = trials[name].iloc[0]
    return configurations.assign(**columns).reset_index(drop=True)


def is_scaling(results: Results) -> bool:
    """Return whether these are times on several workers rather than a search."""
    return {"workers", "speedup", "efficiency", "communicate_s"} <= set(results.trials)


def is_crossed_design(configurations: pd.DataFrame, one: str, other: str) -> bool:
    """Return whether two parameters were crossed: half of the pairs of their values, or more, were tried.

    Values drawn from ranges are not: each pairs with one of the other's, and a table of all pairs would be empty.
    """
    pairs = configurations[[one, other]].dropna().drop_duplicates()
    return 2 * len(pairs) >= pairs[one].nunique() * pairs[other].nunique()


def numeric_column(df: pd.DataFrame, column: str) -> pd.Series:
    """Return a column as floats; absent, infinite and wordy values are missing."""
    if column not in df:
        return pd.Series(np.nan, index=df.index, dtype=float)
    return pd.to_numeric(df[column], errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def row_mask(df: pd.DataFrame, where: Mapping[str, Any]) -> pd.Series:
    """Return which rows have all of these configuration values; a column that is absent matches nothing."""
    mask = pd.Series(True, index=df.index)
    for name, wanted in where.items():
        if name not in df:
            return pd.Series(False, index=df.index)
        if isinstance(wanted, int | float) and not isinstance(wanted, bool) and pd.api.types.is_numeric_dtype(df[name]):
            mask &= np.isclose(df[name].astype(float), wanted, rtol=1e-9, atol=0)
        else:
            mask &= (df[name] == wanted).fillna(False).astype(bool)
    return mask


def sort_configurations(results: Results, configurations: pd.DataFrame) -> pd.DataFrame:
    """Return the configurations of which no seed diverged and that have a metric, best first."""
    sound = configurations[(configurations["num_diverged"] == 0) & configurations[results.metric].notna()]
    return sound.sort_values(results.metric, ascending=results.experiment["mode"] == "min", kind="stable")


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
                f"no column of numbers {name!r} in the trials of {results.name} ({describe_statuses(results)}): {numbers}"
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
            f"({describe_statuses(results)})"
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
    keys = [name for name in results.varied_parameters if name != "seed"]
    if not keys:
        return pd.Series(0, index=results.trials.index)
    return results.trials.groupby(keys, dropna=False, sort=False).ngroup()


def describe_statuses(results: Results) -> str:
    """Return what became of the trials: 3 diverged, 1 failed."""
    return ", ".join(f"{count} {status}" for status, count in results.counts().items())
