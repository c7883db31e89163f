"""Learning curves for a chart: few enough of them, with few enough points, that a phone can draw them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.following import Standing
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.wording import condition, value_text
from tune_hpc.errors import RequestError
from tune_hpc.service.charts import group_parameter
from tune_hpc.service.frames import passing, records

#: Curves and points of each, unless told otherwise and at most.
MOST_CURVES, MOST_POINTS = 100, 200


def metrics(results: Standing) -> list[str]:
    """Return the metrics that have curves, the one that ranks trials first."""
    own = results.metric.removeprefix("best_").removeprefix("selected_")
    names = [name for name in results.histories.columns if name not in ("trial_id", "step")]
    return sorted(names, key=lambda name: name != own)


def curves(
    results: Standing, metric: str | None, filters: Sequence[str], max_curves: int, max_points: int
) -> dict[str, Any]:
    """Return the curves of the trials under way and of the best ones, thinned.

    Args:
        results: Of one experiment.
        metric: A metric of the history; by default the one that ranks trials, or the first.
        filters: Which trials; as of frames.
        max_curves: How many curves at most.
        max_points: How many points each has at most; first and last are always among them.

    Returns:
        ``metric``, ``metrics`` (all that there are), ``group`` (the parameter whose values get a colour each, or null),
        ``curves`` (``trial_id``, ``status``, ``label``, ``group``, ``steps``, ``values``), ``num_trials`` (that have
        this metric), ``is_thinned`` (whether any point was left out).

    Raises:
        RequestError: no such metric, or a filter that cannot be read.
    """
    known = metrics(results)
    if metric is not None and metric not in known:
        there = f"there are {', '.join(known)}" if known else "no trial has reported one yet"
        raise RequestError(f"no metric {metric!r} in the history of {results.name}; {there}")
    chosen = metric or next(iter(known), results.metric)
    trials = passing(results.trials, filters)
    trials = trials[trials["trial_id"].isin(results.histories.taken(chosen))]
    shown = _chosen(results, trials, max_curves)
    taken = _taken(results, shown, chosen)
    names, group = [name for name in results.varying if name in shown], group_parameter(results)
    drawn = [
        {
            "trial_id": row["trial_id"],
            "status": row["status"],
            "label": condition({name: row[name] for name in names if row[name] is not None}),
            "group": value_text(row[group]) if group else "",
            **_points(*taken[row["trial_id"]], max_points),
        }
        for row in records(shown[["trial_id", "status", *names]])
    ]
    return {
        "experiment": results.name,
        "metric": chosen,
        "metrics": known,
        "group": group,
        "num_trials": len(trials),
        "is_thinned": any(len(taken[one["trial_id"]][0]) > len(one["steps"]) for one in drawn),
        "curves": drawn,
    }


def _chosen(results: Results, trials: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return the trials whose curves are drawn, the best last: they are drawn above the others."""
    if len(trials) <= most:
        first = trials
    else:
        running = trials[trials["status"] == "running"].tail(most // 2)
        rest = trials[~trials["trial_id"].isin(running["trial_id"])]
        first = pd.concat([_ranked(results, rest).head(most - len(running)), running])
    return _ranked(results, first).iloc[::-1]


def _ranked(results: Results, trials: pd.DataFrame) -> pd.DataFrame:
    if results.metric not in trials:
        return trials
    return trials.sort_values(results.metric, ascending=results.experiment["mode"] == "min", kind="stable")


def _taken(results: Standing, trials: pd.DataFrame, metric: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return at which steps each of some trials reported a metric, and what."""
    if trials.empty:
        return {}
    history = results.histories.of(trials["trial_id"]).dropna(subset=[metric]).sort_values("step", kind="stable")
    steps, values = history["step"].to_numpy().astype(int), history[metric].to_numpy(float)
    rows = history.groupby("trial_id", observed=True).indices
    return {str(trial_id): (steps[place], values[place]) for trial_id, place in rows.items()}


def _points(steps: np.ndarray, values: np.ndarray, most: int) -> dict[str, list[Any]]:
    places = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), most)).round().astype(int))
    return {
        "steps": steps[places].tolist(),
        "values": [value if np.isfinite(value) else None for value in values[places].tolist()],
    }
