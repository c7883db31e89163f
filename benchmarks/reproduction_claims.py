"""Check statements of the report that compare several runs of the reproduction.

Each run at full size counts, with any number of seeds. Where there is one seed, cells of a grid are the repeats: batch
sizes are pairs of a sign test, or blocks of an additive model whose residuals are the noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.reproduction_analyses import FULL_SIZE, run_deviation
from tune_hpc.analysis.aggregation import COMPLETED, row_mask
from tune_hpc.analysis.claims import (
    COLUMNS,
    CONFIDENCE,
    NOT_MEASURED,
    SEEDS_UNDECIDED,
    check_claim,
    claims_frame,
)
from tune_hpc.analysis.formatting import format_metric, format_value
from tune_hpc.analysis.intervals import mean_interval
from tune_hpc.analysis.linear_model import all_differences, fit_model
from tune_hpc.analysis.results import Results
from tune_hpc.search.experiment_registry import registered_experiments
from tune_hpc.search.report_spec import Claim

METRIC = "best_test_accuracy"
#: Parameter that varies in a scaling measurement, by its name, with a word for larger values.
SCALING = {"widths": ("width", "wider"), "depth": ("depth", "deeper")}
#: Improvement that the report could discern: the last printed digit of its tables.
MARGIN = 0.001

Runs = Mapping[str, Results]
#: Numbers (text), whether the statement holds (``None``: inconclusive), and the reason for an inconclusive one.
_Decision = tuple[str, bool | None, str]
_MISSING: _Decision = ("", None, NOT_MEASURED)


def with_current_declarations(name: str, results: Results) -> Results:
    """Return results with the published numbers and claims that their registered experiment declares today.

    Args:
        name: Name of the run. If no experiment has it, that of the results counts.
        results: The results; those without a registered experiment are returned unchanged.
    """
    experiments = {experiment.name: experiment for experiment in registered_experiments()}
    experiment = experiments.get(name) or experiments.get(results.name)
    if experiment is None:
        return results
    declared = experiment.to_json()
    current = {key: declared[key] for key in ("published", "claims")}
    return replace(results, experiment={**results.experiment, **current})


def cross_claims(runs: Runs) -> pd.DataFrame:
    """Check the statements that compare several runs.

    Args:
        runs: Results by name of their run, such as ``exercise3.decay``; those of ``SCALING``: scaling measurements of
            several networks. A statement about a missing run is inconclusive.

    Returns:
        The columns of ``check_claims``.
    """
    higher = "mean difference above 0"
    best = "best test accuracy"
    declared: tuple[tuple[str, str, str, Callable[[Runs], _Decision], str], ...] = (
        ("shuffling helps", f"{best}, shuffled less single pass, by batch size",
         "most differences above 0 (sign test)", _shuffling, "Tables 4.1 and 4.2"),
        ("shuffling helps more with large batches", "rank correlation of that difference and the batch size",
         "above 0 (Kendall)", _large_batches, "Tables 4.1 and 4.2"),
        ("decay is a discernible enhancement", f"{best}, with decay less without, by batch size", higher, _decay,
         "Tables 4.2 and 4.3"),
        ("10e-4 is the best initial rate", f"{best} by learning rate, batch sizes as blocks", "first highest",
         _best_rate, "Table 4.4"),
        ("dropout brings no discernible improvement", f"{best} by dropout, batch sizes as blocks",
         f"none above the first by more than {MARGIN:g}", _dropout, "Table 4.5"),
    )  # fmt: skip
    rows = []
    for claim, measure, rule, check, tables in declared:
        rows.append(_row(claim, measure, rule, check(runs), f"report, {tables}"))
    rows += [_complex_networks(runs, name, workers) for name, workers in (("widths", 2), ("widths", 4), ("depth", 2))]
    return claims_frame(rows)


def _row(claim: str, measure: str, rule: str, decision: _Decision, source: str) -> dict[str, Any]:
    return dict(zip(COLUMNS, (claim, measure, rule, *decision, source), strict=True))


def _full_size(runs: Runs, name: str) -> Results | None:
    """Return the completed trials of a run at full size, if there are any."""
    if name not in runs:
        return None
    trials = runs[name].trials
    found = trials[row_mask(trials, FULL_SIZE) & trials["status"].isin(COMPLETED)]
    return None if found.empty else runs[name].with_trials(found)


def _differences(runs: Runs, name: str, other: str) -> pd.Series | None:
    """Return the difference of two runs by batch size, from the means over their seeds."""
    first, second = _full_size(runs, name), _full_size(runs, other)
    if first is None or second is None:
        return None
    means = [results.trials.groupby("batch_size")[METRIC].mean() for results in (first, second)]
    difference = (means[0] - means[1]).dropna()
    return difference if len(difference) else None


def _shuffling(runs: Runs) -> _Decision:
    from scipy.stats import binomtest

    difference = _differences(runs, "exercise3.batch_size_shuffled", "exercise3.batch_size_single_pass")
    if difference is None:
        return _MISSING
    num_positive, num_signs = int((difference > 0).sum()), int((difference != 0).sum())
    p = float(binomtest(num_positive, num_signs).pvalue) if num_signs else 1.0
    interval = mean_interval(difference)
    numbers = (
        f"{_by_value(difference)}; mean {_with_half(interval.mean, interval.half)}; "
        f"{num_positive} of {len(difference)} above 0 (p {p:.2g})"
    )
    return numbers, *_significant(2 * num_positive - num_signs, p)


def _large_batches(runs: Runs) -> _Decision:
    from scipy.stats import kendalltau

    difference = _differences(runs, "exercise3.batch_size_shuffled", "exercise3.batch_size_single_pass")
    if difference is None or len(difference) < 3:
        return _MISSING
    found = kendalltau(difference.index, difference)
    return f"{found.statistic:.2f} (p {found.pvalue:.2g})", *_significant(found.statistic, found.pvalue)


def _decay(runs: Runs) -> _Decision:
    """Compare with the deviation of repeated runs of this size."""
    from scipy.special import stdtrit

    difference = _differences(runs, "exercise3.decay", "exercise3.batch_size_shuffled")
    if difference is None:
        return _MISSING
    names = ("exercise3.decay", "exercise3.batch_size_shuffled")
    full = [results for name in names if (results := _full_size(runs, name)) is not None]
    compared = [one.with_trials(one.trials[one.trials["batch_size"].isin(difference.index)]) for one in full]
    deviation, degrees = run_deviation(runs)
    counts = [one.trials.groupby("batch_size")[METRIC].count() for one in compared]
    error = deviation * np.sqrt(sum((1 / count).sum() for count in counts)) / len(difference)
    half = float(error * stdtrit(degrees, (1 + CONFIDENCE) / 2)) if degrees else np.nan
    mean = float(difference.mean())
    numbers = f"{_by_value(difference)}; mean {_with_half(mean, half)}"
    if degrees:
        numbers += f"; deviation over seeds {deviation:.2g} ({degrees} degrees of freedom)"
    return numbers, *_outside(mean, half)


def _blocks(runs: Runs, name: str, parameter: str) -> pd.DataFrame | None:
    """Return a run as a table of blocks (batch size and seed) by values of a parameter; fewer than two are missing."""
    results = _full_size(runs, name)
    if results is None:
        return None
    table = results.trials.pivot_table(METRIC, ["batch_size", "seed"], parameter)
    return table if table.shape[1] > 1 else None


def _best_rate(runs: Runs) -> _Decision:
    table = _blocks(runs, "exercise3.learning_rate", "learning_rate")
    if table is None or not np.isclose(table.columns[-1], 10e-4):
        return _MISSING
    table = table.iloc[:, ::-1]
    found = all_differences(table.to_numpy(), lower_is_better=False, confidence=CONFIDENCE)
    lead, half = found.difference[0, 1:], found.half[0, 1:]
    nearest = int(np.argmin(lead))
    numbers = f"{_by_value(table.mean(), '')}; least lead {_with_half(lead[nearest], half[nearest])}"
    if (lead < -half).any():
        return numbers, False, ""
    return (numbers, True, "") if (lead > half).all() else (numbers, None, SEEDS_UNDECIDED)


def _dropout(runs: Runs) -> _Decision:
    from scipy.special import fdtrc

    table = _blocks(runs, "exercise3.dropout", "dropout")
    if table is None or table.columns[0] != 0:
        return _MISSING
    found = all_differences(table.to_numpy(), lower_is_better=False, confidence=CONFIDENCE)
    gain, half = found.difference[1:, 0], found.half[1:, 0]
    largest = int(np.argmax(gain))
    numbers = f"{_by_value(table.mean(), '')}; largest improvement {_with_half(gain[largest], half[largest])}"
    model = fit_model(table.to_numpy())
    if model.degrees and table.notna().all(axis=None):
        between = len(table) * float(np.var(table.mean(), ddof=1))
        p = fdtrc(table.shape[1] - 1, model.degrees, between / model.deviation**2)
        numbers += f"; any difference: p {p:.2g} (F test)"
    if (gain - half > 0).any():
        return numbers, False, ""
    return (numbers, True, "") if (gain + half <= MARGIN).all() else (numbers, None, SEEDS_UNDECIDED)


def _complex_networks(runs: Runs, name: str, workers: int) -> dict[str, Any]:
    """Check the last statement of Exercise 4 on the width or the depth of the network."""
    parameter, word = SCALING[name]
    text, source = f"more complex networks gain more: {word} ones, on {workers} workers", "report, Exercise 4"
    results = runs.get(name)
    values = () if results is None else tuple(np.sort(results.trials[parameter].unique()).tolist())
    if results is None or len(values) < 2:
        return _row(text, f"speedup, workers {workers}", "rising", _MISSING, source)
    claim = Claim(text, source, parameter, values, "result", "speedup", "rising", 0, where={"workers": workers})
    return check_claim(results, vars(claim))


def _significant(direction: float, p: float) -> tuple[bool | None, str]:
    """Return whether an effect is positive at 95 %."""
    return (direction > 0, "") if p < 1 - CONFIDENCE else (None, SEEDS_UNDECIDED)


def _outside(mean: float, half: float) -> tuple[bool | None, str]:
    """Return whether an interval is above 0, or below."""
    return (mean > 0, "") if abs(mean) > half else (None, SEEDS_UNDECIDED)


def _by_value(numbers: pd.Series, sign: str = "+") -> str:
    return ", ".join(f"{format_value(value)}: {number:{sign}.4f}" for value, number in numbers.items())


def _with_half(mean: float, half: float) -> str:
    text = f"{mean:+.4f}"
    return text if np.isnan(half) else f"{text} ± {format_metric(half, METRIC)}"
