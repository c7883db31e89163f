"""Counts the trials of a run, shows progress, and records the ends of trials that could not record them themselves."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from tune_hpc.search.checkpoint_retention import SearchRetention
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.fused_trials import running_trials
from tune_hpc.search.progress import ProgressFile, SearchProgress, TrialCounts
from tune_hpc.search.stopping import StopCriteria
from tune_hpc.search.trial_errors import describe_death
from tune_hpc.search.trial_spec import TrialGroup, TrialSpec, budget_of
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter, now


class SearchMonitor:
    """Monitor of all searches of a run, whose experiments and folders it receives by name.

    Args:
        experiments: The experiments.
        folders: Their folders.
        criteria: Receive the values of trials that ended.
    """

    def __init__(
        self,
        experiments: Mapping[str, Experiment],
        folders: Mapping[str, ExperimentFolder],
        criteria: StopCriteria,
    ) -> None:
        self.counts = {name: TrialCounts(experiment.num_trials) for name, experiment in experiments.items()}
        self.experiments = experiments
        self.folders = folders
        self.criteria = criteria
        self.progress: SearchProgress | None = None
        self._running: dict[tuple[str, str], TrialGroup] = {}
        self._paused: list[TrialSpec] = []
        self._spans: dict[str, tuple[float, float]] = {}
        self._files: list[ProgressFile] = []
        self._ended_before: Counter[str] = Counter()
        self.retentions = {
            name: SearchRetention(folders[name], max(1, len(one.seeds)), one.mode, one.keep_checkpoints)
            for name, one in experiments.items()
        }

    def start(self, *, show_progress: bool, stream: TextIO | None = None, each_trial: bool = False) -> None:
        """Start to publish progress; the trials that ended before this run have been counted.

        Args:
            show_progress: Whether to show a bar or lines.
            stream: Their output stream; default: standard error.
            each_trial: Whether to show a line for each trial that ends, and no bar.
        """
        if show_progress:
            metrics = {name: experiment.metric for name, experiment in self.experiments.items()}
            self.progress = SearchProgress(self.counts.values(), metrics, stream, each_trial=each_trial)
        self._files = [ProgressFile(folder, self.counts[name]) for name, folder in self.folders.items()]
        self._ended_before = TrialCounts.total(self.counts.values()).ended
        self.show()

    def on_start(self, group: TrialGroup) -> None:
        """Record that a group runs."""
        self._running[_key(group)] = group
        self._forget_paused(group.trials)
        self._update(group.experiment)

    def on_result(self, group: TrialGroup, result: Mapping[str, Any]) -> None:
        """Record the values of trials, and their ends in the last result of a group."""
        experiment = self.experiments[group.experiment]
        counts = self.counts[experiment.name]
        is_last = result.get("last") and self._running.pop(_key(group), None) is not None
        specs = {spec.trial_id: spec for spec in group.trials}
        for line in result.get("trials", ()):
            status = line.get("status", "running")
            if total := budget_of(specs[line["trial_id"]].config, experiment.budget):
                counts.fractions[line["trial_id"]] = min(1.0, line.get("steps", 0) / total)
            if status in ("running", "finished", "stopped"):
                counts.record_value(experiment.name, line["trial_id"], line["value"], experiment.mode)
            else:
                counts.discard_value(experiment.name, line["trial_id"], experiment.mode)
            if is_last and status == "running":
                self._paused.append(specs[line["trial_id"]])
            elif is_last:
                spec = specs[line["trial_id"]]
                self.retentions[experiment.name].record_end(spec.trial_id, spec.config, status, line["value"])
                counts.ended[status] += 1
                counts.record_error(line["trial_id"], line.get("error", ""))
                if status in ("finished", "stopped"):
                    self.criteria.record_value(line["value"], experiment.mode)
        self._update(experiment.name)

    def on_scheduler_stop(self, group: TrialGroup, steps: int) -> None:
        """Record that a scheduler stopped the trials of a group after a number of steps."""
        if self._running.pop(_key(group), None) is not None:
            for spec in running_trials(group, self.folders[group.experiment]):
                self.record_stopped(spec, steps)
            self._update(group.experiment)

    def record_stopped(self, trial: TrialSpec, steps: int) -> None:
        """Record that a scheduler stopped a trial after a number of steps."""
        folder = self.folders[trial.experiment]
        scheduler = self.experiments[trial.experiment].scheduler
        outcome = {"status": "stopped", "stop_reason": f"stopped by {scheduler} at step {steps}"}
        # Without a trial file, as on a storage that lags behind, the row has only this.
        _record_end(folder, trial.columns() | {"steps_run": steps}, outcome)
        folder.delete_checkpoint(trial.trial_id)
        row = folder.read_row(trial.trial_id) or {}
        value = row.get(self.experiments[trial.experiment].metric)
        self.retentions[trial.experiment].record_end(trial.trial_id, trial.config, "stopped", value)
        self.counts[trial.experiment].ended["stopped"] += 1
        self._forget_paused([trial])

    def on_process_death(self, group: TrialGroup, error: str) -> None:
        """Record the trials of a process that died, with Ray's report on it."""
        if self._running.pop(_key(group), None) is None:
            return
        folder = self.folders[group.experiment]
        # In a sequential group, some trials have recorded their ends before, and some have not started.
        failed = running_trials(group, folder)
        is_single = failed and (group.is_sequential or len(group.trials) == 1)
        log = folder.log(failed[0].trial_id if is_single else group.group_id)
        log.parent.mkdir(parents=True, exist_ok=True)
        folder.storage.download(log)
        folder.storage.append(log, error)
        outcome = {"status": "failed", **describe_death(error)}
        for spec in failed:
            _record_end(folder, spec.columns(), outcome)
            self.retentions[group.experiment].record_end(spec.trial_id, spec.config, "failed", None)
            self.counts[group.experiment].record_error(spec.trial_id, outcome["error"])
        rows = [folder.read_row(spec.trial_id) for spec in group.trials]
        self.counts[group.experiment].ended.update(row["status"] for row in rows if row is not None)
        self._update(group.experiment)

    def unfinished(self, experiment: str) -> list[TrialSpec]:
        """Return the trials of an experiment that were running when the run ended, or had saved their states."""
        running = [
            spec
            for group in self._running.values()
            if group.experiment == experiment
            for spec in running_trials(group, self.folders[experiment])
        ]
        return running + [trial for trial in self._paused if trial.experiment == experiment]

    def is_running(self, group: TrialGroup) -> bool:
        """Return whether a group has started and neither ended nor saved its state."""
        return _key(group) in self._running

    @property
    def any_running(self) -> bool:
        """Return whether any group runs."""
        return bool(self._running)

    @property
    def num_ended(self) -> int:
        """Number of trials that ended, in this run or before it."""
        return sum(counts.num_ended for counts in self.counts.values())

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
        running = [group for group in self._running.values() if group.experiment == experiment]
        counts = self.counts[experiment]
        counts.running = sum(1 if group.is_sequential else len(group.trials) for group in running)
        trial_ids = {spec.trial_id for group in running for spec in group.trials}
        counts.fractions = {name: part for name, part in counts.fractions.items() if name in trial_ids}
        ended = TrialCounts.total(self.counts.values()).ended - self._ended_before
        self.criteria.record_failures(ended["failed"], ended.total())
        self.show()


def _key(group: TrialGroup) -> tuple[str, str]:
    return group.experiment, group.group_id


def _record_end(folder: ExperimentFolder, row: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
    """Record the end of a trial in its file, or in a new file with the columns that are known.

    Raises:
        ConflictError: Another attempt may write now.
    """
    folder.check_attempt()
    trial_id, outcome = row["trial_id"], {**outcome, "ended_at": now("milliseconds")}
    if folder.read_row(trial_id) is not None:
        folder.update_status(trial_id, outcome)
    else:
        folder.write_trial(trial_id, {"attempt": folder.attempt, **row, **outcome}, TrialFileWriter({}).history())
