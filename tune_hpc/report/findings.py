"""What the numbers say, in plain sentences that lead the report.

Pure functions on ``Results``; every sentence holds where the numbers do not allow one too, by being left out.
"""

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import aggregate_seeds, is_scaling, sort_configurations
from tune_hpc.analysis.boundary_check import check_boundaries
from tune_hpc.analysis.claims import check_claims
from tune_hpc.analysis.formatting import QUICK, display_name, format_config, format_value, measurement, number
from tune_hpc.analysis.published import AGREES, CANNOT_TELL, DIFFERS, NOT_COMPARABLE, compare_to_published
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.selection_bias import BEST, LOSES, SELECTED, protocols, special_cases
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.scaling_findings import scaling_sentences

_VERBS = {
    AGREES: ("agrees with ours", "agree with ours"),
    DIFFERS: ("differs", "differ"),
    CANNOT_TELL: ("cannot be told from so few seeds", "cannot be told from so few seeds"),
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
    said += scaling_sentences(results) if is_scaling(results) else [*_edges(results), *_worse_values(results, special)]
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
    told = {name: row[name] for name in results.varying if name != "seed" and pd.notna(row[name])}
    return float(row[results.metric]), int(row["num_seeds"]), told


def _best(results: Results) -> str:
    best = best_configuration(results)
    if best is None:
        return f"No trial finished with a value of {display_name(results.metric)}." if results.counts() else ""
    value, num_seeds, told = best
    superlative = "Lowest" if results.experiment["mode"] == "min" else "Highest"
    text = f"{superlative} {measurement(value, results.metric)}"
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
    judged = {verdict: int(counted.get(verdict, 0)) for verdict in (AGREES, DIFFERS, CANNOT_TELL)}
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
        distance = number(rows["difference"].abs().mean(), str(metric))
        numbers = "number" if len(rows) == 1 else "numbers"
        parts.append(f"{distance} on {len(rows)} {numbers} for {display_name(str(metric))}")
    if not parts:
        return ""
    return f"Mean distance from the published values: {', '.join(parts)}."


def _quick(published: pd.DataFrame) -> str:
    return f" ({QUICK})" if published["quick"].any() else ""


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
    if "optimizer" not in results.varying:
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
        row = protocols(results).iloc[-1]
    except UnknownNameError:
        return ""
    if not row["is_chosen"] or not row["selection_bias"] >= 5e-5:
        return ""
    best, honest = number(row[BEST], BEST), number(row[SELECTED], SELECTED)
    half = "" if np.isnan(row["selection_bias_half"]) else f" ± {number(row['selection_bias_half'], BEST)}"
    return (
        f"The best configuration reads {best} at its best moment on the test set, and {honest} where validation was "
        f"best: choosing on the test set flatters by {number(row['selection_bias'], BEST)}{half}."
    )
