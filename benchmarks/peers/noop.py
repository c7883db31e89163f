"""A trial that returns at once, and the timing of a search over such trials."""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from typing import Any


def noop(config: Mapping[str, Any]) -> float:
    """Return a number at once."""
    return float(config["x"])


def add_trials_flag(parser: argparse.ArgumentParser) -> None:
    """Add the number of trials."""
    parser.add_argument("--trials", type=int, default=96, metavar="N", help="trials of a search (default: 96)")


def trials_flag(description: str) -> int:
    """Return the number of trials from the command line of a peer without other flags."""
    parser = argparse.ArgumentParser(description=description)
    add_trials_flag(parser)
    return parser.parse_args().trials


def time_search(search: Callable[[], list[float]], num_trials: int, ray_start_s: float = 0.0) -> None:
    """Run a search and print its duration.

    Args:
        search: Runs all trials and returns the reported values.
        num_trials: Number of trials.
        ray_start_s: Seconds of the start of Ray.

    Raises:
        RuntimeError: A trial reported no valid number.
    """
    began = time.perf_counter()
    values = search()
    seconds = time.perf_counter() - began
    if len(values) != num_trials or not set(values) <= set(range(num_trials)):
        raise RuntimeError(f"{num_trials} trials must report integers below {num_trials}; got {values}")
    print(json.dumps({"search_s": seconds, "ray_start_s": ray_start_s, "ms_per_trial": 1000 * seconds / num_trials}))
