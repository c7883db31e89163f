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
from tune_hpc.analysis.comparison import BETTER, INCONCLUSIVE, Comparison
from tune_hpc.analysis.intervals import student_interval
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

#: Test accuracy at the best step on the test set (the report's measure), at the best step on validation images (the
#: unbiased measure), and after the last step.
BEST, SELECTED, LAST = "best_test_accuracy", "selected_test_accuracy", "test_accuracy"

NO_WORSE, EQUAL = "no worse", "equal"
#: Optimizers that equal another optimizer for certain values of their parameters: general, special, expected relation.
SPECIAL_CASES: tuple[tuple[str, str, str], ...] = (
    ("momentum", "gradient_descent", NO_WORSE),
    ("nesterov", "gradient_descent", NO_WORSE),
    ("adam", "momentum", NO_WORSE),
    ("adam", "rmsprop", NO_WORSE),
    ("proximal_gradient_descent", "gradient_descent", EQUAL),
    ("proximal_adagrad", "adagrad", EQUAL),
)
#: A proximal optimizer with a positive penalty differs from its special case.
PENALTIES = ("l1", "l2")
AS_EXPECTED = "as expected"
LOSES = "loses: its space or budget is too small"
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


def special_cases(results: Results, parameter: str = "optimizer") -> pd.DataFrame:
    """Compare each optimizer with its special cases: tuned well enough, it is not worse.

    Momentum 0 is gradient descent, so the best configuration of momentum is at least as good as that of gradient
    descent. Otherwise momentum had the wrong space or too small a budget. A proximal optimizer without penalties equals
    the ordinary one.

    Args:
        results: A search over optimizers.
        parameter: The column with their names.

    Returns:
        One row per pair of tried optimizers: ``general``, ``special``; ``expected``: ``no worse`` or ``equal``;
        ``difference``: general less special in the experiment's metric, ``low`` and ``high``: its interval,
        simultaneous with all other pairs of ``Results.compare``; ``verdict``: ``as expected``, ``loses: its space or
        budget is too small``, ``differs: should be equal``, or ``inconclusive`` (one seed, or one never finished).

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
    return pd.DataFrame([_compare_pair(results, comparison, parameter, *pair) for pair in pairs])


def _compare_pair(
    results: Results, comparison: Comparison, parameter: str, general: str, special: str, expected: str
) -> dict[str, Any]:
    trials = results.trials[row_mask(results.trials, {parameter: general})]
    if expected == EQUAL and any((numeric_column(trials, name) > 0).any() for name in PENALTIES):
        expected = NO_WORSE
    row = {"general": general, "special": special, "expected": expected}
    pairs = comparison.pairs
    is_first = row_mask(pairs, {"first": general, "second": special})
    found = pairs[is_first | row_mask(pairs, {"first": special, "second": general})]
    if found.empty:
        return row | {"difference": np.nan, "low": np.nan, "high": np.nan, "verdict": INCONCLUSIVE}
    pair, general_leads = found.iloc[0], bool(is_first.any())
    low, high = (pair["low"], pair["high"]) if general_leads else (-pair["high"], -pair["low"])
    difference = pair["difference"] if general_leads else -pair["difference"]
    verdict = AS_EXPECTED
    if pair["verdict"] == INCONCLUSIVE:
        # Without repeats, only identical values are conclusive.
        verdict = AS_EXPECTED if expected == EQUAL and difference == 0 else INCONCLUSIVE
    elif pair["verdict"] == BETTER and expected == EQUAL:
        verdict = DIFFERS
    elif pair["verdict"] == BETTER and not general_leads:
        verdict = LOSES
    return row | {"difference": float(difference), "low": float(low), "high": float(high), "verdict": verdict}
