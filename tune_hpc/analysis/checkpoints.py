"""Retained checkpoints of the trials of a search, and the models in them."""

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_hpc.analysis.aggregation import COMPLETED, configuration_numbers, numeric_column
from tune_hpc.analysis.ranking import best_configuration
from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results
    from tune_hpc.learning.models import SingleModel

#: Columns with the step of the value that ranks trials, by metric.
_STEPS = {"best_valid_accuracy": "selected_step", "best_test_accuracy": "best_step"}


def best_checkpoint(results: "Results") -> Path:
    """Return the retained checkpoint of the best trial of the best configuration; see ``Results.best_checkpoint``."""
    best, others = best_trials(results)
    trial_ids = [*best, *others]
    folder = _folder(results)
    retained = next((trial_id for trial_id in trial_ids if folder.retained_steps(trial_id)), trial_ids[0])
    if retained not in best:
        warnings.warn(
            f"no state of the best trial {trial_ids[0]} was retained; this is the next best, {retained}", stacklevel=3
        )
    return checkpoint(results, retained)


def best_trials(results: "Results") -> tuple[list[str], list[str]]:
    """Return the completed trials of the best configuration, and all others, best first."""
    numbers = configuration_numbers(results)
    ranked = results.trials.assign(configuration=numbers, value=numeric_column(results.trials, results.metric))
    ranked = ranked[ranked["status"].isin(COMPLETED)].sort_values(
        "value", ascending=results.is_lower_better(results.metric), kind="stable"
    )
    is_best = ranked["configuration"] == best_configuration(results, results.metric, None).name
    return list(ranked.loc[is_best, "trial_id"]), list(ranked.loc[~is_best, "trial_id"])


def checkpoint(results: "Results", trial_id: str) -> Path:
    """Return the retained checkpoint of a trial; see ``Results.checkpoint``."""
    folder = _folder(results)
    steps = folder.retained_steps(trial_id)
    if not steps:
        policy = results.experiment.get("keep_checkpoints", "none")
        raise FolderError(
            f"no checkpoint of {trial_id} was retained in {folder.uri}: keep_checkpoints is {policy}, and a function "
            "must offer states to checkpoint.save or checkpoint.keep; if it does, the log of the trial has the reason"
        )
    step = nearest_step(steps, _counting_step(results, trial_id))
    assert step is not None
    path = folder.retained_checkpoint(trial_id, step)
    folder.storage.download(path)
    return path


def load_model(results: "Results", trial_id: str | None = None) -> "SingleModel":
    """Return the built-in model in a retained checkpoint; see ``Results.load_model``."""
    from tune_hpc.learning.checkpoint import load_state
    from tune_hpc.learning.models import SingleModel

    path = best_checkpoint(results) if trial_id is None else checkpoint(results, trial_id)
    state = load_state(path)
    if not isinstance(state, dict) or "weights" not in state or "config" not in state:
        raise FolderError(
            f"{path} is not a built-in model; tune_hpc.load_state(path) returns the state that the function offered"
        )
    return SingleModel(state["config"], state["weights"])


def _folder(results: "Results") -> ExperimentFolder:
    if results.folder is None:
        raise FolderError(f"the results of {results.name} have no folder with checkpoints; load them from one")
    return ExperimentFolder(results.folder)


def _counting_step(results: "Results", trial_id: str) -> float:
    """Return the step whose value ranks the trial: that of the best value, or infinity for the last one."""
    metric = results.metric
    trial = results.trials[results.trials["trial_id"] == trial_id].iloc[0]
    if metric in _STEPS:
        return float(trial[_STEPS[metric]])
    history = results.history
    if results.experiment.get("judge") != "best" or metric not in history:
        return math.inf
    values = history[history["trial_id"] == trial_id].dropna(subset=[metric]).set_index("step")[metric]
    best: Any = values.idxmin() if results.is_lower_better(metric) else values.idxmax()
    return float(best)


def nearest_step(steps: Iterable[int], step: float) -> int | None:
    """Return the step that is nearest to another one, the later one of two; the last one for infinity."""
    return max(steps, key=lambda number: (-abs(number - step) if step < math.inf else 0.0, number), default=None)
