"""How much of a metric each of two parameters explains by itself, and how much only the two together."""

import itertools
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import measured_configurations
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError


def interactions(results: Results, metric: str | None = None) -> pd.DataFrame:
    """Split the variance of a metric over the values of each two parameters.

    The means of all cells, one for each pair of values, vary as one parameter has it, as the other has it, and beyond
    that: what is left tells that the best value of one depends on the other. It holds the seeds' noise, too. That is
    known where every cell has a value and as many configurations as the others, as in a grid of which nothing diverged.

    Args:
        results: A search over a grid.
        metric: A column of the trials; by default the experiment's metric.

    Returns:
        One row per pair of parameters that vary, the largest interaction first: ``first``, ``second``; ``first_share``,
        ``second_share`` and ``interaction_share`` of the variance, fractions that add up to 1; ``num_cells`` with a
        value; ``note``: why the shares are missing, else empty.

    Raises:
        UnknownNameError: no trials, no such column, or less than two parameters that vary.
    """
    metric = metric or results.metric
    configurations = measured_configurations(results, [metric])
    names = [
        name for name in results.varied_parameters if name != "seed" and len(configurations[name].drop_duplicates()) > 1
    ]
    if len(names) < 2:
        raise UnknownNameError(
            f"an interaction takes two parameters that vary; of {results.name} {', '.join(names) or 'none'} does"
        )
    values = configurations[metric].where(configurations["num_diverged"] == 0)
    rows = [_split(configurations, values, first, second) for first, second in itertools.combinations(names, 2)]
    return pd.DataFrame(rows).sort_values("interaction_share", ascending=False, kind="stable", ignore_index=True)


def _split(configurations: pd.DataFrame, values: pd.Series, first: str, second: str) -> dict[str, Any]:
    rows, columns = (configurations.groupby(name, dropna=False).ngroup().to_numpy() for name in (first, second))
    num_rows, num_columns = rows.max() + 1, columns.max() + 1
    cells = pd.DataFrame({"row": rows, "column": columns, "value": values.to_numpy()}).groupby(["row", "column"])
    means, counts = cells["value"].mean(), cells["value"].count()
    row: dict[str, Any] = {
        "first": first, "second": second, "first_share": np.nan, "second_share": np.nan, "interaction_share": np.nan,
        "num_cells": int((counts > 0).sum()), "note": "",
    }  # fmt: skip
    # Counted before a table is laid out: of a search at random it would have a cell for each two values.
    if row["num_cells"] < int(num_rows) * int(num_columns):
        return row | {"note": f"{row['num_cells']} of {int(num_rows) * int(num_columns)} cells have a value"}
    if values.isna().any():
        return row | {"note": f"{int(values.isna().sum())} configurations have no value"}
    if counts.min() < counts.max():
        return row | {"note": "cells differ in what else was tried in them"}
    table = means.to_numpy().reshape(num_rows, num_columns)
    table = table - table.mean()
    by_row, by_column = table.mean(axis=1), table.mean(axis=0)
    whole = (table**2).sum()
    if whole <= 1e-30 * max(1.0, float(np.abs(means).max()) ** 2) * table.size:
        return row | {"note": "all cells are alike"}
    rest = table - by_row[:, None] - by_column[None, :]
    return row | {
        "first_share": float(num_columns * (by_row**2).sum() / whole),
        "second_share": float(num_rows * (by_column**2).sum() / whole),
        "interaction_share": float((rest**2).sum() / whole),
    }
