"""Kept checkpoints of the trials of a search, and the models in them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_hpc.analysis.aggregation import COMPLETED, configuration_numbers, numeric_column
from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results
    from tune_hpc.learning.models import SingleModel

#: Columns with the step of the value that ranks trials, by metric.
_STEPS = {"best_valid_accuracy": "selected_step", "best_test_accuracy": "best_step"}


def best_checkpoint(results: "Results") -> Path:
    """Return the kept checkpoint of the best trial of the best configuration; see ``Results.best_checkpoint``."""
    best = results._best(None, None)
    is_best = (configuration_numbers(results) == best.name) & results.trials["status"].isin(COMPLETED)
    trials = results.trials[is_best.to_numpy()]
    ranked = trials.assign(value=numeric_column(trials, results.metric)).sort_values(
        "value", ascending=results.is_lower_better(results.metric), kind="stable"
    )
    folder = _folder(results)
    kept = [trial_id for trial_id in ranked["trial_id"] if folder.kept_steps(trial_id)]
    return checkpoint(results, kept[0] if kept else ranked["trial_id"].iloc[0])


def checkpoint(results: "Results", trial_id: str) -> Path:
    """Return the kept checkpoint of a trial; see ``Results.checkpoint``."""
    folder = _folder(results)
    steps = folder.kept_steps(trial_id)
    if not steps:
        policy = results.experiment.get("keep_checkpoints", "none")
        raise FolderError(
            f"no checkpoint of {trial_id} was kept in {folder.uri}: keep_checkpoints is {policy}, and a function keeps "
            "what it offers to checkpoint.save or checkpoint.keep; run the trial again with keep_checkpoints=all"
        )
    path = folder.kept_checkpoint(trial_id, _nearest(steps, _counting_step(results, trial_id)))
    folder.storage.download(path)
    return path


def load_model(results: "Results", trial_id: str | None = None) -> "SingleModel":
    """Return the built-in model in a kept checkpoint; see ``Results.load_model``."""
    from tune_hpc.learning.checkpoint import load_state
    from tune_hpc.learning.models import SingleModel

    path = best_checkpoint(results) if trial_id is None else checkpoint(results, trial_id)
    state = load_state(path)
    if "weights" not in state or "model" not in state.get("config", {}):
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
        return float("inf")
    values = history[history["trial_id"] == trial_id].dropna(subset=[metric]).set_index("step")[metric]
    best: Any = values.idxmin() if results.is_lower_better(metric) else values.idxmax()
    return float(best)


def _nearest(steps: list[int], step: float) -> int:
    return max(steps) if step == float("inf") else min(steps, key=lambda one: (abs(one - step), -one))
