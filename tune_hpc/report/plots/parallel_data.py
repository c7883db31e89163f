"""The table behind parallel coordinates: where each configuration crosses each parameter's axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import aggregate_seeds, row_mask, sort_configurations
from tune_hpc.analysis.results import Results
from tune_hpc.report.plots.curves import is_geometric

MOST_LINES = 300


@dataclass(frozen=True)
class Scale:
    """One vertical axis.

    Attributes:
        name: The parameter, or the metric.
        values: Its values, in order: numbers rising, names from the foot up, so that they read as a list.
        is_categorical: Whether these are names, spaced evenly.
        is_log: Whether it is logarithmic.
        low: The value at its foot; of names 0.
        high: The value at its top.
    """

    name: str
    values: Sequence[Any]
    is_categorical: bool
    is_log: bool
    low: float
    high: float

    def positions(self, values: Any) -> np.ndarray:
        """Return where values lie, 0 to 1; NaN for one that is missing."""
        if self.is_categorical:
            place = {value: (index + 0.5) / len(self.values) for index, value in enumerate(self.values)}
            return np.array([place.get(value, np.nan) if not pd.isna(value) else np.nan for value in values], float)
        numbers = pd.to_numeric(pd.Series(list(values)), errors="coerce").to_numpy(float, na_value=np.nan)
        low, high = self.low, self.high
        if self.is_log:
            numbers, low, high = np.log(numbers), np.log(low), np.log(high)
        span = (high - low) or 1.0
        return np.clip((numbers - low) / span, 0, 1) if high > low else np.where(np.isnan(numbers), np.nan, 0.5)


def parallel_table(results: Results, metric: str, where: Mapping[str, Any]) -> tuple[pd.DataFrame, list[Scale], int]:
    """Return the configurations of which no seed diverged, worst first, and the axes they cross.

    Args:
        results: Any results.
        metric: A numeric column of the trials.
        where: Only trials with these values (the page).

    Returns:
        The configurations' values with the metric's mean, at most 300: the best and an even sample of the rest by rank;
        the axes: each parameter that varies among them, the metric last; how many configurations there are in all. An
        empty frame and no axes where nothing can be compared.
    """
    found = aggregate_seeds(results, [metric, results.metric])
    found = found[(found["num_diverged"] == 0) & found[metric].notna() & row_mask(found, where)]
    if metric == results.metric:
        found = sort_configurations(results, found)
    found = found.sort_values(metric, ascending=results.is_lower_better(metric), kind="stable").reset_index(drop=True)
    names = [
        name
        for name in results.varied_parameters
        if name not in ("seed", metric) and len(found[name].dropna().unique()) > 1
    ]
    if len(found) < 2 or not names:
        return found.iloc[:0], [], 0
    kept = np.unique(np.linspace(0, len(found) - 1, min(len(found), MOST_LINES)).round().astype(int))
    shown = found.iloc[kept[::-1]].reset_index(drop=True)
    scales = [_scale(name, shown[name]) for name in names if len(shown[name].dropna().unique()) > 1]
    return shown, [*scales, _metric_scale(metric, shown[metric], results.is_lower_better(metric))], len(found)


def grouped(scales: Sequence[Scale], table: pd.DataFrame, most: int) -> list[list[Scale]]:
    """Return parameters' axes in groups of at most ``most``, in their order as far as gaps allow.

    A value between two gaps makes no line. So a parameter that some configurations lack neither begins a group nor
    follows another such one, as long as there is a complete one to put there.
    """
    gapped = {scale.name for scale in scales if table[scale.name].isna().any()}
    sizes = [len(part) for part in np.array_split(np.arange(len(scales)), -(-len(scales) // most))]
    waiting, groups = list(scales), []
    for size in sizes:
        group: list[Scale] = []
        while len(group) < size:
            needs_complete = not group or group[-1].name in gapped
            complete = [scale for scale in waiting if scale.name not in gapped]
            chosen = complete[0] if needs_complete and complete else waiting[0]
            waiting.remove(chosen)
            group.append(chosen)
        groups.append(group)
    return groups


def _scale(name: str, column: pd.Series) -> Scale:
    values = column.dropna().drop_duplicates()
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        # A column with gaps may hold truths as objects.
        return Scale(name, sorted(values, key=str, reverse=True), True, False, 0.0, 1.0)
    numbers = sorted(map(float, values))
    return Scale(name, numbers, False, is_geometric(numbers), numbers[0], numbers[-1])


def _metric_scale(metric: str, column: pd.Series, is_low: bool) -> Scale:
    """Return the metric's axis; a few values far worse than the rest lie on its edge, or all others would be one."""
    values = np.sort(column.to_numpy(float))
    best, worst = (values[0], values[-1]) if is_low else (values[-1], values[0])
    usual = float(np.quantile(np.abs(values - best), 0.75))
    if usual > 0 and abs(worst - best) > 6 * usual:
        worst = best + np.sign(worst - best) * 2 * usual
    return Scale(metric, list(values), False, False, float(min(best, worst)), float(max(best, worst)))
