"""Summary of the reproduction: the findings for a reader of the report."""

from collections.abc import Iterator, Mapping

import pandas as pd

from benchmarks.reproduction_analyses import noise_floor, protocol_distances, run_deviation, seeds_needed
from tune_hpc.analysis.claims import check_claims
from tune_hpc.analysis.formatting import format_config
from tune_hpc.analysis.intervals import mean_interval
from tune_hpc.analysis.published import AGREES, DIFFERS, INCONCLUSIVE, LEVEL, NOT_COMPARABLE
from tune_hpc.analysis.results import Results
from tune_hpc.analysis.speedup import serial_fractions
from tune_hpc.report.findings import best_configuration, findings

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
    known = pd.concat([published for name, published in verdicts.items() if name not in VARIANTS])
    known = known.dropna(subset=["verdict"])
    counts = known["verdict"].value_counts()
    phrases = {
        AGREES: "agree",
        DIFFERS: "differ",
        INCONCLUSIVE: "are inconclusive",
        NOT_COMPARABLE: "are not comparable",
    }
    parts = [f"{counts[verdict]} {phrase}" for verdict, phrase in phrases.items() if verdict in counts]
    yield f"**All numbers.** Of {len(known)} published numbers, {', '.join(parts)}."
    claims = [check_claims(runs[name]) for name in ("exercise1_1stpart", "exercise1_2ndpart") if name in runs]
    if claims:
        yield f"**Exercise 1**, on recovered data. {_count_statements(pd.concat(claims))}"
    if PROTOCOLS in runs:
        best, second = protocol_distances({"softmax": runs[PROTOCOLS]}).head(2).to_dict("records")
        yield (
            f"**Exercise 2** does not show the network of its text. Its table has the numbers of softmax regression on "
            f"the {best['images']} images, with batches of {best['batch_size']} in stored order: {best['num_best']} of "
            f"18 entries to the printed digits (next best protocol: {second['num_best']})."
        )
    if "exercise2.cnn" in runs:
        best_network = best_configuration(runs["exercise2.cnn"])
        accuracy = runs["exercise2.cnn"].trials["test_accuracy"].max()
        assert best_network is not None
        yield (
            f"The network itself reaches {_percent(accuracy)} test accuracy after the same 500 steps, with "
            f"{format_config(best_network[2])}; the highest published accuracy is 92 %."
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
            f"**Tables 4.3 to 4.5.** {agreement} Repeated runs deviate by "
            f"{_points(deviation)} points ({degrees:.0f} degrees of freedom): {seeds_needed(deviation)} seeds of each "
            "configuration are necessary to find a difference of 0.1 points."
        )
        floor = noise_floor(deviation, degrees)
        within = "; ".join(f"Table {row['table']}: p = {row['p']:.2g}" for row in floor.to_dict("records"))
        verb = "do not vary" if (floor["p"] >= LEVEL).all() else "vary"
        yield f"The cells of Tables 4.4 and 4.5 {verb} more than repeated runs of one configuration ({within})."
        winner = runs["exercise3.winner"].trials["best_test_accuracy"]
        interval = mean_interval(winner)
        yield (
            f"**Table 4.6.** The published 99.3 % is the largest of 38 runs, selected on the test set. Ours has "
            f"{_percent(interval.mean)} ± {_points(interval.half)} ({len(winner)} seeds)."
        )
    if "exercise4" in runs:
        serial = serial_fractions(runs["exercise4"])
        published = serial[serial["times"] == "published"].iloc[-1]
        ours = next(text for text in findings(runs["exercise4"]) if text.startswith("2 workers reach"))
        yield (
            f"**Exercise 4.** The published speed-up on 4 GPUs, {published['speedup']:.2f}, is that of a program with "
            f"a serial part of {published['amdahl_fraction']:.0%} (Amdahl). Ours is measured on CPU cores: {ours}"
        )
    yield f"**Statements about several runs.** {_count_statements(statements)}"


def _count_statements(claims: pd.DataFrame) -> str:
    holds = claims["holds"]
    counts = {"hold": holds.sum(), "do not hold": (~holds.dropna()).sum(), "are inconclusive": holds.isna().sum()}
    return f"Of {len(holds)} statements, {', '.join(f'{count} {verb}' for verb, count in counts.items() if count)}."


def _count_agreeing(published: pd.DataFrame) -> str:
    known = published.dropna(subset=["verdict"])
    return f"{int((known['verdict'] == AGREES).sum())} of {len(known)} numbers agree."


def _percent(accuracy: float) -> str:
    return f"{_PERCENT * accuracy:.2f} %"


def _points(accuracy: float) -> str:
    return f"{_PERCENT * accuracy:.2f}"
