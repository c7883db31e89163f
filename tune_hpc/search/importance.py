"""Parameter importance by PED-ANOVA (Watanabe et al., 2023), through Optuna.

The method compares the distribution of each parameter among the best configurations with that among all. It supports
conditional parameters, and needs no model. It uses the ranks of the configurations only, so that a logarithm of the
metric would change nothing.
"""

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import optuna
import pandas as pd
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from tune_hpc.analysis.aggregation import trial_values
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.stability import resampled_units
from tune_hpc.errors import UnknownNameError
from tune_hpc.search.searchers.optuna_study import study_of

#: Fraction of the best configurations, and their minimum number, which Optuna's authors recommend.
QUANTILE, MIN_BEST = 0.1, 5
#: Minimum number of configurations, of which at most half are the best.
MIN_CONFIGURATIONS = 2 * MIN_BEST
#: Bootstrap resamples; each takes milliseconds.
NUM_RESAMPLES = 200


def importance(results: Results) -> pd.DataFrame:
    """Return the importance of each parameter for the best tenth of the configurations, at least five.

    Configurations are excluded if a seed diverged or failed, or if a scheduler stopped them: their values are not
    comparable. With several seeds, they are ranked by their means.

    The intervals are 95 % bootstrap intervals (percentiles). Seeds are resampled if all configurations have the same
    ones, otherwise configurations.

    Args:
        results: A search over parameters that vary.

    Returns:
        One row per varied parameter, the most important first: ``parameter``, with the name of ``to_optuna`` (a
        conditional parameter has a row for each case: ``learning_rate[optimizer=adam]``), ``importance``, a fraction,
        ``low`` and ``high`` (its interval), and ``resampled``: ``seeds`` or ``configurations``. The fractions add up
        to 1.

    Raises:
        UnknownNameError: The metric has no column, nothing varies, fewer than ten configurations have a value, or their
            values are too similar.

    Source: Watanabe et al. 2023, PED-ANOVA (arXiv 2304.10255).

    Example:
        >>> from tune_hpc import importance, load
        >>> importance(load("docs/results/exercise2.softmax.shuffled")).round(3)
               parameter  importance    low   high resampled
        0  learning_rate       0.529  0.471  0.584     seeds
        1      optimizer       0.471  0.416  0.529     seeds
    """
    if results.trials.empty:
        raise UnknownNameError(f"{results.name} has no trials")
    study = study_of(results)
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    valued = [trial for trial in complete if math.isfinite(trial.values[0])]
    names = list(dict.fromkeys(name for trial in valued for name in trial.params))
    if complete and not any(trial.params for trial in complete):
        raise UnknownNameError(f"nothing varies in {results.name}; importance needs a varied parameter")
    if len(valued) < MIN_CONFIGURATIONS:
        raise UnknownNameError(
            f"importance needs at least {MIN_CONFIGURATIONS} finished configurations; {results.name} has {len(valued)}"
        )
    means = np.array([trial.values[0] for trial in valued])
    values, counts, unit = _resamples(_values_by_seed(results, valued), means)
    values *= 1 if results.is_lower_better(results.metric) else -1
    shares = _shares(valued, names, values, counts)
    if np.isnan(shares[0]).all():
        raise UnknownNameError(f"the values of {results.metric} in {results.name} are too similar for importances")
    low, high = np.nanquantile(shares[1:], [0.025, 0.975], axis=0)
    df = pd.DataFrame({"parameter": names, "importance": shares[0], "low": low, "high": high, "resampled": unit})
    return df.sort_values("importance", ascending=False, kind="stable", ignore_index=True)


def _values_by_seed(results: Results, trials: Sequence[FrozenTrial]) -> np.ndarray:
    """Return a table of configurations by seeds, NaN where a configuration has no such seed."""
    numbers = {name: row for row, trial in enumerate(trials) for name in trial.user_attrs["trial_ids"]}
    df = trial_values(results, [results.metric]).assign(configuration=results.trials["trial_id"].map(numbers))
    return df.pivot_table(results.metric, "configuration", "seed").to_numpy()


def _resamples(by_seed: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Return values and multiplicities of the configurations, the first row without resampling; and the unit."""
    num_configurations, num_seeds = by_seed.shape
    if num_seeds > 1 and not np.isnan(by_seed).any():
        values = resampled_units(num_seeds, NUM_RESAMPLES) @ by_seed.T
        return np.vstack([means, values]), np.ones((NUM_RESAMPLES + 1, num_configurations)), "seeds"
    counts = resampled_units(num_configurations, NUM_RESAMPLES) * num_configurations
    return np.tile(means, (NUM_RESAMPLES + 1, 1)), np.vstack([np.ones_like(means), counts.round()]), "configurations"


def _shares(trials: list[FrozenTrial], names: list[str], values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the importances for each row of values (lower is better) and multiplicities; NaN if all are 0."""
    study = optuna.create_study()
    study.add_trials(trials * int(counts.max()))
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(QUANTILE, MIN_BEST / len(trials)))
    rows = []
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        # Optuna warns of its experimental options, and of cases with few trials.
        warnings.simplefilter("ignore")
        for value, count in zip(values, counts, strict=True):
            importances = evaluator.evaluate(study, names, target=_target(value, count))
            row = np.array([importances[name] for name in names])
            rows.append(row / row.sum())
    return np.array(rows)


def _target(values: np.ndarray, counts: np.ndarray) -> Callable[[FrozenTrial], float]:
    """Return the function that selects as many copies of each configuration as ``counts``: others are NaN."""

    def value_of(trial: FrozenTrial) -> float:
        copy, row = divmod(trial.number, len(values))
        return float(values[row]) if copy < counts[row] else math.nan

    return value_of
