"""The learning rate as a function of the step."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def learning_rates(config: Mapping[str, Any], epochs: np.ndarray) -> np.ndarray:
    """Return the learning rate at some steps.

    Constant where ``decay_rate`` is 1, else ``learning_rate * decay_rate ** epoch``: a step down after each pass.

    Source: report, Tables 4.3 to 4.6.

    Args:
        config: ``learning_rate`` and ``decay_rate`` are read.
        epochs: How many passes over the training data are complete before each step.

    Returns:
        float64, shaped like ``epochs``.
    """
    return config["learning_rate"] * config["decay_rate"] ** epochs.astype(np.float64)
