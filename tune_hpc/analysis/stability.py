"""Stability of a search's outcome: over the seeds, and over the rungs of successive halving."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    configuration_numbers,
    filter_trials,
    measured_configurations,
    searched_parameters,
    sort_by_metric,
    trial_values,
)
from tune_hpc.errors import UnknownNameError

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results

#: The first rung of ``asha`` is at the number of steps divided by ``GRACE``. At each rung one of ``REDUCTION_FACTOR``
#: configurations is promoted, and the next rung is at as many times the steps.
GRACE, REDUCTION_FACTOR = 27, 3
NUM_RUNGS = round(math.log(GRACE, REDUCTION_FACTOR))
RUNGS = tuple(REDUCTION_FACTOR**rung / GRACE for rung in range(NUM_RUNGS))
#: Smallest number of configurations for a statement about rungs.
MIN_RUNG = 9
#: Bootstrap resamples.
NUM_RESAMPLES = 2000


def resampled_units(num_units: int, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """Return bootstrap weights of seeds or configurations (Efron, 1979), a row per resample; a row adds up to 1."""
    generator = np.random.default_rng(0)
    return generator.multinomial(num_units, np.full(num_units, 1 / num_units), num_resamples) / num_units


def selection_frequencies(results: "Results", where: Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Return how often each configuration is the best if the seeds are resampled (bootstrap).

    All configurations have the same resampled seeds. A configuration without a value for each seed is not selected.

    Args:
        results: A search with several seeds.
        where: Configuration values that select the trials, such as one optimizer.

    Returns:
        The selected configurations, the most frequent first: the varied parameters, the experiment's metric (mean over
        the seeds) and ``frequency``, a fraction.

    Raises:
        UnknownNameError: There are no trials, no values of the metric, or fewer than two seeds, or the seeds have no
            effect.

    Example:
        >>> from tune_hpc import load, selection_frequencies
        >>> results = load("docs/results/exercise2.softmax.shuffled")
        >>> selection_frequencies(results, {"optimizer": "adam"})[["learning_rate", "frequency"]].round(3)
           learning_rate  frequency
        0          0.005      0.679
        1          0.010      0.321
    """
    results = filter_trials(results, where)
    best = sort_by_metric(results, measured_configurations(results, []))
    values = trial_values(results, [results.metric]).pivot_table(results.metric, "configuration", "seed")
    values = values.loc[values.index.isin(best.index)].dropna()
    if values.shape[1] < 2 or values.empty:
        raise UnknownNameError(f"selection frequencies need two seeds of each configuration; {results.name} has fewer")
    if np.ptp(values, axis=1).max() == 0:
        raise UnknownNameError(f"selection frequencies need seeds with an effect; those of {results.name} have none")
    means = values.to_numpy() @ resampled_units(values.shape[1]).T
    selected = means.argmin(axis=0) if results.is_lower_better(results.metric) else means.argmax(axis=0)
    frequency = pd.Series(np.bincount(selected, minlength=len(values)) / NUM_RESAMPLES, index=values.index)
    columns = [*searched_parameters(results), results.metric]
    table = best[columns].assign(frequency=frequency).query("frequency > 0")
    return table.sort_values("frequency", ascending=False, kind="stable", ignore_index=True)


def rung_correlation(results: "Results") -> pd.DataFrame:
    """Compare the ranking of configurations at ASHA's rungs with the final one; see ``Results.rung_correlation``."""
    from scipy.stats import kendalltau

    # A running best, such as best_test_accuracy, has no history.
    column = results.metric if results.metric in results.history else results.metric.removeprefix("best_")
    curve = results.curve(column)
    if results.is_lower_better(results.metric):
        curve = -curve
    if column != results.metric:
        curve = curve.cummax()
    numbers = configuration_numbers(results).set_axis(results.trials["trial_id"].astype(str))
    curve = curve.reindex(columns=numbers.index)
    is_complete = curve.tail(1).notna().any().groupby(numbers).all()
    # Trials may be measured at different steps: the latest value counts.
    values = curve.ffill().T.groupby(numbers).mean().T.loc[:, is_complete]
    num_configurations = values.shape[1]
    if num_configurations < REDUCTION_FACTOR or len(values) < 2:
        raise UnknownNameError(
            f"a rank correlation needs {REDUCTION_FACTOR} configurations that ran all steps, and two measured steps; "
            f"{results.name} has {num_configurations} and {len(values)}"
        )
    final, last = values.iloc[-1].to_numpy(), int(values.index[-1])
    best = int(np.argmax(final))
    rows = []
    for step in dict.fromkeys(int(values.index[values.index >= fraction * last][0]) for fraction in RUNGS):
        now = values.loc[step].to_numpy()
        if np.isnan(now).any():
            continue
        rank = 1 + int((now > now[best]).sum())
        num_kept, tau = num_configurations // REDUCTION_FACTOR, float(kendalltau(now, final).statistic)
        rows.append((step, step / last, tau, num_configurations, num_kept, rank, rank <= num_kept))
    columns = ["step", "fraction", "kendall_tau", "num_configurations", "num_kept", "best_rank", "keeps_best"]
    return pd.DataFrame(rows, columns=columns)
