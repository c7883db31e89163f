"""What a search would have found with fewer configurations, and how soon each of them was good enough."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    COMPLETED,
    check_columns,
    configuration_numbers,
    measured_configurations,
    numeric_column,
    sort_by_metric,
)
from tune_hpc.analysis.intervals import student_interval
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

BUDGETS = (1, 2, 5, 10, 20, 50)
#: What fewer configurations would have found is told of a search of so many.
MIN_CONFIGURATIONS = 20
#: Searchers that learn from the trials that ended: what they try next depends on what they tried before.
ADAPTIVE_SEARCHERS = ("tpe", "gp")
#: Of what is found, the lowest and the highest in twenty.
TAILS = (0.05, 0.95)


def budget_curve(results: Results, budgets: Sequence[int] = BUDGETS, metric: str | None = None) -> pd.DataFrame:
    """Return what a search of fewer configurations would have found.

    Each budget draws so many of the configurations that were tried, without replacement, and keeps the best of them by
    the experiment's metric (its mean over the seeds); one of which a seed diverged is drawn and never kept, one that
    failed or has not ended is not drawn. All orders are equally likely, and what they give is known exactly: nothing is
    drawn at random here.

    A searcher that learns (``tpe``, ``gp``) tries what its former trials suggest, and in another order would have tried
    something else. Of those the order stands in which they tried: one outcome, without quantiles.

    Args:
        results: A search.
        budgets: Numbers of configurations; those beyond what was tried are left out.
        metric: What is told of the one that is kept; by default the experiment's metric.

    Returns:
        One row per budget, the smallest first: ``num_configurations``; ``mean``, ``low`` and ``high`` (5 % and 95 %
        quantiles) of the metric, in its unit, where anything was found; ``prob_best``: how likely the one kept is
        the best of all, or within that one's 95 % interval over its seeds; ``prob_all_diverged``: how likely all of
        them diverged. Chances are fractions; 0 or 1 of a searcher that learns.

    Raises:
        UnknownNameError: no trials, no such column, nothing but divergences, or a population, whose members copy one
            another.

    Source: the tuning budgets of Google's Tuning Playbook.
    """
    metric = metric or results.metric
    if results.experiment.get("scheduler") == "pbt":
        raise UnknownNameError(f"{results.name} is a population, whose members copy one another: no budget can be told")
    configurations = measured_configurations(results, [metric])
    best = sort_by_metric(results, configurations)
    tried = configurations.index[(configurations["num_diverged"] > 0) | configurations.index.isin(best.index)]
    num_tried = len(tried)
    own = sorted({budget for budget in budgets if 1 <= budget <= num_tried})
    is_best = _is_within_best(results, best)
    # Row by row: how likely it is that each of the ranked configurations is kept.
    if results.experiment.get("searcher") in ADAPTIVE_SEARCHERS:
        weights = [_running_best(best.index.to_numpy(), tried[:budget].to_numpy()) for budget in own]
    else:
        weights = [_chances(num_tried, len(best), budget) for budget in own]
    values = best[metric].to_numpy(float)
    rows = [
        {
            "num_configurations": budget, **_outcome(values, kept), "prob_best": float(kept[is_best].sum()),
            "prob_all_diverged": max(0.0, round(1 - float(kept.sum()), 12)),
        }
        for budget, kept in zip(own, weights, strict=True)
    ]  # fmt: skip
    columns = ["num_configurations", "mean", "low", "high", "prob_best", "prob_all_diverged"]
    df = pd.DataFrame(rows, columns=columns).astype({name: float for name in columns[1:]})
    if results.experiment.get("searcher") in ADAPTIVE_SEARCHERS:
        df[["low", "high"]] = np.nan
    df.attrs["metric_of"] = {name: metric for name in ("mean", "low", "high")}
    return df.astype({"num_configurations": "int64"})


def _is_within_best(results: Results, best: pd.DataFrame) -> np.ndarray:
    """Return which configurations have the best mean, or one within its interval."""
    means = best[results.metric].to_numpy(float)
    first = best.iloc[0]
    interval = student_interval(means[0], first[f"{results.metric}_deviation"], int(first["num_seeds"]))
    is_inside = (interval.low <= means) & (means <= interval.high)
    return np.asarray(is_inside | (means == means[0]))


def _chances(num_all: int, num_ranked: int, budget: int) -> np.ndarray:
    """Return how likely each ranked configuration is the best of a draw: it is in, and none of the better ones is."""
    better = np.arange(num_ranked)
    left = num_all - better
    none_better = np.cumprod(np.concatenate([[1.0], np.maximum(left - budget, 0)[:-1] / left[:-1]]))
    return np.asarray(none_better * np.minimum(budget / left, 1.0))


def _running_best(ranked: np.ndarray, tried: np.ndarray) -> np.ndarray:
    kept = np.zeros(len(ranked))
    found = np.flatnonzero(np.isin(ranked, tried))
    kept[found[:1]] = 1.0
    return kept


def _outcome(values: np.ndarray, chances: np.ndarray) -> dict[str, float]:
    """Return mean and quantiles of values with these chances, where there is a value."""
    is_known = ~np.isnan(values) & (chances > 0)
    values, chances = values[is_known], chances[is_known]
    if not len(values):
        return {"mean": np.nan, "low": np.nan, "high": np.nan}
    chances = chances / chances.sum()
    order = np.argsort(values, kind="stable")
    places = np.searchsorted(np.cumsum(chances[order]) + 1e-12, TAILS)
    low, high = values[order][np.minimum(places, len(values) - 1)]
    return {"mean": float(values @ chances), "low": float(low), "high": float(high)}


def time_to_target(results: Results, target: float, metric: str | None = None) -> pd.DataFrame:
    """Return how soon each configuration reached a target.

    A trial has reached it at the first step at which the metric is at least as good, whatever became of it later. One
    that ended before, diverged or stopped, has missed it; one that failed or still runs tells nothing unless it reached
    the target. A miss counts as infinitely late, so the median over the seeds is infinite when most of them missed. A
    configuration that ran twice with one seed has one repeat there: their median.

    Args:
        results: A search with a history.
        target: In the metric's own unit.
        metric: A column of the history, or ``best_`` and such a column; by default the experiment's metric.

    Returns:
        One row per configuration, the soonest first: what varies; ``num_seeds`` that tell something, ``num_reached``
        and ``num_missed`` of them; ``reached_step``: the median number of optimizer steps; ``reached_s``: the median
        number of seconds, infinite for a miss. A history has no clock: the seconds at a step are the trial's seconds in
        steps, ``train_s``, by the part of its steps that it had done; missing where nobody took them.

    Raises:
        UnknownNameError: no trials, or no such metric in the history.

    Source: AlgoPerf's scoring (mlcommons/algorithmic-efficiency).
    """
    metric = metric or results.metric
    check_columns(results, [])
    # The best so far reaches a target when the metric itself first does.
    column = metric if metric in results.history else metric.removeprefix("best_")
    if column not in results.history:
        raise UnknownNameError(
            f"no metric {metric!r} in the history of {results.name}: {', '.join(map(str, results.history))}"
        )
    taken = results.history.loc[results.history[column].notna(), ["trial_id", "step", column]]
    is_good = taken[column] <= target if results.is_lower_better(metric) else taken[column] >= target
    first = taken[is_good].groupby("trial_id", observed=True)["step"].min()

    trials = results.trials
    step = trials["trial_id"].map(first).astype(float)
    has_missed = (trials["status"] == "diverged") | (
        trials["status"].isin(COMPLETED) & trials["trial_id"].isin(taken["trial_id"].unique())
    )
    part = step / numeric_column(trials, "steps_run").replace(0, np.nan)
    seconds = (numeric_column(trials, "train_s") * part).where(step != 0, 0.0).where(step.notna(), np.inf)
    df = pd.DataFrame(
        {
            "configuration": configuration_numbers(results),
            "seed": trials["seed"] if "seed" in trials else np.arange(len(trials)),
            "step": step.fillna(np.inf),
            "seconds": seconds,
        }
    )
    keys = [name for name in results.varied_parameters if name != "seed"]
    by_seed = df[step.notna() | has_missed].groupby(["configuration", "seed"], sort=False, dropna=False)
    repeats = by_seed[["step", "seconds"]].median().reset_index()
    repeats = repeats.assign(is_reached=np.isfinite(repeats["step"]), is_untimed=repeats["seconds"].isna())
    over = repeats.groupby("configuration")
    told = pd.DataFrame(
        {
            "num_seeds": over.size(),
            "num_reached": over["is_reached"].sum(),
            "reached_step": over["step"].median(),
            # A seed without seconds leaves nothing to take a median of.
            "reached_s": over["seconds"]
            .median()
            .where(~repeats["seconds"].isna().groupby(repeats["configuration"]).any()),
        }
    )
    configurations = trials[keys].assign(configuration=df["configuration"]).drop_duplicates("configuration")
    wide = configurations.set_index("configuration").join(told)
    wide[["num_seeds", "num_reached"]] = wide[["num_seeds", "num_reached"]].fillna(0).astype("int64")
    wide.insert(len(keys) + 2, "num_missed", wide["num_seeds"] - wide["num_reached"])
    return wide.sort_values(["reached_step", "num_missed", "reached_s"], kind="stable").reset_index(drop=True)
