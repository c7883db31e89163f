"""Export of a search as an Optuna study, for Optuna's own analysis and its dashboard.

One Optuna trial is one configuration; its value is the mean over the seeds. Diverged configurations are infeasible,
those that a scheduler stopped are pruned. User attributes name the trials; intermediate values are the mean curve. The
study of an adaptive searcher is another one, in memory: an exported study has no influence on suggestions.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pandas as pd
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from tune_hpc.analysis.results import Results
from tune_hpc.export.exporter import Exporter, points, search_id
from tune_hpc.search.experiment import ENDED
from tune_hpc.search.experiment_json import experiment_from_json
from tune_hpc.search.searchers.optuna_study import Curve, study_of, study_of_experiment
from tune_hpc.storage.experiment_folder import ExperimentFolder, numbered_names
from tune_hpc.storage.trial_file import row_to_config

#: Maximum number of points of a curve.
MAX_POINTS = 100


def to_optuna(results: Results, storage: str | BaseStorage | None = None) -> optuna.Study:
    """Return a search as an Optuna study, without trials that have not ended.

    Args:
        results: Results of a search, finished or not.
        storage: Optuna storage that keeps the study under the name of the experiment; ``None``: in memory.

    Raises:
        UnknownNameError: The trials have no column of the metric.
    """
    curves = {}
    if "trial_id" in results.history:
        curves = {
            str(trial_id): curve(history, results.metric, results.experiment["mode"])
            for trial_id, history in results.history.groupby("trial_id", observed=True)
        }
    return study_of(results, storage, curves)


def curve(history: pd.DataFrame, metric: str, mode: str) -> dict[int, float]:
    """Return the finite values of a metric of one trial by step; of a ``best_`` metric, its running best.

    A metric that is known only at the end has no curve.
    """
    column, is_best = metric, False
    if metric not in history and metric.startswith(("best_", "selected_")):
        kind, _, column = metric.partition("_")
        is_best = kind == "best"
    if column not in history:
        return {}
    values = dict(points(history, column, MAX_POINTS))
    if is_best:
        values = dict(zip(values, accumulate(values.values(), min if mode == "min" else max), strict=True))
    return {step: value for step, value in values.items() if math.isfinite(value)}


class OptunaExporter(Exporter):
    """Exporter to a study in a journal file or an Optuna storage; by default ``optuna.journal`` in the folder."""

    package: ClassVar[str] = "optuna"
    remedy: ClassVar[str] = "pip install optuna"
    viewer: ClassVar[str] = "optuna-dashboard"

    def __init__(self, folder: ExperimentFolder, experiment: Mapping[str, Any], uri: str | None) -> None:
        self._experiment = experiment_from_json(experiment)
        self._num_seeds = max(1, len(self._experiment.seeds))
        self.uri = uri or str(folder.optuna_journal)
        self.num_exported = 0
        self._study = study_of_experiment(self._experiment)
        self._study.study = _stored_study(
            _storage(self.uri), self._experiment.name, self._experiment.mode, search_id(experiment)
        )
        self._exported = {name for trial in self._study.trials for name in trial.user_attrs.get("trial_ids", ())}
        self._incomplete: dict[int, list[tuple[Mapping[str, Any], Curve]]] = defaultdict(list)

    @classmethod
    def expected_errors(cls) -> tuple[type[Exception], ...]:
        """Return the exceptions that an unusable destination raises."""
        return OSError, ImportError, ValueError, optuna.exceptions.OptunaError, SQLAlchemyError

    def add(self, row: Mapping[str, Any], config: Mapping[str, Any], history: pd.DataFrame) -> None:
        """Add the configuration of a trial, once all its trials have ended."""
        trial_id = str(row["trial_id"])
        if row["status"] not in ENDED or trial_id in self._exported:
            return
        # The trials of a configuration have consecutive numbers; two equal configurations stay two.
        trials = self._incomplete[int(trial_id[1:]) // self._num_seeds]
        trials.append((row, curve(history, self._experiment.metric, self._experiment.mode)))
        member = self._experiment.space.config_in(row_to_config(row))
        if len(trials) == self._num_seeds and member is not None:
            trials.sort(key=lambda trial: str(trial[0]["trial_id"]))
            self._study.add_trials(member, trials, self._experiment.metric)
            self._exported.update(str(trial["trial_id"]) for trial, _ in trials)
            self.num_exported += len(trials)


def _storage(uri: str) -> BaseStorage:
    if "://" in uri:
        return optuna.storages.get_storage(uri)
    Path(uri).absolute().parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(uri))


def _stored_study(storage: BaseStorage, name: str, mode: str, search: str) -> optuna.Study:
    """Return the study of a search in a storage, which may contain other searches of the same name."""
    names = numbered_names(name)
    while True:
        study = optuna.create_study(
            storage=storage,
            study_name=next(names),
            direction="minimize" if mode == "min" else "maximize",
            load_if_exists=True,
        )
        if not study.trials and "search" not in study.user_attrs:
            study.set_user_attr("search", search)
        if study.user_attrs.get("search") == search:
            return study
