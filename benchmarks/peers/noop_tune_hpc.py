"""Overhead of tune_hpc: a user's function over a grid."""

from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from benchmarks.peers.noop import noop, time_search, trials_flag
from benchmarks.peers.ray_search import start_ray
from tune_hpc import Experiment, Space, run


def trainable(config: Mapping[str, Any], report: Callable[[int, Mapping[str, float]], None]) -> None:
    """Report one number."""
    report(1, {"value": noop(config)})


def main() -> None:
    """Time the search, without the start of Ray."""
    num_trials = trials_flag(__doc__)
    space = Space({"x": tune.choice(list(range(num_trials)))}, keys={})
    experiment = Experiment("noop", space, trainable, metric="value", mode="min", seeds=())
    ray_start_s = start_ray()
    time_search(
        lambda: run(experiment, output_dir="run", show_progress=False).trials["value"].tolist(), num_trials, ray_start_s
    )


if __name__ == "__main__":
    main()
