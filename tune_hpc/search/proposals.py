"""What a search tries next: trials that are known beforehand, and those that a study proposes under way.

A configuration that a study proposed is written to ``proposals.jsonl`` before any of its trials starts, so a search
that ended in whatever way knows what it had asked for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune.search import Searcher

from tune_hpc.analysis.folder import ExperimentFolder
from tune_hpc.analysis.results import Results
from tune_hpc.errors import FolderError
from tune_hpc.learning.config import complete
from tune_hpc.search.bundles import unended
from tune_hpc.search.experiment import ENDED, TRAIN, Experiment
from tune_hpc.search.journal import append_line, read_lines

if TYPE_CHECKING:
    from tune_hpc.search.population import Population

Sample = Mapping[str, Any]
Bundle = dict[str, Any]

#: Trials that are handed out together take about so long.
IN_TURN_S = 0.5


def samples_of(experiment: Experiment, configs: Iterable[Mapping[str, Any]], first: int = 0) -> list[dict[str, Any]]:
    """Return configurations, checked and complete, as samples: ``experiment``, ``trial_id``, ``config``.

    Args:
        experiment: What they belong to.
        configs: One a trial.
        first: The number of the first one.

    Raises:
        InvalidConfigError: a configuration that the trainable would refuse.
    """
    whole = complete if experiment.trainable == TRAIN else dict
    return [
        {"experiment": experiment.name, "trial_id": f"t{number:05d}", "config": whole(config)}
        for number, config in enumerate(configs, first)
    ]


class Learner:
    """Proposes one experiment's configurations by what became of earlier ones.

    Args:
        experiment: What is searched.
        home: Its folder.
        before: What there is of the search already.
        warm_start: Other searches, whose trials are told first.

    Attributes:
        config_keys: Those that the configurations proposed so far have.
        note_config_keys: Called with more of them.
    """

    note_config_keys: Callable[[Sequence[str]], object] = staticmethod(lambda keys: None)

    def __init__(
        self,
        experiment: Experiment,
        home: ExperimentFolder,
        before: Results | None = None,
        warm_start: Sequence[Results] = (),
    ) -> None:
        from tune_hpc.search.study import Study

        self.experiment = experiment
        self.home = home
        self.study = Study(experiment.space, experiment.searcher, experiment.mode, experiment.search_seed)
        for other in warm_start:
            self._tell_all(other)
        self._optuna_number: dict[int, int] = {}
        self._open: dict[str, int] = {}
        self._outcomes: dict[int, dict[str, tuple[str, float | None, int]]] = {}
        self.unfinished: list[dict[str, Any]] = []
        self.config_keys: list[str] = []
        lines = read_lines(home.proposals, "number") if before is not None else []
        proposals = [line["config"] for line in lines]
        rows = {row["trial_id"]: row for row in _rows(before)} if before is not None else {}
        for number, config in enumerate(proposals):
            self._remember(number, config, rows)
        self.num_proposed = len(proposals)

    @property
    def is_waiting(self) -> bool:
        """Whether it has nothing to propose now, but will have: it never waits."""
        return False

    def possible_data(self) -> list[str]:
        """Return the data sets that any proposal may ask for."""
        space = self.experiment.space
        if "data" in space:
            return [str(name) for name in space.possible("data")]
        models = space.possible("model") if "model" in space else [complete({})["model"]]
        return [str(complete({"model": model})["data"]) for model in models]

    def propose(self) -> list[dict[str, Any]]:
        """Return the trials of one more configuration, one for each seed; none when there have been enough."""
        if self.num_proposed >= (self.experiment.num_samples or 0):
            return []
        number = self.num_proposed
        self._optuna_number[number], config = self.study.ask()
        self.num_proposed += 1
        append_line(self.home.proposals, {"number": number, "config": config})
        samples = self._samples(number, config)
        self._await(number, samples)
        if new := [key for key in samples[0]["config"] if key not in self.config_keys]:
            self.config_keys += new
            self.note_config_keys(new)
        return samples

    def ended(self, trial_id: str, status: str, value: float | None, steps: int) -> None:
        """Say what became of a trial; when it was the last of its configuration the study is told.

        One that saved its state, with the status ``running``, is still to end.
        """
        if status not in ENDED:
            return
        number = self._open.pop(trial_id, None)
        if number is None:
            return
        outcomes = self._outcomes[number]
        outcomes[trial_id] = status, value, steps
        if number not in self._open.values():
            del self._outcomes[number]
            self.study.tell(self._optuna_number.pop(number), self._outcome(list(outcomes.values())))

    def _remember(self, number: int, config: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in a configuration that was proposed before this run."""
        samples = self._samples(number, config)
        known = {
            one["trial_id"]: self._told(rows[one["trial_id"]])
            for one in samples
            if rows.get(one["trial_id"], {}).get("status") in ENDED
        }
        if len(known) == len(samples):
            self.study.add(config, self._outcome(list(known.values())))
            return
        self._optuna_number[number] = self.study.ask_again(config)
        waiting = [one for one in samples if one["trial_id"] not in known]
        self._await(number, waiting)
        self._outcomes[number] = known
        self.unfinished += waiting

    def _samples(self, number: int, config: Mapping[str, Any]) -> list[dict[str, Any]]:
        configs = self.experiment.with_seeds(config)
        return samples_of(self.experiment, configs, number * len(configs))

    def _await(self, number: int, samples: Sequence[Sample]) -> None:
        self._open |= {one["trial_id"]: number for one in samples}
        self._outcomes[number] = {}

    def _told(self, row: Mapping[str, Any]) -> tuple[str, float | None, int]:
        from tune_hpc.search.study import told

        return told(row, self.experiment.metric)

    def _outcome(self, told: Sequence[tuple[str, float | None, int]]) -> Any:
        return self.study.outcome(*zip(*told, strict=True))

    def _tell_all(self, other: Results) -> None:
        """Tell the study of every configuration of another search that this one's space admits."""
        from tune_hpc.search.study import configurations

        experiment = self.experiment
        if experiment.metric not in other.trials:
            raise FolderError(
                f"{other.folder or other.name} has no {experiment.metric}, by which {experiment.name} ranks trials; "
                "start from a search that has"
            )
        for config, rows in configurations(other, experiment.space):
            if known := [self._told(row) for row in rows if row["status"] in ENDED]:
                self.study.add(config, self._outcome(known))


def _run_alike(one: Bundle, other: Bundle) -> bool:
    """Whether two bundles are trials alone, of one experiment."""
    alone = len(one["members"]) == len(other["members"]) == 1
    return alone and one["members"][0]["experiment"] == other["members"][0]["experiment"]


def _rows(results: Results) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in results.trials.to_dict("records")]


class Proposals(Searcher):
    """Ray Tune's view of all this: bundles one after another, and news of how they ended.

    What Ray does between two trials takes tens of milliseconds. Trials of an experiment that turn out shorter are
    therefore handed out several at a time, to run in turn.

    Args:
        bundles: Those that are known beforehand, in order.
        learners: They are asked in turn when these are out.
        bundle: Makes bundles of the trials of one configuration.
        homes: The folder of each experiment.
        num_slots: How many bundles run at once.
        one_by_one: Whether a scheduler is to decide on each trial, or it is a member of a population.
        is_ending: Whether the search is to end before all its trials have.
        num_asked: How many trials a learner is asked for at a time, at least.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        learners: Sequence[Learner | Population],
        bundle: Callable[[Sequence[Sample]], Sequence[Bundle]],
        homes: Mapping[str, ExperimentFolder],
        num_slots: int,
        one_by_one: bool = False,
        is_ending: Callable[[], bool] = lambda: False,
        num_asked: int = 1,
    ) -> None:
        super().__init__()
        self._bundles = deque(bundles)
        self._learners = {learner.experiment.name: learner for learner in learners}
        self._bundle = bundle
        self._homes = homes
        self._num_slots = num_slots
        self._one_by_one = one_by_one
        self._is_ending = is_ending
        self._num_asked = num_asked
        self._took_s: dict[str, float] = {}
        self._under_way: dict[str, Bundle] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Ray pickles its searcher for a restore that is never asked for.
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Take no advice: each experiment has its own metric and space."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next bundle, as the configuration of a trial of Ray's."""
        if self._is_ending():
            return Searcher.FINISHED
        if not self._bundles:
            samples = next(filter(None, map(self._ask, self._learners.values())), [])
            self._bundles.extend(self._bundle(samples) if samples else ())
        if not self._bundles:
            # Should the process of several trials in turn be lost, those that had not begun come back.
            is_sure = not any(bundle.get("in_turn") for bundle in self._under_way.values())
            is_sure = is_sure and not any(learner.is_waiting for learner in self._learners.values())
            return Searcher.FINISHED if is_sure else None
        self._under_way[trial_id] = self._next()
        return dict(self._under_way[trial_id])

    def _ask(self, learner: Learner | Population) -> list[dict[str, Any]]:
        samples: list[dict[str, Any]] = []
        while len(samples) < self._num_asked and (more := learner.propose()):
            samples += more
        return samples

    def _next(self) -> Bundle:
        """Return the next bundle: one, or as many trials alone as take a moment together."""
        first = self._bundles.popleft()
        took_s = self._took_s.get(first["members"][0]["experiment"])
        if self._one_by_one or took_s is None:
            return first
        # No more than its share of what is left, so that no slot is idle.
        share = math.ceil((1 + len(self._bundles)) / self._num_slots)
        wanted = min(int(IN_TURN_S / max(took_s, 1e-6)), share)
        several = [first]
        while len(several) < wanted and _run_alike(first, self._bundles[0]):
            several.append(self._bundles.popleft())
        if len(several) == 1 or not _run_alike(first, first):
            return first
        return first | {"members": [one["members"][0] for one in several], "in_turn": True}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Pass on how the trials of a bundle ended."""
        bundle = self._under_way.pop(trial_id)
        members = bundle["members"]
        result = result or {}
        name = members[0]["experiment"]
        if "took_s" in result:
            self._took_s[name] = result["took_s"]
        if error and bundle.get("in_turn"):
            # The first that has not ended is at fault; the others are still to run.
            rest = unended(bundle, self._homes[name])[1:]
            self._bundles.extendleft({"bundle_id": one["trial_id"], "members": [one]} for one in reversed(rest))
        told = {one["trial_id"]: one for one in result.get("members", ()) if "status" in one}
        for sample in members:
            learner = self._learners.get(sample["experiment"])
            did_not_begin = "last" in result and sample["trial_id"] not in told
            if learner and not did_not_begin:
                own = told.get(sample["trial_id"], {"status": "failed", "value": None, "steps": 0})
                if sample["trial_id"] not in told and result.get("done") and "step" in result:
                    # Ended by a scheduler, at what it was shown last.
                    own = {"status": "stopped", "value": result["value"], "steps": result["step"]}
                learner.ended(sample["trial_id"], own["status"], own["value"], own["steps"])

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the experiment folder has it all."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a search is taken up again from its experiment folder."""
        raise FolderError("Ray's own state does not bring a search back; its experiment folder does")
