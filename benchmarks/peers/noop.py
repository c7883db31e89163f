"""A trial that costs nothing, and what is printed of a search over such trials."""

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
    """Return the number of trials that a peer without other flags is to run."""
    parser = argparse.ArgumentParser(description=description)
    add_trials_flag(parser)
    return parser.parse_args().trials


def time_search(search: Callable[[], list[float]], num_trials: int, ray_start_s: float = 0.0) -> None:
    """Run a search and print what it took.

    Args:
        search: Runs all trials and returns what they reported.
        num_trials: How many there are.
        ray_start_s: Seconds that starting Ray took before.

    Raises:
        RuntimeError: the search has not got a number from each trial.
    """
    began = time.perf_counter()
    values = search()
    seconds = time.perf_counter() - began
    if len(values) != num_trials or not set(values) <= set(range(num_trials)):
        raise RuntimeError(f"{num_trials} trials were to report whole numbers below that; got {values}")
    print(json.dumps({"search_s": seconds, "ray_start_s": ray_start_s, "ms_per_trial": 1000 * seconds / num_trials}))
