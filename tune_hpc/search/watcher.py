"""Follows a search from the driver: counts trials, shows them, and lists those whose process died."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from tune_hpc.analysis.folder import ExperimentFolder
from tune_hpc.analysis.results import TrialRecord, write_part
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.progress import SearchProgress, Tally
from tune_hpc.search.trial import identity


class Watcher(tune.Callback):
    """What Ray Tune tells of each trial.

    Args:
        num_trials: Trials in all.
        experiments: The experiments they belong to, by name.
        homes: Their folders, by name.
        show_progress: Whether to show how far the search is.
    """

    def __init__(
        self,
        num_trials: int,
        experiments: Mapping[str, Experiment],
        homes: Mapping[str, ExperimentFolder],
        show_progress: bool,
    ) -> None:
        self.tally = Tally(num_trials)
        self.experiments = experiments
        self.homes = homes
        self.progress: SearchProgress | None = None
        if show_progress:
            self.progress = SearchProgress(self.tally, {one.name: one.metric for one in experiments.values()})
        self._under_way: dict[str, Mapping[str, Any]] = {}
        self._spans: dict[str, tuple[float, float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles its callbacks for a restore that is never asked for; a terminal cannot be pickled.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a trial is under way."""
        self._under_way[trial.trial_id] = trial.config
        self._update(trial.config["experiment"])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a value, and whether it is the trial's last."""
        experiment = self.experiments[trial.config["experiment"]]
        if result.get("status", "finished") in ("finished", "stopped"):
            self.tally.note_value(experiment.name, trial.config["trial_id"], result.get("value"), experiment.mode)
        if result.get("last") and self._under_way.pop(trial.trial_id, None) is not None:
            self.tally.ended[result["status"]] += 1
        self._update(experiment.name)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """List a trial that could not list itself."""
        sample = self._under_way.pop(trial.trial_id, None)
        if sample is None:
            return
        home = self.homes[sample["experiment"]]
        # Ray has no other place yet for what it knows of the error; storage gets its copy later.
        told = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        log = home.log(sample["trial_id"])
        log.parent.mkdir(exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(told)
        row = identity(sample["experiment"], sample["trial_id"], sample["config"])
        row |= {"status": "failed", "stop_reason": "process died", "error": _in_one_line(told)}
        write_part(home.part(sample["trial_id"]), row, TrialRecord({}).history())
        self.tally.ended["failed"] += 1
        self._update(sample["experiment"])

    def unfinished(self, experiment: str) -> list[Mapping[str, Any]]:
        """Return the samples that were under way when the run ended."""
        return [sample for sample in self._under_way.values() if sample["experiment"] == experiment]

    def seconds(self, experiment: str) -> float:
        """Return how long it took from the start of an experiment's first trial to the end of its last."""
        first, last = self._spans.get(experiment, (0.0, 0.0))
        return last - first

    def _update(self, experiment: str) -> None:
        moment = time.perf_counter()
        self._spans[experiment] = (self._spans.get(experiment, (moment,))[0], moment)
        self.tally.running = len(self._under_way)
        if self.progress:
            self.progress.update()


def _in_one_line(told: str) -> str:
    """Return what Ray tells of a lost process without its identifiers and guesses."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    last = lines[-1] if lines else "Ray gives no reason"
    detail = last.rpartition("Worker exit detail:")[2].partition("Some common causes")[0].strip().rstrip(".")
    return f"the trial's process died: {detail}; lack of memory is the usual cause, its log may tell more"
