"""One experiment of a run: what is left to do of it, and what its folder says when it begins and ends."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tune_hpc.analysis.frames import write_frames
from tune_hpc.analysis.results import Results, load
from tune_hpc.search.callback import SearchCallback
from tune_hpc.search.experiment import ENDED, TRAIN, Experiment
from tune_hpc.search.limits import StopCriteria
from tune_hpc.search.options import PAUSING
from tune_hpc.search.provenance import now
from tune_hpc.search.reporter import MonitoredMetric
from tune_hpc.search.schedulers.ray_schedulers import monitored_metric
from tune_hpc.search.searchers.searcher import Searcher
from tune_hpc.search.trial_runner import identity_columns
from tune_hpc.storage.experiment_folder import FORMAT, ExperimentFolder
from tune_hpc.storage.filesystem import delete_tree, pull
from tune_hpc.storage.process import this_process
from tune_hpc.storage.trial_file import TrialFileWriter, write_trial


@dataclass
class Search:
    """One experiment of a run.

    Attributes:
        experiment: What is searched.
        home: Its folder.
        trainable: As it reaches other machines.
        samples: The trials to run that are known beforehand.
        proposer: Proposes more of them.
        before: What the folder held, for a search that goes on.
        ended_before: How many trials had ended, by status.
        position: Its place in the run.
        claim: Makes the folder ready for a search that begins.
        number: The number of the attempt of a search that begins; by default the next one of its folder.
    """

    experiment: Experiment
    home: ExperimentFolder
    trainable: str | Callable[..., Any]
    samples: list[dict[str, Any]] = field(default_factory=list)
    proposer: Searcher | None = None
    before: Results | None = None
    ended_before: Counter[str] = field(default_factory=Counter)
    position: int = 0
    claim: Callable[[], None] = lambda: None
    number: int | None = None
    description: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment.name

    @property
    def watched(self) -> MonitoredMetric | None:
        """What a scheduler of Ray's is shown; trials that pause are looked at when they do."""
        if self.experiment.scheduler in ("none", *PAUSING):
            return None
        return monitored_metric(self.experiment.metric, self.experiment.mode, self.trainable == TRAIN)

    @property
    def most_workers(self) -> int:
        """How many workers a trial of its has at most; 0: it has none of its own.

        Raises:
            InvalidSpaceError: nobody can tell, for the number is drawn from no list and no range of whole numbers.
        """
        space = self.experiment.space
        if self.trainable != TRAIN or "workers" not in space:
            return 0
        return int(max(space.reachable_values("workers")))

    @property
    def attempt(self) -> int:
        """The number of this attempt, once the folder was claimed."""
        assert self.home.attempt is not None
        return self.home.attempt

    @property
    def num_to_run(self) -> int:
        """How many trials are to end in this run, at most."""
        return self.experiment.num_trials - self.ended_before.total()

    def begin(self, origin: Mapping[str, Any]) -> None:
        """Make the folder ready, and write what is going to happen into it.

        Args:
            origin: The provenance of this run.
        """
        earlier = self.before.experiment if self.before else {}
        if self.before:
            shutil.rmtree(self.home.ray, ignore_errors=True)
        else:
            last = self.home.last_attempt()
            self.claim()
            self.home.claim_attempt(last, self.number)
        own = dict(earlier.get("provenance") or origin)
        if self.before:
            own["continued"] = [*own.get("continued", []), dict(origin)]
        known = [*earlier.get("config_keys", []), *(key for one in self.samples for key in one["config"])]
        known += self.proposer.config_keys if self.proposer else []
        self.description = self.experiment.to_json() | {
            "format": FORMAT,
            "position": earlier.get("position", self.position),
            "config_keys": list(dict.fromkeys(known)),
            "state": "running",
            "attempt": self.home.attempt,
            "process": this_process(),
            "provenance": own,
        }
        self.home.write(self.description)
        if self.proposer:
            self.proposer.note_config_keys = self.add_config_keys

    def add_config_keys(self, keys: Iterable[str]) -> None:
        """Note which keys a configuration has: of a searcher that learns that is known when it is proposed."""
        self.description["config_keys"] = list(dict.fromkeys([*self.description["config_keys"], *keys]))
        self.home.write(self.description)

    def finish(self, watcher: SearchCallback, limits: StopCriteria) -> Results:
        """Make the two frames of what the trials left; their own files go once every one of them is in.

        A trial that was interrupted is listed as running, and keeps its state.

        Args:
            watcher: It followed the run.
            limits: They may have ended it.

        Raises:
            ConflictError: another attempt may write now; nothing was written.
        """
        self.home.check_attempt()
        unfinished = watcher.unfinished(self.name)
        for sample in unfinished:
            if pull(self.home.part(sample["trial_id"])):
                continue
            row = identity_columns(sample["experiment"], sample["trial_id"], sample["config"])
            row |= {"status": "running", "attempt": self.home.attempt}
            write_trial(self.home.part(sample["trial_id"]), row, TrialFileWriter({}).history())
        results = load(self.home.path)
        self.home.check_attempt()
        write_frames(self.home, results.trials, results.history)
        # Trials that Ray had asked for but not yet begun are in no list of ours: only counting tells.
        has_all = len(results.trials) == self.description["num_trials"]
        is_whole = has_all and not unfinished and set(results.counts()) <= set(ENDED)
        own = self.description["provenance"]
        ended = {"finished": now(), "wall_s": own.get("wall_s", 0.0) + watcher.seconds(self.name)}
        state = "finished" if is_whole else "stopped" if limits.is_user_request else "interrupted"
        outcome = {
            "state": state,
            "ended_by": None if is_whole else limits.reason,
            "is_to_be_requeued": not is_whole and limits.is_warned,
            "is_terminated": not is_whole and limits.is_terminated,
            "process": None,
            "provenance": own | ended,
        }
        self.home.write(self.description | outcome)
        if is_whole:
            delete_tree(self.home.parts)
        return load(self.home.path)
