"""Write docs/reproduction.md and its figures from the experiment folders in docs/results."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.reproduction_analyses import noise_floor, protocol_distances, run_deviation
from benchmarks.reproduction_claims import SCALING, cross_claims, with_current_declarations
from benchmarks.reproduction_summary import PROTOCOLS, summarise
from search_spaces.exercise2 import PUBLISHED_BEST
from tune_hpc.analysis.claims import check_claims
from tune_hpc.analysis.formatting import display_name, format_duration, slug
from tune_hpc.analysis.loading import load
from tune_hpc.analysis.published import (
    AGREES,
    DIFFERS,
    INCONCLUSIVE,
    NOT_COMPARABLE,
    compare_to_published,
)
from tune_hpc.analysis.results import Results
from tune_hpc.report import tables
from tune_hpc.report.findings import findings
from tune_hpc.report.plots import figures

HEAD = """# Reproduction of the report

Every number that the report published, with our measurement. Each run is one command at the report's size. Its trials
and curves are in [results](results), as small experiment folders that `tune_hpc.load` reads.
"""
COUNTS = "All printed numbers count here: those of one computation several times, and those of each variant.\n"
METHOD = """## Method

```sh
python benchmarks/reproduction.py run        # missing results; about seven hours on two idle cores, resumable
python benchmarks/reproduction.py write      # this page, from the results
```

**Verdicts.** A published number is a single run, rounded. It *agrees* if it lies between `zone_low` and `zone_high`:
the 95 % prediction interval of one more of our runs, widened by half of the last digit. Otherwise it *differs*. The
deviation of one run is pooled over the seeds of all cells of the table. With one seed, it follows from the differences
between published numbers and ours: from their changes between neighbouring cells. These zones are wide, because both
runs vary. They assume that half of the variance of a run is an effect of its seed on all cells; in the tables with
three seeds it is 23 to 77 %. Without both, a number that does not have the printed digits is *inconclusive*.
Deterministic runs either have the printed digits or differ. A run of another size, and seconds of another machine, are
*not comparable*. `p_holm` is the p-value with Holm's correction for the whole table. Two numbers of the same
computation count once there (`duplicate_of`).

**Data of Exercise 1.** The report prints no data. Starting point and points are recovered: those of TensorFlow's first
exercise with a linear model, which alone reproduce the statement about the bias. The verdicts on the statements of
Exercise 1 depend on them.
"""

#: Additional comparisons of a run: pairs of a parameter and a metric.
COMPARED: Mapping[str, Sequence[tuple[str, str]]] = {
    "exercise2.softmax.shuffled": (("optimizer", "valid_loss"), ("optimizer", "test_accuracy")),
    "exercise2.cnn": (("optimizer", "test_accuracy"),),
    "exercise3.decay": (("batch_size", "best_test_accuracy"),),
    "exercise3.learning_rate": (("learning_rate", "best_test_accuracy"), ("batch_size", "best_test_accuracy")),
    "exercise3.dropout": (("dropout", "best_test_accuracy"), ("batch_size", "best_test_accuracy")),
}
#: Additions to the description of a run.
NOTES = {
    "exercise2.softmax.shuffled": "Here the images are shuffled every epoch. In their stored order, with zero initial "
    "weights, a seed has no effect.",
}
#: Minimum number of published numbers for a figure.
MIN_DRAWN = 4
#: Figures show accuracies in per cent.
PERCENT = 100


def write_page(results_folder: Path, docs: Path) -> None:
    """Write docs/reproduction.md, and the figures that it shows to docs/figures.

    Args:
        results_folder: Folder with one experiment folder per run.
        docs: Folder of the page.

    Raises:
        FolderError: A folder cannot be read.
    """
    folders = sorted(folder for folder in results_folder.iterdir() if folder.is_dir())
    runs = {folder.name: with_current_declarations(folder.name, load(folder)) for folder in folders}
    discoveries = draw_discoveries(runs, docs / "figures")
    captions = {name: draw_run(name, runs[name], docs / "figures") for name in runs if name != PROTOCOLS}
    measured = {name: results_folder.parent / "scaling" / name for name in SCALING}
    statements = cross_claims(runs | {name: load(folder) for name, folder in measured.items() if folder.exists()})
    (docs / "reproduction.md").write_text(page(runs, statements, discoveries, captions), encoding="utf-8")


def page(
    runs: Mapping[str, Results],
    statements: pd.DataFrame,
    discoveries: Mapping[str, str],
    captions: Mapping[str, Mapping[str, str]],
) -> str:
    """Return the page's text.

    Args:
        runs: Results by name of their folder.
        statements: Table of ``cross_claims``.
        discoveries: Captions of the figures of several runs, by stem of their files.
        captions: Captions of the figures of each run.
    """
    verdicts = {name: compare_to_published(results) for name, results in runs.items() if name != PROTOCOLS}
    summary = "\n".join(f"{number}. {text}" for number, text in enumerate(summarise(runs, verdicts, statements), 1))
    parts = [HEAD, summary + "\n", "## Overview\n", tables.to_markdown(_overview(runs, verdicts)) + "\n"]
    parts += [COUNTS, METHOD]
    if discoveries:
        parts.append("## Two discoveries\n")
        parts += [_figure(stem, caption) for stem, caption in discoveries.items()]
    if PROTOCOLS in runs:
        parts.append(_protocols(runs))
    if "exercise3.winner" in runs:
        parts.append(_noise(runs))
    parts.append(f"## Statements about several runs\n\n{tables.to_markdown(statements)}\n")
    for name, results in runs.items():
        if name == PROTOCOLS:
            continue
        parts.append(_section(name, results))
        parts += [_figure(stem, caption) for stem, caption in captions[name].items()]
    return "\n".join(parts)


def _figure(stem: str, caption: str) -> str:
    return f"{caption}\n\n![{caption}](figures/{stem}.png)\n"


def _overview(runs: Mapping[str, Results], verdicts: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    rows = []
    for name, published in verdicts.items():
        counts, results = published["verdict"].value_counts(), runs[name]
        holds = check_claims(results)["holds"]
        seeds = results.trials["seed"].nunique() if "seed" in results.trials else 1
        row: dict[str, Any] = {"run": name, "num_trials": len(results.trials), "num_seeds": seeds}
        row |= {verdict: int(counts.get(verdict, 0)) for verdict in (AGREES, DIFFERS, INCONCLUSIVE, NOT_COMPARABLE)}
        row["statements that hold"] = f"{int(holds.sum())} of {len(holds)}" if len(holds) else ""
        rows.append(row)
    return pd.DataFrame(rows)


def _protocols(runs: Mapping[str, Results]) -> str:
    searches = {"softmax": runs[PROTOCOLS]}
    if "exercise2.cnn" in runs:
        searches["cnn"] = runs["exercise2.cnn"]
    command = runs[PROTOCOLS].experiment["provenance"]["command"]
    return (
        "## Protocol of Exercise 2\n\n"
        "Candidates for the protocol that made the published table, the nearest first. `distance` is the root mean "
        "square difference of the 30 numbers in units of their last digit, `num_printed` the count of equal printed "
        "digits, and `num_best` the same of the 18 entries of the table, at one of the rates that it names.\n\n"
        f"```sh\n{command}\n```\n\n{tables.to_markdown(protocol_distances(searches))}\n"
    )


def _noise(runs: Mapping[str, Results]) -> str:
    deviation, degrees = run_deviation(runs)
    return (
        "## Noise of Tables 4.4 and 4.5\n\n"
        "If all cells of a table were repeated runs of one configuration, its cells would deviate by `run_deviation`, "
        "and its largest number would lie between `max_low` and `max_high` (95 %). `p` is that of the F test.\n\n"
        f"{tables.to_markdown(noise_floor(deviation, degrees))}\n"
    )


def _section(name: str, results: Results) -> str:
    experiment, provenance = results.experiment, results.experiment["provenance"]
    versions = f"torch {provenance['torch']}, Ray {provenance['ray']}, commit {provenance['commit']}"
    sentences = "\n".join(f"- {sentence}" for sentence in findings(results))
    parts = [
        f"## {name}\n",
        f"**{experiment['title']}.**\n",
        f"{experiment['description']} {NOTES.get(name, '')}".rstrip() + "\n",
        f"```sh\n{provenance['command']}      # {format_duration(provenance['wall_s'])}\n```\n",
        f"{provenance['machine']['cpu_model']}, {versions}; [results/{name}](results/{name}).\n",
        f"{sentences}\n",
    ]
    skipped = ("Best configurations", tables.STATUSES)
    for title, _, df in tables.report_tables(results):
        if title not in skipped and len(df):
            parts.append(f"### {title}\n\n{tables.to_markdown(df)}\n")
    for parameter, metric in COMPARED.get(name, ()):
        comparison = results.compare(parameter, metric)
        sentences = "\n".join(f"- {sentence}" for sentence in comparison.sentences())
        values = tables.to_markdown(tables.values_table(comparison))
        title = f"{display_name(metric)} by {display_name(parameter)}".capitalize()
        parts.append(f"### {title}\n\n{sentences}\n\n{values}\n")
    return "\n".join(parts)


def draw_run(name: str, results: Results, folder: Path) -> dict[str, str]:
    """Draw published and measured numbers of a run, and its heat map of optimizers; return captions by stem.

    Args:
        name: Name of the run.
        results: Its results.
        folder: Folder of the figures.
    """
    wanted = []
    verdicts = compare_to_published(results)["verdict"]
    if verdicts.isin([AGREES, DIFFERS, INCONCLUSIVE]).sum() >= MIN_DRAWN:
        metrics = list(dict.fromkeys(one["metric"] for one in results.experiment["published"]))
        wanted.append({"kind": "published", "metrics": metrics, "title": "Published and measured"})
    if {"optimizer", "learning_rate"} <= set(results.varied_parameters):
        over = {"parameter": "learning_rate", "line": "optimizer"}
        wanted.append({"kind": "heatmap", "metrics": ["test_accuracy"], "title": "Test accuracy", **over})
    if not wanted:
        return {}
    folder.mkdir(exist_ok=True)
    captions = {}
    for drawing in figures.render_all(
        replace(results, experiment={**results.experiment, "figures": wanted}), kind="png"
    ):
        stem = f"{slug(name)}-{drawing.stem}"
        (folder / f"{stem}.png").write_bytes(drawing.content)
        captions[stem] = drawing.caption
    return captions


def draw_discoveries(runs: Mapping[str, Results], folder: Path) -> dict[str, str]:
    """Draw our findings about the report's numbers, for the existing runs; return captions by stem."""
    captions = {}
    if {"exercise2.softmax", "exercise2.cnn"} <= set(runs):
        captions["softmax-and-not-the-network"] = (
            "The published accuracies of Exercise 2 match softmax regression, not the network that its text describes. "
            "Softmax regression: accuracy on the training images, batches of 100 in stored order (deterministic). "
            "The network: accuracy on the test images, one seed. Each optimizer at its best rate."
        )
        softmax, network = runs["exercise2.softmax"], runs["exercise2.cnn"]
        names = list(PUBLISHED_BEST)
        series = {
            "softmax regression": _by_value(softmax, "optimizer", names, "fit_accuracy"),
            "the network": _by_value(network, "optimizer", names, "test_accuracy"),
        }
        _draw(
            folder / "softmax-and-not-the-network",
            names,
            series,
            {"published": [accuracy for _, _, accuracy in PUBLISHED_BEST.values()]},
            metric="accuracy",
        )
    if {"exercise3.batch_size_single_pass", "exercise3.batch_size_shuffled"} <= set(runs):
        captions["a-single-pass"] = (
            "Table 4.1 is a single pass over the training images. Trained so, the network is close to it; "
            "with shuffled images it is close to Table 4.2. Bars are 95 % intervals over seeds, where there are "
            "several."
        )
        once, shuffled = runs["exercise3.batch_size_single_pass"], runs["exercise3.batch_size_shuffled"]
        sizes = sorted(once.trials["batch_size"].unique())
        metric = "best_test_accuracy"
        series = {
            "a single pass": _by_value(once, "batch_size", sizes, metric),
            "shuffled every epoch": _by_value(shuffled, "batch_size", sizes, metric),
        }
        published_by_table = {
            f"published, Table {table}": [
                next(one["value"] for one in results.experiment["published"] if one["where"]["batch_size"] == size)
                for size in sizes
            ]
            for table, results in (("4.1", once), ("4.2", shuffled))
        }
        _draw(
            folder / "a-single-pass", [str(size) for size in sizes], series, published_by_table, "batch size (images)"
        )
    return captions


def _by_value(results: Results, parameter: str, values: Sequence[Any], metric: str) -> pd.DataFrame:
    """Return mean and half-width of the interval of each value of a parameter, in the given order."""
    df = results.compare(parameter, metric).values.set_index(parameter).reindex(pd.Index(values))
    return pd.DataFrame({"mean": df["mean"], "half": ((df["high"] - df["low"]) / 2).fillna(0.0)})


def _draw(
    file: Path,
    names: Sequence[str],
    series: Mapping[str, pd.DataFrame],
    published: Mapping[str, Sequence[float]],
    label: str = "",
    metric: str = "test accuracy",
) -> None:
    """Draw measured points with error bars and published points, as a PNG and an SVG file."""
    style = Path(figures.__file__).with_name("paper.mplstyle")
    colours, markers = ("#0072B2", "#D55E00"), ("o", "s")
    known = [PERCENT * value for rows in series.values() for value in rows["mean"].dropna()]
    all_published = [PERCENT * value for values in published.values() for value in values]
    highest = max(known + all_published)
    bottom = min(all_published) - 0.35 * (highest - min(all_published)) - 1
    if min(known) > bottom:
        # Without outliers far below the published numbers, all points fit.
        bottom = min(known + all_published) - 0.15 * (highest - min(known + all_published))
    with mpl.rc_context(mpl.rc_params_from_file(style, use_default_template=False)):
        figure = Figure(figsize=(6.5, 3.4))
        FigureCanvasAgg(figure)
        ax = figure.add_axes((0.095, 0.27, 0.885, 0.7))
        ticks = range(len(names))
        for number, (name, rows) in enumerate(series.items()):
            shift = (number - 0.5) * 0.36
            ax.errorbar([tick + shift for tick in ticks], PERCENT * rows["mean"], yerr=PERCENT * rows["half"],
                        fmt=markers[number], color=colours[number], markersize=4, capsize=2.5, label=name)  # fmt: skip
            for tick, value in zip(ticks, PERCENT * rows["mean"], strict=True):
                if value < bottom:
                    ax.annotate(f"{value:.0f} %", (tick + shift, bottom), xytext=(0, 12), textcoords="offset points",
                                ha="center", size=8, color=colours[number],
                                arrowprops={"arrowstyle": "->", "color": colours[number]})  # fmt: skip
        for number, (name, values) in enumerate(published.items()):
            shift = (number - 0.5) * 0.36 if len(published) > 1 else 0.0
            ax.plot([tick + shift for tick in ticks], [PERCENT * value for value in values], linestyle="none",
                    marker="D", markerfacecolor="none", markersize=7, label=name,
                    color=colours[number] if len(published) > 1 else "#444444")  # fmt: skip
        ax.set_ylim(bottom, min(ax.get_ylim()[1], 101))
        ax.set_xticks(list(ticks), [name.replace("_", "\n") for name in names])
        ax.set_xlabel(label)
        ax.set_ylabel(f"{metric} (%)")
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0.085, 0.015), ncols=2 if len(labels) > 3 else 3
        )
        file.parent.mkdir(exist_ok=True)
        figure.savefig(file.with_suffix(".png"))
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
