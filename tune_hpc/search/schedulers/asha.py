"""Successive halving, asynchronously: configurations pause at rungs, and the best third of each rung goes on.

Whenever there is room, the best configuration goes on that waits at the highest rung of which fewer than a third have
gone on; where there is none, a new one begins. So nobody waits for a rung to be full, and no more than a third of those
that came to a rung ever go on: all of them together train for a ninth of their steps. (Schedulers that end trials
instead let go on whoever is first to a rung.) Who cannot go on any more is listed as stopped, and so is whoever still
waits at the end. When everything is tried and nobody came to the end, the best of those that came farthest go on.

A configuration with several seeds is judged by their mean; where one of them diverges or fails, it is out. Who came to
a rung, and who goes on, is written to ``rungs.jsonl`` before anybody trains on, and a search that was interrupted goes
on from there.

Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020; there whoever is among the best third
goes on, which with a searcher that learns, whose later configurations are better, is more than a third of them.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from tune_hpc.analysis.results import Results
from tune_hpc.search.experiment import ENDED, Experiment
from tune_hpc.search.reporter import MonitoredMetric
from tune_hpc.search.schedulers.ray_schedulers import GRACE, REDUCTION_FACTOR
from tune_hpc.search.searchers.optuna_searcher import OptunaSearcher
from tune_hpc.search.searchers.searcher import Sample, Searcher, samples_left
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.jsonl import append_line, read_lines
from tune_hpc.storage.trial_file import read_trial

#: Rungs after 1/27, 1/9 and 1/3 of the steps.
NUM_RUNGS = round(math.log(GRACE, REDUCTION_FACTOR))
#: What rungs.jsonl tells of: a configuration came to a rung, or goes on to one.
CAME, GOES_ON = "came", "goes on"


@dataclass
class Candidate:
    """A configuration that trains for a rung, or waits there.

    Attributes:
        number: Its place among all configurations.
        samples: Its trials that have not ended, one for each seed.
        rung: The rung; ``NUM_RUNGS`` is the end of its steps.
        is_waiting: Whether all its trials are there, or have ended before.
        told: What became of those: status, value and steps, by trial.
    """

    number: int
    samples: Sequence[Sample]
    rung: int = 0
    is_waiting: bool = False
    told: dict[str, tuple[str, float | None, int]] = field(default_factory=dict)


class AsyncSuccessiveHalving(Searcher):
    """Proposes what trains next, and for how long.

    Args:
        experiment: What is searched.
        home: Its folder.
        watched: What configurations are compared by.
        source: It proposes new configurations; ``None``: they are the experiment's own, known beforehand.
        before: What there is of the search already.
    """

    def __init__(
        self,
        experiment: Experiment,
        home: ExperimentFolder,
        watched: MonitoredMetric,
        source: OptunaSearcher | None = None,
        before: Results | None = None,
    ) -> None:
        self.experiment = experiment
        self.home = home
        self.watched = watched
        self.source = source
        self._num_seeds = max(1, len(experiment.seeds))
        #: What each configuration had reached at each rung, the lower the better; and the same of those that went on.
        self._reached: list[dict[int, float]] = [{} for _ in range(NUM_RUNGS)]
        self._gone_on: list[dict[int, float]] = [{} for _ in range(NUM_RUNGS)]
        self._contenders: dict[int, Candidate] = {}
        self._under_way: set[str] = set()
        self._going_on: deque[Candidate] = deque()
        self._anyone_finished = False
        self._num_entries = 0
        if source is not None:
            source.note_config_keys = self._note_config_keys
            samples, self.config_keys = source.unfinished, list(source.config_keys)
        else:
            samples = samples_left(experiment, before)
            self.config_keys = list(dict.fromkeys(key for sample in samples for key in sample["config"]))
        self._possible_data = list(dict.fromkeys(str(one["config"].get("data")) for one in samples))
        self._new: dict[int, list[Sample]] = {}
        for sample in samples:
            self._new.setdefault(self.configuration_number(sample["trial_id"]), []).append(sample)
        if before is not None:
            self._take_up(before)

    def possible_data(self) -> list[str]:
        """Return the data sets that any trial may ask for."""
        return self.source.possible_data() if self.source else self._possible_data

    @property
    def is_waiting(self) -> bool:
        """Whether there may be more to do when those under way have come to their rungs."""
        return bool(self._under_way)

    def propose(self) -> list[dict[str, Any]]:
        """Return the trials of one configuration that are to train for its next rung."""
        contender = self._next()
        if contender is None:
            if not self._under_way:
                for one in list(self._contenders.values()):
                    self._end(one)
            return []
        due = [sample for sample in contender.samples if sample["trial_id"] not in contender.told]
        self._under_way |= {sample["trial_id"] for sample in due}
        until = self._until(contender.samples[0]["config"], contender.rung)
        return [{**sample, "stage": contender.rung, "until": until} for sample in due]

    def ended(self, trial_id: str, status: str, value: float | None, steps: int) -> None:
        """Say that a trial came to its rung, its status ``running``, or to its own end."""
        self._under_way.discard(trial_id)
        contender = self._contenders[self.configuration_number(trial_id)]
        if status == "running":
            status, value = "stopped", self._shown(trial_id)
        contender.told[trial_id] = status, value, steps
        if all(sample["trial_id"] in contender.told for sample in contender.samples):
            self._arrived(contender)

    def _arrived(self, contender: Candidate) -> None:
        """Take in that all trials of a configuration are at its rung, or have ended."""
        told = contender.told.values()
        statuses = {status for status, _, _ in told}
        values = [value for _, value, _ in told if value is not None]
        is_out = len(values) < len(told) or not statuses <= {"stopped", "finished"}
        if contender.rung < NUM_RUNGS:
            mean = None if is_out else fmean(values)
            self._note(CAME, contender, value=mean, steps=max(steps for _, _, steps in told))
            self._reached[contender.rung][contender.number] = self._score(mean)
        if self.source:
            for sample in contender.samples:
                self.source.ended(sample["trial_id"], *contender.told[sample["trial_id"]])
        self._anyone_finished |= "finished" in statuses
        contender.is_waiting = True
        if is_out or "stopped" not in statuses:
            self._end(contender)
        self._stop_unpromotable()

    def _next(self) -> Candidate | None:
        """Return who trains next: one that was interrupted, one that goes on, a new one; ``None``: nobody now."""
        if self._going_on:
            return self._going_on.popleft()
        if promoted := self._first(self._may_go_on):
            return self._promoted(promoted)
        if self._new:
            number = next(iter(self._new))
            return self._begun(number, self._new.pop(number))
        if self.source and (samples := self.source.propose()):
            return self._begun(self.configuration_number(samples[0]["trial_id"]), samples)
        if not self._under_way and (promoted := self._first(self._follows)):
            return self._promoted(promoted)
        return None

    def _first(self, rule: Callable[[int, Candidate], bool]) -> Candidate | None:
        """Return the best that waits at the highest rung where a rule lets it go on."""
        for rung in reversed(range(NUM_RUNGS)):
            waiting = self._waiting(rung)
            if waiting and rule(rung, waiting[0]):
                return waiting[0]
        return None

    def _may_go_on(self, rung: int, best: Candidate) -> bool:
        """Whether the best that waits at a rung is among the best third there, and fewer have gone on."""
        ranked = sorted(self._reached[rung].values())
        third = len(ranked) // REDUCTION_FACTOR
        return len(self._gone_on[rung]) < third and self._reached[rung][best.number] <= ranked[third - 1]

    def _follows(self, rung: int, best: Candidate) -> bool:
        """Whether the best that waits at a rung goes on from there although a third has."""
        gone_on = self._gone_on[rung].values()
        return not self._anyone_finished or self._reached[rung][best.number] < min(gone_on, default=math.inf)

    def _begun(self, number: int, samples: Sequence[Sample]) -> Candidate:
        self._contenders[number] = Candidate(number, samples)
        return self._contenders[number]

    def _promoted(self, contender: Candidate) -> Candidate:
        self._gone_on[contender.rung][contender.number] = self._reached[contender.rung][contender.number]
        contender.rung, contender.is_waiting = contender.rung + 1, False
        contender.told = {name: told for name, told in contender.told.items() if told[0] == "finished"}
        contender.samples = [one for one in contender.samples if one["trial_id"] not in contender.told]
        self._note(GOES_ON, contender)
        if self.source:
            self.source.requeue(contender.samples)
        return contender

    def _note(self, event: str, contender: Candidate, **more: Any) -> None:
        """Write down what happened, before anything follows from it."""
        told = {"event": event, "configuration": contender.number, "rung": contender.rung}
        append_line(self.home, self.home.rungs, {"entry": self._num_entries, **told, **more})
        self._num_entries += 1

    def _waiting(self, rung: int) -> list[Candidate]:
        """Return the configurations that wait at a rung, the best first."""
        reached = self._reached[rung]
        waiting = [one for one in self._contenders.values() if one.is_waiting and one.rung == rung]
        return sorted(waiting, key=lambda one: (reached[one.number], one.number))

    def _stop_unpromotable(self) -> None:
        """End who waits at the first rung behind so many that it will not go on, whoever comes."""
        num_configs = self.experiment.num_trials // self._num_seeds
        hope = max(1, num_configs // REDUCTION_FACTOR - len(self._gone_on[0]))
        for contender in self._waiting(0)[hope:]:
            self._end(contender)

    def _end(self, contender: Candidate) -> None:
        """Let a configuration go on no more."""
        del self._contenders[contender.number]
        for sample in contender.samples:
            status, _, steps = contender.told[sample["trial_id"]]
            if status == "stopped":
                self.record_stopped(sample, steps)

    def _until(self, config: Mapping[str, Any], rung: int) -> int | None:
        """Return the step at which a trial is to pause for a rung; ``None`` where that is its end."""
        num_steps = int(config.get("steps", self.experiment.max_steps))
        step = max(rung + 1, num_steps * REDUCTION_FACTOR**rung // GRACE)
        return step if rung < NUM_RUNGS and step < num_steps else None

    def _shown(self, trial_id: str) -> float | None:
        """Return what is to be seen of a trial now; ``None``: nothing."""
        _, history = read_trial(self.home.part(trial_id))
        shown = math.nan
        for value in history[self.watched.column].dropna() if self.watched.column in history else ():
            shown = self.watched.shown(float(value), shown)
        return shown if math.isfinite(shown) else None

    def _score(self, value: float | None) -> float:
        """Return what a configuration is ranked by: the lower the better."""
        return math.inf if value is None else value if self.watched.mode == "min" else -value

    def _note_config_keys(self, keys: Sequence[str]) -> None:
        self.config_keys += keys
        self.note_config_keys(keys)

    def _take_up(self, before: Results) -> None:
        """Take in what had happened before this run."""
        last: dict[int, dict[str, Any]] = {}
        nobody_ended_here = not (before.trials["status"] == "stopped").any()
        for line in read_lines(self.home.rungs, "entry", may_be_absent=nobody_ended_here):
            number = line["configuration"]
            last[number] = line
            if line["event"] == CAME:
                self._reached[line["rung"]][number] = self._score(line["value"])
            else:
                self._gone_on[line["rung"] - 1][number] = self._reached[line["rung"] - 1][number]
            self._num_entries += 1
        ended = before.trials[before.trials["status"].isin(ENDED)]
        self._anyone_finished = bool((ended["status"] == "finished").any())
        for number in [number for number in self._new if number in last]:
            contender = self._begun(number, self._new.pop(number))
            line = last[number]
            contender.rung = line["rung"]
            if line["event"] == GOES_ON:
                self._going_on.append(contender)
                continue
            contender.is_waiting = True
            for sample in contender.samples:
                contender.told[sample["trial_id"]] = "stopped", line["value"], line["steps"]
                if self.source:
                    self.source.ended(sample["trial_id"], *contender.told[sample["trial_id"]])
            if line["value"] is None:
                self._end(contender)
