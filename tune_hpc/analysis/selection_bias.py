"""Two checks on how a search was judged: by which images, and whether a general rule lost to its own special case."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    COMPLETED,
    check_columns,
    configuration_numbers,
    describe_statuses,
    measured_configurations,
    numeric_column,
    row_mask,
    sort_configurations,
)
from tune_hpc.analysis.comparison import BETTER, INCONCLUSIVE, Comparison
from tune_hpc.analysis.intervals import student_interval
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

#: The report's measure, the honest one, and what is left after the last step.
BEST, SELECTED, LAST = "best_test_accuracy", "selected_test_accuracy", "test_accuracy"

NO_WORSE, EQUAL = "no worse", "equal"
#: Optimizers that become another one with certain values of their own parameters: what must hold between them.
SPECIAL_CASES: tuple[tuple[str, str, str], ...] = (
    ("momentum", "gradient_descent", NO_WORSE),
    ("nesterov", "gradient_descent", NO_WORSE),
    ("adam", "momentum", NO_WORSE),
    ("adam", "rmsprop", NO_WORSE),
    ("proximal_gradient_descent", "gradient_descent", EQUAL),
    ("proximal_adagrad", "adagrad", EQUAL),
)
#: With one of these above 0 a proximal optimizer is no longer its special case.
PENALTIES = ("l1", "l2")
AS_EXPECTED, LOSES, DIFFERS = (
    "as it should be", "loses: its space or budget is too small", "differs: it should be equal",
)  # fmt: skip


def selection_bias(results: Results) -> pd.DataFrame:
    """Return the report's measure beside the honest one.

    Returns:
        One row per configuration, in the order in which they were tried, and a last one, where there is any, for the
        best one by the experiment's metric: what varies; ``num_seeds``; means over the seeds, as fractions, each with
        half of its 95 % interval (Student's; missing with one seed): ``best_test_accuracy`` (at the run's best moment
        on the test set) and ``best_test_accuracy_half``, ``selected_test_accuracy`` (at its best moment on validation
        images, the test set read once) and its ``_half``, ``test_accuracy`` (after the last step) and its ``_half``;
        ``selection_bias``, best less selected, seed by seed, and ``selection_bias_half``; ``is_chosen``: true of the
        last row.

    Raises:
        UnknownNameError: no trials, no such columns, or no trial with values in them: that takes images held back for
            validation.
    """
    for name in (BEST, SELECTED, LAST):
        if len(results.trials) and name not in results.trials:
            raise UnknownNameError(
                f"no {name} in the trials of {results.name} ({describe_statuses(results)}): both protocols take a test "
                "accuracy and a validation accuracy at the same steps"
            )
    configurations = measured_configurations(results, [BEST, SELECTED, LAST])
    trials, healthy = results.trials, results.trials["status"].isin(COMPLETED)
    df = pd.DataFrame({name: numeric_column(trials, name).where(healthy) for name in (BEST, SELECTED, LAST)})
    if df[[BEST, SELECTED]].isna().any(axis="columns").all():
        raise UnknownNameError(
            f"no trial of {results.name} has both {BEST} and {SELECTED} ({describe_statuses(results)})"
        )
    df["selection_bias"] = df[BEST] - df[SELECTED]
    seeds = trials["seed"] if "seed" in trials else pd.Series(range(len(trials)), index=trials.index)
    # A configuration that ran twice with one seed has one repeat there: their mean.
    by_seed = df.groupby([configuration_numbers(results).rename("configuration"), seeds.rename("seed")], dropna=False)
    over = by_seed.mean().groupby("configuration")
    means, deviations, counts = over.mean(), over.std(), over.count()
    keys = [name for name in results.varied_parameters if name != "seed"]
    table = configurations[[*keys, "num_seeds"]].copy()
    for name in map(str, df):
        factors = {number: student_interval(0.0, 1.0, number).half for number in counts[name].unique()}
        table[name] = means[name]
        # Seeds that change nothing are no repeats.
        table[f"{name}_half"] = (deviations[name] * counts[name].map(factors)).where(deviations[name] > 0)
    chosen = sort_configurations(results, configurations).index[:1]
    whole = pd.concat([table, table.loc[chosen]], ignore_index=True)
    return whole.assign(is_chosen=np.arange(len(whole)) >= len(table))


def special_cases(results: Results, parameter: str = "optimizer") -> pd.DataFrame:
    """Hold each optimizer against the ones that it contains: tuned well enough, it must not lose to them.

    Momentum without momentum is gradient descent, so the best of momentum's configurations is at least as good as the
    best of gradient descent's; where it is not, momentum was searched in the wrong place or not enough. A proximal
    optimizer without penalties is the plain one.

    Args:
        results: A search over optimizers.
        parameter: The column that names them.

    Returns:
        One row per pair of which both were tried: ``general``, ``special``; ``expected``: the general one is ``no
        worse``, or the two are ``equal``; ``difference``: general less special in the experiment's metric and its unit,
        ``low`` and ``high``: its interval, together with all other pairs of ``Results.compare``; ``verdict``: ``as it
        should be``, ``loses: its space or budget is too small``, ``differs: it should be equal``, or ``cannot tell``
        (one seed, or one of them never finished).

    Raises:
        UnknownNameError: no trials, no such parameter or metric, or no such pair among its values.

    Source: Choi et al. 2019, On Empirical Comparisons of Optimizers (arXiv 1910.05446).
    """
    check_columns(results, [results.metric])
    ranking = results.compare(parameter)
    tried = set(results.trials[parameter].dropna().unique())
    found = [pair for pair in SPECIAL_CASES if tried.issuperset(pair[:2])]
    if not found:
        raise UnknownNameError(
            f"no {parameter} of {results.name} stands beside a special case of it: {', '.join(sorted(map(str, tried)))}"
        )
    return pd.DataFrame([_held(results, ranking, parameter, *pair) for pair in found])


def _held(
    results: Results, ranking: Comparison, parameter: str, general: str, special: str, expected: str
) -> dict[str, Any]:
    if expected == EQUAL and _has_penalty(results, {parameter: general}):
        expected = NO_WORSE
    row = {"general": general, "special": special, "expected": expected}
    pairs = ranking.pairs
    is_first = row_mask(pairs, {"first": general, "second": special})
    own = pairs[is_first | row_mask(pairs, {"first": special, "second": general})]
    if own.empty:
        return row | {"difference": np.nan, "low": np.nan, "high": np.nan, "verdict": INCONCLUSIVE}
    told = own.iloc[0]
    leads = bool(is_first.any())
    low, high = (told["low"], told["high"]) if leads else (-told["high"], -told["low"])
    difference = told["difference"] if leads else -told["difference"]
    verdict = AS_EXPECTED
    if told["verdict"] == INCONCLUSIVE:
        # Without repeats, only what is the very same can be told.
        verdict = AS_EXPECTED if expected == EQUAL and difference == 0 else INCONCLUSIVE
    elif told["verdict"] == BETTER and expected == EQUAL:
        verdict = DIFFERS
    elif told["verdict"] == BETTER and not leads:
        verdict = LOSES
    return row | {"difference": float(difference), "low": float(low), "high": float(high), "verdict": verdict}


def _has_penalty(results: Results, where: Mapping[str, Any]) -> bool:
    own = results.trials[row_mask(results.trials, where)]
    return any((numeric_column(own, name) > 0).any() for name in PENALTIES)
