"""Queue of the groups of trials of a run: known trials first, then suggestions of searchers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tune_hpc.search.fused_trials import unfinished_trials
from tune_hpc.search.searchers.searcher import Searcher
from tune_hpc.search.trial_spec import TrialGroup, TrialOutcome, TrialSpec
from tune_hpc.storage.experiment_folder import ExperimentFolder

#: Target duration of a sequential group of short trials.
SEQUENTIAL_GROUP_S = 0.5


class GroupQueue:
    """Returns the next group to run, and forwards the outcomes of groups to their searchers.

    Ray Tune spends tens of milliseconds between two trials. Short trials of an experiment are therefore joined into
    sequential groups.

    Args:
        groups: Groups that are known beforehand, in order.
        searchers: Searchers for further trials, one for each adaptive experiment.
        make_groups: Makes groups of suggested trials.
        folders: Experiment folder by name of the experiment.
        num_slots: Number of groups that run at once.
        one_by_one: Whether each trial runs alone, because a scheduler decides on it or it belongs to a population.
        batch_size: Minimum number of trials to request from a searcher at a time.
    """

    def __init__(
        self,
        groups: Sequence[TrialGroup],
        searchers: Sequence[Searcher],
        make_groups: Callable[[Sequence[TrialSpec]], Sequence[TrialGroup]],
        folders: Mapping[str, ExperimentFolder],
        num_slots: int,
        one_by_one: bool = False,
        batch_size: int = 1,
    ) -> None:
        self._groups = deque(groups)
        self._searchers = {searcher.experiment.name: searcher for searcher in searchers}
        self._make_groups = make_groups
        self._folders = folders
        self._num_slots = num_slots
        self._one_by_one = one_by_one
        self._batch_size = batch_size
        self._trial_s: dict[str, float] = {}
        self._num_sequential = 0

    def next(self) -> TrialGroup | None:
        """Return the next group; ``None`` if there is none at present."""
        if not self._groups and (trials := self._suggest_batch()):
            self._groups.extend(self._make_groups(trials))
        if not self._groups:
            return None
        group = self._next_group()
        self._num_sequential += group.is_sequential
        return group

    @property
    def may_continue(self) -> bool:
        """Return whether there may be another group when one of the running groups has ended."""
        # If a sequential group fails, its remaining trials return to the queue.
        return self._num_sequential > 0 or any(searcher.has_pending for searcher in self._searchers.values())

    def _suggest_batch(self) -> list[TrialSpec]:
        """Return the suggestions of the first searcher that has any."""
        for searcher in self._searchers.values():
            trials: list[TrialSpec] = []
            while len(trials) < self._batch_size and (suggested := searcher.suggest()):
                trials += suggested
            if trials:
                return trials
        return []

    def _next_group(self) -> TrialGroup:
        """Return the next group; short single trials of one experiment are joined into a sequential group."""
        first = self._groups.popleft()
        trial_s = self._trial_s.get(first.experiment)
        if self._one_by_one or trial_s is None or len(first.trials) > 1:
            return first
        # At most a fair share of the queue, so that no slot stays idle.
        share = math.ceil((1 + len(self._groups)) / self._num_slots)
        size = min(int(SEQUENTIAL_GROUP_S / max(trial_s, 1e-6)), share)
        trials = [*first.trials]
        while len(trials) < size and _is_single(self._groups[0], first.experiment):
            trials += self._groups.popleft().trials
        return first if len(trials) == 1 else replace(first, trials=tuple(trials), is_sequential=True)

    def on_group_complete(self, group: TrialGroup, result: Mapping[str, Any], *, process_died: bool = False) -> None:
        """Forward the outcomes of the trials of a group to their searcher.

        Args:
            group: The group.
            result: Its latest result (``reporter.LiveReporter``), empty if there is none.
            process_died: Whether the process of the group died.
        """
        self._num_sequential -= group.is_sequential
        if "took_s" in result:
            self._trial_s[group.experiment] = result["took_s"]
        if process_died and group.is_sequential:
            # The first unfinished trial has failed; the others are still due.
            due = unfinished_trials(group, self._folders[group.experiment])[1:]
            self._groups.extendleft(TrialGroup.single(trial) for trial in reversed(due))
        searcher = self._searchers.get(group.experiment)
        if searcher is None:
            return
        outcomes = {
            line["trial_id"]: TrialOutcome(line["status"], line["value"], line["steps"])
            for line in result.get("trials", ())
            if "status" in line
        }
        missing = TrialOutcome("failed", None, 0)
        if result.get("done") and "step" in result:
            # A scheduler stopped the trial at its latest report.
            missing = TrialOutcome("stopped", result["value"], result["step"])
        for trial in group.trials:
            # The final report of a group omits only trials that have not started.
            if trial.trial_id in outcomes or "last" not in result:
                searcher.on_trial_complete(trial.trial_id, outcomes.get(trial.trial_id, missing))


def _is_single(group: TrialGroup, experiment: str) -> bool:
    return len(group.trials) == 1 and group.experiment == experiment
