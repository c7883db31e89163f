"""The small tables behind the figures: which lines, which points, what band.

Each plot is two functions: one here computes a table (pandas only), one in plots.py draws it. A table has one row per
point: ``line`` (the value that the line stands for, or a label), ``x``, ``mean``, ``low``, ``high``, ``num_trials``.
``low`` and ``high`` are the ends of the mean's 95 % interval over seeds (Student's), or the mean where seeds do not
differ or there is one. Points without a finite value are left out; a metric that was never taken gives an empty table.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import COMPLETED, configuration_numbers, is_scaling, numeric_column, row_mask
from tune_hpc.analysis.budget import MIN_CONFIGURATIONS
from tune_hpc.analysis.formatting import display_name, format_config
from tune_hpc.analysis.intervals import ROUNDING, student_interval
from tune_hpc.analysis.results import Results

#: What a step of a scaling measurement is made of.
PARTS = ("compute_s", "communicate_s", "data_s")
#: More lines than this cannot be told apart on one pair of axes; the best are kept.
MAX_LINES = 10
#: Buckets along a drawn curve: each leaves its lowest and its highest point.
NUM_BUCKETS = 300

_COLUMNS = ("line", "x", "mean", "low", "high", "num_trials")


def default_figures(results: Results) -> list[dict[str, Any]]:
    """Return the figures that the experiment declares, or standard ones.

    Standard are curves, a response to each parameter, and all parameters together: a heat map, or parallel coordinates.
    A search of twenty configurations or more also shows what fewer would have found.
    """
    declared = [dict(figure) for figure in results.experiment.get("figures") or ()]
    return (declared or _standard(results)) + _search_figures(results)


def _search_figures(results: Results) -> list[dict[str, Any]]:
    """Return the figure of what a smaller search would have found, where that says something."""
    if results.experiment.get("scheduler") == "pbt" or is_scaling(results) or len(results.trials) < MIN_CONFIGURATIONS:
        return []
    if configuration_numbers(results).nunique() < MIN_CONFIGURATIONS:
        return []
    title = "What fewer configurations would have found"
    return [{"kind": "budget", "metrics": [results.metric], "title": title}]


def _standard(results: Results) -> list[dict[str, Any]]:
    if is_scaling(results):
        return _scaling_figures(results)
    curves = [name for name in results.history if name not in {"trial_id", "step"}]
    base = results.metric.removeprefix("best_").replace("selected_", "")
    curves.sort(key=lambda name: (name != base, name != base.replace("accuracy", "loss")))
    made: list[dict[str, Any]] = []
    if curves:
        made.append({"kind": "curve", "metrics": curves[:2], "title": "Learning curves"})
    for name in [name for name in results.varied_parameters if name != "seed"][:4]:
        log_x = is_geometric(values_of(results, name))
        title = f"{display_name(results.metric).capitalize()} against {display_name(name)}"
        made.append(
            {"kind": "response", "metrics": [results.metric], "title": title, "parameter": name, "log_x": log_x}
        )
    return made + _of_all(results)


def _scaling_figures(results: Results) -> list[dict[str, Any]]:
    """Return the standard figures of a scaling measurement; what else varies has a line, or a page, for each value."""
    others = [name for name in results.varied_parameters if name not in ("workers", "seed")]
    shared: dict[str, Any] = {"parameter": "workers"}
    gains = {"kind": "speedup", "metrics": ["speedup", "efficiency"], "title": "Speed-up and efficiency by workers"}
    parts = {"kind": "stack", "metrics": list(PARTS), "title": "Where a step's time goes"}
    links = {"kind": "links", "metrics": ["speedup", "efficiency"], "title": "Predicted: more workers, other links"}
    cost = {"kind": "cost", "metrics": ["train_s", "worker_s"], "title": "Time and what it costs, by workers"}
    if others:
        gains, parts = {**gains, "line": others[0]}, {**parts, "page": others[0]}
        # Options do the same work; networks of several widths do not, and have nothing to be weighed against.
        cost, links = {**cost, "line" if others[0] == "option" else "page": others[0]}, {**links, "page": others[0]}
    broad = {"kind": "widths", "metrics": ["efficiency"], "title": "Predicted: efficiency by the network's width"}
    return [{**one, **shared} for one in (gains, parts, cost, links)] + [broad]


def _of_all(results: Results) -> list[dict[str, Any]]:
    """Return the standard figure of all parameters together: a heat map of two on a full grid, lines of all others."""
    names = [name for name in results.varied_parameters if name != "seed" and len(values_of(results, name)) > 1]
    one: dict[str, Any] = {"metrics": [results.metric]}
    metric = display_name(results.metric).capitalize()
    if len(names) < 2:
        return []
    lines = [one | {"kind": "parallel", "title": f"{metric} of all configurations"}]
    if len(names) > 2:
        return lines
    # Names read best beside the rows; of two parameters with numbers the one with more values goes across.
    y, x = sorted(names, key=lambda name: (is_numeric(results, name), len(values_of(results, name))))
    pairs = results.trials[[x, y]].drop_duplicates()
    if pairs.isna().any(axis=None) or len(pairs) < len(values_of(results, x)) * len(values_of(results, y)):
        return lines
    return [
        one
        | {
            "kind": "heatmap",
            "title": f"{metric} by {display_name(y)} and {display_name(x)}",
            "parameter": x,
            "line": y,
        }
    ]


def is_numeric(results: Results, name: str) -> bool:
    """Return whether a parameter's values are numbers; truths are none."""
    values = results.trials[name].dropna()
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def is_geometric(values: Sequence[Any]) -> bool:
    """Return whether values are spread evenly on a logarithmic axis rather than on a linear one."""
    if not values or not all(isinstance(value, int | float | np.number) for value in values):
        return False
    own = np.sort(np.asarray(values, dtype=float))
    if own[0] <= 0 or own[-1] / own[0] < 8:
        return False
    logs = np.log(own)
    in_logs = (np.median(logs) - logs[0]) / (logs[-1] - logs[0])
    as_they_are = (np.median(own) - own[0]) / (own[-1] - own[0])
    return bool(abs(in_logs - 0.5) < abs(as_they_are - 0.5))


def values_of(results: Results, parameter: str | None) -> list[Any]:
    """Return the values of a parameter among the trials: numbers rising, names in the order asked for."""
    if parameter is None or parameter not in results.trials:
        return []
    values = results.trials[parameter].dropna().drop_duplicates()
    if pd.api.types.is_numeric_dtype(values):
        values = values.sort_values()
    return list(values)


def _free(results: Results, taken: Sequence[str | None]) -> list[str]:
    return [name for name in results.varied_parameters if name not in {*taken, "seed"}]


def curve_lines(results: Results, line: str | None, where: Mapping[str, Any], shown: Sequence[Any]) -> pd.DataFrame:
    """Return which trials make which line: ``trial_id`` and ``line``.

    Args:
        results: Any results.
        line: The parameter whose values get a line each; without one every configuration has its own, the best first.
        where: Only trials with these values (the page).
        shown: The values of ``line`` that are drawn.

    Returns:
        One row per trial. Where other parameters vary too, a line is the configuration with the best mean metric.
    """
    trials = results.trials[row_mask(results.trials, where)]
    free = _free(results, [line, *where])
    score = numeric_column(trials, results.metric).where(trials["status"].isin(COMPLETED))
    lower_is_better = results.experiment["mode"] == "min"
    df = trials[["trial_id"]].assign(score=score)
    df["line"] = (
        trials[line]
        if line
        else [format_config(dict(zip(free, row, strict=True))) for row in trials[free].itertuples(index=False)]
    )
    if line:
        df = df[matching_any(df["line"], shown)]
    if free:
        df["configuration"] = trials.groupby(free, dropna=False, sort=False).ngroup()
        # A configuration without a score (diverged, still running) comes last, but comes: its curve is worth seeing.
        mean = df.groupby(["line", "configuration"], sort=False)["score"].mean().reset_index()
        mean = mean.sort_values("score", ascending=lower_is_better, kind="stable", na_position="last")
        chosen = mean.drop_duplicates("line") if line else mean.head(MAX_LINES)
        df = df.merge(chosen[["line", "configuration"]], on=["line", "configuration"])
    return df[["trial_id", "line"]].reset_index(drop=True)


def matching_any(column: pd.Series, values: Sequence[Any]) -> pd.Series:
    """Return which rows hold one of these values."""
    mask = pd.Series(False, index=column.index)
    for value in values:
        mask |= row_mask(column.to_frame("value"), {"value": value})
    return mask


def shown_lines(results: Results, line: str | None, most: int = MAX_LINES) -> list[Any]:
    """Return the values of ``line`` to draw: all, or of more than ``most`` the best by the experiment's metric."""
    values = values_of(results, line)
    if len(values) <= most or line is None:
        return values
    score = numeric_column(results.trials, results.metric).where(results.trials["status"].isin(COMPLETED))
    best = score.groupby(results.trials[line]).agg("min" if results.experiment["mode"] == "min" else "max")
    kept = set(best.sort_values(ascending=results.experiment["mode"] == "min").index[:most])
    return [value for value in values if value in kept]


def curve_table(results: Results, metric: str, lines: pd.DataFrame, last_step: int | None = None) -> pd.DataFrame:
    """Return a metric of the history against steps.

    Args:
        results: Any results.
        metric: A column of the history.
        lines: What ``curve_lines`` returned.
        last_step: Where to cut.

    Returns:
        The columns of this module; ``mean``, ``low`` and ``high`` over the trials of a line.
    """
    history = results.history
    if metric not in history or lines.empty:
        return pd.DataFrame(columns=list(_COLUMNS))
    history = history[history["trial_id"].isin(lines["trial_id"])]
    if last_step is not None:
        history = history[history["step"] <= last_step]
    df = pd.DataFrame({"trial_id": history["trial_id"], "x": history["step"], "value": numeric_column(history, metric)})
    df = df.dropna(subset=["value"]).merge(lines, on="trial_id")
    return mean_and_ci(df)


def response_table(
    results: Results, metric: str, parameter: str, line: str | None, where: Mapping[str, Any]
) -> pd.DataFrame:
    """Return a metric of the trials against one parameter.

    Returns:
        The columns of this module, and ``is_joined``: whether the points of a line differ in nothing but ``x``. A point
        is a configuration, its band the 95 % interval of its mean over seeds.
    """
    trials = results.trials
    if metric not in trials or parameter not in trials:
        return pd.DataFrame(columns=[*_COLUMNS, "is_joined"])
    trials = trials[row_mask(trials, where) & trials["status"].isin(COMPLETED)]
    free = _free(results, [parameter, line, *where])
    df = pd.DataFrame({"x": trials[parameter], "value": numeric_column(trials, metric)})
    df["line"] = trials[line] if line else "measured"
    df["configuration"] = trials.groupby(free, dropna=False).ngroup() if free else 0
    df = df.dropna(subset=["x", "value", "line"])
    num_configurations = df.groupby("line")["configuration"].nunique()
    table = mean_and_ci(df, "configuration")
    return table.assign(is_joined=table["line"].map(num_configurations) == 1)


def mean_and_ci(df: pd.DataFrame, *more: str) -> pd.DataFrame:
    """Return means with their intervals of 95 % (Student's); where repeats tell nothing, both ends are the mean."""
    grouped = df.groupby(["line", *more, "x"], sort=False, dropna=False)["value"]
    table = grouped.agg(mean="mean", deviation="std", num_trials="size").reset_index()
    # Each number of repeats has one factor: a quantile for every step of a long curve would take seconds.
    factors = {number: student_interval(0.0, 1.0, number).half for number in table["num_trials"].unique()}
    half = table["deviation"] * table["num_trials"].map(factors)
    half = half.where(table["deviation"] > ROUNDING * table["mean"].abs(), 0.0).fillna(0.0)
    table = table.assign(low=table["mean"] - half, high=table["mean"] + half)
    return table[list(_COLUMNS)].sort_values("x", kind="stable", ignore_index=True)


def published_table(
    results: Results, metric: str, parameter: str, line: str | None, where: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the published numbers for a response: ``line``, ``x``, ``mean``."""
    rows = []
    for one in results.experiment.get("published") or ():
        told = one["where"]
        elsewhere = any(name in told and told[name] != value for name, value in where.items())
        if one["metric"] != metric or elsewhere:
            continue
        best = list(one.get("best_values") or ()) if one.get("best_over") == parameter else []
        for x in best or [told.get(parameter)]:
            if x is not None and (line is None or line in told):
                rows.append({"line": told[line] if line else "measured", "x": x, "mean": float(one["value"])})
    return pd.DataFrame(rows, columns=["line", "x", "mean"])


def downsample(values: np.ndarray, num_buckets: int = NUM_BUCKETS) -> np.ndarray:
    """Return the indices of points that draw the same line: ends, and the lowest and highest of each bucket.

    Extremes are kept, unlike by taking every n-th point, so that an oscillation keeps its height.
    """
    n = len(values)
    if n <= 2 * num_buckets:
        return np.arange(n)
    size = -(-n // num_buckets)
    padded = np.concatenate([values, np.full(-n % size, values[-1])]).reshape(-1, size)
    starts = np.arange(len(padded)) * size
    kept = np.concatenate([[0, n - 1], starts + padded.argmin(axis=1), starts + padded.argmax(axis=1)])
    return np.unique(np.minimum(kept, n - 1))
