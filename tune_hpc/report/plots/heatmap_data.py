"""The table behind a heat map: a metric over two parameters, one row per cell."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    COMPLETED,
    aggregate_seeds,
    configuration_numbers,
    is_crossed_design,
    numeric_column,
    row_mask,
)
from tune_hpc.analysis.comparison import compare_samples
from tune_hpc.analysis.results import Results

CONFIDENCE = 0.95
MEASURED, DIVERGED, NO_VALUE = "measured", "diverged", "no value"
_COLUMNS = ("x", "y", "value", "state", "is_partial", "num_configurations", "is_best", "configuration")


def heat_table(results: Results, metric: str, x: str, y: str, where: Mapping[str, Any]) -> pd.DataFrame:
    """Return a metric over two parameters.

    Args:
        results: Any results.
        metric: A numeric column of the trials.
        x: The parameter of the columns.
        y: The parameter of the rows.
        where: Only trials with these values (the page).

    Returns:
        One row per cell of the full grid: ``x``, ``y`` (their values), ``value`` (the mean over seeds), ``state``
        (``measured``; ``diverged``: trials ran there and none gave a value, one of them because it diverged; ``no
        value``), ``is_partial`` (some seeds diverged; the mean is that of the others), ``num_configurations`` (where
        other parameters vary, too, a cell is the best configuration's), ``is_best`` (the best cell of which no seed
        diverged), ``configuration`` (the row of ``aggregate_seeds``; missing where there is none). Empty where nothing
        was measured, there is one cell, or the two were not crossed: their values were drawn.
    """
    empty = pd.DataFrame(columns=list(_COLUMNS))
    if {x, y} - set(results.trials) or x == y:
        return empty
    found = aggregate_seeds(results, [metric])
    if {x, y} - set(found):
        return empty
    found = found[row_mask(found, where)].dropna(subset=[x, y])
    if (
        not found[metric].notna().any()
        or len(found[[x, y]].drop_duplicates()) < 2
        or not is_crossed_design(found, x, y)
    ):
        return empty
    is_low = results.is_lower_better(metric)
    # Of several configurations in a cell the best counts: one of which no seed diverged before one that lost some.
    found = found.assign(lost=found["num_diverged"] > 0, has_none=found[metric].isna(), configuration=found.index)
    found = found.sort_values(["has_none", "lost", metric], ascending=[True, True, is_low], kind="stable")
    grouped = found.groupby([x, y], sort=False)
    cells = grouped.head(1).set_index([x, y])
    cells = cells.assign(size=grouped.size(), diverged=grouped["num_diverged"].sum())
    grid = pd.MultiIndex.from_product([found[x].unique(), found[y].unique()], names=[x, y])
    cells = cells.reindex(grid)
    value = cells[metric].astype(float)
    state = np.where(value.notna(), MEASURED, np.where(cells["diverged"] > 0, DIVERGED, NO_VALUE))
    table = pd.DataFrame(
        {
            "x": grid.get_level_values(0),
            "y": grid.get_level_values(1),
            "value": value.to_numpy(),
            "state": state,
            "is_partial": (value.notna() & (cells["num_diverged"] > 0)).to_numpy(bool),
            "num_configurations": cells["size"].fillna(0).astype(int).to_numpy(),
            "configuration": cells["configuration"].astype("Int64").to_numpy(),
        }
    )
    sound = table.loc[~table["is_partial"], "value"].dropna()
    best = None if sound.empty else sound.idxmin() if is_low else sound.idxmax()
    return table.assign(is_best=table.index == best)[list(_COLUMNS)]


def tied_with_best(results: Results, metric: str, table: pd.DataFrame) -> pd.Series:
    """Return which cells of a heat map the seeds cannot tell from the best one, as truths.

    Each is held against the best by itself, seed by seed where they share them, with a confidence of 95 %. Corrected
    for the number of cells, as ``Results.compare`` does, three seeds would tell next to nothing apart. Where seeds tell
    nothing, as one alone does, no cell is called tied.
    """
    tied = pd.Series(False, index=table.index)
    others = table.index[~table["is_best"] & table["value"].notna() & ~table["is_partial"]]
    if not table["is_best"].any() or others.empty:
        return tied
    trials = results.trials
    values = numeric_column(trials, metric).where(trials["status"].isin(COMPLETED))
    seeds = trials["seed"] if "seed" in trials else pd.Series(range(len(trials)), index=trials.index)
    by_seed = values.groupby([configuration_numbers(results), seeds]).mean().dropna()
    best = by_seed[table.loc[table["is_best"], "configuration"].item()]
    p = [compare_samples(best, by_seed[table.loc[cell, "configuration"]], CONFIDENCE).p for cell in others]
    tied[others] = np.array(p) >= 1 - CONFIDENCE
    return tied
