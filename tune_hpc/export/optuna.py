"""Searches as Optuna studies, for Optuna's own analysis and its dashboard: from frames at once, or as trials end.

One trial of Optuna's is a configuration, its value the mean over the seeds; divergences are infeasible, what a
scheduler stopped is pruned. It tells the ids of its trials, and the metric's mean at some steps. A search that learns
has a study of its own (study.py), in memory: nothing here has a say in what it proposes.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from tune_hpc.analysis.results import Results
from tune_hpc.export.exporter import default_place, points, search_id
from tune_hpc.search.experiment import ENDED, experiment_from_json
from tune_hpc.search.searchers.optuna_study import study_of, study_of_experiment
from tune_hpc.storage.experiment_folder import ExperimentFolder

#: Points of a curve that Optuna is told at most.
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
    """Return the metric of one trial at some of its steps, for one that is the best of others as it grows.

    Returns:
        Finite values by step; nothing where the metric is not taken step by step.
    """
    column, is_best = metric, False
    if metric not in history and metric.startswith(("best_", "selected_")):
        kind, _, column = metric.partition("_")
        is_best = kind == "best"
    if column not in history:
        return {}
    steps, values = points(history, column, MAX_POINTS)
    if is_best:
        values = np.minimum.accumulate(values) if mode == "min" else np.maximum.accumulate(values)
    is_finite = np.isfinite(values)
    return dict(zip(steps[is_finite].tolist(), values[is_finite].tolist(), strict=True))


class OptunaExporter:
    """Adds each configuration to a study that is kept, when all its seeds have ended.

    Args:
        home: The experiment's folder.
        experiment: Its experiment.json.
        place: A file, or the URL of one of Optuna's storages; by default ``optuna.journal`` in the folder.
    """

    FOREIGN = (OSError, ImportError, ValueError, optuna.exceptions.OptunaError, SQLAlchemyError)

    def __init__(self, home: ExperimentFolder, experiment: Mapping[str, Any], place: str | None) -> None:
        self._experiment = experiment_from_json(experiment)
        self._num_seeds = max(1, len(self._experiment.seeds))
        self.place = place or default_place("optuna", home)
        self.num_exported = 0
        self._study = study_of_experiment(self._experiment)
        self._study.study = _study_of(
            _storage(self.place), self._experiment.name, self._experiment.mode, search_id(experiment)
        )
        self._known = {name for trial in self._study.trials for name in trial.user_attrs.get("trial_ids", ())}
        self._waiting: dict[int, list[tuple[Mapping[str, Any], dict[int, float]]]] = defaultdict(list)

    def take(self, row: Mapping[str, Any], config: Mapping[str, Any], history: pd.DataFrame) -> None:
        """Keep a trial that has ended until the other seeds have, too."""
        trial_id = str(row["trial_id"])
        if row["status"] not in ENDED or trial_id in self._known:
            return
        # Trials are numbered with the seeds of a configuration one after another, so that two configurations that
        # happen to be alike stay two.
        own = self._waiting[int(trial_id[1:]) // self._num_seeds]
        own.append((row, curve(history, self._experiment.metric, self._experiment.mode)))
        admitted = self._experiment.space.config_in(row)
        if len(own) == self._num_seeds and admitted is not None:
            own.sort(key=lambda one: str(one[0]["trial_id"]))
            self._study.add_trials(admitted, own, self._experiment.metric)
            self._known.update(str(one["trial_id"]) for one, _ in own)
            self.num_exported += len(own)

    def flush(self) -> None:
        """Do nothing: Optuna keeps a trial when it is added."""


def _storage(place: str) -> BaseStorage:
    if "://" in place:
        return optuna.storages.get_storage(place)
    Path(place).absolute().parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(place))


def _study_of(storage: BaseStorage, name: str, mode: str, search: str) -> optuna.Study:
    """Return the study of a search among others that are kept, some of which may have the same name."""
    number = 1
    while True:
        study = optuna.create_study(
            storage=storage,
            study_name=name if number == 1 else f"{name}-{number}",
            direction="minimize" if mode == "min" else "maximize",
            load_if_exists=True,
        )
        if not study.trials and "search" not in study.user_attrs:
            study.set_user_attr("search", search)
        if study.user_attrs.get("search") == search:
            return study
        number += 1
