"""A searcher that learns from the trials that ended: an Optuna study that is asked under way.

A configuration that the study proposed is written to ``proposals.jsonl`` before any of its trials starts, so a search
that ended in whatever way knows what it had asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tune_hpc.analysis.results import Results
from tune_hpc.errors import FolderError
from tune_hpc.learning.config import complete
from tune_hpc.search.experiment import ENDED, Experiment
from tune_hpc.search.searchers.searcher import Sample, Searcher, samples_of
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.jsonl import append_line, read_lines


class OptunaSearcher(Searcher):
    """Proposes what a study of Optuna's proposes, and tells it what became of that.

    Args:
        experiment: What is searched.
        home: Its folder.
        before: What there is of the search already.
        warm_start: Other searches, whose trials are told first.

    Attributes:
        unfinished: The trials that were proposed before, and have not ended.
    """

    def __init__(
        self,
        experiment: Experiment,
        home: ExperimentFolder,
        before: Results | None = None,
        warm_start: Sequence[Results] = (),
    ) -> None:
        from tune_hpc.search.searchers.optuna_study import AskTellStudy

        self.experiment = experiment
        self.home = home
        self.study = AskTellStudy(experiment.space, experiment.searcher, experiment.mode, experiment.search_seed)
        for other in warm_start:
            self._tell_all(other)
        self._optuna_number: dict[int, int] = {}
        self._open: dict[str, int] = {}
        self._outcomes: dict[int, dict[str, tuple[str, float | None, int]]] = {}
        self.unfinished: list[dict[str, Any]] = []
        self.config_keys: list[str] = []
        lines = read_lines(home.proposals, "number", may_be_absent=not len(before.trials)) if before is not None else []
        proposals = [line["config"] for line in lines]
        rows = {row["trial_id"]: row for row in _rows(before)} if before is not None else {}
        for number, config in enumerate(proposals):
            self._remember(number, config, rows)
        self.num_proposed = len(proposals)

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
        append_line(self.home, self.home.proposals, {"number": number, "config": config})
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
            self.study.tell(self._optuna_number[number], self._outcome(list(outcomes.values())))

    def requeue(self, samples: Sequence[Sample]) -> None:
        """Say that trials of a configuration go on after all; the study is told anew when they have ended."""
        self._open |= {one["trial_id"]: self.configuration_number(one["trial_id"]) for one in samples}

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
        self._optuna_number[number] = self.study.ask_retry(config)
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
        from tune_hpc.search.searchers.optuna_study import trial_outcome

        return trial_outcome(row, self.experiment.metric)

    def _outcome(self, told: Sequence[tuple[str, float | None, int]]) -> Any:
        return self.study.outcome(*zip(*told, strict=True))

    def _tell_all(self, other: Results) -> None:
        """Tell the study of every configuration of another search that this one's space admits."""
        from tune_hpc.search.searchers.optuna_study import configurations

        experiment = self.experiment
        if experiment.metric not in other.trials:
            raise FolderError(
                f"{other.folder or other.name} has no {experiment.metric}, by which {experiment.name} ranks trials; "
                "start from a search that has"
            )
        for config, rows in configurations(other, experiment.space):
            if known := [self._told(row) for row in rows if row["status"] in ENDED]:
                self.study.add(config, self._outcome(known))


def _rows(results: Results) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in results.trials.to_dict("records")]
