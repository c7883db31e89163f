"""Time to load and group stored trials: ``python -m benchmarks.peers.load TOOL FOLDER``.

Of the heavy packages only pandas and those of the tool are imported. The time excludes imports.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

GROUPS = ["optimizer", "learning_rate"]
METRIC = "test_accuracy"
STUDY = "stored"

Frames = tuple[pd.DataFrame, pd.DataFrame]
#: Loader of one row per trial and one row per trial and step, grouping columns, and metric.
Tool = tuple[Callable[[], Frames], list[str], str]


def optuna_storage(folder: Path) -> str:
    """Return the URL of the study's storage."""
    return f"sqlite:///{folder / 'optuna.db'}"


def optuna_tool(folder: Path) -> Tool:
    """Return the loader of a study: ``trials_dataframe``, and the curves, which it lacks."""
    import optuna

    # Not timed: opening imports SQLAlchemy and reads no trial.
    study = optuna.load_study(study_name=STUDY, storage=optuna_storage(folder))

    def load() -> Frames:
        points = [
            (trial.number, step, value)
            for trial in study.get_trials(deepcopy=False)
            for step, value in trial.intermediate_values.items()
        ]
        return study.trials_dataframe(), pd.DataFrame(points, columns=["number", "step", "value"])

    return load, [f"params_{name}" for name in GROUPS], "value"


def ray_tool(folder: Path) -> Tool:
    """Return the loader of Ray Tune's trial folders: each result.json line by line, as in ``ExperimentAnalysis``."""

    def load() -> Frames:
        histories = []
        for file in sorted(folder.glob("*/result.json")):
            lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")
            histories.append(pd.json_normalize([json.loads(line) for line in lines], sep="/"))
        last_rows = [history.iloc[-1].to_dict() for history in histories]
        return pd.DataFrame(last_rows), pd.concat(histories, ignore_index=True)

    return load, [f"config/{name}" for name in GROUPS], METRIC


def tune_hpc_tool(folder: Path) -> Tool:
    """Return the loader of an experiment folder."""
    from tune_hpc.analysis.loading import load as load_results

    def load() -> Frames:
        results = load_results(folder)
        return results.trials, results.history

    return load, GROUPS, METRIC


TOOLS = {"optuna": optuna_tool, "ray": ray_tool, "tune_hpc": tune_hpc_tool}


def main() -> None:
    """Load trials, group them and print the seconds."""
    load, groups, metric = TOOLS[sys.argv[1]](Path(sys.argv[2]))
    began = time.perf_counter()
    trials, history = load()
    by_group = trials.groupby(groups)[metric].agg(["mean", "std"])
    by_step = history.groupby("step")[metric].mean()
    seconds = time.perf_counter() - began
    counts = {"trials": len(trials), "rows": len(history), "groups": len(by_group), "steps": len(by_step)}
    print(json.dumps({"load_s": seconds, **counts}))


if __name__ == "__main__":
    main()
