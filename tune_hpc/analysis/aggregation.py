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

HEALTHY = ("finished", "stopped")


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
    keys = [name for name in results.varying if name != "seed"]
    healthy = trials["status"].isin(HEALTHY)
    df = trials[keys].copy()
    group = df.groupby(keys, dropna=False, sort=False).ngroup() if keys else pd.Series(0, index=df.index)
    seeds = trials["seed"] if "seed" in trials else pd.Series(range(len(trials)), index=trials.index)
    columns: dict[str, Any] = {
        "num_seeds": seeds.where(healthy).groupby(group).nunique(),
        "num_diverged": (trials["status"] == "diverged").groupby(group).sum(),
        "num_failed": (trials["status"] == "failed").groupby(group).sum(),
    }
    for metric in dict.fromkeys(metrics):
        values = numeric(trials, metric).where(healthy).groupby(group)
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


def numeric(df: pd.DataFrame, column: str) -> pd.Series:
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
