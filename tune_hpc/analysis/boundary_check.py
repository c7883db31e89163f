"""Check whether the best configuration lies on the boundary of the search space.

The boundary of a list is its lowest and highest number; that of a range is the outer 5 % of its width, in logarithms
for a logarithmic range. The suggested extension mirrors the searched values at the boundary, with the same spacing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tune_hpc.analysis.aggregation import (
    MAX_CROSSED,
    configuration_numbers,
    filter_trials,
    measured_configurations,
    numeric_column,
    row_mask,
    searched_parameters,
    sort_by_metric,
)
from tune_hpc.analysis.comparison import BETTER, TIE
from tune_hpc.analysis.formatting import format_number
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

LOW, HIGH = "low", "high"
#: Fraction of a range's width that counts as its boundary.
EDGE = 0.05
#: Tolerance for rounding errors of floats.
ROUNDING = 1e-9
#: Parameters below 1 by definition: 1 and more is not suggested for them.
FRACTIONS = ("dropout", "momentum", "beta1", "beta2", "rho", "decay_rate", "warmup")
#: Maximum number of suggested values of a list.
MAX_SUGGESTED = 2
#: Maximum number of values that are compared in all pairs.
MAX_COMPARED = 50


def check_boundaries(results: Results, where: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Check, for each numeric parameter that varies, whether the best configuration lies on the boundary.

    The best configuration is that with the best mean of the experiment's metric. Parameters that it does not have, or
    that have a single value, are omitted. A conditional parameter is checked in the case that holds for it.

    Args:
        results: A search.
        where: Configuration values that select the trials, such as one optimizer.

    Returns:
        One row per parameter: ``parameter``; ``best``, its value in the best configuration; ``low`` and ``high``, the
        searched bounds (missing for a normal distribution); ``edge``: ``low``, ``high`` or missing; ``suggestion``:
        the extended range, as on the command line, or at most two values to add to a list (missing without an edge
        or without an extension; never negative for a non-negative parameter, nor above 1 for ``FRACTIONS``);
        ``edge_is_significant``: whether the best value is significantly better than every other value of the list,
        or than the best configuration inside the range (missing if that is inconclusive, or with
        over ``MAX_CROSSED`` parameters).

    Raises:
        UnknownNameError: There are no trials, no value of the metric, or no space in experiment.json.

    Example:
        >>> from tune_hpc import check_boundaries, load
        >>> results = load("docs/results/exercise2.softmax.shuffled")
        >>> check_boundaries(results, where={"optimizer": "adadelta"})[["parameter", "best", "edge", "suggestion"]]
               parameter  best  edge          suggestion
        0  learning_rate   0.5  high  add 2.5, 5
    """
    results = filter_trials(results, where)
    if results.experiment.get("space") is None:
        raise UnknownNameError(f"experiment.json of {results.name} has no space, so its boundaries are unknown")
    ranked = sort_by_metric(results, measured_configurations(results, []))
    rows, is_wide = [], len(searched_parameters(results)) > MAX_CROSSED
    for name, domain in results.experiment["space"].items():
        cases = _cases(domain)
        case_of = _case_numbers(cases, ranked)
        case = case_of.iloc[0]
        axis = _axis(cases[case][1], name in FRACTIONS) if case >= 0 else None
        value = numeric_column(ranked, name).iloc[0]
        if axis is None or np.isnan(value):
            continue
        edge = axis.edges([value])[0]
        is_significant: bool | None = False
        if edge:
            trials = results.trials[_case_numbers(cases, results.trials) == case]
            is_significant = None if is_wide else _is_significant(results, trials, ranked[case_of == case], name, axis)
        suggestion = axis.suggestion(edge) if edge else None
        rows.append((name, value, axis.low, axis.high, edge or None, suggestion, is_significant))
    columns = ["parameter", "best", "low", "high", "edge", "suggestion", "edge_is_significant"]
    df = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(("best", "low", "high"), float))
    return df.astype({"edge": "str", "suggestion": "str", "edge_is_significant": "boolean"})


def _cases(domain: Any) -> list[tuple[Mapping[str, Sequence[Any]], Any]]:
    """Return the cases of a parameter as conditions and domain; an unconditional parameter has one case."""
    if isinstance(domain, Mapping) and "cases" in domain:
        return [(case["when"], case["value"]) for case in domain["cases"]]
    return [({}, domain)]


def _case_numbers(cases: list[tuple[Mapping[str, Sequence[Any]], Any]], configurations: pd.DataFrame) -> pd.Series:
    """Return the number of the case that holds for each configuration; -1 if none does."""
    numbers = pd.Series(-1, index=configurations.index)
    for number, (conditions, _) in reversed(list(enumerate(cases))):
        holds = pd.Series(True, index=configurations.index)
        for name, values in conditions.items():
            holds &= np.logical_or.reduce([row_mask(configurations, {name: value}) for value in values])
        numbers[holds] = number
    return numbers


@dataclass(frozen=True)
class _Axis:
    """The numbers that a parameter can have; ``kind`` is ``choice`` or the name of the range."""

    kind: str
    #: All values of a list, in order; lowest and highest value of a range; empty for a normal distribution.
    values: tuple[float, ...]
    is_integer: bool
    #: Quantum of a range; 0 without one.
    step: float = 0.0
    #: Whether the parameter is below 1 by definition.
    is_fraction: bool = False

    @property
    def low(self) -> float:
        return self.values[0] if self.values else np.nan

    @property
    def high(self) -> float:
        return self.values[-1] if self.values else np.nan

    def edges(self, values: ArrayLike) -> np.ndarray:
        """Return the edge of each value: ``low``, ``high``, or an empty text."""
        x, bounds = np.asarray(values, dtype=float), np.array([self.low, self.high])
        if self.kind != "choice" and "log" in self.kind:
            x, bounds = np.log(x), np.log(bounds)
        low, high = bounds
        width = ((0 if self.kind == "choice" else EDGE) + ROUNDING) * (high - low)
        return np.select([x <= low + width, x >= high - width], [LOW, HIGH], "")

    def suggestion(self, edge: str) -> str | None:
        """Return the suggested extension beyond an edge; ``None`` if there is none."""
        beyond = [value for value in self._beyond(edge) if value < self.low or value > self.high]
        if not beyond:
            return None
        if self.kind == "choice":
            return f"add {', '.join(format_number(value, 4) for value in sorted(beyond[:MAX_SUGGESTED]))}"
        low, high = (beyond[0], self.high) if edge == LOW else (self.low, beyond[0])
        # Ray Tune excludes the upper bound of integers, unless a quantum above 1 is given.
        arguments = [low, high + 1 if self.is_integer and self.step <= 1 else high]
        arguments += [self.step] if self.step else []
        return f"{self.kind}({', '.join(format_number(number, 4) for number in arguments)})"

    def _beyond(self, edge: str) -> list[float]:
        """Return the values mirrored at an edge, within the natural bounds."""
        values = np.array(self.values if edge == LOW else self.values[::-1])
        if edge == HIGH and len(values) > 2 and values[-1] == 0:
            values = values[:-1]  # The 0 of a list like 0, 0.001, 0.01, 0.1 does not belong to its spacing.
        end, others = values[0], values[1:]
        is_log = "log" in self.kind or (self.kind == "choice" and _is_geometric(values))
        mirrored = end * end / others if is_log else 2 * end - others
        if edge == LOW and end >= 0:
            allowed = mirrored[mirrored > ROUNDING * end] if end > 0 else mirrored[:0]
            if end > 0 and not len(allowed):
                allowed = end * end / others  # approaches 0
            mirrored = allowed
        if edge == HIGH and self.is_fraction:
            allowed = mirrored[mirrored < 1 + (ROUNDING if is_log else -ROUNDING)]
            if not len(allowed) and end < 1:
                # A logarithmic range may end at 1; values near 1, as of momentum, approach it.
                is_near = self.kind == "choice" or not is_log
                allowed = 1 - (1 - end) ** 2 / (1 - others) if is_near else np.array([1.0])
            mirrored = allowed
        return self._rounded(mirrored, edge)

    def _rounded(self, values: np.ndarray, edge: str) -> list[float]:
        """Return values that the parameter accepts: integers, multiples of the quantum."""
        if self.kind != "choice" and self.step:
            multiples = values / self.step
            # Rounding towards the middle of the range keeps the bounds.
            values = (np.ceil(multiples - ROUNDING) if edge == LOW else np.floor(multiples + ROUNDING)) * self.step
        elif self.is_integer:
            values = np.round(values)
        if self.is_integer or "log" in self.kind:
            values = values[(values > 0) | (self.low <= 0)]
        return list(dict.fromkeys(map(float, values)))


def _axis(domain: Any, is_fraction: bool = False) -> _Axis | None:
    """Return the axis of a domain in JSON; ``None`` for a constant and for values that are not numbers."""
    if not isinstance(domain, Mapping):
        return None
    kind, arguments = next((kind, arguments) for kind, arguments in domain.items() if kind != "role")
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in arguments):
        return None
    if kind == "choice":
        is_integer = all(float(value).is_integer() for value in arguments)
        values = tuple(sorted(map(float, arguments)))
        return _Axis(kind, values, is_integer, 0.0, is_fraction) if len(arguments) > 1 else None
    if kind == "randn":
        return _Axis(kind, (), False)
    low, high, *quantum = map(float, arguments)
    step = quantum[0] if quantum else 0.0
    is_integer = "randint" in kind
    if is_integer:
        unit = max(step, 1.0)
        low, high = np.ceil(low / unit) * unit, np.floor((high if step > 1 else high - 1) / unit) * unit
    return _Axis(kind, (float(low), float(high)), is_integer, step, is_fraction) if low < high else None


def _is_geometric(values: np.ndarray) -> bool:
    """Return whether the spacing is more even in logarithms; of two numbers, whether one is twice the other or more."""
    if (values <= 0).any():
        return False
    if len(values) == 2:
        return bool(values.max() >= 2 * values.min())
    gaps, ratios = np.abs(np.diff(values)), np.abs(np.diff(np.log(values)))
    return bool(ratios.std() / ratios.mean() < gaps.std() / gaps.mean())


def _is_significant(
    results: Results, trials: pd.DataFrame, ranked: pd.DataFrame, parameter: str, axis: _Axis
) -> bool | None:  # fmt: skip
    """Return whether the best value, at an edge, is significantly better than the others; ``None`` if inconclusive."""
    values = numeric_column(ranked, parameter)
    if axis.kind != "choice" or len(axis.values) > MAX_COMPARED:
        # The values of a range are all different: compare the best configuration with the best inside.
        edges = axis.edges(values)
        inner = ranked.index[edges != edges[0]]
        if not len(inner):
            return None
        trials = results.trials[configuration_numbers(results).isin([ranked.index[0], inner[0]])]
    pairs = results.with_trials(trials).compare(parameter).pairs
    best = values.iloc[0]
    verdicts = pairs.loc[row_mask(pairs, {"first": best}) | row_mask(pairs, {"second": best}), "verdict"]
    if (verdicts == TIE).any():
        return False
    return True if len(verdicts) and (verdicts == BETTER).all() else None
