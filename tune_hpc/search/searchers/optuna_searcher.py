"""Model-based searchers (TPE, GP) through Optuna's ask-and-tell interface.

Each suggested configuration is appended to ``proposals.jsonl`` before its trials start. A resumed search reads the file
and therefore knows every earlier suggestion. Likewise, ``warm_start.jsonl`` has the outcomes of other searches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tune_hpc.analysis.results import Results
from tune_hpc.errors import FolderError
from tune_hpc.search.experiment import ENDED, Experiment
from tune_hpc.search.searchers.searcher import Searcher, merged_config_keys, trial_specs
from tune_hpc.search.trial_spec import TrialOutcome, TrialSpec
from tune_hpc.storage.checksum import dump_json
from tune_hpc.storage.experiment_folder import ExperimentFolder


class OptunaSearcher(Searcher):
    """Suggests the configurations of an Optuna study and reports their outcomes to it.

    Args:
        experiment: The experiment.
        folder: Its folder.
        before: Results of the search so far.
        warm_start: Results of other searches, which are added to the study first.

    Attributes:
        unfinished: Trials that an earlier run suggested and that have not ended.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: ExperimentFolder,
        before: Results | None = None,
        warm_start: Sequence[Results] = (),
    ) -> None:
        # Optuna is imported only for searches that use it.
        from tune_hpc.search.searchers.optuna_study import AskTellStudy

        self.experiment = experiment
        self.folder = folder
        self.study = AskTellStudy(experiment.space, experiment.searcher, experiment.mode, experiment.search_seed)
        self._warm_start = [line for results in warm_start for line in self._outcomes_of(results)]
        self._optuna_numbers: dict[int, int] = {}
        self._open: dict[str, int] = {}
        self._outcomes: dict[int, dict[str, TrialOutcome]] = {}
        self.unfinished: list[TrialSpec] = []
        self.config_keys: list[str] = []
        self.num_suggested = 0
        if before is not None:
            may_be_absent = folder.warm_start.name not in before.experiment.get("num_lines", {})
            self._warm_start = folder.read_lines(folder.warm_start, "number", may_be_absent=may_be_absent)
        for line in self._warm_start:
            outcomes = [TrialOutcome(*outcome) for outcome in line["outcomes"]]
            self.study.add(line["config"], self.study.aggregate(outcomes))
        if before is None:
            return
        lines = folder.read_lines(folder.proposals, "number", may_be_absent=before.trials.empty)
        rows = {str(row["trial_id"]): row for row in before.trials.to_dict("records")}
        for number, line in enumerate(lines):
            self._restore(number, line["config"], rows)
        self.num_suggested = len(lines)

    def write_initial_state(self) -> None:
        """Write the outcomes of other searches, which a resumed search reads."""
        if self._warm_start:
            lines = [dump_json({"number": number, **line}) for number, line in enumerate(self._warm_start)]
            self.folder.storage.write_atomic(self.folder.warm_start, "".join(lines))

    def suggest(self) -> list[TrialSpec]:
        """Return the trials of the next configuration, one for each seed; none after ``num_samples`` of them."""
        if self.num_suggested >= (self.experiment.num_samples or 0):
            return []
        number = self.num_suggested
        if number < len(initial := self.experiment.initial_configs):
            config = initial[number]
            self._optuna_numbers[number] = self.study.ask_given(config)
        else:
            self._optuna_numbers[number], config = self.study.ask()
        self.num_suggested += 1
        self.folder.append_line(self.folder.proposals, {"number": number, "config": config})
        trials = self._trials(number, config)
        self._expect(number, trials)
        if new := [key for key in merged_config_keys(trials) if key not in self.config_keys]:
            self.config_keys += new
            self.note_config_keys(new)
        return trials

    def on_trial_complete(self, trial_id: str, outcome: TrialOutcome) -> None:
        """Record the outcome of a trial; the study learns of a configuration when all its trials have ended.

        A paused trial, of the status ``running``, has not ended.
        """
        if outcome.status not in ENDED or trial_id not in self._open:
            return
        number = self._open.pop(trial_id)
        outcomes = self._outcomes[number]
        outcomes[trial_id] = outcome
        if number not in self._open.values():
            self.study.tell(self._optuna_numbers[number], self.study.aggregate([*outcomes.values()]))

    def requeue(self, trials: Sequence[TrialSpec]) -> None:
        """Expect a further outcome of stopped trials that were promoted."""
        self._open |= {trial.trial_id: self.configuration_number(trial.trial_id) for trial in trials}

    def _restore(self, number: int, config: Mapping[str, Any], rows: Mapping[str, Mapping[Any, Any]]) -> None:
        """Restore a configuration that an earlier run suggested."""
        trials = self._trials(number, config)
        known = {
            trial.trial_id: self._outcome(rows[trial.trial_id])
            for trial in trials
            if rows.get(trial.trial_id, {}).get("status") in ENDED
        }
        if len(known) == len(trials):
            self.study.add(config, self.study.aggregate([*known.values()]))
            return
        self._optuna_numbers[number] = self.study.ask_given(config)
        due = [trial for trial in trials if trial.trial_id not in known]
        self._expect(number, due)
        self._outcomes[number] = known
        self.unfinished += due

    def _trials(self, number: int, config: Mapping[str, Any]) -> list[TrialSpec]:
        configs = self.experiment.with_seeds(config)
        return trial_specs(self.experiment, configs, number * len(configs))

    def _expect(self, number: int, trials: Sequence[TrialSpec]) -> None:
        self._open |= {trial.trial_id: number for trial in trials}
        self._outcomes[number] = {}

    def _outcome(self, row: Mapping[Any, Any]) -> TrialOutcome:
        from tune_hpc.search.searchers.optuna_study import outcome_of_row

        return outcome_of_row(row, self.experiment.metric)

    def _outcomes_of(self, results: Results) -> Iterator[dict[str, Any]]:
        """Yield each configuration of another search that is a member of this space, with its outcomes."""
        from tune_hpc.search.searchers.optuna_study import configurations

        experiment = self.experiment
        if experiment.metric not in results.trials:
            raise FolderError(
                f"{results.folder or results.name} has no metric {experiment.metric}, by which {experiment.name} ranks "
                "trials; warm-start from a search with this metric"
            )
        for config, rows in configurations(results, experiment.space):
            if known := [self._outcome(row) for row in rows if row["status"] in ENDED]:
                yield {"config": config, "outcomes": known}
