"""Time per point to record the curve of one trial: ``python -m benchmarks.peers.record TOOL [--points 30000]``.

The clock starts in the trial before its first report, and stops when the search returns with all data stored. The time
for a curve of one point is subtracted, which removes process start and end of the search. Only the packages of the tool
are imported.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

#: Records a curve, given the number of points, the file for ``start_clock`` and a new name for its results. Returns a
#: function that reads the last recorded value.
Record = Callable[[int, str, str], Callable[[], float]]


def start_clock(file: str) -> None:
    """Write the time of the first report to a file."""
    Path(file).write_text(repr(time.time()), encoding="utf-8")


def value(step: int) -> float:
    """Return the curve's value."""
    return 1.0 / step


def ray_trainable(config: Mapping[str, Any]) -> None:
    """Report one number at a time to Ray Tune."""
    from ray import tune

    start_clock(config["clock"])
    for step in range(1, config["points"] + 1):
        tune.report({"value": value(step)})


def tune_hpc_trainable(config: Mapping[str, Any], report: Callable[[Any, Mapping[str, Any]], None]) -> None:
    """Report a curve to tune_hpc in blocks of ``config["block"]`` points."""
    points, block = config["points"], config["block"]
    start_clock(config["clock"])
    if block == 1:
        for step in range(1, points + 1):
            report(step, {"value": value(step)})
    else:
        for first in range(1, points + 1, block):
            steps = np.arange(first, min(first + block, points + 1))
            report(steps, {"value": 1.0 / steps})


def record_optuna(points: int, clock: str, name: str, storage: str | None) -> Callable[[], float]:
    """Record a curve with Optuna, point by point, in memory or in a storage."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        start_clock(clock)
        for step in range(1, points + 1):
            trial.report(value(step), step)
        return value(points)

    study = optuna.create_study(storage=storage, study_name=name)
    study.optimize(objective, n_trials=1)
    return lambda: study.trials[0].intermediate_values[points]


def record_ray(points: int, clock: str, name: str) -> Callable[[], float]:
    """Record a curve with Ray Tune and its default loggers."""
    from benchmarks.peers.ray_search import search

    (result,) = search(ray_trainable, {"points": [points], "clock": [clock]}, "defaults", name)
    return lambda: float(result.metrics_dataframe["value"].iloc[points - 1])


def record_tune_hpc(points: int, clock: str, name: str, block: int) -> Callable[[], float]:
    """Record a curve with tune_hpc."""
    from tune_hpc import Experiment, Space, run

    space = Space({"points": points, "block": block, "clock": clock}, keys={})
    experiment = Experiment(name, space, tune_hpc_trainable, metric="value", mode="min", seeds=())
    results = run(experiment, output_dir=name, show_progress=False)
    return lambda: float(results.history["value"].iloc[points - 1])


TOOLS: dict[str, Record] = {
    "optuna": partial(record_optuna, storage=None),
    "optuna_sqlite": partial(record_optuna, storage="sqlite:///optuna.db"),
    "ray": record_ray,
    "tune_hpc": partial(record_tune_hpc, block=1),
    "tune_hpc_blocks": partial(record_tune_hpc, block=1000),
}


def main() -> None:
    """Record curves and print the microseconds per point.

    Raises:
        RuntimeError: A curve is incomplete.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--points", type=int, default=30_000, metavar="N")
    flags = parser.parse_args()
    if not flags.tool.startswith("optuna"):
        from benchmarks.peers.ray_search import start_ray

        start_ray()

    def seconds(num_points: int, name: str) -> float:
        clock = Path.cwd() / f"{name}.clock"
        read_last = TOOLS[flags.tool](num_points, str(clock), name)
        ended = time.time()
        if (last := read_last()) != value(num_points):
            raise RuntimeError(f"the last of {num_points} points must be {value(num_points)}; recorded: {last}")
        return ended - float(clock.read_text(encoding="utf-8"))

    # Imports and other one-time work are in neither of the timed searches.
    seconds(1, "warmup")
    one_point, whole_curve = seconds(1, "point"), seconds(flags.points, "curve")
    measured = {"one_point_s": one_point, "whole_curve_s": whole_curve, "points": flags.points}
    print(json.dumps(measured | {"us_per_point": 1e6 * (whole_curve - one_point) / (flags.points - 1)}))


if __name__ == "__main__":
    main()
