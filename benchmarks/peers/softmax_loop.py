"""Exercise 2's softmax table by a plain loop: trials in sequence, PyTorch on all cores."""

import itertools
import json

from benchmarks.peers.softmax_training import Metrics, as_tensors, best_rates, grid, load_arrays, size_flags, train


def main() -> None:
    """Train all models and print each optimizer's best learning rate."""
    flags = size_flags(__doc__)
    data = as_tensors(load_arrays())
    curves: dict[tuple[str, float], dict[int, Metrics]] = {}
    for optimizer, rate in itertools.product(*grid(flags.trials).values()):
        curve: dict[int, Metrics] = {}
        train({"optimizer": optimizer, "learning_rate": rate}, data, flags.steps, curve.__setitem__)
        curves[optimizer, rate] = curve
    best = best_rates((*config, curve[flags.steps]["valid_loss"]) for config, curve in curves.items())
    print(json.dumps({"best_rates": best}))


if __name__ == "__main__":
    main()
