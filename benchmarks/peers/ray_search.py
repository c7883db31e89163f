"""Start of Ray and grid search on Ray Tune, for all peers on Ray.

``defaults`` is the default Tuner: an actor per trial, and the default loggers. ``reused`` differs only in
``reuse_actors=True``. Ray runs without its dashboard and without forwarding the output of workers, as in tune_hpc.
"""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune

from benchmarks.harness import num_cores


def start_ray() -> float:
    """Start Ray on this machine and return the seconds of its start."""
    began = time.perf_counter()
    ray.init(
        address="local", num_cpus=num_cores(), include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    return time.perf_counter() - began


def search(trainable: Callable[..., Any], values: Mapping[str, list[Any]], mode: str, name: str) -> tune.ResultGrid:
    """Run every combination of ``values`` on one core each, with Ray Tune's files in the working folder.

    Raises:
        RayTaskError: A trial failed.
    """
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={key: tune.grid_search(choices) for key, choices in values.items()},
        tune_config=tune.TuneConfig(reuse_actors=mode == "reused"),
        run_config=tune.RunConfig(name=name, storage_path=str(Path.cwd()), verbose=0),
    )
    results = tuner.fit()
    if results.errors:
        raise results.errors[0]
    return results
