"""What the numbers say, in plain sentences that lead the report.

Pure functions on ``Results``; every sentence holds where the numbers do not allow one too, by being left out.
"""

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import aggregate_seeds, is_scaling, row_mask, sort_configurations
from tune_hpc.analysis.boundary_check import check_boundaries
from tune_hpc.analysis.claims import check_claims
from tune_hpc.analysis.formatting import (
    QUICK_NOTE,
    describe_metric,
    display_name,
    format_config,
    format_metric,
    format_number,
    format_value,
)
from tune_hpc.analysis.published import AGREES, DIFFERS, INCONCLUSIVE, NOT_COMPARABLE, compare_to_published
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.selection_bias import BEST, LOSES, SELECTED, selection_bias, special_cases
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.scaling_tables import (
    MEASURED_LINK,
    cost_pareto_front,
    min_efficient_width,
    predicted_against_measured,
)

_VERBS = {
    AGREES: ("agrees with ours", "agree with ours"),
    DIFFERS: ("differs", "differ"),
    INCONCLUSIVE: ("cannot be told from so few seeds", "cannot be told from so few seeds"),
}


def findings(
    results: Results,
    published: pd.DataFrame | None = None,
    claims: pd.DataFrame | None = None,
    special: pd.DataFrame | None = None,
) -> list[str]:
    """Return what an experiment found, most important first.

    Args:
        results: Any results.
        published: What ``compare_to_published`` returned, where it is at hand.
        claims: The same of ``check_claims``.
        special: The same of ``special_cases``.
    """
    published = compare_to_published(results) if published is None else published
    claims = check_claims(results) if claims is None else claims
    said = [_status_counts(results), _best(results), _rates(published), _verdicts(published), _distance(published)]
    said += [_claims(claims), _selection_bias(results)]
    said += scaling_findings(results) if is_scaling(results) else [*_edges(results), *_worse_values(results, special)]
    return [sentence for sentence in said if sentence]


def _status_counts(results: Results) -> str:
    counted = results.counts()
    if not counted:
        return "No trial has ended yet."
    total = sum(counted.values())
    parts = ", ".join(f"{count} {status}" for status, count in counted.items())
    noun = "trial" if total == 1 else "trials"
    return f"{total} {noun}, {parts}." if len(counted) == 1 else f"{total} {noun}: {parts}."


def best_configuration(results: Results) -> tuple[float, int, dict[str, object]] | None:
    """Return the best mean metric, over how many seeds, and the varying configuration there; ``None`` without one."""
    best = sort_configurations(results, aggregate_seeds(results, [results.metric]))
    if best.empty:
        return None
    row = best.iloc[0]
    told = {name: row[name] for name in results.varied_parameters if name != "seed" and pd.notna(row[name])}
    return float(row[results.metric]), int(row["num_seeds"]), told


def _best(results: Results) -> str:
    best = best_configuration(results)
    if best is None:
        return f"No trial finished with a value of {display_name(results.metric)}." if results.counts() else ""
    value, num_seeds, told = best
    superlative = "Lowest" if results.experiment["mode"] == "min" else "Highest"
    text = f"{superlative} {describe_metric(value, results.metric)}"
    if told:
        text += f" with {format_config(told)}"
    return text + (f" (mean of {num_seeds} seeds)." if num_seeds > 1 else ".")


def _rates(published: pd.DataFrame) -> str:
    """Say how many published best values are ours too: one vote per condition, however many numbers it has."""
    judged = published[published["best_agrees"].notna()].drop_duplicates(["where", "best_over"])
    if judged.empty:
        return ""
    over = judged["best_over"].unique()
    what = display_name(over[0]) if len(over) == 1 else "value"
    agreeing = int(judged["best_agrees"].sum())
    verb = "is ours" if agreeing == 1 else "are ours"
    return f"Of {len(judged)} published best {what}s {agreeing} {verb} too{_quick(published)}."


def _verdicts(published: pd.DataFrame) -> str:
    """Say of how many published numbers one can tell what."""
    counted = published["verdict"].value_counts()
    judged = {verdict: int(counted.get(verdict, 0)) for verdict in (AGREES, DIFFERS, INCONCLUSIVE)}
    if not any(judged.values()):
        return ""
    total = sum(judged.values())
    parts = [f"{count} {_VERBS[verdict][count > 1]}" for verdict, count in judged.items() if count]
    return f"Of {total} published {'numbers' if total > 1 else 'number'} {', '.join(parts)}."


def _distance(published: pd.DataFrame) -> str:
    """Say how far ours are from the published numbers that are comparable."""
    parts = []
    comparable = published[published["verdict"] != NOT_COMPARABLE].dropna(subset=["difference"])
    for metric, rows in comparable.groupby("metric", sort=False):
        distance = format_metric(rows["difference"].abs().mean(), str(metric))
        numbers = "number" if len(rows) == 1 else "numbers"
        parts.append(f"{distance} on {len(rows)} {numbers} for {display_name(str(metric))}")
    if not parts:
        return ""
    return f"Mean distance from the published values: {', '.join(parts)}."


def _quick(published: pd.DataFrame) -> str:
    return f" ({QUICK_NOTE})" if published["quick"].any() else ""


def _claims(claims: pd.DataFrame) -> str:
    """Say how many published sentences hold."""
    held = claims["holds"].dropna()
    if held.empty:
        return ""
    count = int(held.sum())
    verb = "holds" if count == 1 else "hold"
    return f"Of {len(held)} published sentences that a number can check {count or 'none'} {verb}."


def _edges(results: Results) -> list[str]:
    """Say which parameters of the best configuration are at an edge of what was searched, and what lies beyond."""
    try:
        df = check_boundaries(results)
    except UnknownNameError:
        return []
    said = []
    for row in df.dropna(subset=["edge", "suggestion"]).to_dict("records"):
        most = "lowest" if row["edge"] == "low" else "highest"
        value = format_value(row["best"], 4)
        said.append(
            f"The best {display_name(row['parameter'])}, {value}, is about the {most} searched; next: "
            f"{row['suggestion']}."
        )
    return said


def _worse_values(results: Results, special: pd.DataFrame | None) -> list[str]:
    """Say which optimizers lose to a special case of theirs."""
    if "optimizer" not in results.varied_parameters:
        return []
    try:
        df = special_cases(results) if special is None else special
    except UnknownNameError:
        return []
    lost = df[df["verdict"] == LOSES]
    return [
        f"{row['general']} loses to its special case {row['special']}: its space or budget is too small."
        for row in lost.to_dict("records")
    ]


def _selection_bias(results: Results) -> str:
    """Say by how much choosing the moment on the test set flatters the best configuration."""
    try:
        row = selection_bias(results).iloc[-1]
    except UnknownNameError:
        return ""
    if not row["is_chosen"] or not row["selection_bias"] >= 5e-5:
        return ""
    best, honest = format_metric(row[BEST], BEST), format_metric(row[SELECTED], SELECTED)
    half = "" if np.isnan(row["selection_bias_half"]) else f" ± {format_metric(row['selection_bias_half'], BEST)}"
    return (
        f"The best configuration reads {best} at its best moment on the test set, and {honest} where validation was "
        f"best: choosing on the test set flatters by {format_metric(row['selection_bias'], BEST)}{half}."
    )


#: The option that is none.
PLAIN = "none"


def scaling_findings(results: Results) -> list[str]:
    """Say what the most workers give, and what their exchange of gradients takes, for each configuration."""
    measured = ["speedup", "efficiency", "communicate_s", "step_s"]
    found = aggregate_seeds(results, measured).dropna(subset=["speedup"])
    others = [name for name in results.varied_parameters if name not in ("workers", "seed", "option")]
    said = []
    for row in found[found["workers"] == found["workers"].max()].to_dict("records"):
        if row["workers"] == 1 or row.get("option", PLAIN) != PLAIN:
            continue
        where = f" at {format_config({name: row[name] for name in others})}" if others else ""
        part = row["communicate_s"] / row["step_s"]
        said.append(
            f"{row['workers']} workers{where} do {row['speedup']:.2f} times as much a second as one, "
            f"{row['efficiency']:.0%} of what they could; the exchange of gradients adds {part:.0%} of a step."
        )
    return said + _foretold(results) + _widths(results) + _costs(results) + _options(results)


def _foretold(results: Results) -> list[str]:
    """Say how the model fares against the clock, and what no number of workers would share."""
    try:
        table = predicted_against_measured(results)
    except UnknownNameError:
        return []
    table = table.dropna(subset=["error"])
    if table.empty:
        return []
    several = len(table["width"].unique()) > 1
    told = "; ".join(
        f"{row['workers']} workers{at}: {_ms(row['predicted_s'])} ms for {_ms(row['measured_s'])} ({row['error']:+.0%})"
        for row in table.to_dict("records")
        for at in [f" at width {format_value(row['width'])}" if several else ""]
    )
    said = [f"From probes alone, none of them a step of several workers, the model puts a step of {told}."]
    compute = pd.DataFrame(results.experiment.get("probes") or [], columns=["probe", "width", "share", "seconds"])
    compute = compute[(compute["probe"] == "compute") & compute["width"].isin(table["width"])]
    for width, own in compute.groupby("width"):
        seconds = own.groupby("share")["seconds"].median()
        whole, least, many = seconds.loc[1.0], seconds.iloc[-1], seconds.index[-1]
        at = f" at width {format_value(width)}" if several else ""
        said.append(
            f"One of {many:.0f} shares of the batch{at} still takes one worker {least / whole:.0%} of the whole "
            "batch's time: that part is not shared, however many they are."
        )
    return said


def _widths(results: Results) -> list[str]:
    """Say from which width of the network on the workers here keep their speed."""
    try:
        table = min_efficient_width(results)
    except UnknownNameError:
        return []
    said = []
    for row in table[table["link"] == MEASURED_LINK].to_dict("records"):
        aim = f"{row['aim']:.0%} of their speed (predicted)"
        if np.isnan(row["width"]):
            said.append(
                f"No width from {format_value(row['narrowest'])} to {format_value(row['widest'])} lets "
                f"{row['workers']} workers here keep {aim}; the best, "
                f"{format_value(row['best_width'], 2)}, lets them keep {row['best_efficiency']:.0%}."
            )
        else:
            said.append(f"{row['workers']} workers here keep {aim} from width {format_value(row['width'], 2)} on.")
    return said


def _costs(results: Results) -> list[str]:
    """Say what the shortest time costs, against the cheapest."""
    try:
        table = cost_pareto_front(results)
    except UnknownNameError:
        return []
    # Networks of several widths are not the same work.
    if "option" in table:
        table = table[table["option"] == PLAIN]
    names = [name for name in table if name not in ("train_s", "worker_s", "is_efficient", "option")]
    if len(table) < 2 or names != ["workers"]:
        return []
    rows = table.to_dict("records")
    quick, cheap = (min(rows, key=lambda row: row[column]) for column in ("train_s", "worker_s"))
    if quick["train_s"] == cheap["train_s"]:
        return [f"The time is shortest, and cheapest, with {format_config({'workers': quick['workers']})}."]
    return [
        f"The shortest time, with {format_config({'workers': quick['workers']})}, is "
        f"{quick['train_s'] / cheap['train_s']:.2f} of the cheapest one, with "
        f"{format_config({'workers': cheap['workers']})}, and takes {quick['worker_s'] / cheap['worker_s']:.2f} times "
        "the seconds of all workers together."
    ]


def _options(results: Results) -> list[str]:
    """Say what each option does to the time of the most workers, and to the accuracy."""
    if "option" not in results.varied_parameters:
        return []
    found = aggregate_seeds(results, ["train_s", "test_accuracy"]).dropna(subset=["train_s"])
    found = found[found["workers"] == found["workers"].max()]
    names = [name for name in results.varied_parameters if name not in ("workers", "seed", "option")]
    said = []
    for row in found.to_dict("records"):
        plainly = found[(found["option"] == PLAIN) & row_mask(found, {name: row[name] for name in names})]
        if row["option"] == PLAIN or len(plainly) != 1:
            continue
        other = plainly.iloc[0]
        where = format_config({"workers": row["workers"], **{name: row[name] for name in names}})
        effect = ""
        if not np.isnan(row["test_accuracy"]):
            accuracies = (
                format_metric(row["test_accuracy"], "accuracy"),
                format_metric(other["test_accuracy"], "accuracy"),
            )
            effect = f"; test accuracy {accuracies[0]} for {accuracies[1]}"
        part = row["train_s"] / other["train_s"]
        said.append(f"{display_name(row['option']).capitalize()} ({where}): {part:.2f} of the time{effect}.")
    return said


def _ms(seconds: float) -> str:
    """Return milliseconds with three digits that mean something."""
    return format_number(float(f"{1000 * seconds:.3g}"))
