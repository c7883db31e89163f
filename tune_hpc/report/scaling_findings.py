"""What a scaling measurement says, in plain sentences: gains, the model against the clock, widths, cost, options."""

import numpy as np
import pandas as pd

from tune_hpc.analysis.aggregation import aggregate_seeds, row_mask
from tune_hpc.analysis.formatting import display_name, format_config, format_number, format_value, number
from tune_hpc.analysis.results import Results
from tune_hpc.errors import UnknownNameError
from tune_hpc.report.scaling_tables import HERE, cost_pareto_front, min_efficient_width, predicted_against_measured

#: The option that is none.
PLAIN = "none"


def scaling_sentences(results: Results) -> list[str]:
    """Say what the most workers give, and what their exchange of gradients takes, for each configuration."""
    measured = ["speedup", "efficiency", "communicate_s", "step_s"]
    found = aggregate_seeds(results, measured).dropna(subset=["speedup"])
    others = [name for name in results.varying if name not in ("workers", "seed", "option")]
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
    for row in table[table["link"] == HERE].to_dict("records"):
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
    if "option" not in results.varying:
        return []
    found = aggregate_seeds(results, ["train_s", "test_accuracy"]).dropna(subset=["train_s"])
    found = found[found["workers"] == found["workers"].max()]
    names = [name for name in results.varying if name not in ("workers", "seed", "option")]
    said = []
    for row in found.to_dict("records"):
        plainly = found[(found["option"] == PLAIN) & row_mask(found, {name: row[name] for name in names})]
        if row["option"] == PLAIN or len(plainly) != 1:
            continue
        other = plainly.iloc[0]
        where = format_config({"workers": row["workers"], **{name: row[name] for name in names}})
        effect = ""
        if not np.isnan(row["test_accuracy"]):
            accuracies = number(row["test_accuracy"], "accuracy"), number(other["test_accuracy"], "accuracy")
            effect = f"; test accuracy {accuracies[0]} for {accuracies[1]}"
        part = row["train_s"] / other["train_s"]
        said.append(f"{display_name(row['option']).capitalize()} ({where}): {part:.2f} of the time{effect}.")
    return said


def _ms(seconds: float) -> str:
    """Return milliseconds with three digits that mean something."""
    return format_number(float(f"{1000 * seconds:.3g}"))
