"""Compare measured values with published numbers.

A published number is a single run, rounded. It agrees if it lies in the 95 % prediction interval of one more of our
runs, widened by half of its last digit, and differs otherwise. The run-to-run deviation is pooled over the seeds of
the compared configurations. With one seed it is that of the published runs, from neighbouring cells of their table: our
cells share their seed, and vary less. Without any, a number agrees if it equals ours to the printed digits; else the
comparison is inconclusive. A deterministic run either has the printed digits or differs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    aggregate_seeds,
    row_mask,
    searched_parameters,
    sort_configurations,
    trial_values,
)
from tune_hpc.analysis.formatting import format_config, format_value
from tune_hpc.analysis.frames import METRICS
from tune_hpc.analysis.intervals import ROUNDING
from tune_hpc.analysis.linear_model import pooled_deviations
from tune_hpc.analysis.results import Results
from tune_hpc.learning.config import has_random_result

AGREES, DIFFERS, INCONCLUSIVE, NOT_COMPARABLE = "agrees", "differs", "inconclusive", "not comparable"
LEVEL = 0.05
_NUMBER_COLUMNS = (
    "where", "metric", "published", "measured", "low", "high", "deviation", "degrees", "num_seeds", "num_diverged",
    "difference", "zone_low", "zone_high", "verdict", "p_holm", "best_over", "best_of", "measured_best",
    "published_best", "best_agrees", "duplicate_of", "note", "quick", "source",
)  # fmt: skip


def compare_to_published(results: Results) -> pd.DataFrame:
    """Compare every published number with the trials that it describes.

    Returns:
        One row per published number:

        - ``where`` (text), ``metric``, ``published``, ``measured`` (mean over seeds), ``difference`` (measured -
          published), ``num_seeds``, ``num_diverged``, ``source``, ``quick``.
        - ``low`` and ``high``: 95 % interval of the mean; ``deviation`` of one run with its ``degrees`` of freedom.
        - ``zone_low`` and ``zone_high``: published numbers between them would agree; ``verdict``: ``agrees``,
          ``differs``, ``inconclusive``, or ``not comparable`` (a quick run, another size, or seconds of another
          machine); ``p_holm``: p-value of the difference, with Holm's (1979) correction for the whole table.
        - ``best_over``: parameter of which the source states the best values, under the condition ``best_of``, with
          ``measured_best``, ``published_best`` and ``best_agrees``.
        - ``duplicate_of``: condition of an earlier number that the same computation measures, as for two optimizers
          that are identical here; duplicates do not count in ``p_holm`` and ``joint_test``.
        - ``note``: reason for a missing measurement or comparison.

    Example:
        >>> from tune_hpc import compare_to_published, load
        >>> published = compare_to_published(load("docs/results/exercise3.learning_rate"))
        >>> published["verdict"].value_counts().to_dict()
        {'agrees': 18}
    """
    published = list(results.experiment.get("published") or ())
    configurations = aggregate_seeds(results, [results.metric, *(number["metric"] for number in published)])
    shared = _shared_conditions(published)
    rows = [_compare_one(number, results, configurations, shared) for number in published]
    df = pd.DataFrame(rows, columns=[*_NUMBER_COLUMNS, "configuration", "resolution", "is_comparable"])
    for _, group in df[df["is_comparable"].astype(bool)].groupby("metric", sort=False):
        _add_deviations(df, group, results, published)
    _add_verdicts(df, configurations)
    df["duplicate_of"] = _duplicates(results, df)
    df["p_holm"] = _holm(df["p_holm"].where(df["duplicate_of"].isna()))
    df = df.astype({"best_agrees": "boolean", "num_seeds": "int64", "num_diverged": "int64"})
    return df[list(_NUMBER_COLUMNS)]


def distinct_numbers(published: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``compare_to_published`` without duplicates of a computation."""
    return published[published["duplicate_of"].isna()]


def joint_test(published: pd.DataFrame) -> pd.DataFrame:
    """Test whether the published numbers of a metric differ from ours on average, although each may agree.

    All our runs may share their seeds, so that the error of our means counts in full; that of the published runs
    averages out. Student's t-test.

    Args:
        published: Table of ``compare_to_published``.

    Returns:
        One row per metric with at least two comparable numbers, without duplicates: ``metric``, ``num_numbers``,
        ``num_above`` (published above measured), ``mean_difference`` (published less measured), its 95 % ``half``
        width, and ``p``.
    """
    from scipy.special import stdtr, stdtrit

    known = distinct_numbers(published).dropna(subset=["deviation", "measured"])
    rows = []
    for metric, table in known.groupby("metric", sort=False):
        if len(table) < 2:
            continue
        excess, degrees = table["published"] - table["measured"], table["degrees"].min()
        error = np.sqrt((table["deviation"] ** 2).mean() * (1 / len(table) + 1 / table["num_seeds"].min()))
        mean = float(excess.mean())
        p = 2 * float(stdtr(degrees, -abs(mean) / error))
        rows.append(
            (metric, len(table), int((excess > 0).sum()), mean, float(stdtrit(degrees, 1 - LEVEL / 2) * error), p)
        )
    return pd.DataFrame(rows, columns=["metric", "num_numbers", "num_above", "mean_difference", "half", "p"])


def _shared_conditions(published: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the conditions that all published numbers have in common."""
    first = published[0]["where"] if published else {}
    return {name for name in first if all(number["where"].get(name) == first[name] for number in published)}


def _compare_one(
    number: Mapping[str, Any], results: Results, configurations: pd.DataFrame, shared: set[str]
) -> dict[str, Any]:
    """Return a row with the measured mean, without its deviation and verdict."""
    where, metric, over = number["where"], number["metric"], number.get("best_over")
    best_values = list(number.get("best_values") or ()) if over else []
    condition = {name: value for name, value in where.items() if name not in shared} or where
    row: dict[str, Any] = dict.fromkeys(_NUMBER_COLUMNS, np.nan) | {
        "where": format_config(condition),
        "best_of": format_config({name: value for name, value in condition.items() if name != over}),
        "metric": metric, "published": float(number["value"]), "num_seeds": 0, "verdict": None, "best_over": over,
        "measured_best": None, "published_best": ", ".join(map(format_value, best_values)) or None,
        "best_agrees": None, "duplicate_of": None, "note": "", "quick": bool(results.experiment.get("quick")),
        "source": number.get("source", ""), "configuration": -1, "resolution": number.get("resolution", 0.0),
        "is_comparable": False,
    }  # fmt: skip
    found = configurations[row_mask(configurations, where)]
    row["num_diverged"] = int(found["num_diverged"].sum())
    free = [name for name in searched_parameters(results) if name != over and len(found[name].drop_duplicates()) > 1]
    if found.empty:
        return row | {"note": "no such trial"}
    if free:
        return row | {"note": f"trials there also differ in {', '.join(free)}"}
    ranked = sort_configurations(results, found) if over else found
    if ranked.empty or np.isnan(ranked[metric].iloc[0]):
        return row | {"note": "diverged" if row["num_diverged"] else f"no trial finished with a value of {metric}"}
    best = ranked.iloc[0]
    row |= {"measured": best[metric], "num_seeds": int(best["num_seeds"]), "configuration": ranked.index[0]}
    row |= {"difference": row["measured"] - row["published"], "verdict": NOT_COMPARABLE}
    size = {name: value for name, value in (number.get("size") or {}).items() if name in ranked}
    other_size = {name: best[name] for name, value in size.items() if not _has(ranked, name, value)}
    if other_size:
        row["note"] = f"measured with {format_config(other_size)}"
    else:
        row["is_comparable"] = not row["quick"] and not metric.endswith("_s")
    if over:
        rivals = configurations[row_mask(configurations, {name: where[name] for name in where if name != over})]
        best_rival = sort_configurations(results, rivals)
        row["measured_best"] = best_rival[over].iloc[0] if len(best_rival) else None
        # Unknown if none of the published best values was tried, as in a range.
        if any(row_mask(rivals, {over: value}).any() for value in best_values):
            row["best_agrees"] = any(_has(best_rival, over, value) for value in best_values)
    return row


def _has(ranked: pd.DataFrame, name: str, value: Any) -> bool:
    """Return whether the best configuration has a value."""
    return bool(row_mask(ranked.head(1), {name: value}).all())


def _add_deviations(
    df: pd.DataFrame, group: pd.DataFrame, results: Results, published: Sequence[Mapping[str, Any]]
) -> None:
    """Add ``deviation`` and ``degrees`` to the comparable rows of one metric."""
    values = trial_values(results, group["metric"].unique().tolist())
    samples = values.pivot_table(group["metric"].iloc[0], "seed", "configuration")[group["configuration"].unique()]
    deviations, degrees = pooled_deviations(samples)
    if degrees.any():
        by_configuration = pd.DataFrame({"deviation": deviations, "degrees": degrees}, index=samples.columns)
        df.loc[group.index, ["deviation", "degrees"]] = by_configuration.loc[group["configuration"]].to_numpy()
    elif len(samples) == 1:
        cells = pd.DataFrame([published[number]["where"] for number in group.index], index=group.index)
        df.loc[group.index, ["deviation", "degrees"]] = np.stack(
            neighbour_deviations(cells, group["published"]), axis=1
        )


def neighbour_deviations(cells: pd.DataFrame, values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the deviation of single runs from neighbouring cells of a grid.

    The pseudo-residual of a cell is its difference from the mean of its two neighbours along a numeric parameter, so
    that a linear response has no effect and a curved one makes the estimate larger. The estimate for a cell excludes
    its own value. The degrees of freedom are Satterthwaite's (1946). Source: Gasser, Sroka and Jennen-Steinmetz, 1986,
    Biometrika 73(3).

    Args:
        cells: Parameters of the cells, one row per cell.
        values: Values of the cells.

    Returns:
        Deviation and degrees of freedom for each cell; NaN and 0 without three other neighbouring cells.
    """
    contrasts = []
    positions = pd.Series(np.arange(len(cells)), index=cells.index)
    for name in cells.columns[[pd.api.types.is_numeric_dtype(cells[column]) for column in cells]]:
        others = [other for other in cells if other != name]
        for _, line in cells.groupby(others, dropna=False) if others else [((), cells)]:
            order = positions[line.sort_values(name).index].to_numpy()
            for previous, middle, following in zip(order, order[1:], order[2:], strict=False):
                contrast = np.zeros(len(cells))
                contrast[[previous, middle, following]] = np.array([0.5, -1.0, 0.5]) / np.sqrt(1.5)
                contrasts.append(contrast)
    deviations, degrees = np.full(len(cells), np.nan), np.zeros(len(cells))
    for cell in range(len(cells)):
        matrix = np.array([contrast for contrast in contrasts if not contrast[cell]])
        deviation = np.sqrt(np.mean((matrix @ values.to_numpy(float)) ** 2)) if len(matrix) else 0.0
        if deviation > ROUNDING * values.abs().max():
            deviations[cell] = deviation
            degrees[cell] = len(matrix) ** 2 / ((matrix @ matrix.T) ** 2).sum()
    return deviations, degrees


def _add_verdicts(df: pd.DataFrame, configurations: pd.DataFrame) -> None:
    """Add intervals, zones, verdicts and p-values to the comparable rows."""
    from scipy.special import stdtr, stdtrit

    is_comparable = df["is_comparable"].astype(bool)
    rows = df[is_comparable].astype({"deviation": float, "degrees": float, "measured": float})
    if rows.empty:
        return
    is_random = [has_random_result(configurations.loc[number].to_dict()) for number in rows["configuration"]]
    error = rows["deviation"] / np.sqrt(rows["num_seeds"])
    prediction_error = rows["deviation"] * np.sqrt(1 + 1 / rows["num_seeds"])
    critical = stdtrit(rows["degrees"].where(rows["degrees"] > 0), 1 - LEVEL / 2)
    half = (critical * prediction_error).where(is_random, 0.0)
    distance = rows["difference"].abs() - rows["resolution"] / 2
    is_equal = distance <= 1e-9
    is_known = half.notna()
    verdicts = np.where(is_equal | (is_known & (distance <= half)), AGREES, np.where(is_known, DIFFERS, INCONCLUSIVE))
    df.loc[rows.index, "verdict"] = verdicts
    df.loc[rows.index, "p_holm"] = 2 * stdtr(rows["degrees"], -distance.clip(lower=0) / prediction_error)
    for side, sign in (("low", -1), ("high", 1)):
        df.loc[rows.index, side] = rows["measured"] + sign * critical * error
        df.loc[rows.index, f"zone_{side}"] = rows["measured"] + sign * (half + rows["resolution"] / 2)


def _duplicates(results: Results, df: pd.DataFrame) -> list[str | None]:
    """Return, for each number, the condition of an earlier one whose trials have the same values of all metrics."""
    names = [name for name in METRICS if name in results.trials and results.trials[name].notna().any()]
    has_loss = any(name.endswith("loss") for name in names)
    values = aggregate_seeds(results, names)[names].to_numpy(float)
    duplicates: list[str | None] = []
    for position, row in enumerate(df.to_dict("records")):
        earlier = df.iloc[:position]
        earlier = earlier[(earlier["metric"] == row["metric"]) & (earlier["configuration"] >= 0)]
        same = [
            rival["where"]
            for rival in earlier.to_dict("records")
            if has_loss  # Accuracies may coincide.
            and row["configuration"] not in (-1, rival["configuration"])
            and np.allclose(values[row["configuration"]], values[rival["configuration"]], ROUNDING, 0, equal_nan=True)
        ]
        duplicates.append(same[0] if same else None)
    return duplicates


def _holm(p: pd.Series) -> pd.Series:
    """Return p-values with Holm's (1979) correction; missing ones do not count."""
    ordered = p.dropna().sort_values()
    adjusted = (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1.0)
    return adjusted.reindex(p.index)
