"""The learning rate as a function of the step, by the name of a schedule.

    staircase    learning_rate * decay_rate ** epoch: a step down after each pass over the training data; constant
                 where decay_rate is 1 (the report's)
    cosine       from learning_rate down to 0, along half a cosine
    one_cycle    up to learning_rate in the first part of the steps, then down to nearly 0, both along half a cosine

The last is torch's ``OneCycleLR`` with its defaults, without its cycling momentum.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

#: One cycle begins at the peak divided by the first, and ends at what it began with divided by the second.
ONE_CYCLE_START = 25.0
ONE_CYCLE_END = 1e4


def learning_rates(config: Mapping[str, Any], steps: np.ndarray, epochs: np.ndarray, num_steps: int) -> np.ndarray:
    """Return the learning rate at some steps.

    Source: report, Tables 4.3 to 4.6 (staircase); Loshchilov and Hutter, 2017 (cosine); Smith and Topin, 2018
    (one_cycle).

    Args:
        config: ``learning_rate``, ``schedule`` and its own keys are read.
        steps: Their numbers, counted from 0.
        epochs: How many passes over the training data are complete before each of them.
        num_steps: How many steps the run has.

    Returns:
        float64, shaped like ``steps``.
    """
    peak: float = config["learning_rate"]
    if config["schedule"] == "staircase":
        return peak * config["decay_rate"] ** epochs.astype(np.float64)
    if config["schedule"] == "cosine":
        return _between(peak, 0.0, steps / num_steps)
    start = peak / ONE_CYCLE_START
    # The step at which the peak is, and the last one; of a run of a step or two both are 0 or 1.
    top, last = max(config["warmup"] * num_steps - 1, 0), max(num_steps - 1, 1)
    rising = _between(start, peak, steps / max(top, 1e-9))
    falling = _between(peak, start / ONE_CYCLE_END, (steps - top) / max(last - top, 1e-9))
    return np.where(steps <= top, rising, falling)


def _between(first: float, last: float, fraction: np.ndarray) -> np.ndarray:
    """Return what lies so far along half a cosine from one rate to another."""
    return last + (first - last) * (1 + np.cos(np.pi * np.clip(fraction, 0, 1))) / 2
