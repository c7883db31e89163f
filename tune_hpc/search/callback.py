"""Follows a search from the driver: counts trials, shows them, and lists those whose process died."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import ray
from ray import tune
from ray.tune.experiment import Trial

from tune_hpc.search.experiment import Experiment
from tune_hpc.search.fused_trials import running_trials
from tune_hpc.search.limits import StopCriteria
from tune_hpc.search.progress import SearchProgress, TrialCounts
from tune_hpc.search.progress_file import ProgressFile
from tune_hpc.search.trial_runner import identity_columns
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.filesystem import delete, pull, push
from tune_hpc.storage.trial_file import TrialFileWriter, read_row, update_status, write_trial


class SearchCallback(tune.Callback):
    """What Ray Tune tells of each trial.

    Args:
        experiments: What is searched, by name.
        homes: Their folders, by name.
        show_progress: Whether to show how far the search is.
        limits: Told of the values of trials that ended.
        stream: Where to show it; standard error by default.
    """

    def __init__(
        self,
        experiments: Mapping[str, Experiment],
        homes: Mapping[str, ExperimentFolder],
        show_progress: bool,
        limits: StopCriteria,
        stream: TextIO | None = None,
    ) -> None:
        self.tallies = {name: TrialCounts(one.num_trials) for name, one in experiments.items()}
        self.experiments = experiments
        self.homes = homes
        self.progress: SearchProgress | None = None
        if show_progress:
            metrics = {name: one.metric for name, one in experiments.items()}
            self.progress = SearchProgress(self.tallies.values(), metrics, stream)
        self.limits = limits
        self._under_way: dict[str, Trial] = {}  # by Ray's own names
        self._saved: list[Mapping[str, Any]] = []
        self._spans: dict[str, tuple[float, float]] = {}
        self._files: list[ProgressFile] = []

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles its callbacks for a restore that is never asked for; a terminal cannot be pickled.
        return {}

    def setup(self, *arguments: Any, **info: Any) -> None:
        """Take interrupts and warnings: Ray Tune has set up its own handlers before it calls this."""
        self.limits.install_signal_handlers()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Note that a bundle is under way."""
        self._under_way[trial.trial_id] = trial
        self._forget_saved(trial.config["members"])
        self._update(_experiment(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Note the values of some trials, and whether they are the last ones."""
        experiment = self.experiments[_experiment(trial)]
        tally = self.tallies[experiment.name]
        is_last = result.get("last") and self._under_way.pop(trial.trial_id, None) is not None
        for member in result.get("members", ()):
            status = member.get("status", "running")
            if status in ("running", "finished", "stopped"):
                tally.note_value(experiment.name, member["trial_id"], member["value"], experiment.mode)
            if is_last and status == "running":
                names = {sample["trial_id"]: sample for sample in trial.config["members"]}
                self._saved.append(names[member["trial_id"]])
            elif is_last:
                tally.ended[status] += 1
                if status in ("finished", "stopped"):
                    self.limits.note(member["value"], experiment.mode)
        self._update(experiment.name)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """List a trial that its scheduler ended: its process cannot any more."""
        # Trials that an interrupt cuts off are told of here, too; these are not done.
        if trial.trial_id not in self._under_way or not trial.last_result.get("done"):
            return
        bundle = self._under_way.pop(trial.trial_id).config
        for sample in running_trials(bundle, self.homes[_experiment(trial)]):
            self.record_stopped(sample, trial.last_result.get("step", 0))
        self._update(_experiment(trial))

    def record_stopped(self, sample: Mapping[str, Any], steps: int) -> None:
        """List a trial that its scheduler ended.

        Args:
            sample: The trial.
            steps: How far it came.
        """
        experiment = self.experiments[sample["experiment"]]
        home = self.homes[experiment.name]
        # Storage may lag behind: what the trial reported is then not here, but that it was stopped is known.
        row = identity_columns(experiment.name, sample["trial_id"], sample["config"]) | {"steps_run": steps}
        _end(home, row, {"status": "stopped", "stop_reason": f"stopped by {experiment.scheduler} at step {steps}"})
        delete(home.checkpoint(sample["trial_id"]))
        self.tallies[experiment.name].ended["stopped"] += 1
        self._forget_saved([sample])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """List trials that could not list themselves."""
        if self._under_way.pop(trial.trial_id, None) is None:
            return
        bundle = trial.config
        home = self.homes[_experiment(trial)]
        # Ray has no other place yet for what it knows of the error; storage gets its copy later.
        told = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
        # Of a bundle whose trials ran one by one some may have listed themselves before, and some are yet to begin.
        at_fault = running_trials(bundle, home)
        is_one_s = at_fault and (bundle.get("in_turn") or len(bundle["members"]) == 1)
        log = home.log(at_fault[0]["trial_id"] if is_one_s else bundle["bundle_id"])
        log.parent.mkdir(parents=True, exist_ok=True)
        pull(log)
        with log.open("a", encoding="utf-8") as file:
            file.write(told)
        push(log)
        for sample in at_fault:
            row = identity_columns(sample["experiment"], sample["trial_id"], sample["config"])
            _end(home, row, {"status": "failed", "stop_reason": "process died", "error": _in_one_line(told)})
        ended = [read_row(home.part(sample["trial_id"])) for sample in bundle["members"]]
        self.tallies[_experiment(trial)].ended.update(row["status"] for row in ended if row is not None)
        self._update(_experiment(trial))

    def unfinished(self, experiment: str) -> list[Mapping[str, Any]]:
        """Return the samples that were under way when the run ended, or had saved their state for that."""
        kill_running = [
            sample
            for trial in self._under_way.values()
            if _experiment(trial) == experiment
            for sample in running_trials(trial.config, self.homes[experiment])
        ]
        return kill_running + [sample for sample in self._saved if sample["experiment"] == experiment]

    @property
    def is_any_under_way(self) -> bool:
        """Whether any trial has begun and neither ended nor saved its state."""
        return bool(self._under_way)

    def kill_running(self) -> None:
        """End the processes of all that is under way; Ray Tune would ask each, and wait ten seconds for its answer."""
        for trial in self._under_way.values():
            if trial.temporary_state.ray_actor is not None:
                ray.kill(trial.temporary_state.ray_actor)

    @property
    def num_ended(self) -> int:
        """How many trials ended, in this run or before it."""
        return sum(tally.num_ended for tally in self.tallies.values())

    def begin(self) -> None:
        """Tell others how far the search is, from now on; what ended before this run is noted by now."""
        self._files = [ProgressFile(home, self.tallies[name]) for name, home in self.homes.items()]
        self.show()

    def show(self, *, is_last: bool = False) -> None:
        """Show how far the search is, be there news or not."""
        if self.progress:
            self.progress.update()
        for file in self._files:
            file.write(is_last=is_last)

    def seconds(self, experiment: str) -> float:
        """Return how long it took from the start of an experiment's first trial to the end of its last."""
        first, last = self._spans.get(experiment, (0.0, 0.0))
        return last - first

    def _forget_saved(self, samples: Iterable[Mapping[str, Any]]) -> None:
        names = {(sample["experiment"], sample["trial_id"]) for sample in samples}
        self._saved = [one for one in self._saved if (one["experiment"], one["trial_id"]) not in names]

    def _update(self, experiment: str) -> None:
        moment = time.perf_counter()
        self._spans[experiment] = (self._spans.get(experiment, (moment,))[0], moment)
        self.tallies[experiment].running = sum(
            1 if trial.config.get("in_turn") else len(trial.config["members"])
            for trial in self._under_way.values()
            if _experiment(trial) == experiment
        )
        self.show()


def _end(home: ExperimentFolder, row: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Say how a trial ended, in the file that it left, or else in one with what is known of it.

    Raises:
        ConflictError: another attempt may write now.
    """
    home.check_attempt()
    part = home.part(row["trial_id"])
    if pull(part):
        update_status(part, told)
    else:
        write_trial(part, {"attempt": home.attempt, **row, **told}, TrialFileWriter({}).history())


def _experiment(trial: Trial) -> str:
    return str(trial.config["members"][0]["experiment"])


def _in_one_line(told: str) -> str:
    """Return what Ray tells of a lost process without its identifiers and guesses."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    last = lines[-1] if lines else "Ray gives no reason"
    detail = last.rpartition("Worker exit detail:")[2].partition("Some common causes")[0].strip().rstrip(".")
    return f"the trial's process died: {detail}; lack of memory is the usual cause, its log may tell more"
