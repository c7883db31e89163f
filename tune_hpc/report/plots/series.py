"""Values, lines and means that several kinds of figures and charts share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import searched_parameters, trial_values
from tune_hpc.analysis.formatting import display_name
from tune_hpc.analysis.intervals import ROUNDING, student_interval
from tune_hpc.analysis.results import Results

#: Lines on one pair of axes; the reader cannot distinguish more.
MAX_LINES = 10
#: Columns of a table of points: the value of the line, the position, the mean and its interval.
COLUMNS = ("line", "x", "mean", "low", "high", "num_trials")


def tables_by_metric(
    specification: Mapping[str, Any], table_of: Callable[[str], pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Return the tables with data of a figure's metrics."""
    tables = {metric: table_of(metric) for metric in specification["metrics"]}
    return {metric: table for metric, table in tables.items() if len(table)}


def values_of(results: Results, parameter: str | None) -> list[Any]:
    """Return the values of a parameter among the trials: numbers ascending, names in order of appearance."""
    if parameter is None or parameter not in results.trials:
        return []
    values = results.trials[parameter].dropna().drop_duplicates()
    return list(values.sort_values() if pd.api.types.is_numeric_dtype(values) else values)


def best_values(results: Results, parameter: str | None, limit: int = MAX_LINES) -> list[Any]:
    """Return the values of a parameter, at most ``limit``: the best by the experiment's metric."""
    values = values_of(results, parameter)
    if len(values) <= limit or parameter is None:
        return values
    lower_is_better = results.experiment["mode"] == "min"
    scores = trial_values(results, [results.metric])[results.metric]
    best = scores.groupby(results.trials[parameter]).agg("min" if lower_is_better else "max")
    selected = set(best.sort_values(ascending=lower_is_better).index[:limit])
    return [value for value in values if value in selected]


def best_values_note(results: Results, parameter: str | None, values: Sequence[Any]) -> str:
    """Return a sentence for the caption if ``values`` are not all values of the parameter."""
    if len(values) >= len(values_of(results, parameter)):
        return ""
    return f"The best {len(values)} values of {display_name(str(parameter))} are shown."


def free_parameters(results: Results, fixed: Sequence[str | None]) -> list[str]:
    """Return the parameters that vary, without the seed and the ``fixed`` ones."""
    return [name for name in searched_parameters(results) if name not in fixed]


def is_numeric(results: Results, name: str) -> bool:
    """Return whether a parameter's values are numbers; booleans are not."""
    values = results.trials[name].dropna()
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def is_geometric(values: Sequence[Any]) -> bool:
    """Return whether values are spread more evenly on a logarithmic axis than on a linear one."""
    if not values or not all(isinstance(value, int | float | np.number) for value in values):
        return False
    ordered = np.sort(np.asarray(values, dtype=float))
    if ordered[0] <= 0 or ordered[-1] / ordered[0] < 8:
        return False

    def skew(positions: np.ndarray) -> float:
        return float(abs((np.median(positions) - positions[0]) / (positions[-1] - positions[0]) - 0.5))

    return skew(np.log(ordered)) < skew(ordered)


def even_sample(length: int, limit: int) -> np.ndarray:
    """Return the indices of at most ``limit`` of so many rows, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, length - 1, min(length, limit)).round().astype(int))


def mean_and_ci(df: pd.DataFrame, *more: str, is_ratio: bool = False) -> pd.DataFrame:
    """Return the mean of each point with its 95 % interval over seeds (Student's t): ``COLUMNS``, sorted by ``x``.

    ``df`` has ``line``, ``x``, ``value`` and ``more``, which distinguish points, too. Both ends of the interval are the
    mean for one seed and for equal values. The mean of ratios is geometric, and its interval is on a log scale.
    """
    if is_ratio:
        table = mean_and_ci(df.assign(value=np.log(df["value"])), *more)
        return table.assign(**{name: np.exp(table[name]) for name in ("mean", "low", "high")})
    grouped = df.groupby(["line", *more, "x"], sort=False, dropna=False)["value"]
    table = grouped.agg(mean="mean", deviation="std", num_trials="size").reset_index()
    # One quantile for each number of repeats: one for each step of a long curve takes seconds.
    factors = {number: student_interval(0.0, 1.0, number).half for number in table["num_trials"].unique()}
    half = table["deviation"] * table["num_trials"].map(factors)
    half = half.where(table["deviation"] > ROUNDING * table["mean"].abs(), 0.0).fillna(0.0)
    table = table.assign(low=table["mean"] - half, high=table["mean"] + half)
    return table[list(COLUMNS)].sort_values("x", kind="stable", ignore_index=True)
