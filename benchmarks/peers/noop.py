"""Overhead of a search over trials that return at once: ``python -m benchmarks.peers.noop TOOL [--trials 96]``.

Only the packages of the tool are imported. The start of Ray is not part of the search. Optuna samples at random: its
grid sampler reads all earlier trials before each one and is about twenty times slower at 96 trials.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from benchmarks.harness import num_cores

Search = Callable[[], list[float]]


def noop(config: Mapping[str, Any]) -> float:
    """Return a number at once."""
    return float(config["x"])


def ray_trainable(config: Mapping[str, Any]) -> None:
    """Report one number to Ray Tune."""
    from ray import tune

    tune.report({"value": noop(config)})


def tune_hpc_trainable(config: Mapping[str, Any], report: Callable[[int, Mapping[str, float]], None]) -> None:
    """Report one number to tune_hpc."""
    report(1, {"value": noop(config)})


def search_loop(num_trials: int) -> Search:
    """Return a plain loop."""
    return lambda: [noop({"x": number}) for number in range(num_trials)]


def search_optuna(num_trials: int) -> Search:
    """Return a random search of Optuna in memory, with one thread per core."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        return noop({"x": trial.suggest_int("x", 0, num_trials - 1)})

    def search() -> list[float]:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(objective, n_trials=num_trials, n_jobs=num_cores())
        return [trial.value for trial in study.trials if trial.value is not None]

    return search


def search_ray(num_trials: int, mode: str) -> Search:
    """Return a grid search on Ray Tune with a function trainable and one core per trial."""
    from benchmarks.peers.ray_search import search

    values = {"x": list(range(num_trials))}
    return lambda: [result.metrics["value"] for result in search(ray_trainable, values, mode, "noop")]


def search_tune_hpc(num_trials: int) -> Search:
    """Return a grid search with tune_hpc."""
    from ray import tune

    from tune_hpc import Experiment, Space, run

    space = Space({"x": tune.choice(list(range(num_trials)))}, keys={})
    experiment = Experiment("noop", space, tune_hpc_trainable, metric="value", mode="min", seeds=())
    return lambda: run(experiment, output_dir="run", show_progress=False).trials["value"].tolist()


TOOLS: dict[str, Callable[[int], Search]] = {
    "loop": search_loop,
    "optuna": search_optuna,
    "ray_defaults": partial(search_ray, mode="defaults"),
    "ray_reused": partial(search_ray, mode="reused"),
    "tune_hpc": search_tune_hpc,
}


def main() -> None:
    """Run the search and print its duration.

    Raises:
        RuntimeError: A trial reported no valid number.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--trials", type=int, default=96, metavar="N", help="trials of the search (default: 96)")
    flags = parser.parse_args()
    search = TOOLS[flags.tool](flags.trials)
    ray_start_s = 0.0
    if flags.tool not in ("loop", "optuna"):
        from benchmarks.peers.ray_search import start_ray

        ray_start_s = start_ray()
    began = time.perf_counter()
    values = search()
    seconds = time.perf_counter() - began
    if len(values) != flags.trials or not set(values) <= set(range(flags.trials)):
        raise RuntimeError(f"{flags.trials} trials must report integers below {flags.trials}; got {values}")
    print(json.dumps({"search_s": seconds, "ray_start_s": ray_start_s, "ms_per_trial": 1000 * seconds / flags.trials}))


if __name__ == "__main__":
    main()
