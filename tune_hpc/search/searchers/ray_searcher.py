"""What Ray Tune runs next: trials that are known beforehand, and those that are proposed under way."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher as TuneSearcher

from tune_hpc.errors import FolderError
from tune_hpc.search.fused_trials import unended
from tune_hpc.search.searchers.searcher import Sample, Searcher
from tune_hpc.storage.experiment_folder import ExperimentFolder

Bundle = dict[str, Any]

#: Trials that are handed out together take about so long.
IN_TURN_S = 0.5


def _same_signature(one: Bundle, other: Bundle) -> bool:
    """Whether two bundles are trials alone, of one experiment."""
    alone = len(one["members"]) == len(other["members"]) == 1
    return alone and one["members"][0]["experiment"] == other["members"][0]["experiment"]


class RaySearcherAdapter(TuneSearcher):
    """Ray Tune's view of all this: bundles one after another, and news of how they ended.

    What Ray does between two trials takes tens of milliseconds. Trials of an experiment that turn out shorter are
    therefore handed out several at a time, to run in turn.

    Args:
        bundles: Those that are known beforehand, in order.
        proposers: They are asked in turn when these are out.
        bundle: Makes bundles of the trials of one configuration.
        homes: The folder of each experiment.
        num_slots: How many bundles run at once.
        one_by_one: Whether a scheduler is to decide on each trial, or it is a member of a population.
        is_ending: Whether the search is to end before all its trials have.
        num_asked: How many trials a proposer is asked for at a time, at least.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        proposers: Sequence[Searcher],
        bundle: Callable[[Sequence[Sample]], Sequence[Bundle]],
        homes: Mapping[str, ExperimentFolder],
        num_slots: int,
        one_by_one: bool = False,
        is_ending: Callable[[], bool] = lambda: False,
        num_asked: int = 1,
    ) -> None:
        super().__init__()
        self._bundles = deque(bundles)
        self._proposers = {proposer.experiment.name: proposer for proposer in proposers}
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
            return TuneSearcher.FINISHED
        if not self._bundles:
            samples = next(filter(None, map(self._ask, self._proposers.values())), [])
            self._bundles.extend(self._bundle(samples) if samples else ())
        if not self._bundles:
            # Should the process of several trials in turn be lost, those that had not begun come back.
            is_sure = not any(bundle.get("in_turn") for bundle in self._under_way.values())
            is_sure = is_sure and not any(proposer.is_waiting for proposer in self._proposers.values())
            return TuneSearcher.FINISHED if is_sure else None
        self._under_way[trial_id] = self._next()
        return dict(self._under_way[trial_id])

    def _ask(self, proposer: Searcher) -> list[dict[str, Any]]:
        samples: list[dict[str, Any]] = []
        while len(samples) < self._num_asked and (more := proposer.propose()):
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
        while len(several) < wanted and _same_signature(first, self._bundles[0]):
            several.append(self._bundles.popleft())
        if len(several) == 1 or not _same_signature(first, first):
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
            proposer = self._proposers.get(sample["experiment"])
            did_not_begin = "last" in result and sample["trial_id"] not in told
            if proposer and not did_not_begin:
                own = told.get(sample["trial_id"], {"status": "failed", "value": None, "steps": 0})
                if sample["trial_id"] not in told and result.get("done") and "step" in result:
                    # Ended by a scheduler, at what it was shown last.
                    own = {"status": "stopped", "value": result["value"], "steps": result["step"]}
                proposer.ended(sample["trial_id"], own["status"], own["value"], own["steps"])

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: the experiment folder has it all."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a search is taken up again from its experiment folder."""
        raise FolderError("Ray's own state does not bring a search back; its experiment folder does")
