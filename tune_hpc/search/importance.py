"""Parameter importance by PED-ANOVA (Watanabe et al., 2023), through Optuna.

The method compares the distribution of each parameter among the best configurations with that among all. It supports
conditional parameters, and needs no model.
"""

import math
import warnings

import optuna
import pandas as pd
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.search.searchers.optuna_study import study_of

#: Fraction of the best configurations, and their minimum number, which Optuna's authors recommend.
QUANTILE, MIN_BEST = 0.1, 5
#: Minimum number of configurations, of which at most half are the best.
MIN_CONFIGURATIONS = 2 * MIN_BEST


def importance(results: Results) -> pd.DataFrame:
    """Return the importance of each parameter for the best tenth of the configurations, at least five.

    Configurations are excluded if a seed diverged or failed, or if a scheduler stopped them: their values are not
    comparable.

    Args:
        results: A search over parameters that vary.

    Returns:
        One row per varied parameter, the most important first: ``parameter``, with the name of ``to_optuna`` (a
        conditional parameter has a row for each case: ``learning_rate[optimizer=adam]``), and ``importance``, a
        fraction. The fractions add up to 1.

    Raises:
        UnknownNameError: The metric has no column, nothing varies, fewer than ten configurations have a value, or their
            values are too similar.

    Source: Watanabe et al. 2023, PED-ANOVA (arXiv 2304.10255).

    Example:
        >>> from tune_hpc import importance, load
        >>> importance(load("docs/results/exercise2.softmax.shuffled")).round(3)
               parameter  importance
        0  learning_rate       0.529
        1      optimizer       0.471
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
    importances = _importances(study, max(QUANTILE, MIN_BEST / len(valued)), names)
    if not sum(importances.values()):
        raise UnknownNameError(f"the values of {results.metric} in {results.name} are too similar for importances")
    df = pd.DataFrame({"parameter": names, "importance": [importances[name] for name in names]})
    df["importance"] /= df["importance"].sum()
    return df.sort_values("importance", ascending=False, kind="stable", ignore_index=True)


def _importances(study: optuna.Study, quantile: float, names: list[str]) -> dict[str, float]:
    with warnings.catch_warnings():
        # Optuna warns of its experimental options, and of cases with few trials.
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
        return get_param_importances(study, evaluator=evaluator, params=names, normalize=False)
