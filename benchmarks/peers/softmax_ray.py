"""Exercise 2's softmax table on Ray Tune: a function trainable, a grid, one core per trial, data in the object store.

Trials report every evaluation, so that Ray Tune's loggers record the learning curves.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray import tune

from benchmarks.peers.ray_search import mode_parser, search, start_ray
from benchmarks.peers.softmax_training import add_size_flags, as_tensors, best_rates, grid, load_arrays, train


def trainable(config: Mapping[str, Any], data: Mapping[str, np.ndarray], steps: int) -> None:
    """Train one model in an actor of Ray Tune."""
    torch.set_num_threads(1)
    # Ray shares the memory of arrays among actors, and would copy tensors for every trial.
    train(config, as_tensors(data), steps, lambda step, metrics: tune.report({"step": step, **metrics}))


def main() -> None:
    """Train all models and print each optimizer's best learning rate."""
    parser = mode_parser(__doc__)
    add_size_flags(parser)
    flags = parser.parse_args()
    start_ray()
    with_data = tune.with_parameters(trainable, data=load_arrays(), steps=flags.steps)
    results = search(with_data, grid(flags.trials), flags.mode, "softmax")
    best = best_rates(
        (one.config["optimizer"], one.config["learning_rate"], one.metrics["valid_loss"]) for one in results
    )
    print(json.dumps({"best_rates": best, "num_trials": len(results)}))


if __name__ == "__main__":
    main()
