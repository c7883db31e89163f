"""Expected best metric as a function of the number of configurations, and time to target."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    COMPLETED,
    check_columns,
    measured_configurations,
    numeric_column,
    searched_parameters,
    sort_by_metric,
    trial_values,
)
from tune_hpc.analysis.intervals import student_interval
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

BUDGETS = (1, 2, 5, 10, 20, 50)
#: Minimum number of configurations for which a report shows the budget curve.
MIN_CONFIGURATIONS = 20
#: Searchers whose suggestions depend on earlier trials.
ADAPTIVE_SEARCHERS = ("tpe", "gp")
#: Quantiles of the budget curve.
QUANTILES = (0.05, 0.95)
_COLUMNS = ["num_configurations", "mean", "low", "high", "prob_best", "prob_all_diverged"]


def budget_curve(results: Results, budgets: Sequence[int] = BUDGETS, metric: str | None = None) -> pd.DataFrame:
    """Return the expected result of a search with fewer configurations.

    Each budget draws this many of the tried configurations without replacement, and selects the best by the mean of the
    experiment's metric. A configuration with a diverged seed can be drawn but not selected; one that failed or still
    runs is not drawn. The expectation over all draws is exact.

    The suggestions of an adaptive searcher (``tpe``, ``gp``) depend on their order. Its budget takes the first
    configurations in this order: a single outcome without quantiles.

    Args:
        results: A search.
        budgets: Numbers of configurations; those above the number of tried configurations are omitted.
        metric: The metric that is reported of the selected configuration; by default the experiment's metric.

    Returns:
        One row per budget, the smallest first: ``num_configurations``; ``mean``, ``low`` and ``high`` (5 % and 95 %
        quantiles) of the metric, missing if all configurations diverge; ``prob_best``: probability that the selected
        configuration is the best of all or within the best one's 95 % interval; ``prob_all_diverged``. Probabilities
        are fractions, and 0 or 1 for an adaptive searcher.

    Raises:
        UnknownNameError: There are no trials or no such column, all configurations diverged, or the search is
            population-based training, whose members copy one another.

    Source: the tuning budgets of Google's Deep Learning Tuning Playbook.

    Example:
        >>> from tune_hpc import budget_curve, load
        >>> curve = budget_curve(load("docs/results/exercise2.softmax.shuffled"))
        >>> curve[["num_configurations", "mean"]].round(3).head(3)
           num_configurations   mean
        0                   1  1.058
        1                   2  0.588
        2                   5  0.338
    """
    metric = metric or results.metric
    if results.experiment.get("scheduler") == "pbt":
        raise UnknownNameError(f"{results.name} uses PBT, whose members copy one another: it has no budget curve")
    configurations = measured_configurations(results, [metric])
    best = sort_by_metric(results, configurations)
    tried = configurations.index[(configurations["num_diverged"] > 0) | configurations.index.isin(best.index)]
    is_adaptive = results.experiment.get("searcher") in ADAPTIVE_SEARCHERS
    is_best = _is_within_best(results, best)
    values = best[metric].to_numpy(float)
    rows = []
    for budget in sorted({budget for budget in budgets if 1 <= budget <= len(tried)}):
        # Probability that each of the ranked configurations is selected.
        if is_adaptive:
            is_tried = best.index.isin(tried[:budget])
            selected = np.where(np.cumsum(is_tried) == 1, is_tried, 0.0)
        else:
            selected = _selection_probabilities(len(tried), len(best), budget)
        prob_all_diverged = max(0.0, round(1 - float(selected.sum()), 12))
        rows.append((budget, *_mean_and_quantiles(values, selected), float(selected[is_best].sum()), prob_all_diverged))
    df = pd.DataFrame(rows, columns=_COLUMNS).astype({name: float for name in _COLUMNS[1:]})
    if is_adaptive:
        df[["low", "high"]] = np.nan
    df.attrs["metric_of"] = {name: metric for name in ("mean", "low", "high")}
    return df.astype({"num_configurations": "int64"})


def _is_within_best(results: Results, best: pd.DataFrame) -> np.ndarray:
    """Return which configurations have the best mean, or a mean within its interval."""
    means = best[results.metric].to_numpy(float)
    first = best.iloc[0]
    interval = student_interval(means[0], first[f"{results.metric}_deviation"], int(first["num_seeds"]))
    return np.asarray(((interval.low <= means) & (means <= interval.high)) | (means == means[0]))


def _selection_probabilities(num_tried: int, num_ranked: int, budget: int) -> np.ndarray:
    """Return the probability that each ranked configuration is the best of a draw."""
    remaining = num_tried - np.arange(num_ranked)
    ratios = np.maximum(remaining - budget, 0)[:-1] / remaining[:-1]
    none_better = np.cumprod(np.concatenate([[1.0], ratios]))
    return np.asarray(none_better * np.minimum(budget / remaining, 1.0))


def _mean_and_quantiles(values: np.ndarray, probabilities: np.ndarray) -> tuple[float, float, float]:
    is_known = ~np.isnan(values) & (probabilities > 0)
    values, probabilities = values[is_known], probabilities[is_known]
    if not len(values):
        return np.nan, np.nan, np.nan
    probabilities = probabilities / probabilities.sum()
    order = np.argsort(values, kind="stable")
    # np.quantile has weights, too, but no tolerance for the rounding of their sums.
    ranks = np.searchsorted(np.cumsum(probabilities[order]) + 1e-12, QUANTILES)
    low, high = values[order][np.minimum(ranks, len(values) - 1)]
    return float(values @ probabilities), float(low), float(high)


def time_to_target(results: Results, target: float, metric: str | None = None) -> pd.DataFrame:
    """Return the optimizer steps and seconds after which each configuration reached a target.

    A trial reaches the target at the first step with a metric at least as good, whatever its later outcome. A trial
    that ended before (finished, stopped or diverged) missed it, which counts as infinitely late. A trial that failed or
    still runs is ignored unless it reached the target. Trials with the same configuration and seed are one repeat.

    Args:
        results: A search with a history.
        target: In the unit of the metric.
        metric: A column of the history, or ``best_`` and such a column; by default the experiment's metric.

    Returns:
        One row per configuration, the fastest first: the varied parameters; ``num_seeds`` that count, ``num_reached``
        and ``num_missed``; ``reached_step``: median number of optimizer steps; ``reached_s``: median number of seconds,
        ``train_s`` times the fraction of its steps, because a history has no clock (missing without ``train_s``).

    Raises:
        UnknownNameError: There are no trials, or the history has no such metric.

    Source: the scoring of AlgoPerf (mlcommons/algorithmic-efficiency).
    """
    metric = metric or results.metric
    check_columns(results, [])
    # The best value so far reaches a target at the same step as the metric itself.
    column = metric if metric in results.history else metric.removeprefix("best_")
    if column not in results.history:
        raise UnknownNameError(
            f"no metric {metric!r} in the history of {results.name}; there are {', '.join(map(str, results.history))}"
        )
    history = results.history.loc[results.history[column].notna(), ["trial_id", "step", column]]
    is_good = history[column] <= target if results.is_lower_better(metric) else history[column] >= target
    first = history[is_good].groupby("trial_id", observed=True)["step"].min()

    trials = results.trials
    step = trials["trial_id"].map(first).astype(float)
    has_ended = trials["status"].isin(COMPLETED) & trials["trial_id"].isin(history["trial_id"].unique())
    fraction = step / numeric_column(trials, "steps_run").replace(0, np.nan)
    seconds = (numeric_column(trials, "train_s") * fraction).where(step != 0, 0.0).where(step.notna(), np.inf)
    df = trial_values(results, []).assign(step=step.fillna(np.inf), seconds=seconds)
    counts = df[step.notna() | has_ended | (trials["status"] == "diverged")]
    repeats = counts.groupby(["configuration", "seed"], sort=False, dropna=False)[["step", "seconds"]].median()
    repeats = repeats.reset_index().assign(is_reached=lambda df: np.isfinite(df["step"]))
    has_seconds = repeats["seconds"].notna().groupby(repeats["configuration"]).all()
    by_configuration = repeats.groupby("configuration")
    summary = pd.DataFrame(
        {
            "num_seeds": by_configuration.size(),
            "num_reached": by_configuration["is_reached"].sum(),
            "reached_step": by_configuration["step"].median(),
            "reached_s": by_configuration["seconds"].median().where(has_seconds),
        }
    )
    keys = searched_parameters(results)
    configurations = trials[keys].assign(configuration=df["configuration"]).drop_duplicates("configuration")
    table = configurations.set_index("configuration").join(summary)
    table[["num_seeds", "num_reached"]] = table[["num_seeds", "num_reached"]].fillna(0).astype("int64")
    table.insert(len(keys) + 2, "num_missed", table["num_seeds"] - table["num_reached"])
    return table.sort_values(["reached_step", "num_missed", "reached_s"], kind="stable").reset_index(drop=True)
