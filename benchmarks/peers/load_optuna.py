"""Loader of an Optuna study: ``trials_dataframe``, and the curves, which it lacks."""

import sys
from pathlib import Path

import optuna
import pandas as pd

from benchmarks.peers.loading import GROUPS, STUDY, optuna_storage, print_loading_time


def frames(study: optuna.Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return one row per trial, and one per trial and step."""
    points = [
        (trial.number, step, value)
        for trial in study.get_trials(deepcopy=False)
        for step, value in trial.intermediate_values.items()
    ]
    return study.trials_dataframe(), pd.DataFrame(points, columns=["number", "step", "value"])


if __name__ == "__main__":
    # Not timed: opening imports SQLAlchemy and reads no trial.
    opened = optuna.load_study(study_name=STUDY, storage=optuna_storage(Path(sys.argv[1])))
    print_loading_time(lambda: frames(opened), [f"params_{name}" for name in GROUPS], "value")
