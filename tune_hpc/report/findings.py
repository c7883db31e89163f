"""Summary sentences at the top of the report.

Pure functions of ``Results``; a sentence that the numbers do not support is omitted.
"""

from collections.abc import Callable
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
from tune_hpc.analysis.formatting import (
    QUICK_NOTE,
    describe_metric,
    display_name,
    format_config,
    format_metric,
    format_number,
    format_value,
)
from tune_hpc.analysis.published import (
    AGREES,
    DIFFERS,
    INCONCLUSIVE,
    NOT_COMPARABLE,
    check_claims,
    compare_to_published,
)
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.selection_bias import BEST, LOSES, SELECTED, selection_bias, special_cases
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.scaling_tables import (
    MEASURED_LINK,
    cost_pareto_front,
    min_efficient_width,
    predicted_against_measured,
)

#: The value of ``option`` without an option.
NO_OPTION = "none"
#: Smallest selection bias that is reported: half the last printed digit.
MIN_SELECTION_BIAS = 5e-5


def findings(
    results: Results,
    published: pd.DataFrame | None = None,
    claims: pd.DataFrame | None = None,
    special: pd.DataFrame | None = None,
) -> list[str]:
    """Return the findings of an experiment, most important first.

    Args:
        results: Any results.
        published: The table of ``compare_to_published``, if it exists already.
        claims: That of ``check_claims``.
        special: That of ``special_cases``.
    """
    published = compare_to_published(results) if published is None else published
    sentences = [
        _status_counts(results), _best(results), _best_values(published), _verdicts(published), _distance(published),
        _claims(check_claims(results) if claims is None else claims), _selection_bias(results),
    ]  # fmt: skip
    if is_scaling(results):
        sentences += [*_speedup(results), *_prediction(results), *_widths(results), *_cost(results), *_options(results)]
    else:
        sentences += [*_boundaries(results), *_worse_values(results, special)]
    return [sentence for sentence in sentences if sentence]


def best_configuration(results: Results) -> tuple[float, int, dict[str, object]] | None:
    """Return the best mean metric, its number of seeds, and its varied parameters; ``None`` without a measurement."""
    best = sort_configurations(results, aggregate_seeds(results, [results.metric]))
    if best.empty:
        return None
    row = best.iloc[0]
    config = {name: row[name] for name in searched_parameters(results) if pd.notna(row[name])}
    return float(row[results.metric]), int(row["num_seeds"]), config


def _status_counts(results: Results) -> str:
    counts = results.counts()
    if not counts:
        return "No trial has ended yet."
    total = sum(counts.values())
    separator = "," if len(counts) == 1 else ":"
    return f"{total} {'trial' if total == 1 else 'trials'}{separator} {describe_statuses(results)}."


def _best(results: Results) -> str:
    best = best_configuration(results)
    if best is None:
        return f"No trial finished with a value of {display_name(results.metric)}." if results.counts() else ""
    value, num_seeds, config = best
    text = "Lowest" if results.experiment["mode"] == "min" else "Highest"
    text += f" {describe_metric(value, results.metric)}" + (f" with {format_config(config)}" if config else "")
    return text + (f" (mean of {num_seeds} seeds)." if num_seeds > 1 else ".")


def _best_values(published: pd.DataFrame) -> str:
    """Count the published best values that are also ours; a condition with several numbers counts once."""
    known = published[published["best_agrees"].notna()].drop_duplicates(["where", "best_over"])
    if known.empty:
        return ""
    over = known["best_over"].unique()
    noun = f"best {display_name(over[0])}s" if len(over) == 1 else "best values"
    num_agreeing = int(known["best_agrees"].sum())
    quick = f" ({QUICK_NOTE})" if published["quick"].any() else ""
    return f"Of {len(known)} published {noun}, {num_agreeing} {'is' if num_agreeing == 1 else 'are'} also ours{quick}."


def _verdicts(published: pd.DataFrame) -> str:
    phrases = {
        AGREES: ("agrees with ours", "agree with ours"), DIFFERS: ("differs", "differ"),
        INCONCLUSIVE: ("is inconclusive with so few seeds", "are inconclusive with so few seeds"),
    }  # fmt: skip
    counts = {verdict: int((published["verdict"] == verdict).sum()) for verdict in phrases}
    total = sum(counts.values())
    parts = [f"{count} {phrases[verdict][count > 1]}" for verdict, count in counts.items() if count]
    return f"Of {total} published {'number' if total == 1 else 'numbers'}, {', '.join(parts)}." if total else ""


def _distance(published: pd.DataFrame) -> str:
    parts = []
    comparable = published[published["verdict"] != NOT_COMPARABLE].dropna(subset=["difference"])
    for metric, rows in comparable.groupby("metric", sort=False):
        distance = format_metric(rows["difference"].abs().mean(), str(metric))
        noun = "number" if len(rows) == 1 else "numbers"
        parts.append(f"{distance} on {len(rows)} {noun} for {display_name(str(metric))}")
    return f"Mean distance from the published values: {', '.join(parts)}." if parts else ""


def _claims(claims: pd.DataFrame) -> str:
    holds = claims["holds"].dropna()
    count = int(holds.sum())
    verb = "holds" if count == 1 else "hold"
    return f"Of {len(holds)} published statements, {count or 'none'} {verb}." if len(holds) else ""


def _selection_bias(results: Results) -> str:
    table = _table(selection_bias, results)
    if table is None:
        return ""
    row = table.iloc[-1]
    if not row["is_chosen"] or not row["selection_bias"] >= MIN_SELECTION_BIAS:
        return ""
    best, selected, bias = (format_metric(row[name], BEST) for name in (BEST, SELECTED, "selection_bias"))
    half = "" if np.isnan(row["selection_bias_half"]) else f" ± {format_metric(row['selection_bias_half'], BEST)}"
    return (
        f"The best configuration has test accuracy {best} at its best step on the test set, and {selected} at its best "
        f"step on validation images: selecting on the test set adds a bias of {bias}{half}."
    )


def _boundaries(results: Results) -> list[str]:
    table = _table(check_boundaries, results)
    if table is None:
        return []
    return [
        f"The best {display_name(row['parameter'])}, {format_value(row['best'], 4)}, is on the "
        f"{'lower' if row['edge'] == 'low' else 'upper'} boundary of the search space; search next: "
        f"{row['suggestion']}."
        for row in table.dropna(subset=["edge", "suggestion"]).to_dict("records")
    ]


def _worse_values(results: Results, special: pd.DataFrame | None) -> list[str]:
    table = _table(special_cases, results) if special is None else special
    if "optimizer" not in results.varied_parameters or table is None:
        return []
    return [
        f"{row['general']} loses to its special case {row['special']}: its space or budget is too small."
        for row in table[table["verdict"] == LOSES].to_dict("records")
    ]


def _speedup(results: Results) -> list[str]:
    """Describe the speed-up of the most workers, for each configuration."""
    found = aggregate_seeds(results, ["speedup", "efficiency", "communicate_s", "step_s"]).dropna(subset=["speedup"])
    others = [name for name in searched_parameters(results) if name not in ("workers", "option")]
    sentences = []
    for row in found[found["workers"] == found["workers"].max()].to_dict("records"):
        if row["workers"] > 1 and row.get("option", NO_OPTION) == NO_OPTION:
            where = f" at {format_config({name: row[name] for name in others})}" if others else ""
            sentences.append(
                f"{row['workers']} workers{where} reach a speed-up of {row['speedup']:.2f}, an efficiency of "
                f"{row['efficiency']:.0%}; communication adds {row['communicate_s'] / row['step_s']:.0%} of a step."
            )
    return sentences


def _prediction(results: Results) -> list[str]:
    """Compare the step-time model with the measurement, and state the part of a step that does not scale."""
    table = _table(predicted_against_measured, results)
    if table is None or table["error"].isna().all():
        return []
    table = table.dropna(subset=["error"])
    has_widths = len(table["width"].unique()) > 1

    def at_width(width: Any) -> str:
        return f" at width {format_value(width)}" if has_widths else ""

    steps = "; ".join(
        f"{row['workers']} workers{at_width(row['width'])}: {_ms(row['predicted_s'])} ms, measured "
        f"{_ms(row['measured_s'])} ({row['error']:+.0%})"
        for row in table.to_dict("records")
    )
    sentences = [f"Predicted step times, from probes without a step of several workers: {steps}."]
    probes = pd.DataFrame(results.experiment.get("probes") or [], columns=["probe", "width", "share", "seconds"])
    for width, rows in probes[(probes["probe"] == "compute") & probes["width"].isin(table["width"])].groupby("width"):
        seconds = rows.groupby("share")["seconds"].median()
        sentences.append(
            f"A worker takes {seconds.iloc[-1] / seconds.loc[1.0]:.0%} of the whole batch's time for one of "
            f"{seconds.index[-1]:.0f} shares of the batch{at_width(width)}: that part does not scale with the workers."
        )
    return sentences


def _widths(results: Results) -> list[str]:
    """State the network width from which the measured workers scale efficiently."""
    table = _table(min_efficient_width, results)
    if table is None:
        return []
    sentences = []
    for row in table[table["link"] == MEASURED_LINK].to_dict("records"):
        if np.isnan(row["width"]):
            sentences.append(
                f"{row['workers']} workers reach an efficiency of {row['aim']:.0%} at no width from "
                f"{format_value(row['narrowest'])} to {format_value(row['widest'])} (predicted); the best is "
                f"{row['best_efficiency']:.0%}, at width {format_value(row['best_width'], 2)}."
            )
        else:
            width = format_value(row["width"], 2)
            sentences.append(
                f"{row['workers']} workers reach an efficiency of {row['aim']:.0%} from width {width} on (predicted)."
            )
    return sentences


def _cost(results: Results) -> list[str]:
    """Compare the cost of the fastest training with the cheapest; networks of several widths are different work."""
    table = _table(cost_pareto_front, results)
    if table is None:
        return []
    if "option" in table:
        table = table[table["option"] == NO_OPTION]
    names = [name for name in table if name not in ("train_s", "worker_s", "is_efficient", "option")]
    if len(table) < 2 or names != ["workers"]:
        return []
    rows = table.to_dict("records")
    fast, cheap = (min(rows, key=lambda row: row[column]) for column in ("train_s", "worker_s"))
    workers = [format_config({"workers": row["workers"]}) for row in (fast, cheap)]
    if fast["train_s"] == cheap["train_s"]:
        return [f"The fastest training is also the cheapest, with {workers[0]}."]
    return [
        f"The fastest training, with {workers[0]}, takes {fast['train_s'] / cheap['train_s']:.2f} of the time of the "
        f"cheapest, with {workers[1]}, and {fast['worker_s'] / cheap['worker_s']:.2f} times its worker seconds."
    ]


def _options(results: Results) -> list[str]:
    """Compare time and accuracy of each option with those of no option, for the most workers."""
    if "option" not in results.varied_parameters:
        return []
    found = aggregate_seeds(results, ["train_s", "test_accuracy"]).dropna(subset=["train_s"])
    found = found[found["workers"] == found["workers"].max()]
    names = [name for name in searched_parameters(results) if name not in ("workers", "option")]
    sentences = []
    for row in found.to_dict("records"):
        baseline = found[(found["option"] == NO_OPTION) & row_mask(found, {name: row[name] for name in names})]
        if row["option"] == NO_OPTION or len(baseline) != 1:
            continue
        other = baseline.iloc[0]
        where = format_config({"workers": row["workers"], **{name: row[name] for name in names}})
        accuracy = ""
        if not np.isnan(row["test_accuracy"]):
            values = [format_metric(value, "accuracy") for value in (row["test_accuracy"], other["test_accuracy"])]
            accuracy = f"; test accuracy {values[0]} instead of {values[1]}"
        option, ratio = display_name(row["option"]).capitalize(), row["train_s"] / other["train_s"]
        sentences.append(f"{option} ({where}): {ratio:.2f} of the time{accuracy}.")
    return sentences


def _table(analysis: Callable[[Results], pd.DataFrame], results: Results) -> pd.DataFrame | None:
    """Return the table of an analysis; ``None`` if the results do not allow it."""
    try:
        return analysis(results)
    except UnknownNameError:
        return None


def _ms(seconds: float) -> str:
    """Return milliseconds with three significant digits."""
    return format_number(float(f"{1000 * seconds:.3g}"))
