"""Summary sentences about scaling measurements."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import row_mask
from tune_hpc.analysis.formatting import display_name, format_config, format_metric, format_number, format_value
from tune_hpc.analysis.intervals import Interval
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.speedup import cases, is_distinct_from_1, paired_ratio, serial_fractions, speedups
from tune_hpc.report.scaling_tables import (
    DEFAULT_EXCHANGE,
    cost_pareto_front,
    min_efficient_width,
    predicted_against_measured,
)
from tune_hpc.scaling.step_time_model import MEASURED_LINK

#: The value of ``option`` without an option.
_NO_OPTION = "none"
#: Column with the computation for each byte of gradients.
_INTENSITY = "flop_per_gradient_byte"
#: Ratio of two values of it below which they count as equal.
_MIN_INTENSITY_RATIO = 1.5


def scaling_findings(results: Results) -> list[Iterator[str]]:
    """Return the parts about speed-up, serial fraction, complexity, prediction, widths, cost and options."""
    parts = (_speedup, _serial_fraction, _complexity, _prediction, _widths, _cost, _options)
    return [part(results) for part in parts]


def _speedup(results: Results) -> Iterator[str]:
    table = speedups(results).to_dict("records")
    for row, (case, trials) in zip(table, cases(results), strict=True):
        if case["workers"] > 1 and case.get("option", _NO_OPTION) == _NO_OPTION:
            names = [name for name in case if name not in ("workers", "option")]
            where = f" at {format_config({name: case[name] for name in names})}" if names else ""
            interval = Interval(row["speedup"], row["low"], row["high"])
            share = trials["communicate_s"].mean() / trials["step_s"].mean()
            yield (
                f"{case['workers']} workers{where} reach a speed-up of {_ratio(interval)}, an efficiency of "
                f"{row['efficiency']:.0%}; communication adds {share:.0%} of a step."
            )


def _ratio(interval: Interval) -> str:
    """Return a ratio with its 95 % interval, and a note if it cannot be distinguished from 1."""
    if np.isnan(interval.half):
        return f"{interval.mean:.2f} (no interval: too few repeats)"
    note = "" if is_distinct_from_1(interval) else ": cannot be distinguished from 1 at 95 %"
    return f"{interval.mean:.2f} (95 % interval {interval.low:.2f} to {interval.high:.2f}{note})"


def _serial_fraction(results: Results) -> Iterator[str]:
    """State the serial fraction of the published times."""
    table = serial_fractions(results)
    table = table[table["times"] == "published"]
    several = table[table["workers"] > 1]
    if len(several):
        parts = [
            f"{row['speedup']:.3f} on {row['workers']} workers, a serial fraction of {row['serial_fraction']:.1%}"
            for row in several.to_dict("records")
        ]
        yield (
            f"Published speed-ups, with the serial fraction of Karp and Flatt: {'; '.join(parts)}. Amdahl's law fits a "
            f"serial fraction of {several['amdahl_fraction'].iloc[0]:.1%}."
        )


def _complexity(results: Results) -> Iterator[str]:
    """Compare the efficiency of the cases with the least and the most computation for each byte of gradients."""
    by_workers: dict[tuple[int, str], list[pd.DataFrame]] = {}
    for case, trials in cases(results):
        exchange = {name: value for name, value in DEFAULT_EXCHANGE.items() if name in trials}
        if case["workers"] > 1 and _INTENSITY in trials and row_mask(trials, exchange).all():
            by_workers.setdefault((case["workers"], trials["mode"].iloc[0]), []).append(trials)
    intensities = [trials[_INTENSITY].iloc[0] for found in by_workers.values() for trials in found]
    if len(intensities) > len(by_workers) and max(intensities) < _MIN_INTENSITY_RATIO * min(intensities):
        yield (
            f"All cases have {min(intensities):.0f} to {max(intensities):.0f} FLOP for each byte of gradients, so they "
            "cannot show whether more complex networks gain more."
        )
        return
    for (workers, _), found in by_workers.items():
        least, most = (choose(found, key=lambda trials: trials[_INTENSITY].iloc[0]) for choose in (min, max))
        low, high = (trials[_INTENSITY].iloc[0] for trials in (least, most))
        ratio = paired_ratio(most, least, "efficiency")
        if high >= _MIN_INTENSITY_RATIO * low and not np.isnan(ratio.mean):
            yield (
                f"With {high:.0f} instead of {low:.0f} FLOP for each byte of gradients the efficiency on {workers} "
                f"workers changes by a factor of {_ratio(ratio)}."
            )


def _prediction(results: Results) -> Iterator[str]:
    """Compare the step-time model with the measurement, and state the part of a step that does not scale."""
    table = predicted_against_measured(results).dropna(subset=["error"])
    if table.empty:
        return
    has_widths = len(table["width"].unique()) > 1

    def at_width(width: Any) -> str:
        return f" at width {format_value(width)}" if has_widths else ""

    steps = "; ".join(
        f"{row['workers']} workers{at_width(row['width'])}: {_ms(row['predicted_s'])} ms, measured "
        f"{_ms(row['measured_s'])} ({row['error']:+.0%})"
        for row in table.to_dict("records")
    )
    networks = " of the network without added convolutions" if "depth" in results.varied_parameters else ""
    yield f"Predicted step times{networks}, from probes without a step of several workers: {steps}."
    probes = pd.DataFrame(results.experiment.get("probes") or [], columns=["probe", "width", "share", "seconds"])
    for width, rows in probes[(probes["probe"] == "compute") & probes["width"].isin(table["width"])].groupby("width"):
        seconds = rows.groupby("share")["seconds"].median()
        yield (
            f"A worker takes {seconds.iloc[-1] / seconds.loc[1.0]:.0%} of the whole batch's time for one of "
            f"{seconds.index[-1]:.0f} shares of the batch{at_width(width)}: that part does not scale with the workers."
        )


def _widths(results: Results) -> Iterator[str]:
    """State the network width from which the measured workers scale efficiently."""
    table = min_efficient_width(results)
    for row in table[table["link"] == MEASURED_LINK].to_dict("records"):
        text = f"{row['workers']} workers reach an efficiency of {row['aim']:.0%}"
        if np.isnan(row["width"]):
            yield (
                f"{text} at no width from {format_value(row['narrowest'])} to {format_value(row['widest'])} "
                f"(predicted); the best is {row['best_efficiency']:.0%}, at width {format_value(row['best_width'], 2)}."
            )
        else:
            yield f"{text} from width {format_value(row['width'], 2)} on (predicted)."


def _cost(results: Results) -> Iterator[str]:
    """Compare the cost of the fastest training with the cheapest; networks of several widths are different work."""
    table = cost_pareto_front(results)
    if "option" in table:
        table = table[table["option"] == _NO_OPTION]
    names = [name for name in table if name not in ("train_s", "worker_s", "is_efficient", "option")]
    if len(table) < 2 or names != ["workers"]:
        return
    rows = table.to_dict("records")
    fast, cheap = (min(rows, key=lambda row: row[column]) for column in ("train_s", "worker_s"))
    workers = [row["workers"] for row in (fast, cheap)]
    if workers[0] == workers[1]:
        yield f"The fastest training is also the cheapest, with {format_config({'workers': workers[0]})}."
        return
    trials = {case["workers"]: rows for case, rows in cases(results) if case.get("option", _NO_OPTION) == _NO_OPTION}
    ratio = paired_ratio(trials[workers[0]], trials[workers[1]], "train_s")
    if not np.isnan(ratio.mean):
        yield (
            f"The fastest training, with workers {workers[0]}, takes {_ratio(ratio)} of the time of the cheapest, with "
            f"workers {workers[1]}, and {ratio.mean * workers[0] / workers[1]:.2f} times its worker seconds."
        )


def _options(results: Results) -> Iterator[str]:
    """Compare time and accuracy of each option with those of no option, for the most workers."""
    if "option" not in results.varied_parameters:
        return
    found = list(cases(results))
    most = max(case["workers"] for case, _ in found)
    for case, trials in found:
        baseline = [rows for other, rows in found if other == case | {"option": _NO_OPTION}]
        if case["workers"] < most or case["option"] == _NO_OPTION or not baseline:
            continue
        ratio = paired_ratio(trials, baseline[0], "train_s")
        if np.isnan(ratio.mean):
            continue
        accuracy = ""
        if "test_accuracy" in trials and trials["test_accuracy"].notna().all():
            values = [format_metric(rows["test_accuracy"].mean(), "accuracy") for rows in (trials, baseline[0])]
            accuracy = f"; test accuracy {values[0]} instead of {values[1]}"
        option = display_name(case.pop("option")).capitalize()
        yield f"{option} ({format_config(case)}): {_ratio(ratio)} of the time{accuracy}."


def _ms(seconds: float) -> str:
    """Return milliseconds with three significant digits."""
    return format_number(float(f"{1000 * seconds:.3g}"))
