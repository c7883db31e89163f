"""Speed-up, efficiency and serial fraction of a scaling measurement.

All cases of a repeat run one after another, so the repeats are paired: a ratio is taken within each repeat. The
estimate is the geometric mean over the repeats, and its interval is Student's on a log scale. Disturbed repeats are no
measurements (see ``scaling.workers``).

The serial fraction is that of Amdahl's law (1967): time(n) = serial + parallel / n. Karp and Flatt (1990) determine it
from a single speed-up; a fraction that grows with the workers shows overhead instead of serial work.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from tune_hpc.analysis.aggregation import (
    COMPLETED,
    configuration_numbers,
    is_scaling,
    numeric_column,
    row_mask,
    searched_parameters,
)
from tune_hpc.analysis.intervals import Interval, mean_interval
from tune_hpc.analysis.published import AGREES, DIFFERS, INCONCLUSIVE, NOT_COMPARABLE
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError

#: Metrics that are ratios within a repeat.
RATIOS = ("speedup", "efficiency")


def ratio_interval(ratios: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the geometric mean of ratios with Student's interval on a log scale; NaN without positive ratios."""
    logs = _log_interval(ratios, confidence)
    with np.errstate(over="ignore"):
        return Interval(*np.exp([logs.mean, logs.low, logs.high]).tolist())


def _log_interval(ratios: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean of the logarithms of the positive, finite ratios, with Student's interval."""
    values = np.asarray(ratios, dtype=float)
    values = values[(values > 0) & (values < np.inf)]
    return mean_interval(np.log(values), confidence) if values.size else Interval(np.nan, np.nan, np.nan)


def paired_ratio(first: pd.DataFrame, second: pd.DataFrame, column: str) -> Interval:
    """Return the ratio of a column of two cases over their common repeats; see ``ratio_interval``."""
    ratios = first.set_index("seed")[column] / second.set_index("seed")[column]
    return ratio_interval(ratios.dropna())


def is_distinct_from_1(interval: Interval) -> bool:
    """Return whether a ratio differs from 1 at 95 %; a ratio without an interval does not."""
    return interval.low > 1 or interval.high < 1


def cases(results: Results) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each case of a scaling measurement: its parameters, with ``workers``, and the trials that count.

    Raises:
        UnknownNameError: The results are no scaling measurement.
    """
    if not is_scaling(results):
        raise UnknownNameError(f"{results.name} has no speed-ups; measure them with tune-hpc scale")
    names = dict.fromkeys([*searched_parameters(results), "workers"])
    trials = results.trials[results.trials["status"].isin(COMPLETED)]
    for _, rows in trials.groupby(configuration_numbers(results).loc[trials.index]):
        yield {name: rows[name].iloc[0] for name in names}, rows


def is_oversubscribed(trials: pd.DataFrame) -> pd.Series:
    """Return whether the workers of each trial shared cores; early releases did not record it."""
    if "oversubscribed" not in trials:
        return pd.Series(False, index=trials.index)
    return trials["oversubscribed"].fillna(False).astype(bool)


def speedups(results: Results) -> pd.DataFrame:
    """Return speed-up and efficiency of every case, beside the published speed-ups.

    Returns:
        The varied parameters, ``workers``, ``num_repeats``, ``train_s`` (mean), ``speedup`` with ``low`` and ``high``,
        ``efficiency`` with ``efficiency_low`` and ``efficiency_high``. ``flop_per_gradient_byte`` if it was measured.
        If seconds were published for these workers, ``published`` (the ratio of the seconds) and ``verdict``, by the
        prediction interval of one more repeat; oversubscribed cases are not comparable. Ratios and intervals are those
        of this module.

    Raises:
        UnknownNameError: The results are no scaling measurement.
    """
    seconds = _published_seconds(results)
    rows = []
    for case, trials in cases(results):
        workers, interval = case["workers"], ratio_interval(trials["speedup"])
        row = case | {
            "num_repeats": len(trials), "train_s": numeric_column(trials, "train_s").mean(),
            "speedup": interval.mean, "low": interval.low, "high": interval.high,
            "efficiency": interval.mean / workers, "efficiency_low": interval.low / workers,
            "efficiency_high": interval.high / workers,
        }  # fmt: skip
        if "flop_per_gradient_byte" in trials:
            row["flop_per_gradient_byte"] = trials["flop_per_gradient_byte"].mean()
        if workers > 1 and {1, workers} <= set(seconds):
            published = seconds[1] / seconds[workers]
            is_comparable = not (is_oversubscribed(trials).any() or results.experiment.get("quick"))
            logs = _log_interval(trials["speedup"])
            row["published"] = published
            prediction_half = logs.half * np.sqrt(len(trials) + 1)
            verdict = AGREES if abs(np.log(published) - logs.mean) <= prediction_half else DIFFERS
            verdict = INCONCLUSIVE if np.isnan(prediction_half) else verdict
            row["verdict"] = verdict if is_comparable else NOT_COMPARABLE
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["workers", "speedup", "low", "high", "efficiency"])


def serial_fractions(results: Results) -> pd.DataFrame:
    """Return the serial fractions of published and measured times with strong scaling.

    Returns:
        ``times`` (``published`` or ``measured``), the varied parameters, ``workers``, ``train_s``, ``speedup``,
        ``serial_fraction`` (Karp and Flatt) with the bounds ``low`` and ``high`` from those of the speed-up, and
        Amdahl's law, fitted by least squares to the cases that are not oversubscribed: its seconds ``amdahl_s`` and
        its ``amdahl_fraction``.

    Raises:
        UnknownNameError: No case has several workers and strong scaling, or the results are no scaling measurement.
    """
    trials = results.trials
    if "mode" in trials:
        results = results.with_trials(trials[trials["mode"] == "strong"])
    measured = speedups(results)
    if measured.empty or measured["workers"].max() == 1:
        raise UnknownNameError(f"{results.name} has no case with strong scaling on several workers")
    others = [name for name in searched_parameters(results) if name != "workers"]
    groups = [group for _, group in measured.groupby(others, dropna=False, sort=False)] if others else [measured]
    shared = set(trials.loc[is_oversubscribed(trials), "workers"])
    tables = [_serial_fractions(group, shared).assign(times="measured") for group in groups]
    seconds = pd.Series(_published_seconds(results), dtype=float)
    if 1 in seconds:
        published = pd.DataFrame({"workers": seconds.index, "train_s": seconds.values, "low": np.nan, "high": np.nan})
        published["speedup"] = seconds[1] / published["train_s"]
        tables.insert(0, _serial_fractions(published, set()).assign(times="published"))
    columns = ["workers", "train_s", "speedup", "serial_fraction", "low", "high", "amdahl_s", "amdahl_fraction"]
    return pd.concat(tables, ignore_index=True)[["times", *others, *columns]]


def _serial_fractions(table: pd.DataFrame, oversubscribed: set[int]) -> pd.DataFrame:
    """Return a table of times and speed-ups with the serial fractions; the bounds change places."""
    table = table.sort_values("workers")
    workers = table["workers"]
    fitted = table[~workers.isin(oversubscribed)]
    serial_s, parallel_s = fit_amdahl(fitted["workers"], fitted["train_s"])
    total_s = serial_s + parallel_s
    return table.assign(
        serial_fraction=karp_flatt(table["speedup"], workers),
        low=karp_flatt(table["high"], workers), high=karp_flatt(table["low"], workers),
        amdahl_s=serial_s + parallel_s / workers, amdahl_fraction=serial_s / total_s if total_s else np.nan,
    )  # fmt: skip


def karp_flatt(speedup: Any, workers: pd.Series) -> pd.Series:
    """Return the serial fraction for speed-ups (Karp and Flatt, 1990); NaN for one worker."""
    return (1 / speedup - 1 / workers) / (1 - 1 / workers).where(workers > 1)


def fit_amdahl(workers: ArrayLike, seconds: ArrayLike) -> tuple[float, float]:
    """Fit serial and parallel seconds of Amdahl's law by least squares; NaN for a single number of workers."""
    counts = np.asarray(workers, dtype=float)
    if len(np.unique(counts)) < 2:
        return np.nan, np.nan
    terms = np.column_stack([np.ones_like(counts), 1 / counts])
    serial_s, parallel_s = np.linalg.lstsq(terms, np.asarray(seconds, dtype=float))[0]
    return float(serial_s), float(parallel_s)


def _published_seconds(results: Results) -> dict[int, float]:
    """Return the published training times by workers; none if mode, network or batch differ, or vary."""
    numbers = [number for number in results.experiment.get("published") or () if number["metric"] == "train_s"]
    is_weak = "mode" in results.trials and (results.trials["mode"] != "strong").any()
    if (
        is_weak
        or {*searched_parameters(results)} - {"workers"}
        or any(not row_mask(results.trials, number.get("size") or {}).all() for number in numbers)
    ):
        return {}
    return {
        number["where"]["workers"]: float(number["value"])
        for number in numbers
        if [*number["where"]] == ["workers"] and number["value"] > 0
    }
