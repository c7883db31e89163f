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
from tune_hpc.analysis.claims import check_claims
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
from tune_hpc.analysis.predictions import SEEDS, SEEDS_AND_IMAGES, best_accuracy
from tune_hpc.analysis.published import (
    AGREES,
    DIFFERS,
    INCONCLUSIVE,
    NOT_COMPARABLE,
    compare_to_published,
)
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.selection_bias import BEST, LOSES, SELECTED, selection_bias, special_cases
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.tables import MEASURED_LINK, cost_pareto_front, min_efficient_width, predicted_against_measured

#: The value of ``option`` without an option.
_NO_OPTION = "none"
#: Smallest selection bias that is reported: half the last printed digit.
_MIN_SELECTION_BIAS = 5e-5
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
        *(
            _status_counts(results),
            _best(results),
            _accuracy(results),
            _published(published),
            _distance(published),
            _claims(claims),
        ),
        _selection_bias(results),
    ]
    if is_scaling(results):
        parts += [_speedup(results), _prediction(results), _widths(results), _cost(results), _options(results)]
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
        published.assign(where=results.name + " " + published["where"])
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


def _accuracy(results: Results) -> Iterator[str]:
    """State the accuracy of the best configuration, with intervals over its seeds and over the images."""
    if (best := best_accuracy(results)) is None:
        return
    table, num_seeds, num_images = best
    rows = table.set_index("over").map(lambda value: format_metric(value, "accuracy"))
    if table["low"].notna().all():
        yield (
            f"The models of the best configuration classify {num_images:,} test images with accuracy "
            f"{rows['accuracy'].iloc[0]}; 95 % interval over {num_seeds} seeds {rows['low'][SEEDS]} to "
            f"{rows['high'][SEEDS]}, over seeds and images {rows['low'][SEEDS_AND_IMAGES]} to "
            f"{rows['high'][SEEDS_AND_IMAGES]}."
        )


def _published(published: pd.DataFrame) -> Iterator[str]:
    """Count best values and verdicts; a condition with several numbers counts once among the best values."""
    known = published[published["best_agrees"].notna()].drop_duplicates(["where", "best_over"])
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
    holds = claims["holds"].dropna()
    if len(holds):
        count = int(holds.sum())
        yield f"Of {len(holds)} published statements, {count or 'none'} {'holds' if count == 1 else 'hold'}."


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


def _most_workers(results: Results, metrics: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Return the configurations of the most workers that have the first metric, and their other parameters."""
    found = aggregate_seeds(results, metrics).dropna(subset=metrics[:1])
    names = [name for name in searched_parameters(results) if name not in ("workers", "option")]
    return found[found["workers"] == found["workers"].max()], names


def _speedup(results: Results) -> Iterator[str]:
    found, names = _most_workers(results, ["speedup", "efficiency", "communicate_s", "step_s"])
    for row in found.to_dict("records"):
        if row["workers"] > 1 and row.get("option", _NO_OPTION) == _NO_OPTION:
            where = f" at {format_config({name: row[name] for name in names})}" if names else ""
            yield (
                f"{row['workers']} workers{where} reach a speed-up of {row['speedup']:.2f}, an efficiency of "
                f"{row['efficiency']:.0%}; communication adds {row['communicate_s'] / row['step_s']:.0%} of a step."
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
    workers = [format_config({"workers": row["workers"]}) for row in (fast, cheap)]
    if fast["train_s"] == cheap["train_s"]:
        yield f"The fastest training is also the cheapest, with {workers[0]}."
    else:
        yield (
            f"The fastest training, with {workers[0]}, takes {fast['train_s'] / cheap['train_s']:.2f} of the time of "
            f"the cheapest, with {workers[1]}, and {fast['worker_s'] / cheap['worker_s']:.2f} times its worker seconds."
        )


def _options(results: Results) -> Iterator[str]:
    """Compare time and accuracy of each option with those of no option, for the most workers."""
    if "option" not in results.varied_parameters:
        return
    found, names = _most_workers(results, ["train_s", "test_accuracy"])
    for row in found[found["option"] != _NO_OPTION].to_dict("records"):
        config = {name: row[name] for name in names}
        baseline = found[(found["option"] == _NO_OPTION) & row_mask(found, config)]
        if len(baseline) != 1:
            continue
        other = baseline.iloc[0]
        where = format_config({"workers": row["workers"], **config})
        accuracy = ""
        if not np.isnan(row["test_accuracy"]):
            values = [format_metric(value, "accuracy") for value in (row["test_accuracy"], other["test_accuracy"])]
            accuracy = f"; test accuracy {values[0]} instead of {values[1]}"
        option, ratio = display_name(row["option"]).capitalize(), row["train_s"] / other["train_s"]
        yield f"{option} ({where}): {ratio:.2f} of the time{accuracy}."


def _ms(seconds: float) -> str:
    """Return milliseconds with three significant digits."""
    return format_number(float(f"{1000 * seconds:.3g}"))
