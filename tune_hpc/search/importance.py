"""Which parameters decide whether a configuration is among the best, by Optuna.

PED-ANOVA (Watanabe et al. 2023) holds the values of the best configurations against those of all: a parameter of which
the best ones have other values than the rest is important. It knows conditions, and needs no model.
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

#: The best of a search are a tenth of it, but at least five: Optuna's authors say that fewer tell little.
PART, LEAST_BEST = 0.1, 5
#: Then half of the configurations are among the best.
LEAST = 2 * LEAST_BEST


def importance(results: Results) -> pd.DataFrame:
    """Say which parameters decide whether a configuration is among the best tenth, or the best five.

    Configurations of which a seed diverged or failed, or that a scheduler stopped, do not count: these have no value
    that could be held against the others'.

    Args:
        results: A search over parameters that vary.

    Returns:
        One row per parameter that varies, the most important first: ``parameter``, named as ``to_optuna`` names it (one
        with several cases has a row for each: ``learning_rate[optimizer=adam]``), ``importance``: a fraction; all of
        them add up to 1.

    Raises:
        UnknownNameError: no column of the metric, nothing varies, less than ten configurations with a value, or values
            so much alike that no configuration is among the best.

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
        raise UnknownNameError(f"nothing varies in {results.name}, so nothing is important")
    if len(valued) < LEAST:
        raise UnknownNameError(
            f"importance takes at least {LEAST} configurations that finished; {results.name} has {len(valued)}"
        )
    found = _importances(study, max(PART, LEAST_BEST / len(valued)), names)
    if not sum(found.values()):
        raise UnknownNameError(f"the values of {results.metric} in {results.name} are too much alike to say")
    df = pd.DataFrame({"parameter": names, "importance": [found[name] for name in names]})
    df["importance"] /= df["importance"].sum()
    return df.sort_values("importance", ascending=False, kind="stable", ignore_index=True)


def _importances(study: optuna.Study, part: float, names: list[str]) -> dict[str, float]:
    with warnings.catch_warnings():
        # Optuna remarks on its own experimental options, and on cases of few trials.
        warnings.simplefilter("ignore")
        evaluator = PedAnovaImportanceEvaluator(target_quantile=part)
        return get_param_importances(study, evaluator=evaluator, params=names, normalize=False)
