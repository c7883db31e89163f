"""Summary sentences at the top of the report.

Pure functions of ``Results``; a sentence that the numbers do not support is omitted.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import (
    MAX_CROSSED,
    aggregate_seeds,
    describe_statuses,
    extrapolation_note,
    is_scaling,
    searched_parameters,
    sort_configurations,
    trial_values,
)
from tune_hpc.analysis.boundary_check import check_boundaries
from tune_hpc.analysis.claims import NOT_MEASURED, check_claims
from tune_hpc.analysis.formatting import (
    QUICK_NOTE,
    describe_metric,
    display_name,
    format_config,
    format_metric,
    format_value,
)
from tune_hpc.analysis.intervals import Interval, student_interval
from tune_hpc.analysis.predictions import SEEDS, SEEDS_AND_IMAGES, best_accuracy
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
from tune_hpc.analysis.selection_bias import BEST, SELECTED, selection_bias
from tune_hpc.analysis.special_cases import LOSES, NOT_INCLUDED, special_cases
from tune_hpc.analysis.stability import MIN_RUNG
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.scaling_findings import scaling_findings

#: Smallest selection bias that is reported: half the last printed digit.
_MIN_SELECTION_BIAS = 5e-5


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
        _status_counts(results),
        _best(results),
        _seeds(results),
        _accuracy(results),
        _published(published, results),
        _distance(published),
    ]
    parts += [_claims(claims), _selection_bias(results)]
    if is_scaling(results):
        parts += scaling_findings(results)
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


def best_value(results: Results) -> tuple[Interval, int, dict[str, object]] | None:
    """Return the best mean metric with its interval over seeds, their number, and the varied parameters.

    ``None`` without a measurement.
    """
    best = sort_configurations(results, aggregate_seeds(results, [results.metric]))
    if best.empty:
        return None
    row = best.iloc[0]
    config = {name: row[name] for name in searched_parameters(results) if pd.notna(row[name])}
    interval = student_interval(float(row[results.metric]), row[f"{results.metric}_deviation"], int(row["num_seeds"]))
    return interval, int(row["num_seeds"]), config


def _status_counts(results: Results) -> Iterator[str]:
    if counts := results.counts():
        separator = "," if len(counts) == 1 else ":"
        yield f"{_count(sum(counts.values()), 'trial')}{separator} {describe_statuses(results)}."
    else:
        yield "No trial has ended yet."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _best(results: Results) -> Iterator[str]:
    if best := best_value(results):
        interval, num_seeds, config = best
        extreme = "Lowest" if results.experiment["mode"] == "min" else "Highest"
        described = describe_metric(interval.mean, results.metric).removeprefix("best ")
        text = f"{'Best' if display_name(results.metric).startswith('best ') else extreme} {described}"
        text += extrapolation_note(results, results.metric)
        text += f" with {format_config(config)}" if config else ""
        low, high = (format_metric(bound, results.metric) for bound in (interval.low, interval.high))
        over = "" if np.isnan(interval.low) else f"; 95 % interval {low} to {high}"
        yield text + (f" (mean of {num_seeds} seeds{over})." if num_seeds > 1 else ".")
    elif results.counts():
        yield f"No trial finished with a value of {display_name(results.metric)}."


def _seeds(results: Results) -> Iterator[str]:
    """Warn that no configuration depends on its seed, so that repeats measure nothing."""
    values = trial_values(results, [results.metric]).groupby("configuration")[results.metric]
    is_repeated = values.count() > 1
    if is_repeated.any() and (values.nunique()[is_repeated] == 1).all():
        yield (
            f"All seeds of each configuration have the same {display_name(results.metric)}: the seed seems to have no "
            "effect."
        )


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


def _published(published: pd.DataFrame, results: Results | None = None) -> Iterator[str]:
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
    if num_differing > 1 and results is not None:
        num_corrected = int((distinct["p_holm"] < LEVEL).sum())
        yield f"Of {num_differing} separate computations that differ, {num_corrected} do after Holm's correction."
    if results is None:
        return
    for row in joint_test(results, published).to_dict("records"):
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
    if len(holds) == 1:
        verb = "is inconclusive" if holds.isna().all() else "holds" if holds.all() else "does not hold"
        yield f"The published statement {verb}."
    elif len(holds):
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
    table = table[~table["keeps_best"] & (table["num_configurations"] >= MIN_RUNG)]
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
        for row in table[table["verdict"].isin([LOSES, NOT_INCLUDED])].to_dict("records"):
            reason = row["verdict"].removeprefix("loses: ")
            yield f"{row['general']} loses to its special case {row['special']}: {reason}."
