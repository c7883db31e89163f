"""One experiment of a run: its remaining trials, and the contents of its folder at the start and the end."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tune_hpc.analysis.frames import write_frames
from tune_hpc.analysis.loading import load
from tune_hpc.analysis.results import Results
from tune_hpc.search.experiment import ENDED, TRAIN, Experiment
from tune_hpc.search.monitor import SearchMonitor
from tune_hpc.search.options import PAUSING
from tune_hpc.search.provenance import record_repository
from tune_hpc.search.schedulers.ray_schedulers import monitored_metric
from tune_hpc.search.searchers.searcher import Searcher
from tune_hpc.search.stopping import StopCriteria
from tune_hpc.search.trial_spec import RankedMetric, TrialSpec
from tune_hpc.storage.experiment_folder import FORMAT, ExperimentFolder
from tune_hpc.storage.process import this_process
from tune_hpc.storage.trial_file import TrialFileWriter, now


@dataclass
class Search:
    """One experiment of a run.

    Attributes:
        experiment: The experiment.
        folder: Its folder.
        trainable: Its trainable, picklable for other machines.
        trials: Trials to run that are known beforehand.
        searcher: Suggests further trials; ``None``: there are none.
        before: Results of a resumed search so far.
        position: Position of the experiment in the run.
        claim: Prepares the folder of a new search.
        attempt: Number of the attempt of a new search; ``None``: the next one of its folder.
        description: Contents of experiment.json.
    """

    experiment: Experiment
    folder: ExperimentFolder
    trainable: str | Callable[..., Any]
    trials: list[TrialSpec] = field(default_factory=list)
    searcher: Searcher | None = None
    before: Results | None = None
    position: int = 0
    claim: Callable[[], None] = lambda: None
    attempt: int | None = None
    description: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the experiment."""
        return self.experiment.name

    @property
    def ended_before(self) -> Counter[str]:
        """Number of the trials that ended before this run, by status."""
        statuses = self.before.trials["status"] if self.before else ()
        return Counter(status for status in statuses if status in ENDED)

    @property
    def monitored(self) -> RankedMetric | None:
        """Metric that a Ray Tune scheduler monitors; the metrics of pausing trials are read at their pauses."""
        if self.experiment.scheduler in ("none", *PAUSING):
            return None
        return monitored_metric(self.experiment)

    @property
    def max_workers(self) -> int:
        """Maximum number of workers of a trial; 0: trials have no workers.

        Raises:
            InvalidSpaceError: The number is unknown: it is drawn from no list and no range of whole numbers.
        """
        space = self.experiment.space
        if self.trainable != TRAIN or "workers" not in space:
            return 0
        return int(max(space.reachable_values("workers")))

    @property
    def num_to_run(self) -> int:
        """Maximum number of trials that end in this run."""
        return self.experiment.num_trials - self.ended_before.total()

    def start(self, origin: Mapping[str, Any]) -> None:
        """Claim the folder of a new search, and write experiment.json.

        Args:
            origin: Provenance of this run.
        """
        earlier = self.before.experiment if self.before else {}
        if self.before:
            shutil.rmtree(self.folder.ray, ignore_errors=True)
        else:
            last = self.folder.last_attempt()
            self.claim()
            self.folder.claim_attempt(last, self.attempt)
            if self.searcher:
                self.searcher.write_initial_state()
        origin = {**origin, **record_repository(self.trainable, self.folder)}
        provenance = dict(earlier.get("provenance") or origin)
        if self.before:
            provenance["continued"] = [*provenance.get("continued", []), dict(origin)]
        keys = [*earlier.get("config_keys", []), *(key for trial in self.trials for key in trial.config)]
        keys += self.searcher.config_keys if self.searcher else []
        self.description = self.experiment.to_json() | {
            "format": FORMAT,
            "position": earlier.get("position", self.position),
            "config_keys": list(dict.fromkeys(keys)),
            "state": "running",
            "attempt": self.folder.attempt,
            "process": this_process(),
            "provenance": provenance,
        }
        self.folder.write(self.description)
        if self.searcher:
            self.searcher.note_config_keys = self._add_config_keys

    def _add_config_keys(self, keys: Iterable[str]) -> None:
        """Add keys of configurations, which an adaptive searcher determines during the search."""
        self.description["config_keys"] = list(dict.fromkeys([*self.description["config_keys"], *keys]))
        self.folder.write(self.description)

    def finish(self, monitor: SearchMonitor, criteria: StopCriteria) -> Results:
        """Write the two frames from the trial files; delete these if all trials have ended.

        An interrupted trial has the status ``running`` and a checkpoint.

        Args:
            monitor: Monitor of the run.
            criteria: Stop criteria of the run.

        Raises:
            ConflictError: Another attempt may write now; nothing was written.
        """
        folder = self.folder
        folder.check_attempt()
        unfinished = monitor.unfinished(self.name)
        for trial in unfinished:
            if not folder.storage.exists(folder.trial_file(trial.trial_id)):
                row = trial.columns() | {"status": "running", "attempt": folder.attempt}
                folder.write_trial(trial.trial_id, row, TrialFileWriter({}).history())
        results = load(folder.path)
        folder.check_attempt()
        write_frames(folder, results.trials, results.history)
        # Trials that Ray Tune requested but did not start are in no list; the count shows that they are missing.
        has_all = len(results.trials) == self.description["num_trials"]
        is_complete = has_all and not unfinished and set(results.counts()) <= set(ENDED)
        provenance = self.description["provenance"]
        times = {"finished": now(), "wall_s": provenance.get("wall_s", 0.0) + monitor.seconds(self.name)}
        outcome = {
            "state": "finished" if is_complete else "stopped" if criteria.is_user_request else "interrupted",
            "ended_by": None if is_complete else criteria.reason,
            "is_to_be_requeued": not is_complete and criteria.is_warned,
            "is_terminated": not is_complete and criteria.is_terminated,
            "has_failed": not is_complete and criteria.has_failed,
            "process": None,
            "num_lines": folder.num_lines(),
            "provenance": provenance | times,
        }
        folder.write(self.description | outcome)
        if is_complete:
            folder.storage.delete_tree(folder.trials)
        return load(folder.path)
