"""Selection bias of the test set."""

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    describe_statuses,
    measured_configurations,
    searched_parameters,
    sort_configurations,
    trial_values,
)
from tune_hpc.analysis.intervals import student_interval
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

#: Test accuracy at the best step on the test set (the report's measure), at the best step on validation images (the
#: unbiased measure), and after the last step.
BEST, SELECTED, LAST = "best_test_accuracy", "selected_test_accuracy", "test_accuracy"


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
