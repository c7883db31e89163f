"""Selection bias of the test set, and consistency of optimizers with their special cases."""

from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    check_columns,
    describe_statuses,
    measured_configurations,
    numeric_column,
    row_mask,
    searched_parameters,
    sort_configurations,
    trial_values,
)
from tune_hpc.analysis.comparison import INCONCLUSIVE, Comparison
from tune_hpc.analysis.intervals import ROUNDING, default_margin, non_inferiority, student_interval
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

#: Test accuracy at the best step on the test set (the report's measure), at the best step on validation images (the
#: unbiased measure), and after the last step.
BEST, SELECTED, LAST = "best_test_accuracy", "selected_test_accuracy", "test_accuracy"

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


def selection_bias(results: Results) -> pd.DataFrame:
    """Compare test accuracies selected on the test set with those selected on validation images.

    Returns:
        One row per configuration, in the order of their first trials, and a last row for the best configuration by the
        experiment's metric, if there is one: the varied parameters; ``num_seeds``; means over the seeds (fractions),
        each with the half-width of Student's 95 % interval (``_half``; missing with one seed): ``best_test_accuracy``
        (at the best step on the test set), ``selected_test_accuracy`` (at the best step on validation images),
        ``test_accuracy`` (after the last step) and ``selection_bias`` (best less selected, by seed); ``is_chosen``:
        true for the last row.

    Raises:
        UnknownNameError: There are no trials, no such columns, or no trial with values in them; they need images that
            are reserved for validation.
    """
    for name in (BEST, SELECTED, LAST):
        if len(results.trials) and name not in results.trials:
            raise UnknownNameError(
                f"no {name} in the trials of {results.name} ({describe_statuses(results)}); selection bias needs test "
                "and validation accuracies at the same steps"
            )
    configurations = measured_configurations(results, [BEST, SELECTED, LAST])
    df = trial_values(results, [BEST, SELECTED, LAST])
    if df[[BEST, SELECTED]].isna().any(axis="columns").all():
        raise UnknownNameError(
            f"no trial of {results.name} has both {BEST} and {SELECTED} ({describe_statuses(results)})"
        )
    df["selection_bias"] = df[BEST] - df[SELECTED]
    # Trials with the same configuration and seed are one repeat: their mean.
    by_configuration = df.groupby(["configuration", "seed"], dropna=False).mean().groupby("configuration")
    means, deviations, counts = by_configuration.mean(), by_configuration.std(), by_configuration.count()
    table = configurations[[*searched_parameters(results), "num_seeds"]].copy()
    for name in (BEST, SELECTED, LAST, "selection_bias"):
        factors = {number: student_interval(0.0, 1.0, number).half for number in counts[name].unique()}
        table[name] = means[name]
        # Identical values have no interval.
        table[f"{name}_half"] = (deviations[name] * counts[name].map(factors)).where(deviations[name] > 0)
    best = sort_configurations(results, configurations).index[:1]
    is_chosen = np.arange(len(table) + len(best)) >= len(table)
    return pd.concat([table, table.loc[best]], ignore_index=True).assign(is_chosen=is_chosen)


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
