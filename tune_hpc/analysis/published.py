"""Compare measured values with published numbers.

A published number is a single run, rounded. It agrees if it lies in the 95 % prediction interval of one more of our
runs, widened by half of its last digit, and differs otherwise. The run-to-run deviation is pooled over the seeds of
the compared configurations. With one seed it follows from the differences between published numbers and ours, whose
changes between neighbouring cells of a grid do not include an offset of the whole table. Without any, a number agrees
if it equals ours to the printed digits; else the comparison is inconclusive. A deterministic run either has the printed
digits or differs.
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
#: Assumed share of the seed's effect, which is common to all cells of a seed, in the variance of a run. In the tables
#: of Exercise 3 with three seeds it is 23 to 77 % of the variance of the accuracy.
SEED_SHARE = 0.5
_NUMBER_COLUMNS = (
    "where", "metric", "published", "measured", "low", "high", "deviation", "degrees", "num_seeds", "num_diverged",
    "difference", "zone_low", "zone_high", "verdict", "p_holm", "best_over", "best_of", "measured_best",
    "published_best", "best_agrees", "duplicate_of", "note", "quick", "source", "configuration",
)  # fmt: skip
#: The built-in trainable, whose configurations determine whether a run is random.
BUILT_IN = "tune_hpc.learning.training:train"


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
        - ``note``: reason for a missing measurement or comparison; ``configuration``: its row in ``aggregate_seeds``.

    Example:
        >>> from tune_hpc import compare_to_published, load
        >>> published = compare_to_published(load("docs/results/exercise3.learning_rate"))
        >>> published["verdict"].value_counts().to_dict()
        {'agrees': 17, 'differs': 1}
    """
    published = list(results.experiment.get("published") or ())
    configurations = aggregate_seeds(results, [results.metric, *(number["metric"] for number in published)])
    shared = _shared_conditions(published)
    values = trial_values(results, [number["metric"] for number in published])
    rows = [_compare_one(number, results, configurations, values, shared) for number in published]
    df = pd.DataFrame(rows, columns=[*_NUMBER_COLUMNS, "computation", "resolution", "is_comparable"])
    _find_duplicates(results, df)
    is_random = [
        number < 0 or is_random_run(results, configurations.loc[number].to_dict()) for number in df["configuration"]
    ]
    df = df.assign(is_random=is_random).astype({"is_comparable": bool, "is_random": bool})
    for metric, group in df[df["is_comparable"] & df["is_random"]].groupby("metric", sort=False):
        cells = pd.DataFrame([published[number]["where"] for number in group.index])
        _add_deviations(df, group, _samples(results, str(metric), group["computation"]), cells)
    _add_verdicts(df)
    df["p_holm"] = _holm(df["p_holm"].where(df["duplicate_of"].isna()))
    df = df.astype({"best_agrees": "boolean", "num_seeds": "int64", "num_diverged": "int64"})
    return df[list(_NUMBER_COLUMNS)]


def is_random_run(results: Results, config: Mapping[str, Any]) -> bool:
    """Return whether another run of a configuration may have another result; those of user-defined trainables may."""
    return results.experiment.get("trainable", BUILT_IN) != BUILT_IN or has_random_result(config)


def distinct_numbers(published: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of ``compare_to_published`` without duplicates of a computation."""
    return published[published["duplicate_of"].isna()]


def joint_test(results: Results, published: pd.DataFrame | None = None) -> pd.DataFrame:
    """Test whether the published numbers of a metric differ from ours on average, although each may agree.

    The published numbers count as one more run of the whole table, whose cells may share a seed. Their mean is compared
    with the means of our seeds over the same cells: Student's prediction interval.

    Args:
        results: Results with several seeds.
        published: Table of ``compare_to_published``, if it exists.

    Returns:
        One row per metric with at least two random numbers, without duplicates: ``metric``, ``num_numbers``,
        ``num_seeds`` (with all of them), ``num_above`` (published above measured), ``mean_difference`` (published less
        measured), its 95 % ``half`` width and ``p``; both are missing with fewer than three seeds.
    """
    from scipy.special import stdtr, stdtrit

    published = compare_to_published(results) if published is None else published
    known = distinct_numbers(published).dropna(subset=["deviation", "measured"])
    rows = []
    for metric, table in known.groupby("metric", sort=False):
        if len(table) < 2:
            continue
        samples = _samples(results, str(metric), table["configuration"]).dropna()
        excess = table["published"] - table["measured"]
        means, num_seeds = samples.mean(axis="columns"), len(samples)
        half, p = np.nan, np.nan
        if num_seeds > 2 and means.std() > 0:
            error = means.std() * np.sqrt(1 + 1 / num_seeds)
            half = float(stdtrit(num_seeds - 1, 1 - LEVEL / 2) * error)
            p = 2 * float(stdtr(num_seeds - 1, -abs(excess.mean()) / error))
        rows.append((metric, len(table), num_seeds, int((excess > 0).sum()), float(excess.mean()), half, p))
    columns = ["metric", "num_numbers", "num_seeds", "num_above", "mean_difference", "half", "p"]
    return pd.DataFrame(rows, columns=columns)


def _samples(results: Results, metric: str, configurations: pd.Series) -> pd.DataFrame:
    """Return the values of a metric by seed and configuration, for some configurations."""
    values = trial_values(results, [metric])
    return values.pivot_table(metric, "seed", "configuration")[configurations.unique()]


def _shared_conditions(published: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the conditions that all published numbers have in common."""
    first = published[0]["where"] if published else {}
    return {name for name in first if all(number["where"].get(name) == first[name] for number in published)}


def _compare_one(
    number: Mapping[str, Any],
    results: Results,
    configurations: pd.DataFrame,
    values: pd.DataFrame,
    shared: set[str],
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
    has_value = (values["configuration"] == ranked.index[0]) & values[metric].notna()
    row |= {"measured": best[metric], "configuration": ranked.index[0]}
    row["num_seeds"] = values.loc[has_value, "seed"].nunique()
    row |= {"difference": row["measured"] - row["published"], "verdict": NOT_COMPARABLE}
    size = {name: value for name, value in (number.get("size") or {}).items() if name in ranked}
    other_size = {name: best[name] for name, value in size.items() if not _has(ranked, name, value)}
    if other_size:
        row["note"] = f"measured with {format_config(other_size)}"
    else:
        row["is_comparable"] = not row["quick"] and not metric.endswith("_s")
    if over and over in configurations:
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


def _add_deviations(df: pd.DataFrame, group: pd.DataFrame, samples: pd.DataFrame, cells: pd.DataFrame) -> None:
    """Add ``deviation`` and ``degrees`` to rows of one metric.

    Args:
        df: All rows.
        group: The rows of the metric.
        samples: Their values by seed and computation.
        cells: Their conditions.
    """
    deviations, degrees = pooled_deviations(samples)
    if degrees.any():
        found = pd.DataFrame({"deviation": deviations, "degrees": degrees}, index=samples.columns)
        df.loc[group.index, ["deviation", "degrees"]] = found.loc[group["computation"]].to_numpy()
    elif len(samples) == 1:
        deviations, degrees = neighbour_deviations(cells, group["difference"].astype(float))
        # The difference has the whole variance of the published run, and ours without that of the common seed.
        deviations = deviations / np.sqrt(2 - SEED_SHARE)
        df.loc[group.index, ["deviation", "degrees"]] = np.stack([deviations, degrees], axis=1)


def neighbour_deviations(cells: pd.DataFrame, values: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the deviation of values from neighbouring cells of a grid.

    The pseudo-residual of a cell is its difference from the mean of its two neighbours along a numeric parameter, so
    that a common offset has no effect. The estimate for a cell excludes its own value. The degrees of freedom are
    Satterthwaite's (1946). Source: Gasser, Sroka and Jennen-Steinmetz, 1986, Biometrika 73(3).

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
        if deviation > 0:
            deviations[cell] = deviation
            degrees[cell] = len(matrix) ** 2 / ((matrix @ matrix.T) ** 2).sum()
    return deviations, degrees


def _add_verdicts(df: pd.DataFrame) -> None:
    """Add intervals, zones, verdicts and p-values to the comparable rows."""
    from scipy.special import stdtr, stdtrit

    columns = ("published", "measured", "difference", "deviation", "degrees", "resolution")
    rows = df[df["is_comparable"]].astype(dict.fromkeys(columns, float))
    if rows.empty:
        return
    error = rows["deviation"] / np.sqrt(rows["num_seeds"])
    prediction_error = rows["deviation"] * np.sqrt(1 + 1 / rows["num_seeds"])
    critical = stdtrit(rows["degrees"].where(rows["degrees"] > 0), 1 - LEVEL / 2)
    half = (critical * prediction_error).where(rows["is_random"], 0.0)
    distance = rows["difference"].abs() - rows["resolution"] / 2
    scale = rows[["published", "measured", "resolution"]].abs().max(axis="columns")
    is_equal = distance <= 1e-9 * scale
    is_known = half.notna()
    verdicts = np.where(is_equal | (is_known & (distance <= half)), AGREES, np.where(is_known, DIFFERS, INCONCLUSIVE))
    has_diverged = (rows["num_diverged"] > 0) & rows["best_over"].isna()
    df.loc[rows.index, "verdict"] = np.where(has_diverged, INCONCLUSIVE, verdicts)
    df.loc[rows.index[has_diverged], "note"] = [
        f"{diverged} of {diverged + seeds} seeds diverged"
        for diverged, seeds in rows.loc[has_diverged, ["num_diverged", "num_seeds"]].to_numpy()
    ]
    df.loc[rows.index, "p_holm"] = 2 * stdtr(rows["degrees"], -distance.clip(lower=0) / prediction_error)
    for side, sign in (("low", -1), ("high", 1)):
        df.loc[rows.index, side] = rows["measured"] + sign * critical * error
        zone = rows["measured"] + sign * (half + rows["resolution"] / 2)
        df.loc[rows.index, f"zone_{side}"] = zone.where(~rows["metric"].str.endswith("accuracy"), zone.clip(0.0, 1.0))


def _find_duplicates(results: Results, df: pd.DataFrame) -> None:
    """Add ``duplicate_of`` and ``computation``: the first configuration with the same values of all metrics."""
    names = [name for name in METRICS if name in results.trials and results.trials[name].notna().any()]
    has_loss = any(name.endswith("loss") for name in names)  # Accuracies may coincide.
    values = aggregate_seeds(results, names)[names].to_numpy(float)
    computations: dict[int, int] = {}
    for number in df.loc[df["configuration"] >= 0, "configuration"].unique():
        same = [
            other
            for other in computations
            if has_loss and np.allclose(values[number], values[other], ROUNDING, 0, equal_nan=True)
        ]
        computations[number] = computations[same[0]] if same else number
    df["computation"] = [computations.get(number, -1) for number in df["configuration"]]
    first = df[df["configuration"] == df["computation"]].drop_duplicates(["metric", "computation"])
    conditions = {(row["metric"], row["computation"]): row["where"] for row in first.to_dict("records")}
    df["duplicate_of"] = [
        None if row["configuration"] == row["computation"] else conditions.get((row["metric"], row["computation"]))
        for row in df.to_dict("records")
    ]


def _holm(p: pd.Series) -> pd.Series:
    """Return p-values with Holm's (1979) correction; missing ones do not count."""
    ordered = p.dropna().sort_values()
    adjusted = (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1.0)
    return adjusted.reindex(p.index)
