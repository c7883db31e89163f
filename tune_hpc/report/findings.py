"""Summary sentences at the top of the report.

Pure functions of ``Results``; a sentence that the numbers do not support is omitted.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    aggregate_seeds,
    describe_statuses,
    is_scaling,
    row_mask,
    searched_parameters,
    sort_configurations,
)
from tune_hpc.analysis.boundary_check import check_boundaries
from tune_hpc.analysis.claims import NOT_MEASURED, check_claims
from tune_hpc.analysis.comparison import MAX_CROSSED
from tune_hpc.analysis.formatting import (
    QUICK_NOTE,
    describe_metric,
    display_name,
    format_config,
    format_metric,
    format_number,
    format_value,
)
from tune_hpc.analysis.intervals import Interval
from tune_hpc.analysis.published import (
    AGREES,
    DIFFERS,
    INCONCLUSIVE,
    LEVEL,
    NOT_COMPARABLE,
    compare_to_published,
    distinct_numbers,
    joint_test,
)
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.selection_bias import BEST, LOSES, SELECTED, selection_bias, special_cases
from tune_hpc.analysis.speedup import cases, is_distinct_from_1, paired_ratio, serial_fractions, speedups
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.tables import (
    DEFAULT_EXCHANGE,
    MEASURED_LINK,
    cost_pareto_front,
    min_efficient_width,
    predicted_against_measured,
)

#: The value of ``option`` without an option.
_NO_OPTION = "none"
#: Smallest selection bias that is reported: half the last printed digit.
_MIN_SELECTION_BIAS = 5e-5
#: Column with the computation for each byte of gradients.
_INTENSITY = "flop_per_gradient_byte"
#: Ratio of two values of it below which they count as equal.
_MIN_INTENSITY_RATIO = 1.5
#: Smallest number of configurations at a rung for a warning.
_MIN_RUNG = 9


def findings(
    results: Results,
    published: pd.DataFrame | None = None,
    claims: pd.DataFrame | None = None,
    special: pd.DataFrame | None = None,
) -> list[str]:
    """Return the findings of an experiment, most important first.

    The tables of ``compare_to_published``, ``check_claims`` and ``special_cases`` are made unless they exist already.
    """
    published = compare_to_published(results) if published is None else published
    claims = check_claims(results) if claims is None else claims
    parts = [
        *(_status_counts(results), _best(results), _published(published), _distance(published), _claims(claims)),
        _selection_bias(results),
    ]
    if is_scaling(results):
        parts += [_speedup(results), _serial_fraction(results), _complexity(results), _prediction(results)]
        parts += [_widths(results), _cost(results), _options(results)]
    else:
        parts += [_boundaries(results), _rungs(results), _worse_values(results, special)]
    sentences: list[str] = []
    for part in parts:
        # The results do not allow every analysis.
        with contextlib.suppress(UnknownNameError):
            sentences += part
    return sentences


def overview(parts: Sequence[tuple[Results, pd.DataFrame | None, pd.DataFrame | None]]) -> list[str]:
    """Return the sentences about all experiments of a page: full size and agreement with published numbers.

    Args:
        parts: Each experiment, the comparison with its published numbers, and the check of its published statements.
    """
    full = [part for part in parts if not part[0].experiment.get("quick")]
    num_quick = len(parts) - len(full)
    numbers = [
        published.assign(**{name: results.name + " " + published[name] for name in ("where", "best_of")})
        for results, published, _ in full
        if published is not None and len(published)
    ]
    statements = [claims for _, _, claims in full if claims is not None and len(claims)]
    sentences = []
    if numbers or statements:
        sentences.append(
            f"{_count(len(full), 'experiment')} ran at full size: {', '.join(one.name for one, *_ in full)}."
        )
        sentences += _published(pd.concat(numbers)) if numbers else []
        sentences += _claims(pd.concat(statements)) if statements else []
    if num_quick:
        verb, pronoun = ("is", "it") if num_quick == 1 else ("are", "they")
        sentences.append(
            f"{_count(num_quick, 'experiment')} {verb} marked as quick: {pronoun} ran with fewer steps or trials than "
            "published, and the numbers are not comparable."
        )
    return sentences


def best_configuration(results: Results) -> tuple[float, int, dict[str, object]] | None:
    """Return the best mean metric, its number of seeds, and its varied parameters; ``None`` without a measurement."""
    best = sort_configurations(results, aggregate_seeds(results, [results.metric]))
    if best.empty:
        return None
    row = best.iloc[0]
    config = {name: row[name] for name in searched_parameters(results) if pd.notna(row[name])}
    return float(row[results.metric]), int(row["num_seeds"]), config


def _status_counts(results: Results) -> Iterator[str]:
    if counts := results.counts():
        separator = "," if len(counts) == 1 else ":"
        yield f"{_count(sum(counts.values()), 'trial')}{separator} {describe_statuses(results)}."
    else:
        yield "No trial has ended yet."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _best(results: Results) -> Iterator[str]:
    if best := best_configuration(results):
        value, num_seeds, config = best
        text = "Lowest" if results.experiment["mode"] == "min" else "Highest"
        text += f" {describe_metric(value, results.metric)}" + (f" with {format_config(config)}" if config else "")
        yield text + (f" (mean of {num_seeds} seeds)." if num_seeds > 1 else ".")
    elif results.counts():
        yield f"No trial finished with a value of {display_name(results.metric)}."


def _published(published: pd.DataFrame) -> Iterator[str]:
    """Count best values and verdicts; a condition with several numbers counts once among the best values."""
    known = published[published["best_agrees"].notna()].drop_duplicates(["best_of", "best_over"])
    if len(known):
        over = known["best_over"].unique()
        noun = f"best {display_name(over[0])}s" if len(over) == 1 else "best values"
        num_agreeing = int(known["best_agrees"].sum())
        verb = "is" if num_agreeing == 1 else "are"
        quick = f" ({QUICK_NOTE})" if published["quick"].any() else ""
        yield f"Of {len(known)} published {noun}, {num_agreeing} {verb} also ours{quick}."
    phrases = {
        AGREES: ("agrees with ours", "agree with ours"), DIFFERS: ("differs", "differ"),
        INCONCLUSIVE: ("is inconclusive with so few seeds", "are inconclusive with so few seeds"),
    }  # fmt: skip
    counts = {verdict: int((published["verdict"] == verdict).sum()) for verdict in phrases}
    if total := sum(counts.values()):
        parts = [f"{count} {phrases[verdict][count > 1]}" for verdict, count in counts.items() if count]
        yield f"Of {total} published {'number' if total == 1 else 'numbers'}, {', '.join(parts)}."
    distinct = distinct_numbers(published)
    num_differing = int(((distinct["verdict"] == DIFFERS) & distinct["p_holm"].notna()).sum())
    if num_differing > 1:
        num_corrected = int((distinct["p_holm"] < LEVEL).sum())
        yield f"Of {num_differing} separate computations that differ, {num_corrected} do after Holm's correction."
    for row in joint_test(published).to_dict("records"):
        if row["p"] < LEVEL:
            mean, half = (format_metric(abs(row[name]), row["metric"]) for name in ("mean_difference", "half"))
            yield (
                f"Published {display_name(row['metric'])} is on average {mean} ± {half} "
                f"{'above' if row['mean_difference'] > 0 else 'below'} ours, over {row['num_numbers']} numbers (95 %)."
            )


def _distance(published: pd.DataFrame) -> Iterator[str]:
    comparable = published[published["verdict"] != NOT_COMPARABLE].dropna(subset=["difference"])
    parts = [
        f"{format_metric(rows['difference'].abs().mean(), str(metric))} on {_count(len(rows), 'number')} for "
        f"{display_name(str(metric))}"
        for metric, rows in comparable.groupby("metric", sort=False)
    ]
    if parts:
        yield f"Mean distance from the published values: {', '.join(parts)}."


def _claims(claims: pd.DataFrame) -> Iterator[str]:
    holds = claims.loc[claims["note"] != NOT_MEASURED, "holds"]
    if len(holds):
        num_true, num_unknown = int(holds.sum()), int(holds.isna().sum())
        num_false = len(holds) - num_true - num_unknown
        parts = [f"{num_true or 'none'} {'holds' if num_true == 1 else 'hold'}"]
        parts += [f"{num_false} {'does' if num_false == 1 else 'do'} not hold"] * (num_false > 0)
        parts += [f"{num_unknown} {'is' if num_unknown == 1 else 'are'} inconclusive"] * (num_unknown > 0)
        yield f"Of {_count(len(holds), 'published statement')}, {', '.join(parts)}."


def _selection_bias(results: Results) -> Iterator[str]:
    row = selection_bias(results).iloc[-1]
    if not row["is_chosen"] or not row["selection_bias"] >= _MIN_SELECTION_BIAS:
        return
    best, selected, bias = (format_metric(row[name], BEST) for name in (BEST, SELECTED, "selection_bias"))
    half = "" if np.isnan(row["selection_bias_half"]) else f" ± {format_metric(row['selection_bias_half'], BEST)}"
    yield (
        f"The best configuration has test accuracy {best} at its best step on the test set, and {selected} at its best "
        f"step on validation images: selecting on the test set adds a bias of {bias}{half}."
    )


def _boundaries(results: Results) -> Iterator[str]:
    if len(searched_parameters(results)) > MAX_CROSSED:
        return
    for row in check_boundaries(results).dropna(subset=["edge", "suggestion"]).to_dict("records"):
        yield (
            f"The best {display_name(row['parameter'])}, {format_value(row['best'], 4)}, is on the "
            f"{'lower' if row['edge'] == 'low' else 'upper'} boundary of the search space; search next: "
            f"{row['suggestion']}."
        )


def _rungs(results: Results) -> Iterator[str]:
    """Warn of rungs of ``asha`` that would have stopped the best configuration of a search without a scheduler."""
    if results.experiment.get("scheduler", "none") != "none":
        return
    table = results.rung_correlation()
    table = table[~table["keeps_best"] & (table["num_configurations"] >= _MIN_RUNG)]
    if len(table):
        ranks = ", ".join(f"{row['best_rank']} at step {row['step']}" for row in table.to_dict("records"))
        num_kept, num_configurations = table[["num_kept", "num_configurations"]].iloc[0]
        yield (
            f"The scheduler asha would have stopped the best configuration: its rank is {ranks}, and a rung keeps "
            f"{num_kept} of {num_configurations}."
        )


def _worse_values(results: Results, special: pd.DataFrame | None) -> Iterator[str]:
    table = special_cases(results) if special is None else special
    if "optimizer" in results.varied_parameters:
        for row in table[table["verdict"] == LOSES].to_dict("records"):
            yield f"{row['general']} loses to its special case {row['special']}: its space or budget is too small."


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
    yield f"Predicted step times, from probes without a step of several workers: {steps}."
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
