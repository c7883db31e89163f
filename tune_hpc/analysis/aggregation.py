"""Group trials by configuration and aggregate over seeds.

Only trials that finished or were stopped count as measurements; the values of other trials are missing. A
configuration is one row, with the mean over its seeds and the sample deviation. A configuration with a diverged or
failed seed is never selected as the best.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tune_hpc.errors import UnknownNameError
from tune_hpc.storage.trial_file import CONFIG

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results

#: Statuses of trials that count as measurements.
COMPLETED = ("finished", "stopped")
#: Floats represent all integers below it.
MAX_EXACT = 2.0**53
#: Maximum number of parameters in an analysis of all pairs of parameters.
MAX_CROSSED = 50


def aggregate_seeds(results: "Results", metrics: Sequence[str]) -> pd.DataFrame:
    """Return one row per configuration, in the order of their first trials.

    The columns are every configuration column but ``seed``; ``num_seeds`` (of completed trials), ``num_diverged``,
    ``num_failed``; for each metric its mean and ``METRIC_deviation``, missing if there is no such column.
    """
    trials, values = results.trials, trial_values(results, metrics)
    group, status = values["configuration"], trials["status"]
    columns: dict[str, Any] = {
        "num_seeds": values["seed"].where(status.isin(COMPLETED)).groupby(group).nunique(),
        "num_diverged": (status == "diverged").groupby(group).sum(),
        "num_failed": (status == "failed").groupby(group).sum(),
    }
    for metric in dict.fromkeys(metrics):
        by_configuration = values[metric].groupby(group)
        columns |= {metric: by_configuration.mean(), f"{metric}_deviation": by_configuration.std()}
    keys = searched_parameters(results)
    others = [name for name in results.config_columns if name not in {*keys, *columns, "seed"} and len(trials)]
    # groupby.first() would skip missing values. A parameter may also be the metric.
    parameters = [name for name in keys if name not in columns]
    configurations = trials.loc[~group.duplicated(), parameters].set_axis(columns["num_seeds"].index)
    constants = {name: trials[name].iloc[0] for name in others}
    parts = [configurations, pd.DataFrame(constants, index=configurations.index), pd.DataFrame(columns)]
    return pd.concat(parts, axis=1).reset_index(drop=True)


def searched_parameters(results: "Results") -> list[str]:
    """Return the varied parameters other than the seed."""
    return [name for name in results.varied_parameters if name != "seed"]


def configuration_numbers(results: "Results") -> pd.Series:
    """Return, for each trial, the row number of its configuration in ``aggregate_seeds``."""
    keys = searched_parameters(results)
    if not keys:
        return pd.Series(0, index=results.trials.index)
    return _typed(results.trials, keys).groupby(keys, dropna=False, sort=False).ngroup()


def _typed(trials: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return configuration columns in which different values differ.

    A column of the frame cannot distinguish a list and its text, 1 and ``"1"``, and large integers as floats.
    """
    columns = trials[list(keys)]
    texts = [name for name in keys if not pd.api.types.is_numeric_dtype(columns[name])]
    ambiguous = [name for name in texts if columns[name].astype(str).str.contains(r"[\[{\d]").any()]
    floats = [name for name in keys if pd.api.types.is_float_dtype(columns[name])]
    ambiguous += [name for name in floats if (columns[name].abs() >= MAX_EXACT).any()]
    if not ambiguous or CONFIG not in trials:
        return columns
    configs = trials[CONFIG].map(json.loads, na_action="ignore")
    typed = {
        name: configs.map(lambda config, name=name: json.dumps(config.get(name)), na_action="ignore")
        for name in ambiguous
    }
    return columns.assign(**typed)


def trial_values(results: "Results", metrics: Sequence[str]) -> pd.DataFrame:
    """Return ``configuration`` (its number), ``seed`` and metrics of each trial.

    Without a seed column each trial is a separate repeat. Metrics of trials that did not complete are missing.
    """
    trials = results.trials
    completed = trials["status"].isin(COMPLETED)
    values = {name: numeric_column(trials, name).where(completed) for name in metrics}
    seeds = trials["seed"] if "seed" in trials else np.arange(len(trials))
    return pd.DataFrame({"configuration": configuration_numbers(results), "seed": seeds, **values})


def is_scaling(results: "Results") -> bool:
    """Return whether the results are a scaling measurement instead of a search."""
    return {"workers", "speedup", "efficiency", "communicate_s", "train_s"} <= set(results.trials)


def extrapolation_note(results: "Results", metric: str) -> str:
    """Return `` (extrapolated)`` for training times of which fewer steps were measured, else nothing."""
    trials = results.trials
    is_extrapolated = metric == "train_s" and "extrapolated" in trials and trials["extrapolated"].any()
    return " (extrapolated)" if is_extrapolated else ""


def is_crossed_design(configurations: pd.DataFrame, first: str, second: str) -> bool:
    """Return whether at least half of the pairs of values of two parameters were tried, as in a grid."""
    pairs = configurations[[first, second]].dropna().drop_duplicates()
    return 2 * len(pairs) >= pairs[first].nunique() * pairs[second].nunique()


def numeric_column(df: pd.DataFrame, column: str) -> pd.Series:
    """Return a column as floats; absent, infinite and non-numeric values are missing."""
    if column not in df:
        return pd.Series(np.nan, index=df.index, dtype=float)
    return pd.to_numeric(df[column], errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def row_mask(df: pd.DataFrame, where: Mapping[str, Any]) -> pd.Series:
    """Return a mask of the rows with certain values; numbers are equal if they agree to nine digits."""
    mask = pd.Series(True, index=df.index)
    for name, value in where.items():
        if name not in df:
            return pd.Series(False, index=df.index)
        value = json.dumps(value) if isinstance(value, list | tuple | dict) else value
        if value is None:
            mask &= df[name].isna()
        elif isinstance(value, int | float) and not isinstance(value, bool) and pd.api.types.is_numeric_dtype(df[name]):
            mask &= np.isclose(df[name].astype(float), value, rtol=1e-9, atol=0)
        else:
            mask &= (df[name] == value).fillna(False).astype(bool)
    return mask


def sort_configurations(
    results: "Results", configurations: pd.DataFrame, metric: str | None = None, mode: str | None = None
) -> pd.DataFrame:
    """Return the configurations with a metric and with neither a diverged nor a failed seed, best first.

    A completed seed without a value, which a time limit may stop before its first report, counts as a failed one. The
    metric is by default that of the experiment, and the mode its direction.
    """
    metric = metric or results.metric
    is_sound = (configurations["num_diverged"] == 0) & (configurations["num_failed"] == 0)
    values = trial_values(results, [metric])
    without_value = values.loc[values[metric].isna() & results.trials["status"].isin(COMPLETED), "configuration"]
    is_sound &= configurations[metric].notna() & ~configurations.index.isin(without_value)
    sound = configurations[is_sound]
    return sound.sort_values(metric, ascending=results.is_lower_better(metric, mode), kind="stable")


def sort_by_metric(results: "Results", configurations: pd.DataFrame) -> pd.DataFrame:
    """Return ``sort_configurations``; an empty table raises ``UnknownNameError``."""
    best = sort_configurations(results, configurations)
    if best.empty:
        raise UnknownNameError(
            f"no configuration of {results.name} has a value of {results.metric} and neither a diverged nor a failed "
            f"seed ({describe_statuses(results)})"
        )
    return best


def measured_configurations(results: "Results", metrics: Sequence[str]) -> pd.DataFrame:
    """Return ``aggregate_seeds`` of the experiment's metric and others, after ``check_columns``."""
    columns = list(dict.fromkeys([*metrics, results.metric]))
    check_columns(results, columns)
    return aggregate_seeds(results, columns)


def check_columns(results: "Results", columns: Sequence[str]) -> None:
    """Check that there are trials, and that these columns are numeric; otherwise raise ``UnknownNameError``."""
    if results.trials.empty:
        raise UnknownNameError(f"{results.name} has no trials")
    for name in columns:
        if name not in results.trials or not pd.api.types.is_numeric_dtype(results.trials[name]):
            numbers = ", ".join(map(str, results.trials.select_dtypes("number").columns))
            raise UnknownNameError(
                f"no numeric column {name!r} in the trials of {results.name} ({describe_statuses(results)}); "
                f"there are {numbers}"
            )


def filter_trials(results: "Results", where: Mapping[str, Any] | None) -> "Results":
    """Return the results of the trials with certain configuration values; no such trial is an error."""
    if not where or results.trials.empty:
        return results
    selected = results.trials[row_mask(results.trials, where)]
    if selected.empty:
        raise UnknownNameError(f"no trial of {results.name} has {', '.join(f'{k}={v}' for k, v in where.items())}")
    return results.with_trials(selected)


def describe_statuses(results: "Results") -> str:
    """Return the number of trials with each status as text, like ``3 diverged, 1 failed``."""
    return ", ".join(f"{count} {status}" for status, count in results.counts().items())
