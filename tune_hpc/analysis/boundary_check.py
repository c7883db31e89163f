"""Is the best configuration at the edge of what was searched? Then the search may have ended too early on that side.

A list of numbers has its first and last value for edges, a range the outer 5 % of its width, in logarithms where the
range is logarithmic. What lies beyond is suggested by a mirror at the edge: as much again, spaced alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tune_hpc.analysis.aggregation import (
    configuration_numbers,
    filter_trials,
    measured_configurations,
    numeric_column,
    row_mask,
    sort_by_metric,
    with_trials,
)
from tune_hpc.analysis.comparison import BETTER, TIE
from tune_hpc.analysis.formatting import format_number
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

LOW, HIGH = "low", "high"
#: The part of a range's width that counts as its edge.
EDGE = 0.05
#: Sums and products of floats are off by a last bit, which must not decide what a number is.
ROUNDING = 1e-9
#: Parameters that are parts of a whole: nothing from 1 on is suggested for them. A rate may be any number.
FRACTIONS = ("dropout", "momentum", "beta1", "beta2", "rho", "decay_rate", "warmup")
#: Of a list so many values are suggested.
MOST_ADDED = 2
#: Comparing all pairs of more values than this takes long, and hardly finds one that is the best for sure.
MOST_COMPARED = 50


def check_boundaries(results: Results, where: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Say of each numeric parameter that varies whether the best configuration is at an edge of what was searched.

    The best one is that of the experiment's metric, its mean over the seeds. A parameter that it does not have, or has
    only one value for, is left out; of one with several cases the case counts that holds for it.

    Args:
        results: A search.
        where: Configuration values that the trials must have: each optimizer has a best configuration of its own.

    Returns:
        One row per parameter: ``parameter``; ``best``, its value in the best configuration; ``low`` and ``high``, the
        bounds that were searched (missing of a normal distribution), all three in the parameter's own unit; ``edge``:
        ``low``, ``high`` or missing; ``suggestion``: what to search next, as it is written on a command line, or which
        values to add to a list: beyond the edge as much again, of a list two values at most; never below 0 where all
        values are at least 0, nor above 1 for ``FRACTIONS`` (missing where there is no edge, or nothing beyond it);
        ``edge_is_significant``: whether the best value at the edge is better than every other value of the list, or
        than the best configuration inside the range, by ``Results.compare`` (missing where that cannot tell).

    Raises:
        UnknownNameError: no trials, no value of the metric, or an experiment that does not tell its space.
    """
    results = filter_trials(results, where)
    if results.experiment.get("space") is None:
        raise UnknownNameError(f"{results.name} does not tell its space, so nobody knows its edges")
    ranked = sort_by_metric(results, measured_configurations(results, []))
    rows = []
    for name, plain in results.experiment["space"].items():
        cases = _cases(plain)
        holding = _case_numbers(cases, ranked)
        case = holding.iloc[0]
        axis = _axis(cases[case][1], name in FRACTIONS) if case >= 0 else None
        value = numeric_column(ranked, name).iloc[0]
        if axis is None or np.isnan(value):
            continue
        edge = axis.edges([value])[0]
        sure: bool | None = False
        if edge:
            inside = results.trials.index[_case_numbers(cases, results.trials) == case]
            sure = _for_sure(results, inside, ranked[holding == case], name, axis)
        rows.append(
            {
                "parameter": name, "best": value, "low": axis.low, "high": axis.high, "edge": edge or None,
                "suggestion": axis.suggestion(edge) if edge else None, "edge_is_significant": sure,
            }
        )  # fmt: skip
    columns = ["parameter", "best", "low", "high", "edge", "suggestion", "edge_is_significant"]
    return pd.DataFrame(rows, columns=columns).astype(
        {
            "best": float,
            "low": float,
            "high": float,
            "edge": "str",
            "suggestion": "str",
            "edge_is_significant": "boolean",
        }
    )


def _cases(plain: Any) -> list[tuple[Mapping[str, Sequence[Any]], Any]]:
    """Return the cases of a parameter, each with its conditions; a plain domain is one without."""
    if isinstance(plain, Mapping) and "cases" in plain:
        return [(case["when"], case["value"]) for case in plain["cases"]]
    return [({}, plain)]


def _case_numbers(cases: list[tuple[Mapping[str, Sequence[Any]], Any]], configurations: pd.DataFrame) -> pd.Series:
    """Return which case holds for each configuration; -1 where none does."""
    numbers = pd.Series(-1, index=configurations.index)
    for place, (conditions, _) in reversed(list(enumerate(cases))):
        holds = pd.Series(True, index=configurations.index)
        for name, values in conditions.items():
            holds &= np.logical_or.reduce([row_mask(configurations, {name: value}) for value in values])
        numbers[holds] = place
    return numbers


@dataclass(frozen=True)
class _Axis:
    """The numbers that a parameter may have.

    Attributes:
        kind: ``choice``, or the name of the range.
        values: All of a list, in order; the lowest and the highest of a range; none of a normal distribution.
        is_whole: Whether it takes whole numbers alone.
        step: Of a range, 0 where it has none.
        is_fraction: Whether it is a part of a whole.
    """

    kind: str
    values: tuple[float, ...]
    is_whole: bool
    step: float = 0.0
    is_fraction: bool = False

    @property
    def low(self) -> float:
        return self.values[0] if self.values else np.nan

    @property
    def high(self) -> float:
        return self.values[-1] if self.values else np.nan

    def edges(self, values: ArrayLike) -> np.ndarray:
        """Return at which edge each value is: ``low``, ``high``, or an empty text."""
        places, ends = np.asarray(values, dtype=float), np.array([self.low, self.high])
        if self.kind != "choice" and "log" in self.kind:
            places, ends = np.log(places), np.log(ends)
        low, high = ends
        reach = ((0 if self.kind == "choice" else EDGE) + ROUNDING) * (high - low)
        return np.select([places <= low + reach, places >= high - reach], [LOW, HIGH], "")

    def suggestion(self, edge: str) -> str | None:
        """Return what to search beyond an edge; ``None`` where there is nothing."""
        beyond = [one for one in self._beyond(edge) if one < self.low or one > self.high]
        if not beyond:
            return None
        if self.kind == "choice":
            return f"choice: add {', '.join(format_number(one, 4) for one in sorted(beyond[:MOST_ADDED]))}"
        low, high = (beyond[0], self.high) if edge == LOW else (self.low, beyond[0])
        # Ray leaves the upper bound of whole numbers out, unless a step above 1 is given.
        numbers = [low, high + 1 if self.is_whole and self.step <= 1 else high]
        arguments = [*numbers, *([self.step] if self.step else [])]
        return f"{self.kind}({', '.join(format_number(one, 4) for one in arguments)})"

    def _beyond(self, edge: str) -> list[float]:
        """Return the values mirrored at an edge, those that natural bounds allow."""
        values = np.array(self.values if edge == LOW else self.values[::-1])
        if edge == HIGH and len(values) > 2 and values[-1] == 0:
            values = values[:-1]  # The "none at all" of a list like 0, 0.001, 0.01, 0.1 has no part in its spacing.
        end, others = values[0], values[1:]
        is_log = "log" in self.kind or (self.kind == "choice" and _is_geometric(values))
        mirrored = end * end / others if is_log else 2 * end - others
        if edge == LOW and end >= 0:
            allowed = mirrored[mirrored > ROUNDING * end] if end > 0 else mirrored[:0]
            if end > 0 and not len(allowed):
                allowed = end * end / others  # towards 0, and never there
            mirrored = allowed
        if edge == HIGH and self.is_fraction:
            allowed = mirrored[mirrored < 1 + (ROUNDING if is_log else -ROUNDING)]
            if not len(allowed) and end < 1:
                # On a logarithmic range 1 is one more number; what ends near 1, like momentum, never gets there.
                is_near = self.kind == "choice" or not is_log
                allowed = 1 - (1 - end) ** 2 / (1 - others) if is_near else np.array([1.0])
            mirrored = allowed
        return self._rounded(mirrored, edge)

    def _rounded(self, values: np.ndarray, edge: str) -> list[float]:
        """Return values as the parameter takes them: whole numbers, multiples of a step."""
        if self.kind != "choice" and self.step:
            multiples = values / self.step
            # Towards the middle, for that stays within bounds.
            values = (np.ceil(multiples - ROUNDING) if edge == LOW else np.floor(multiples + ROUNDING)) * self.step
        elif self.is_whole:
            values = np.round(values)
        if self.is_whole or "log" in self.kind:
            values = values[(values > 0) | (self.low <= 0)]
        return list(dict.fromkeys(float(one) for one in values))


def _axis(plain: Any, is_fraction: bool = False) -> _Axis | None:
    """Return the numbers of a domain; ``None`` where it is a constant, or has anything but numbers."""
    if not isinstance(plain, Mapping):
        return None
    kind, arguments = next((kind, arguments) for kind, arguments in plain.items() if kind != "role")
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in arguments):
        return None
    is_whole = all(float(one).is_integer() for one in arguments)
    if kind == "choice":
        values = tuple(sorted(map(float, arguments)))
        return _Axis(kind, values, is_whole, 0.0, is_fraction) if len(arguments) > 1 else None
    if kind == "randn":
        return _Axis(kind, (), False)
    low, high, *quantum = map(float, arguments)
    step = quantum[0] if quantum else 0.0
    is_whole = "randint" in kind
    if is_whole:
        unit = max(step, 1.0)
        low, high = np.ceil(low / unit) * unit, np.floor((high if step > 1 else high - 1) / unit) * unit
    return _Axis(kind, (float(low), float(high)), is_whole, step, is_fraction) if low < high else None


def _is_geometric(values: np.ndarray) -> bool:
    """Whether numbers are spaced more evenly in logarithms; of two numbers, whether one is twice the other."""
    if (values <= 0).any():
        return False
    if len(values) == 2:
        return bool(values.max() >= 2 * values.min())
    gaps, ratios = np.abs(np.diff(values)), np.abs(np.diff(np.log(values)))
    return bool(ratios.std() / ratios.mean() < gaps.std() / gaps.mean())


def _for_sure(
    results: Results, inside: pd.Index, ranked: pd.DataFrame, parameter: str, axis: _Axis
) -> bool | None:  # fmt: skip
    """Return whether the best value, which is at an edge, is better than the others for sure; None: nobody can tell."""
    values = numeric_column(ranked, parameter)
    if axis.kind != "choice" or len(axis.values) > MOST_COMPARED:
        # Of a range each value runs once, and all pairs are too many: the best one against the best one inside.
        edges = axis.edges(values)
        inner = ranked.index[edges != edges[0]]
        if not len(inner):
            return None
        inside = results.trials.index[configuration_numbers(results).isin([ranked.index[0], inner[0]])]
    pairs = with_trials(results, results.trials.loc[inside]).compare(parameter).pairs
    at_edge = values.iloc[0]
    own = pairs[row_mask(pairs, {"first": at_edge}) | row_mask(pairs, {"second": at_edge})]
    if (own["verdict"] == TIE).any():
        return False
    return True if len(own) and (own["verdict"] == BETTER).all() else None
