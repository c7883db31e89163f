"""Interactions of parameters: shares of the variance over the cells of a grid."""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import MAX_CROSSED, measured_configurations, searched_parameters, trial_values
from tune_hpc.analysis.stability import resampled_units
from tune_hpc.errors import UnknownNameError

if TYPE_CHECKING:
    from tune_hpc.analysis.results import Results


def interactions(results: "Results", metric: str | None = None, log: bool | None = None) -> pd.DataFrame:
    """Split the variance of a metric over the cells of each pair of parameters.

    The interaction is the part that the two parameters do not explain separately. It includes the noise of the seeds,
    and resampled seeds add it once more. The interval is therefore the basic one (Davison and Hinkley, 1997, section
    5.2), which subtracts this bias.
    The shares need a value in every cell and equally many configurations per cell, as in a grid without divergence.

    Args:
        results: A search over a grid.
        metric: A column of the trials; by default the experiment's metric.
        log: Whether to split the variance of the logarithm; by default that of a positive loss, because the largest
            losses of a search dominate the variance otherwise.

    Returns:
        One row per pair of varied parameters, the largest interaction first: ``first``, ``second``; ``first_share``,
        ``second_share`` and ``interaction_share`` of the variance, fractions that add up to 1; ``low_share`` and
        ``high_share`` (95 % interval over resampled seeds; missing with one seed or a missing one); ``scale``
        (``log`` or ``linear``); ``num_cells`` with a value; ``note``: the reason for missing shares, else empty.

    Raises:
        UnknownNameError: There are no trials, no such column, or fewer than two or over ``MAX_CROSSED`` parameters that
            vary.
    """
    metric = metric or results.metric
    if len(searched_parameters(results)) > MAX_CROSSED:
        raise UnknownNameError(
            f"interactions of pairs are for at most {MAX_CROSSED} parameters; {results.name} has "
            f"{len(searched_parameters(results))}: fix some of them"
        )
    configurations = measured_configurations(results, [metric])
    names = [name for name in searched_parameters(results) if len(configurations[name].drop_duplicates()) > 1]
    if len(names) < 2:
        raise UnknownNameError(
            f"an interaction needs two parameters that vary; in {results.name} {', '.join(names) or 'none'} does"
        )
    values = configurations[[metric]].where(configurations["num_diverged"] == 0).to_numpy()
    by_seed = trial_values(results, [metric]).pivot_table(metric, "configuration", "seed")
    if len(by_seed) == len(values) and by_seed.shape[1] > 1 and by_seed.notna().all(axis=None):
        values = np.hstack([values, by_seed.to_numpy() @ resampled_units(by_seed.shape[1]).T])
    if log is None:
        log = metric.endswith("loss") and not (values <= 0).any()
    values = np.log(values) if log else values
    rows = [
        _variance_shares(configurations, values, first, second) | {"scale": "log" if log else "linear"}
        for first, second in itertools.combinations(names, 2)
    ]
    df = pd.DataFrame(rows).sort_values("interaction_share", ascending=False, kind="stable", ignore_index=True)
    return df[[*df.columns.drop(["num_cells", "note"]), "num_cells", "note"]]


def _variance_shares(configurations: pd.DataFrame, values: np.ndarray, first: str, second: str) -> dict[str, Any]:
    """Return the shares of the first column of values, with the quantiles of the other ones, which are resamples."""
    rows, columns = (configurations.groupby(name, dropna=False).ngroup().to_numpy() for name in (first, second))
    num_rows, num_columns = int(rows.max() + 1), int(columns.max() + 1)
    is_known = ~np.isnan(values[:, 0])
    counts = pd.Series(is_known).groupby([rows, columns]).sum()
    shares = ["first_share", "second_share", "interaction_share", "low_share", "high_share"]
    row: dict[str, Any] = {"first": first, "second": second} | dict.fromkeys(shares, np.nan)
    row |= {"num_cells": int((counts > 0).sum()), "note": ""}
    # Checked before the table is built, which a random search would make quadratic in the number of trials.
    if row["num_cells"] < num_rows * num_columns:
        return row | {"note": f"{row['num_cells']} of {num_rows * num_columns} cells have a value"}
    if not is_known.all():
        return row | {"note": f"{int((~is_known).sum())} configurations have no value"}
    if counts.min() < counts.max():
        return row | {"note": "cells differ in the number of configurations"}
    cells = values[np.lexsort((columns, rows))].reshape(num_rows, num_columns, -1, values.shape[1])
    table = cells.mean(axis=2)
    table -= table.mean(axis=(0, 1))
    table -= table.mean(axis=(0, 1))  # removes the rounding error of the first mean
    by_row, by_column = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    total = (table**2).sum(axis=(0, 1))
    if total[0] <= 1e-30 * max(1.0, float(np.abs(values[:, 0]).max()) ** 2) * num_rows * num_columns:
        return row | {"note": "all cells are equal"}
    interaction = ((table - by_row - by_column) ** 2).sum(axis=(0, 1)) / total
    if len(total) > 1:
        high, low = np.quantile(interaction[1:], [0.025, 0.975])
        row["low_share"], row["high_share"] = np.clip([2 * interaction[0] - low, 2 * interaction[0] - high], 0, 1)
    return row | {
        "first_share": float(num_columns * (by_row[..., 0] ** 2).sum() / total[0]),
        "second_share": float(num_rows * (by_column[..., 0] ** 2).sum() / total[0]),
        "interaction_share": float(interaction[0]),
    }
