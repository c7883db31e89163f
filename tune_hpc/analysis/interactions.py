"""Variance explained by two parameters and by their interaction (two-way ANOVA)."""

import itertools
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import measured_configurations, searched_parameters
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError


def interactions(results: Results, metric: str | None = None) -> pd.DataFrame:
    """Split the variance of a metric over the cells of each pair of parameters.

    The interaction is the part that the two parameters do not explain separately. It includes the noise of the seeds.
    The shares need a value in every cell and equally many configurations per cell, as in a grid without divergence.

    Args:
        results: A search over a grid.
        metric: A column of the trials; by default the experiment's metric.

    Returns:
        One row per pair of varied parameters, the largest interaction first: ``first``, ``second``; ``first_share``,
        ``second_share`` and ``interaction_share`` of the variance, fractions that add up to 1; ``num_cells`` with a
        value; ``note``: the reason for missing shares, else empty.

    Raises:
        UnknownNameError: There are no trials, no such column, or fewer than two parameters that vary.
    """
    metric = metric or results.metric
    configurations = measured_configurations(results, [metric])
    names = [name for name in searched_parameters(results) if len(configurations[name].drop_duplicates()) > 1]
    if len(names) < 2:
        raise UnknownNameError(
            f"an interaction needs two parameters that vary; in {results.name} {', '.join(names) or 'none'} does"
        )
    values = configurations[metric].where(configurations["num_diverged"] == 0)
    rows = [_split(configurations, values, first, second) for first, second in itertools.combinations(names, 2)]
    return pd.DataFrame(rows).sort_values("interaction_share", ascending=False, kind="stable", ignore_index=True)


def _split(configurations: pd.DataFrame, values: pd.Series, first: str, second: str) -> dict[str, Any]:
    rows, columns = (configurations.groupby(name, dropna=False).ngroup().to_numpy() for name in (first, second))
    num_rows, num_columns = int(rows.max() + 1), int(columns.max() + 1)
    cells = pd.DataFrame({"row": rows, "column": columns, "value": values.to_numpy()}).groupby(["row", "column"])
    means, counts = cells["value"].mean(), cells["value"].count()
    row: dict[str, Any] = {
        "first": first, "second": second, "first_share": np.nan, "second_share": np.nan, "interaction_share": np.nan,
        "num_cells": int((counts > 0).sum()), "note": "",
    }  # fmt: skip
    # Checked before the table is built, which a random search would make quadratic in the number of trials.
    if row["num_cells"] < num_rows * num_columns:
        return row | {"note": f"{row['num_cells']} of {num_rows * num_columns} cells have a value"}
    if values.isna().any():
        return row | {"note": f"{int(values.isna().sum())} configurations have no value"}
    if counts.min() < counts.max():
        return row | {"note": "cells differ in the number of configurations"}
    table = means.to_numpy().reshape(num_rows, num_columns)
    table = table - table.mean()
    table = table - table.mean()  # removes the rounding error of the first mean
    by_row, by_column = table.mean(axis=1), table.mean(axis=0)
    total = (table**2).sum()
    if total <= 1e-30 * max(1.0, float(np.abs(means).max()) ** 2) * table.size:
        return row | {"note": "all cells are equal"}
    residual = table - by_row[:, None] - by_column[None, :]
    return row | {
        "first_share": float(num_columns * (by_row**2).sum() / total),
        "second_share": float(num_rows * (by_column**2).sum() / total),
        "interaction_share": float((residual**2).sum() / total),
    }
