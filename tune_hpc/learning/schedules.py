"""Schedules: the learning rate as a function of the step.

staircase    learning_rate * decay_rate ** epoch, a step down after each pass over the training data; constant with
             decay_rate 1 (the report's schedule)
cosine       from learning_rate down to 0 along half a cosine
one_cycle    up to learning_rate in the first steps, then down to nearly 0, both along half a cosine: torch's
             ``OneCycleLR`` with its defaults, without its momentum cycle
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

#: Peak divided by the initial rate, and initial rate divided by the final one.
ONE_CYCLE_START = 25.0
ONE_CYCLE_END = 1e4


def learning_rates(config: Mapping[str, Any], steps: np.ndarray, epochs: np.ndarray, num_steps: int) -> np.ndarray:
    """Return the learning rates of steps.

    Source: report, Tables 4.3 to 4.6 (staircase); Loshchilov and Hutter, 2017 (cosine); Smith and Topin, 2018
    (one_cycle).

    Args:
        config: ``learning_rate``, ``schedule`` and the keys of the schedule.
        steps: Numbers of the steps, from 0.
        epochs: Number of complete passes over the training data before each step.
        num_steps: Number of steps of the training.

    Returns:
        float64, of the shape of ``steps``.
    """
    peak: float = config["learning_rate"]
    if config["schedule"] == "staircase":
        return peak * config["decay_rate"] ** epochs.astype(np.float64)
    if config["schedule"] == "cosine":
        return _between(peak, 0.0, steps / num_steps)
    start = peak / ONE_CYCLE_START
    # Step of the peak and last step; in a run of one or two steps both are 0 or 1.
    top, last = max(config["warmup"] * num_steps - 1, 0), max(num_steps - 1, 1)
    rising = _between(start, peak, steps / max(top, 1e-9))
    falling = _between(peak, start / ONE_CYCLE_END, (steps - top) / max(last - top, 1e-9))
    return np.where(steps <= top, rising, falling)


def _between(first: float, last: float, fraction: np.ndarray) -> np.ndarray:
    """Interpolate between two rates along half a cosine."""
    return last + (first - last) * (1 + np.cos(np.pi * np.clip(fraction, 0, 1))) / 2
