"""Summary of the reproduction: the findings for a reader of the report."""

from collections.abc import Iterator, Mapping

import pandas as pd

from benchmarks.reproduction_analyses import noise_floor, protocol_distances, run_deviation, seeds_needed
from tune_hpc.analysis.aggregation import aggregate_seeds, searched_parameters, sort_configurations
from tune_hpc.analysis.claims import check_claims
from tune_hpc.analysis.formatting import format_config
from tune_hpc.analysis.intervals import mean_interval
from tune_hpc.analysis.published import AGREES, DIFFERS, INCONCLUSIVE, LEVEL, NOT_COMPARABLE, distinct_numbers
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.speedup import serial_fractions
from tune_hpc.report.findings import findings

#: Candidates for the protocol of Exercise 2.
PROTOCOLS = "exercise2.protocols"
#: Runs with another protocol or model than the report's table.
VARIANTS = ("exercise2.softmax.shuffled", "exercise2.cnn")
_PERCENT = 100
_PHRASES = {
    AGREES: "agree", DIFFERS: "differ", INCONCLUSIVE: "are inconclusive", NOT_COMPARABLE: "are not comparable",
}  # fmt: skip


def summarise(
    runs: Mapping[str, Results], verdicts: Mapping[str, pd.DataFrame], statements: pd.DataFrame
) -> Iterator[str]:
    """Return the findings for a reader of the report, one sentence or two each; those of missing runs are absent."""
    known = pd.concat([distinct_numbers(published) for name, published in verdicts.items() if name not in VARIANTS])
    known = known.dropna(subset=["verdict"])
    counts = known["verdict"].value_counts()
    parts = [f"{counts[verdict]} {phrase}" for verdict, phrase in _PHRASES.items() if verdict in counts]
    differing = known[known["verdict"] == DIFFERS]
    corrected = (differing["p_holm"].fillna(0.0) < LEVEL).sum()
    yield (
        f"**All numbers.** Of {len(known)} published numbers (one for each computation), {', '.join(parts)}. After "
        f"Holm's correction over each table, {corrected} differ. The protocol of Exercise 2 was selected for its "
        "numbers."
    )
    claims = [check_claims(runs[name]) for name in ("exercise1_1stpart", "exercise1_2ndpart") if name in runs]
    if claims:
        yield f"**Exercise 1**, on recovered data. {_count_statements(pd.concat(claims))}"
    if PROTOCOLS in runs:
        best, second = protocol_distances({"softmax": runs[PROTOCOLS]}).head(2).to_dict("records")
        yield (
            f"**Exercise 2** does not show the network of its text. Its table has the numbers of softmax regression on "
            f"the {best['images']} images, with {best['batching']} batches of {best['batch_size']}: {best['num_best']} "
            f"of 18 entries to the printed digits (next best protocol: {second['num_best']})."
        )
    if "exercise2.cnn" in runs:
        network = runs["exercise2.cnn"]
        top = sort_configurations(network, aggregate_seeds(network, [network.metric, "test_accuracy"])).iloc[0]
        config = format_config({name: top[name] for name in searched_parameters(network)})
        seeds = f"{top['num_seeds']} seeds" if top["num_seeds"] > 1 else "one seed"
        yield (
            f"The network itself, with {config}, reaches {_percent(top['test_accuracy'])} test accuracy after the "
            f"same 500 steps ({seeds}). The highest published accuracy is 92 %."
        )
    if {"exercise3.batch_size_single_pass", "exercise3.batch_size_shuffled"} <= set(verdicts):
        yield (
            "**Tables 4.1 and 4.2.** Table 4.1 is a single pass over the images, in which large batches take fewer "
            f"steps. {_count_agreeing(verdicts['exercise3.batch_size_single_pass'])} Table 4.2 shuffles the images. "
            f"{_count_agreeing(verdicts['exercise3.batch_size_shuffled'])}"
        )
    names = [name for name in ("exercise3.decay", "exercise3.learning_rate", "exercise3.dropout") if name in verdicts]
    if names and "exercise3.winner" in runs:
        deviation, degrees = run_deviation(runs)
        agreement = _count_agreeing(pd.concat([verdicts[name] for name in names]))
        yield (
            f"**Tables 4.3 to 4.5.** {agreement} {_zones(verdicts)} Repeated runs deviate by "
            f"{_points(deviation)} points ({degrees:.0f} degrees of freedom): {seeds_needed(deviation)} seeds of each "
            "configuration find a difference of 0.1 points with probability 0.8."
        )
        floor = noise_floor(deviation, degrees)
        verbs = {True: "do", False: "do not"}
        rows = floor.to_dict("records")
        texts = [f"those of Table {row['table']} {verbs[row['p'] < LEVEL]} (p = {row['p']:.2g})" for row in rows]
        yield (
            f"**Noise.** Do cells vary more than repeated runs of one configuration? T{' and '.join(texts)[1:]}; "
            f"a ratio of deviations below {floor['min_ratio'].max():.1f} goes undetected."
        )
        winner = runs["exercise3.winner"].trials["best_test_accuracy"]
        interval = mean_interval(winner)
        yield (
            f"**Table 4.6.** The published 99.3 % is the largest of 36 runs, selected on the test set. Ours has "
            f"{_percent(interval.mean)} ± {_points(interval.half)} ({len(winner)} seeds)."
        )
    if "exercise4" in runs:
        serial = serial_fractions(runs["exercise4"])
        published = serial[serial["times"] == "published"].iloc[-1]
        ours = next(text for text in findings(runs["exercise4"]) if text.startswith("2 workers reach"))
        yield (
            f"**Exercise 4.** The published speed-up on 4 GPUs, {published['speedup']:.2f}, would be that of a program "
            f"with a serial part of {_percent(published['amdahl_fraction'], 0)} (Amdahl). On CPU cores, {ours}"
        )
    yield f"**Statements about several runs.** {_count_statements(statements)}"


def _count_statements(claims: pd.DataFrame) -> str:
    holds = claims["holds"]
    counts = [
        (int(holds.sum()), "holds", "hold"),
        (int((~holds.dropna()).sum()), "does not hold", "do not hold"),
        (int(holds.isna().sum()), "is inconclusive", "are inconclusive"),
    ]
    parts = [f"{count} {singular if count == 1 else plural}" for count, singular, plural in counts if count]
    return f"Of {len(holds)} statements, {', '.join(parts)}."


def _zones(verdicts: Mapping[str, pd.DataFrame]) -> str:
    """Return how wide the zones of Tables 4.4 and 4.5 are beside their numbers."""
    texts = []
    for table, name in (("4.4", "exercise3.learning_rate"), ("4.5", "exercise3.dropout")):
        if name in verdicts:
            known = verdicts[name].dropna(subset=["verdict"])
            half = ((known["zone_high"] - known["zone_low"]) / 2).median()
            spread = known["published"].max() - known["published"].min()
            texts.append(f"± {_points(half)} in Table {table}, whose numbers span {_points(spread)} points")
    return f"That is weak evidence: one seed allows {', and '.join(texts)}." if texts else ""


def _count_agreeing(published: pd.DataFrame) -> str:
    known = published.dropna(subset=["verdict"])
    return f"{int((known['verdict'] == AGREES).sum())} of {len(known)} numbers agree."


def _percent(fraction: float, decimals: int = 2) -> str:
    return f"{_PERCENT * fraction:.{decimals}f} %"


def _points(accuracy: float) -> str:
    return f"{_PERCENT * accuracy:.2f}"
