"""Asynchronous successive halving (ASHA), promotion type (Li et al., 2020).

Configurations pause at rungs, after 1/27, 1/9 and 1/3 of their steps. A free slot resumes the best configuration that
waits at the highest rung with fewer promotions than a third of its arrivals. If there is none, a new configuration
starts. No rung has to fill up first, and at most a third of the arrivals at a rung are promoted: in total the search
spends about a ninth of all steps. (Stopping-type ASHA stops trials instead, and promotes the first arrivals
unconditionally.) A configuration without a chance of promotion is stopped at once, any other waiting one at the end.
When every configuration has started and none has finished, the best one at the highest rung is promoted.

The score of a configuration is its mean over the seeds; it is out when a seed diverges or fails. Arrivals and
promotions are appended to ``rungs.jsonl`` before any further training, and a resumed search continues from this file.

Source: Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020. There every configuration among
the best third is promoted. With an adaptive searcher, whose later configurations are better, that is more than a third.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import numpy as np

from tune_hpc.analysis.results import Results
from tune_hpc.analysis.stability import GRACE, NUM_RUNGS, REDUCTION_FACTOR
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.searchers.optuna_searcher import OptunaSearcher
from tune_hpc.search.searchers.searcher import Searcher, merged_config_keys, remaining_trials
from tune_hpc.search.trial_spec import RankedMetric, TrialOutcome, TrialSpec
from tune_hpc.storage.experiment_folder import ExperimentFolder

#: Events of ``rungs.jsonl``: a configuration reached a rung, or was promoted to the next one. Older folders have other
#: names: ``came`` for an arrival.
REACHED, PROMOTED = "reached", "promoted"


@dataclass
class Candidate:
    """A configuration that trains for a rung, or waits there.

    Attributes:
        number: Number of the configuration.
        trials: Its trials that have not finished, one for each seed.
        rung: Number of the rung; ``NUM_RUNGS`` is the end of the training.
        is_waiting: Whether all trials have paused at the rung or ended.
        outcomes: Outcomes by trial identifier; a paused trial has the status ``stopped``.
    """

    number: int
    trials: Sequence[TrialSpec]
    rung: int = 0
    is_waiting: bool = False
    outcomes: dict[str, TrialOutcome] = field(default_factory=dict)


class AsyncSuccessiveHalving(Searcher):
    """Searcher that decides which configuration trains next, and up to which rung.

    Args:
        experiment: The experiment.
        folder: Its folder.
        metric: Metric that ranks the configurations.
        source: Searcher of new configurations; ``None``: the experiment lists them.
        before: Results of the search so far.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: ExperimentFolder,
        metric: RankedMetric,
        source: OptunaSearcher | None = None,
        before: Results | None = None,
    ) -> None:
        self.experiment = experiment
        self.folder = folder
        self.metric = metric
        self.source = source
        self._num_seeds = max(1, len(experiment.seeds))
        #: For each rung the scores of all arrivals, and those of the promoted ones; lower is better.
        self._reached: list[dict[int, float]] = [{} for _ in range(NUM_RUNGS)]
        self._promoted: list[dict[int, float]] = [{} for _ in range(NUM_RUNGS)]
        self._candidates: dict[int, Candidate] = {}
        self._running: set[str] = set()
        self._interrupted: deque[Candidate] = deque()
        self._any_finished = False
        self._num_entries = 0
        if source is not None:
            source.note_config_keys = self._note_config_keys
            trials, self.config_keys = source.unfinished, list(source.config_keys)
        else:
            trials = remaining_trials(experiment, before)
            self.config_keys = merged_config_keys(trials)
        self._new: dict[int, list[TrialSpec]] = {}
        for trial in trials:
            self._new.setdefault(self.configuration_number(trial.trial_id), []).append(trial)
        if before is not None:
            self._restore(before)

    @property
    def has_pending(self) -> bool:
        """Return whether trials are on their way to a rung."""
        return bool(self._running)

    def write_initial_state(self) -> None:
        """Write the initial state of the source of configurations."""
        if self.source is not None:
            self.source.write_initial_state()

    def suggest(self) -> list[TrialSpec]:
        """Return the trials of the configuration that trains next, with the step of its rung."""
        candidate = self._next()
        if candidate is None:
            if not self._running:
                for waiting in list(self._candidates.values()):
                    self._stop(waiting)
            return []
        due = [trial for trial in candidate.trials if trial.trial_id not in candidate.outcomes]
        self._running |= {trial.trial_id for trial in due}
        max_step = self._rung_step(candidate.trials[0].config, candidate.rung)
        return [replace(trial, stage=candidate.rung, max_step=max_step) for trial in due]

    def on_trial_complete(self, trial_id: str, outcome: TrialOutcome) -> None:
        """Record that a trial paused at its rung, with the status ``running``, or ended."""
        self._running.discard(trial_id)
        candidate = self._candidates[self.configuration_number(trial_id)]
        if outcome.status == "running":
            outcome = TrialOutcome("stopped", self._metric_value(trial_id), outcome.steps)
        elif outcome.status == "stopped":
            # It ended by itself, for example at its time limit, and has no state to continue from.
            outcome = outcome._replace(status="finished")
        candidate.outcomes[trial_id] = outcome
        if all(trial.trial_id in candidate.outcomes for trial in candidate.trials):
            self._record_arrival(candidate)

    def _record_arrival(self, candidate: Candidate) -> None:
        """Record that all trials of a configuration paused at its rung or ended."""
        outcomes = candidate.outcomes.values()
        statuses = {outcome.status for outcome in outcomes}
        values = [outcome.value for outcome in outcomes if outcome.value is not None]
        is_out = len(values) < len(outcomes) or not statuses <= {"stopped", "finished"}
        if candidate.rung < NUM_RUNGS:
            mean = None if is_out else fmean(values)
            self._log(REACHED, candidate, value=mean, steps=max(outcome.steps for outcome in outcomes))
            self._reached[candidate.rung][candidate.number] = self._score(mean)
        self._forward(candidate)
        self._any_finished |= "finished" in statuses
        candidate.is_waiting = True
        if is_out or "stopped" not in statuses:
            self._stop(candidate)
        self._stop_unpromotable()

    def _forward(self, candidate: Candidate) -> None:
        """Report the outcomes of a configuration to the source."""
        if self.source:
            for trial in candidate.trials:
                self.source.on_trial_complete(trial.trial_id, candidate.outcomes[trial.trial_id])

    def _next(self) -> Candidate | None:
        """Return the configuration that trains next: an interrupted, a promoted or a new one."""
        if self._interrupted:
            return self._interrupted.popleft()
        if best := self._best_waiting(self._is_promotable):
            return self._promote(best)
        if self._new:
            number = next(iter(self._new))
            return self._start(number, self._new.pop(number))
        if self.source and (trials := self.source.suggest()):
            return self._start(self.configuration_number(trials[0].trial_id), trials)
        if not self._running and (best := self._best_waiting(self._is_promotable_at_end)):
            return self._promote(best)
        return None

    def _best_waiting(self, is_promotable: Callable[[int, Candidate], bool]) -> Candidate | None:
        """Return the best waiting configuration of the highest rung where it is promotable."""
        for rung in reversed(range(NUM_RUNGS)):
            waiting = self._waiting(rung)
            if waiting and is_promotable(rung, waiting[0]):
                return waiting[0]
        return None

    def _is_promotable(self, rung: int, best: Candidate) -> bool:
        """Return whether a configuration is among the best third of a rung, of which fewer have been promoted."""
        ranked = sorted(self._reached[rung].values())
        third = len(ranked) // REDUCTION_FACTOR
        return len(self._promoted[rung]) < third and self._reached[rung][best.number] <= ranked[third - 1]

    def _is_promotable_at_end(self, rung: int, best: Candidate) -> bool:
        """Return whether a configuration is promoted beyond the best third when nothing else is left to train."""
        promoted = self._promoted[rung].values()
        return not self._any_finished or self._reached[rung][best.number] < min(promoted, default=math.inf)

    def _start(self, number: int, trials: Sequence[TrialSpec]) -> Candidate:
        self._candidates[number] = Candidate(number, trials)
        return self._candidates[number]

    def _promote(self, candidate: Candidate) -> Candidate:
        self._promoted[candidate.rung][candidate.number] = self._reached[candidate.rung][candidate.number]
        candidate.rung, candidate.is_waiting = candidate.rung + 1, False
        candidate.outcomes = {
            trial_id: outcome for trial_id, outcome in candidate.outcomes.items() if outcome.status == "finished"
        }
        candidate.trials = [trial for trial in candidate.trials if trial.trial_id not in candidate.outcomes]
        self._log(PROMOTED, candidate)
        if self.source:
            self.source.requeue(candidate.trials)
        return candidate

    def _log(self, event: str, candidate: Candidate, **details: Any) -> None:
        """Append an event to ``rungs.jsonl``, before it has any consequence."""
        entry = {"entry": self._num_entries, "event": event, "configuration": candidate.number, "rung": candidate.rung}
        self.folder.append_line(self.folder.rungs, entry | details)
        self._num_entries += 1

    def _waiting(self, rung: int) -> list[Candidate]:
        """Return the configurations that wait at a rung, the best first."""
        scores = self._reached[rung]
        waiting = [one for one in self._candidates.values() if one.is_waiting and one.rung == rung]
        return sorted(waiting, key=lambda candidate: (scores[candidate.number], candidate.number))

    def _stop_unpromotable(self) -> None:
        """Stop configurations at the first rung that future arrivals cannot make promotable."""
        num_configs = self.experiment.num_trials // self._num_seeds
        num_promotions = max(1, num_configs // REDUCTION_FACTOR - len(self._promoted[0]))
        for candidate in self._waiting(0)[num_promotions:]:
            self._stop(candidate)

    def _stop(self, candidate: Candidate) -> None:
        """Stop a configuration for good."""
        del self._candidates[candidate.number]
        for trial in candidate.trials:
            outcome = candidate.outcomes[trial.trial_id]
            if outcome.status == "stopped":
                self.record_stopped(trial, outcome.steps)

    def _rung_step(self, config: Mapping[str, Any], rung: int) -> int | None:
        """Return the step at which a trial pauses for a rung; ``None``: the trial ends before."""
        num_steps = self.experiment.num_steps(config)
        step = max(rung + 1, num_steps * REDUCTION_FACTOR**rung // GRACE)
        return step if rung < NUM_RUNGS and step < num_steps else None

    def _metric_value(self, trial_id: str) -> float | None:
        """Return the current value of a trial's metric; ``None``: no finite value."""
        _, history = self.folder.read_trial(trial_id)
        reported = history[self.metric.column].to_numpy(float) if self.metric.column in history else np.empty(0)
        current = self.metric.value(reported)
        return current if math.isfinite(current) else None

    def _score(self, value: float | None) -> float:
        """Return the score of a configuration; lower is better."""
        return math.inf if value is None else value if self.metric.mode == "min" else -value

    def _note_config_keys(self, keys: Sequence[str]) -> None:
        self.config_keys += keys
        self.note_config_keys(keys)

    def _restore(self, before: Results) -> None:
        """Restore the state of an earlier run from ``rungs.jsonl``."""
        last: dict[int, dict[str, Any]] = {}
        any_stopped = bool((before.trials["status"] == "stopped").any())
        for line in self.folder.read_lines(self.folder.rungs, "entry", may_be_absent=not any_stopped):
            line["event"] = REACHED if line["event"] in (REACHED, "came") else PROMOTED
            number, rung = line["configuration"], line["rung"]
            last[number] = line
            if line["event"] == REACHED:
                self._reached[rung][number] = self._score(line["value"])
            else:
                self._promoted[rung - 1][number] = self._reached[rung - 1][number]
            self._num_entries += 1
        self._any_finished = bool((before.trials["status"] == "finished").any())
        for number in [number for number in self._new if number in last]:
            candidate = self._start(number, self._new.pop(number))
            line = last[number]
            candidate.rung = line["rung"]
            if line["event"] == PROMOTED:
                self._interrupted.append(candidate)
                continue
            candidate.is_waiting = True
            candidate.outcomes = {
                trial.trial_id: TrialOutcome("stopped", line["value"], line["steps"]) for trial in candidate.trials
            }
            self._forward(candidate)
            if line["value"] is None:
                self._stop(candidate)
