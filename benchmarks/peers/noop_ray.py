"""Overhead of Ray Tune: a function trainable, a grid, one core per trial."""

from collections.abc import Mapping
from typing import Any

from ray import tune

from benchmarks.peers.noop import add_trials_flag, noop, time_search
from benchmarks.peers.ray_search import mode_parser, search, start_ray


def trainable(config: Mapping[str, Any]) -> None:
    """Report one number to Ray Tune."""
    tune.report({"value": noop(config)})


def main() -> None:
    """Time the search, without the start of Ray."""
    parser = mode_parser(__doc__)
    add_trials_flag(parser)
    flags = parser.parse_args()
    ray_start_s = start_ray()
    values = {"x": list(range(flags.trials))}
    time_search(
        lambda: [one.metrics["value"] for one in search(trainable, values, flags.mode, "noop")],
        flags.trials,
        ray_start_s,
    )


if __name__ == "__main__":
    main()
