"""Timed analysis of stored trials, the same for every loader.

Of the heavy packages this module imports only pandas, so that a loader pays only for its tool.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

GROUPS = ["optimizer", "learning_rate"]
METRIC = "test_accuracy"
STUDY = "stored"


def optuna_storage(folder: Path) -> str:
    """Return the address of the study's storage."""
    return f"sqlite:///{folder / 'optuna.db'}"


def print_loading_time(
    load: Callable[[], tuple[pd.DataFrame, pd.DataFrame]], groups: list[str], metric: str = METRIC
) -> None:
    """Load trials, group them and print the seconds, without imports.

    Args:
        load: Returns one row per trial, and one row per trial and step.
        groups: The columns of the trials to group by.
        metric: The column of both frames that is averaged.
    """
    began = time.perf_counter()
    trials, history = load()
    by_group = trials.groupby(groups)[metric].agg(["mean", "std"])
    by_step = history.groupby("step")[metric].mean()
    seconds = time.perf_counter() - began
    counts = {"trials": len(trials), "rows": len(history), "groups": len(by_group), "steps": len(by_step)}
    print(json.dumps({"load_s": seconds, **counts}))
