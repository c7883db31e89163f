"""Ray Tune callback on the driver: counts trials, shows progress, and records trials whose process died."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import ray
from ray import tune
from ray.tune.experiment import Trial

from tune_hpc.search.experiment import Experiment
from tune_hpc.search.fused_trials import running_trials
from tune_hpc.search.progress import ProgressFile, SearchProgress, TrialCounts
from tune_hpc.search.stopping import StopCriteria
from tune_hpc.search.trial_spec import TrialGroup, TrialSpec
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter


class SearchCallback(tune.Callback):
    """Callback of all searches of a run, whose experiments and folders it receives by name.

    The criteria receive the values of trials that ended. ``stream`` is that of the progress; default: standard error.
    """

    def __init__(
        self,
        experiments: Mapping[str, Experiment],
        folders: Mapping[str, ExperimentFolder],
        show_progress: bool,
        criteria: StopCriteria,
        stream: TextIO | None = None,
    ) -> None:
        self.counts = {name: TrialCounts(experiment.num_trials) for name, experiment in experiments.items()}
        self.experiments = experiments
        self.folders = folders
        self.progress: SearchProgress | None = None
        if show_progress:
            metrics = {name: experiment.metric for name, experiment in experiments.items()}
            self.progress = SearchProgress(self.counts.values(), metrics, stream)
        self.criteria = criteria
        self._running: dict[str, Trial] = {}  # by Ray's trial identifier
        self._paused: list[TrialSpec] = []
        self._spans: dict[str, tuple[float, float]] = {}
        self._files: list[ProgressFile] = []

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its callbacks for Tuner.restore, which is not used; a terminal cannot be pickled.
        return {}

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Install the signal handlers: Ray Tune has installed its handlers before this call."""
        self.criteria.install_signal_handlers()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record that a group runs."""
        self._running[trial.trial_id] = trial
        self._forget_paused(_group(trial).trials)
        self._update(_group(trial).experiment)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Record the values of trials, and their ends in the last result of a group."""
        group = _group(trial)
        experiment = self.experiments[group.experiment]
        counts = self.counts[experiment.name]
        is_last = result.get("last") and self._running.pop(trial.trial_id, None) is not None
        specs = {spec.trial_id: spec for spec in group.trials}
        for line in result.get("trials", ()):
            status = line.get("status", "running")
            if status in ("running", "finished", "stopped"):
                counts.record_value(experiment.name, line["trial_id"], line["value"], experiment.mode)
            if is_last and status == "running":
                self._paused.append(specs[line["trial_id"]])
            elif is_last:
                counts.ended[status] += 1
                if status in ("finished", "stopped"):
                    self.criteria.record_value(line["value"], experiment.mode)
        self._update(experiment.name)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record a trial that its scheduler stopped: its process cannot."""
        # Ray Tune also reports trials that it killed; these are not done.
        if trial.trial_id not in self._running or not trial.last_result.get("done"):
            return
        group = _group(self._running.pop(trial.trial_id))
        for spec in running_trials(group, self.folders[group.experiment]):
            self.record_stopped(spec, trial.last_result.get("step", 0))
        self._update(group.experiment)

    def record_stopped(self, trial: TrialSpec, steps: int) -> None:
        """Record that a scheduler stopped a trial after a number of steps."""
        folder = self.folders[trial.experiment]
        scheduler = self.experiments[trial.experiment].scheduler
        outcome = {"status": "stopped", "stop_reason": f"stopped by {scheduler} at step {steps}"}
        # Without a trial file, as on a storage that lags behind, the row has only this.
        _record_end(folder, trial.columns() | {"steps_run": steps}, outcome)
        folder.delete_checkpoint(trial.trial_id)
        self.counts[trial.experiment].ended["stopped"] += 1
        self._forget_paused([trial])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Record the trials of a process that died."""
        if self._running.pop(trial.trial_id, None) is None:
            return
        group = _group(trial)
        folder = self.folders[group.experiment]
        # Ray offers its knowledge of the error nowhere else; the storage receives a copy later.
        text = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        # In a sequential group, some trials have recorded their ends before, and some have not started.
        failed = running_trials(group, folder)
        is_single = failed and (group.is_sequential or len(group.trials) == 1)
        log = folder.log(failed[0].trial_id if is_single else group.group_id)
        log.parent.mkdir(parents=True, exist_ok=True)
        folder.storage.download(log)
        folder.storage.append(log, text)
        outcome = {"status": "failed", "stop_reason": "process died", "error": _summary(text)}
        for spec in failed:
            _record_end(folder, spec.columns(), outcome)
        rows = [folder.read_row(spec.trial_id) for spec in group.trials]
        self.counts[group.experiment].ended.update(row["status"] for row in rows if row is not None)
        self._update(group.experiment)

    def unfinished(self, experiment: str) -> list[TrialSpec]:
        """Return the trials of an experiment that were running when the run ended, or had saved their states."""
        running = [
            spec
            for group in map(_group, self._running.values())
            if group.experiment == experiment
            for spec in running_trials(group, self.folders[experiment])
        ]
        return running + [trial for trial in self._paused if trial.experiment == experiment]

    @property
    def any_running(self) -> bool:
        """Return whether any trial has started and neither ended nor saved its state."""
        return bool(self._running)

    def kill_running(self) -> None:
        """Kill the processes of all running trials; Ray Tune would wait ten seconds for each."""
        for trial in self._running.values():
            if trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)

    @property
    def num_ended(self) -> int:
        """Number of trials that ended, in this run or before it."""
        return sum(counts.num_ended for counts in self.counts.values())

    def start(self) -> None:
        """Start to publish progress; the trials that ended before this run have been counted."""
        self._files = [ProgressFile(folder, self.counts[name]) for name, folder in self.folders.items()]
        self.show()

    def show(self, *, is_last: bool = False) -> None:
        """Update the progress bar and the progress files."""
        if self.progress:
            self.progress.update()
        for file in self._files:
            file.write(is_last=is_last)

    def seconds(self, experiment: str) -> float:
        """Return the seconds from the start of an experiment's first trial to the end of its last one."""
        first, last = self._spans.get(experiment, (0.0, 0.0))
        return last - first

    def _forget_paused(self, trials: Iterable[TrialSpec]) -> None:
        names = {(trial.experiment, trial.trial_id) for trial in trials}
        self._paused = [trial for trial in self._paused if (trial.experiment, trial.trial_id) not in names]

    def _update(self, experiment: str) -> None:
        now = time.perf_counter()
        self._spans[experiment] = (self._spans.get(experiment, (now,))[0], now)
        self.counts[experiment].running = sum(
            1 if group.is_sequential else len(group.trials)
            for group in map(_group, self._running.values())
            if group.experiment == experiment
        )
        self.show()


def _record_end(folder: ExperimentFolder, row: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
    """Record the end of a trial in its file, or in a new file with the columns that are known.

    Raises:
        ConflictError: Another attempt may write now.
    """
    folder.check_attempt()
    trial_id = row["trial_id"]
    if folder.read_row(trial_id) is not None:
        folder.update_status(trial_id, outcome)
    else:
        folder.write_trial(trial_id, {"attempt": folder.attempt, **row, **outcome}, TrialFileWriter({}).history())


def _group(trial: Trial) -> TrialGroup:
    group: TrialGroup = trial.config["group"]
    return group


def _summary(text: str) -> str:
    """Return Ray's report on a lost process without its identifiers and guesses."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else "Ray gives no reason"
    detail = last.rpartition("Worker exit detail:")[2].partition("Some common causes")[0].strip().rstrip(".")
    return f"the trial's process died: {detail}; lack of memory is the usual cause; see the log of the trial"
