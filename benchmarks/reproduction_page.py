"""docs/reproduction.md and its two figures, from the result files in docs/results."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tune_hpc.analysis.claims import check_claims
from tune_hpc.analysis.formatting import display_name, format_duration, slug
from tune_hpc.analysis.published import AGREES, DIFFERS, INCONCLUSIVE, NOT_COMPARABLE, compare_to_published
from tune_hpc.analysis.results import Results, load
from tune_hpc.report import tables
from tune_hpc.report.findings import findings
from tune_hpc.report.plots import figures

HEAD = """# The report, reproduced

Every number that the report published, beside ours. Each run is one command, told with its numbers; its trials and
curves are in [results](results), small experiment folders that `tune_hpc.load` opens. This page is made from these by

```sh
python benchmarks/reproduction.py write      # and `run` makes what is missing there
```

**Verdicts.** A published number is one run, rounded. It *agrees* where one more run of ours could have given it: where
it lies within the 95 % prediction interval of our seeds (Student's), widened by half of its last digit. Else it
*differs*. With fewer than three seeds, or seeds that change nothing, one *cannot tell* how much runs differ; then it
still agrees where it is ours to the digits that were printed, or for accuracies within what the number of test images
leaves open (1.96 binomial standard errors). A run of another size is *not comparable*. Intervals beside means are of
95 %, Student's, over seeds.
"""

#: What is compared of a run beyond its declared tables: a parameter, the metric, and a sentence before.
COMPARED: Mapping[str, Sequence[tuple[str, str]]] = {
    "exercise2.softmax.shuffled": (("optimizer", "valid_loss"), ("optimizer", "test_accuracy")),
    "exercise2.cnn": (("optimizer", "test_accuracy"),),
    "exercise3.decay": (("batch_size", "best_test_accuracy"),),
    "exercise3.learning_rate": (("learning_rate", "best_test_accuracy"), ("batch_size", "best_test_accuracy")),
    "exercise3.dropout": (("dropout", "best_test_accuracy"), ("batch_size", "best_test_accuracy")),
}
#: What a run's own description does not say.
NOTES = {
    "exercise2.softmax.shuffled": "Here the images are shuffled every epoch: in their stored order, with zero initial "
    "weights, nothing is left for a seed to change.",
    "exercise2.cnn": "Here at an eighth of its width, for two cores.",
    "exercise3.decay": "Here at an eighth of the network's width and a fifth of the steps, for two cores.",
    "exercise3.learning_rate": "Here at an eighth of the network's width and a fifth of the steps, for two cores.",
    "exercise3.dropout": "Here at an eighth of the network's width and a fifth of the steps, for two cores.",
}
#: Fewer published numbers than this are read faster than drawn.
LEAST_DRAWN = 4
#: Accuracies are drawn in per cent.
PERCENT = 100


def write_page(results_folder: Path, docs: Path) -> None:
    """Write docs/reproduction.md, and the figures that it shows to docs/figures.

    Args:
        results_folder: One experiment folder a run.
        docs: Where the page goes.

    Raises:
        FolderError: a folder cannot be read.
    """
    runs = {folder.name: load(folder) for folder in sorted(results_folder.iterdir()) if folder.is_dir()}
    shown = draw_discoveries(runs, docs / "figures")
    own = {name: draw_run(name, results, docs / "figures") for name, results in runs.items()}
    (docs / "reproduction.md").write_text(page(runs, shown, own), encoding="utf-8")


def page(runs: Mapping[str, Results], discoveries: Mapping[str, str], own: Mapping[str, Mapping[str, str]]) -> str:
    """Return the page's text.

    Args:
        runs: By the name of their folder.
        discoveries: The captions of the figures that tell of several runs, by the stem of their files.
        own: The same of each run's own figures.
    """
    parts = [HEAD, "## At a glance\n", tables.to_markdown(_glance(runs)) + "\n"]
    if discoveries:
        parts.append("## Two discoveries\n")
        parts += [_shown(stem, caption) for stem, caption in discoveries.items()]
    for name, results in runs.items():
        parts.append(_section(name, results))
        parts += [_shown(stem, caption) for stem, caption in own[name].items()]
    return "\n".join(parts)


def _shown(stem: str, caption: str) -> str:
    return f"{caption}\n\n![{caption}](figures/{stem}.png)\n"


def _glance(runs: Mapping[str, Results]) -> pd.DataFrame:
    rows = []
    for name, results in runs.items():
        verdicts = compare_to_published(results)["verdict"].value_counts()
        held = check_claims(results)["holds"].dropna()
        seeds = results.trials["seed"].nunique() if "seed" in results.trials else 1
        row: dict[str, Any] = {"run": name, "num_trials": len(results.trials), "num_seeds": seeds}
        row |= {verdict: int(verdicts.get(verdict, 0)) for verdict in (AGREES, DIFFERS, INCONCLUSIVE, NOT_COMPARABLE)}
        row["sentences that hold"] = f"{int(held.sum())} of {len(held)}" if len(held) else ""
        rows.append(row)
    return pd.DataFrame(rows)


def _section(name: str, results: Results) -> str:
    asked, own = results.experiment, results.experiment["provenance"]
    machine = f"{own['machine']['cpu_model']}, torch {own['torch']}, Ray {own['ray']}, commit {own['commit']}"
    said = "\n".join(f"- {sentence}" for sentence in findings(results))
    parts = [
        f"## {name}\n",
        f"**{asked['title']}.**\n",
        f"{asked['description']} {NOTES.get(name, '')}".rstrip() + "\n",
        f"```sh\n{own['command']}      # {format_duration(own['wall_s'])}\n```\n",
        f"{machine}; [results/{name}](results/{name}).\n",
        f"{said}\n",
    ]
    skipped = ("Best trials", "Trials by status")
    for title, _, df in tables.report_tables(results):
        if title not in skipped and len(df):
            parts.append(f"### {title}\n\n{tables.to_markdown(df)}\n")
    for parameter, metric in COMPARED.get(name, ()):
        ranking = results.compare(parameter, metric)
        told = "\n".join(f"- {sentence}" for sentence in ranking.sentences())
        values = tables.to_markdown(tables.values_table(ranking))
        parts.append(f"### Which {display_name(parameter)}, by {display_name(metric)}\n\n{told}\n\n{values}\n")
    return "\n".join(parts)


def draw_run(name: str, results: Results, folder: Path) -> dict[str, str]:
    """Draw the published numbers beside one run's, and its heat map of optimizers; return captions by stem.

    Args:
        name: The run.
        results: Its results.
        folder: Where the figures go.
    """
    wanted = []
    verdicts = compare_to_published(results)["verdict"]
    if verdicts.isin([AGREES, DIFFERS, INCONCLUSIVE]).sum() >= LEAST_DRAWN:
        metrics = list(dict.fromkeys(one["metric"] for one in results.experiment["published"]))
        wanted.append({"kind": "published", "metrics": metrics, "title": "Published and measured"})
    if {"optimizer", "learning_rate"} <= set(results.varied_parameters):
        over = {"parameter": "learning_rate", "line": "optimizer"}
        wanted.append({"kind": "heatmap", "metrics": ["test_accuracy"], "title": "Test accuracy", **over})
    if not wanted:
        return {}
    folder.mkdir(exist_ok=True)
    captions = {}
    for drawing in figures.render_all(replace(results, experiment={**results.experiment, "figures": wanted})):
        stem = f"{slug(name)}-{drawing.stem}"
        (folder / f"{stem}.png").write_bytes(drawing.png)
        captions[stem] = drawing.caption
    return captions


def draw_discoveries(runs: Mapping[str, Results], folder: Path) -> dict[str, str]:
    """Draw what we found the report's numbers to be, where the runs for it are there; return captions by stem."""
    captions = {}
    if {"exercise2.softmax.shuffled", "exercise2.cnn"} <= set(runs):
        captions["softmax-and-not-the-network"] = (
            "Exercise 2's published accuracies are those of softmax regression, not of the network that its text "
            "describes (which Ftrl does not train at any of the rates). Means and 95 % intervals of the seeds, each "
            "optimizer at its best rate."
        )
        softmax, network = runs["exercise2.softmax.shuffled"], runs["exercise2.cnn"]
        published = compare_to_published(softmax)
        published = published[published["metric"] == "test_accuracy"]
        names = [where.removeprefix("optimizer ") for where in published["where"]]
        series = {
            "softmax regression": _by_value(softmax, "optimizer", names, "test_accuracy"),
            "the network, at an eighth of its width": _by_value(network, "optimizer", names, "test_accuracy"),
        }
        _draw(folder / "softmax-and-not-the-network", names, series, {"published": list(published["published"])})
    if {"exercise3.batch_size_single_pass", "exercise3.batch_size_shuffled"} <= set(runs):
        captions["a-single-pass"] = (
            "Table 4.1 is a single pass over the training images: run so, and shuffled as for Table 4.2, the network "
            "gives what was published. One run each; bars are the 1.96 standard errors that 10,000 images leave open."
        )
        once, shuffled = runs["exercise3.batch_size_single_pass"], runs["exercise3.batch_size_shuffled"]
        sizes = sorted(once.trials["batch_size"].unique())
        metric = "best_test_accuracy"
        series = {
            "a single pass": _by_value(once, "batch_size", sizes, metric),
            "shuffled every epoch": _by_value(shuffled, "batch_size", sizes, metric),
        }
        theirs = {
            f"published, Table {table}": [
                next(one["value"] for one in results.experiment["published"] if one["where"]["batch_size"] == size)
                for size in sizes
            ]
            for table, results in (("4.1", once), ("4.2", shuffled))
        }
        _draw(folder / "a-single-pass", [str(size) for size in sizes], series, theirs, "batch size (images)")
    return captions


def _by_value(results: Results, parameter: str, values: Sequence[Any], metric: str) -> pd.DataFrame:
    """Return mean and half an interval of each value of a parameter, in the order given."""
    df = results.compare(parameter, metric).values.set_index(parameter).reindex(pd.Index(values))
    half = (df["high"] - df["low"]) / 2
    binomial = 1.96 * (df["mean"] * (1 - df["mean"]) / 10_000) ** 0.5
    return pd.DataFrame({"mean": df["mean"], "half": half.fillna(binomial)})


def _draw(
    file: Path,
    names: Sequence[str],
    series: Mapping[str, pd.DataFrame],
    published: Mapping[str, Sequence[float]],
    label: str = "",
) -> None:
    """Draw measured points with their bars beside published ones, as a PNG and an SVG file."""
    style = Path(figures.__file__).with_name("paper.mplstyle")
    colours, markers = ("#0072B2", "#D55E00"), ("o", "s")
    known = [PERCENT * value for own in series.values() for value in own["mean"].dropna()]
    theirs = [PERCENT * value for values in published.values() for value in values]
    highest = max(known + theirs)
    bottom = min(theirs) - 0.35 * (highest - min(theirs)) - 1
    if min(known) > bottom:
        # Nothing is so far below the published numbers that it would flatten all others.
        bottom = min(known + theirs) - 0.15 * (highest - min(known + theirs))
    with mpl.rc_context(mpl.rc_params_from_file(style, use_default_template=False)):
        figure = Figure(figsize=(6.5, 3.4))
        FigureCanvasAgg(figure)
        ax = figure.add_axes((0.095, 0.27, 0.885, 0.7))
        places = range(len(names))
        for number, (name, own) in enumerate(series.items()):
            shift = (number - 0.5) * 0.36
            ax.errorbar([place + shift for place in places], PERCENT * own["mean"], yerr=PERCENT * own["half"],
                        fmt=markers[number], color=colours[number], markersize=4, capsize=2.5, label=name)  # fmt: skip
            for place, value in zip(places, PERCENT * own["mean"], strict=True):
                if value < bottom:
                    ax.annotate(f"{value:.0f} %", (place + shift, bottom), xytext=(0, 12), textcoords="offset points",
                                ha="center", size=8, color=colours[number],
                                arrowprops={"arrowstyle": "->", "color": colours[number]})  # fmt: skip
        for number, (name, values) in enumerate(published.items()):
            shift = (number - 0.5) * 0.36 if len(published) > 1 else 0.0
            ax.plot([place + shift for place in places], [PERCENT * value for value in values], linestyle="none",
                    marker="D", markerfacecolor="none", markersize=7, label=name,
                    color=colours[number] if len(published) > 1 else "#444444")  # fmt: skip
        ax.set_ylim(bottom, min(ax.get_ylim()[1], 101))
        ax.set_xticks(list(places), [name.replace("_", "\n") for name in names])
        ax.set_xlabel(label)
        ax.set_ylabel("test accuracy (%)")
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0.085, 0.015), ncols=2 if len(labels) > 3 else 3
        )
        file.parent.mkdir(exist_ok=True)
        figure.savefig(file.with_suffix(".png"))
        figure.savefig(file.with_suffix(".svg"), metadata={"Date": None})
