"""The learning rate as a function of the step."""

from collections.abc import Callable, Mapping
from typing import Any


def build_schedule(config: Mapping[str, Any], epoch: Callable[[int], int]) -> Callable[[int], float]:
    """Return the learning rate at a step.

    Constant where ``decay_rate`` is 1, else ``learning_rate * decay_rate ** epoch``: a step down after each pass.

    Source: report, Tables 4.3 to 4.6.

    Args:
        config: ``learning_rate`` and ``decay_rate`` are read.
        epoch: How many passes over the training data are complete before a step.
    """
    rate, decay = config["learning_rate"], config["decay_rate"]
    if decay == 1:
        return lambda step: rate
    return lambda step: rate * decay ** epoch(step)
