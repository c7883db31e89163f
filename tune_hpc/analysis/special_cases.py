"""Consistency of optimizers with their special cases."""

from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import check_columns, numeric_column, row_mask
from tune_hpc.analysis.comparison import INCONCLUSIVE, Comparison
from tune_hpc.analysis.intervals import ROUNDING, default_margin, non_inferiority
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

NO_WORSE, EQUAL = "no worse", "equal"
#: Penalties of proximal optimizers; with a positive penalty, the optimizer differs from its special case.
PENALTIES = ("l1", "l2")
#: Optimizers that equal another one for certain values of parameters: general, special, expected relation, parameters.
SPECIAL_CASES: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("momentum", "gradient_descent", NO_WORSE, ("momentum",)),
    ("nesterov", "gradient_descent", NO_WORSE, ("momentum",)),
    ("adam", "momentum", NO_WORSE, ("epsilon",)),
    ("adam", "rmsprop", NO_WORSE, ("beta1",)),
    ("proximal_gradient_descent", "gradient_descent", EQUAL, PENALTIES),
    ("proximal_adagrad", "adagrad", EQUAL, PENALTIES),
)
AS_EXPECTED = "as expected"
LOSES = "loses: its space or budget is too small"
NOT_INCLUDED = "loses: its space does not include the special case"
DIFFERS = "differs: should be equal"


def special_cases(results: Results, parameter: str = "optimizer", margin: float | None = None) -> pd.DataFrame:
    """Compare each optimizer with its special cases: tuned well enough, it is not worse.

    Momentum 0 is gradient descent, so the best configuration of momentum is at least as good as that of gradient
    descent, if the space includes momentum 0. Otherwise momentum had the wrong space or too small a budget. A proximal
    optimizer without penalties equals the ordinary one.

    Both expectations are tests with a margin, because an interval that includes 0 is no evidence: an optimizer is no
    worse if its interval excludes a loss of ``margin`` (non-inferiority), and equal if its interval excludes both
    differences of ``margin`` (equivalence), or if both values agree but for
    rounding errors.

    Args:
        results: A search over optimizers.
        parameter: The column with their names.
        margin: Largest irrelevant difference of the metric; by default 0.005 for an accuracy, otherwise 5 % of the
            special case's value.

    Returns:
        One row per pair of tried optimizers: ``general``, ``special``; ``expected``: ``no worse`` or ``equal``;
        ``difference``: general less special in the experiment's metric, ``low`` and ``high``: its interval,
        simultaneous with all other pairs of ``Results.compare``; ``margin``; ``verdict``: ``as expected``, ``loses: its
        space or budget is too small``, ``loses: its space does not include the special case`` (the parameter that makes
        the difference does not vary), ``differs: should be equal``, or ``inconclusive`` (too wide an interval, one
        seed, or an optimizer that never finished).

    Raises:
        UnknownNameError: There are no trials, no such parameter or metric, or no such pair among its values.

    Source: Choi et al. 2019, On Empirical Comparisons of Optimizers (arXiv 1910.05446).
    """
    check_columns(results, [results.metric])
    comparison = results.compare(parameter)
    tried = set(results.trials[parameter].dropna().unique())
    pairs = [pair for pair in SPECIAL_CASES if tried.issuperset(pair[:2])]
    if not pairs:
        names = ", ".join(sorted(map(str, tried)))
        raise UnknownNameError(f"no {parameter} of {results.name} has a special case among the others: {names}")
    return pd.DataFrame([_compare_pair(results, comparison, margin, *pair) for pair in pairs])


def _compare_pair(
    results: Results, comparison: Comparison, margin: float | None, general: str, special: str, expected: str,
    names: tuple[str, ...],
) -> dict[str, Any]:  # fmt: skip
    trials = results.trials[row_mask(results.trials, {comparison.parameter: general})]
    if expected == EQUAL and any((numeric_column(trials, name) > 0).any() for name in names):
        expected = NO_WORSE
    row: dict[str, Any] = {"general": general, "special": special, "expected": expected}
    pairs = comparison.pairs
    is_first = row_mask(pairs, {"first": general, "second": special})
    found = pairs[is_first | row_mask(pairs, {"first": special, "second": general})]
    if found.empty:
        numbers = ("difference", "low", "high", "margin")
        return row | dict.fromkeys(numbers, np.nan) | {"verdict": INCONCLUSIVE}
    difference, low, high = (float(found.iloc[0][name]) for name in ("difference", "low", "high"))
    if not is_first.any():
        difference, low, high = -difference, -high, -low
    value = abs(comparison.values.set_index(comparison.column)["mean"][special])
    margin = default_margin(comparison.metric, value) if margin is None else margin
    verdict = INCONCLUSIVE
    if expected == EQUAL:
        if abs(difference) <= ROUNDING * value or max(-low, high) < margin:
            verdict = AS_EXPECTED
        elif low > 0 or high < 0:
            verdict = DIFFERS
    else:
        is_no_worse = non_inferiority(*((-high, -low) if comparison.lower_is_better else (low, high)), margin)
        if is_no_worse:
            verdict = AS_EXPECTED
        elif is_no_worse is False:
            is_included = any(len(numeric_column(trials, name).drop_duplicates()) > 1 for name in names)
            verdict = LOSES if is_included else NOT_INCLUDED
    return row | {"difference": difference, "low": low, "high": high, "margin": margin, "verdict": verdict}
