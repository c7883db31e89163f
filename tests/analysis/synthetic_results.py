"""Synthetic searches with known true values."""

from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.frames import trials_frame
from tune_hpc.analysis.results import Results

EMPTY = pd.DataFrame({"trial_id": pd.Series(dtype="str"), "step": []})


def searched(
    space: dict[str, Any], rows: list[dict[str, Any]], history: pd.DataFrame = EMPTY, **settings: Any
) -> Results:
    """Return the results of a search for the lowest ``loss``; a row without a status has finished."""
    rows = [
        {"experiment": "made.up", "trial_id": f"t{number:05d}", "status": "finished", "seed": 0} | row
        for number, row in enumerate(rows)
    ]
    keys = [*space, "seed"]
    experiment = {"name": "made.up", "metric": "loss", "mode": "min", "config_keys": keys, "space": space} | settings
    return Results(experiment, trials_frame(rows, keys), history)


def repeated(
    rows: list[dict[str, Any]],
    deviation: float = 0.01,
    num_seeds: int = 5,
    generator: np.random.Generator | None = None,
) -> list[dict[str, Any]]:
    """Return each row with several seeds and normal noise on its loss."""
    generator = generator or np.random.default_rng(0)
    return [
        row | {"seed": seed, "loss": row["loss"] + generator.normal(0, deviation)}
        for row in rows
        for seed in range(num_seeds)
    ]
