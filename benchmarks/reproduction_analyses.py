"""Analyses of the reproduction that need several runs: protocols of Exercise 2, and the noise of Exercise 3."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from search_spaces import exercise2, exercise3
from tune_hpc.analysis.aggregation import aggregate_seeds, row_mask
from tune_hpc.analysis.results import Results

#: Evaluated images by prefix of their metrics.
SPLITS = {"fit": "training", "test": "test", "valid": "validation"}
#: Size of the report's runs in Exercise 3.
FULL_SIZE = {"width": 1, "steps": 5000}
#: Difference of two accuracies that a comparison should detect.
DIFFERENCE = 0.001


def protocol_distances(searches: Mapping[str, Results]) -> pd.DataFrame:
    """Compare the 30 published numbers of Exercise 2 with each candidate for the protocol that made them.

    Args:
        searches: Results with the optimizers and rates of Exercise 2, by name of the model; other varied parameters
            are those of the candidates.

    Returns:
        One row per candidate, the nearest first: ``model``, ``batch_size``, ``batching``, ``images`` (evaluated
        split), ``distance`` (root mean square over the 30 numbers, in units of the last printed digit),
        ``num_printed`` (of 30, equal to the printed digits) and ``num_best`` (of the 18 entries of the report's table,
        equal at one of the rates that it names).
    """
    rows = []
    for model, results in searches.items():
        metrics = [f"{split}_{kind}" for split in SPLITS for kind in ("loss", "accuracy")]
        configurations = aggregate_seeds(results, metrics)
        for (batch_size, batching), cells in configurations.groupby(["batch_size", "batching"], sort=False):
            for split, images in SPLITS.items():
                errors, entries = [], []
                for number in exercise2.PUBLISHED:
                    row = cells[row_mask(cells, number.where)].iloc[0]
                    measured = row[number.metric.replace("fit", split)]
                    errors.append(abs(measured - number.value) / number.resolution)
                    entries.append((number.where["optimizer"], number.metric))
                error = pd.Series(errors).fillna(np.inf)
                nearest = error.groupby(pd.MultiIndex.from_tuples(entries)).min()
                rows.append(
                    {
                        "model": model, "batch_size": batch_size, "batching": batching, "images": images,
                        "distance": float(np.sqrt((error**2).mean())), "num_printed": int((error <= 0.5).sum()),
                        "num_best": int((nearest <= 0.5).sum()),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows).sort_values("distance", kind="stable", ignore_index=True)


def run_deviation(runs: Mapping[str, Results]) -> tuple[float, int]:
    """Return the deviation of the best test accuracy of repeated runs, and its degrees of freedom.

    It is pooled over the seeds of the configurations of Exercise 3 at full size with shuffled batches of 100 and 150
    images; NaN and 0 without several seeds.
    """
    squares, degrees = 0.0, 0
    for name, results in runs.items():
        if not name.startswith("exercise3."):
            continue
        table = aggregate_seeds(results, ["best_test_accuracy"])
        table = table[row_mask(table, {**FULL_SIZE, "batching": "shuffled"}) & table["batch_size"].isin([100, 150])]
        freedom = (table["num_seeds"] - 1).where(table["num_seeds"] > 1, 0)
        squares += float((freedom * table["best_test_accuracy_deviation"] ** 2).sum())
        degrees += int(freedom.sum())
    return (float(np.sqrt(squares / degrees)) if degrees else np.nan), degrees


def noise_floor(deviation: float, degrees: int) -> pd.DataFrame:
    """Compare the spread of the published accuracies of Tables 4.4 and 4.5 with the deviation of repeated runs.

    A published maximum is compared with the maximum of as many equal runs, by simulation: their deviation and mean are
    uncertain, too.

    Args:
        deviation: Deviation of repeated runs.
        degrees: Its degrees of freedom.

    Returns:
        One row per table: ``table``, ``num_numbers``, ``published_deviation``, ``run_deviation``, ``degrees``, ``p`` (F
        test that the published cells differ by noise only), ``min_ratio`` (of the deviations, that the test finds),
        ``published_max``, ``max_low`` and ``max_high`` (95 % range of the maximum of equal runs around the published
        mean).
    """
    from scipy.special import fdtrc, fdtri

    generator, rows = np.random.default_rng(0), []
    for table, by_batch_size in (("4.4", exercise3.TABLE_4_4), ("4.5", exercise3.TABLE_4_5)):
        values = np.concatenate([np.array(row) for row in by_batch_size.values()]) / 100
        count, total = len(values), np.hypot(deviation, 0.001 / np.sqrt(12))
        p = fdtrc(count - 1, degrees, values.var(ddof=1) / total**2)
        deviations = total * np.sqrt(degrees / generator.chisquare(degrees, 4000))
        runs = generator.normal(size=(4000, count)) + generator.normal(size=(4000, 1)) / np.sqrt(count)
        low, high = np.quantile(values.mean() + deviations * runs.max(axis=1), [0.025, 0.975])
        min_ratio = float(np.sqrt(fdtri(count - 1, degrees, 0.95)))
        published = (values.std(ddof=1), deviation, degrees, float(p), min_ratio, values.max())
        rows.append((table, count, *published, low, min(high, 1.0)))
    columns = [
        "table", "num_numbers", "published_deviation", "run_deviation", "degrees", "p", "min_ratio", "published_max",
        "max_low", "max_high",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def seeds_needed(deviation: float, difference: float = DIFFERENCE) -> int:
    """Return the seeds of each of two configurations that find a difference at 95 % with probability 0.8 (t-test)."""
    from scipy.stats import nct, t

    for number in range(2, 10_000):
        degrees, effect = 2 * number - 2, difference / deviation * np.sqrt(number / 2)
        if nct.sf(t.ppf(0.975, degrees), degrees, effect) >= 0.8:
            return number
    raise ValueError(f"a deviation of {deviation} needs more than 10,000 seeds")
