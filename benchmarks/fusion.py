"""Throughput of fused trials as a function of their number.

    python benchmarks/fusion.py [--device cpu] [--repeats 3] [--seconds 1] [--only "softmax" ...]

A measurement uses one process with one thread on a CPU, as in a search, or the whole GPU. Each case trains the same
model with different learning rates and the nine optimizers of Exercise 2 in turn. One seed gives all members the same
batches. The script times training steps (after a warm-up, without evaluations) and an evaluation on 20,000 held-out
images. It prints a table, and writes a JSON file and a figure of samples per second against the number of members.
"""

import itertools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import ROOT, Measurement, benchmark_parser, publish

#: Configuration and numbers of members of each case. A name with a device or a width is for one device only.
CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "line": ({"model": "line"}, [1, 2, 4, 8, 16, 32, 64]),
    "softmax": ({"model": "softmax", "batch_size": 100}, [1, 2, 4, 8, 16, 32, 64, 128]),
    "cnn, width 1/32": ({"model": "cnn", "width": 1 / 32, "batch_size": 50}, [1, 2, 4, 8, 16]),
    "cnn, width 1/8": ({"model": "cnn", "width": 1 / 8, "batch_size": 50}, [1, 2, 4, 8, 16]),
    "cnn, width 1/4": ({"model": "cnn", "width": 1 / 4, "batch_size": 50}, [1, 2, 4, 8]),
    "cnn": ({"model": "cnn", "batch_size": 50}, [1, 2, 4]),
    "cnn on a GPU": ({"model": "cnn", "batch_size": 50}, [1, 2, 4, 8, 18, 36, 72]),
    "cnn in TF32 on a GPU": ({"model": "cnn", "batch_size": 50, "precision": "tf32"}, [1, 2, 4, 8, 18, 36, 72]),
    "cnn in bfloat16 on a GPU": ({"model": "cnn", "batch_size": 50, "precision": "bfloat16"}, [1, 2, 4, 8, 18, 36, 72]),
}
NUM_WARM_STEPS = 6


def members(common: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Return configurations that differ in optimizer and learning rate."""
    from search_spaces.exercise2 import OPTIMIZERS
    from tune_hpc.learning.config import complete

    optimizers = itertools.cycle(OPTIMIZERS)
    return [
        complete(
            {
                "dropout": 0.5,
                **common,
                "optimizer": next(optimizers),
                "learning_rate": 1e-3 / (1 + index),
                "steps": 10**9,
            }
        )
        for index in range(number)
    ]


def measure_case(configs: list[dict[str, Any]], images: Any, device: str, seconds: float) -> Measurement:
    """Return the seconds of a step and of an evaluation of all members."""
    import torch

    from tune_hpc.learning.training import Training

    data = None if configs[0]["model"] == "line" else images
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    training = Training(configs, data, torch.device(device))
    training.run(0, NUM_WARM_STEPS)
    training.evaluate()
    began = time.perf_counter()
    training.run(NUM_WARM_STEPS, NUM_WARM_STEPS + 3)
    num_steps = max(3, int(3 * seconds / (time.perf_counter() - began)))
    began = time.perf_counter()
    training.run(NUM_WARM_STEPS + 3, NUM_WARM_STEPS + 3 + num_steps)
    step_s = (time.perf_counter() - began) / num_steps
    began = time.perf_counter()
    training.evaluate()
    measured = {
        "members": len(configs),
        "step_s": step_s,
        "eval_s": time.perf_counter() - began,
        "samples_per_s": len(configs) * training.task.samples_per_step / step_s,
    }
    if device == "cuda":
        measured["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return measured


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Draw throughput against the number of members, relative to one member."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    highest = 1.0
    figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for marker, (case, rows) in zip(itertools.cycle("osD^vPX*<"), itertools.groupby(table, lambda row: row["case"])):
        points = [(row["members"], row["samples/s"]) for row in rows]
        single = points[0][1]
        gains = [rate / single for _, rate in points]
        highest = max(highest, *gains)
        label = f"{case} (1: {single:,.0f} samples/s)"
        axes.plot([number for number, _ in points], gains, marker=marker, label=label)
    axes.axhline(1, color="0.7", linewidth=0.8)
    axes.set(
        xscale="log", yscale="log", xlabel="trials in one program",
        ylabel="samples/s, relative to one trial alone",
    )  # fmt: skip
    ticks = sorted({row["members"] for row in table})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    gains = [gain for gain in (1, 2, 5, 10, 20, 50, 100) if gain < 1.5 * highest]
    axes.set_yticks(gains, [str(gain) for gain in gains])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=200)


def main() -> None:
    """Measure all cases in turn, print the table and draw the figure."""
    parser = benchmark_parser(__file__, __doc__, list(CASES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="S", help="duration of one measurement (default: 1)"
    )
    parser.add_argument("--max-members", type=int, default=10**6, metavar="N", help="leave out larger programs")
    flags = parser.parse_args()
    if flags.output == parser.get_default("output"):
        flags.output = ROOT / "benchmarks" / "results" / f"fusion_{flags.device}.json"

    import torch

    from tune_hpc.learning.data import load_images

    torch.set_num_threads(1)
    images = load_images("mnist")
    other_device = {"cpu": "on a GPU", "cuda": "width"}[flags.device]
    cases = [case for case in CASES if case in flags.only and other_device not in case]
    measured: dict[str, list[Measurement]] = {}
    for turn in range(1, flags.repeats + 1):
        for case in cases:
            common, numbers = CASES[case]
            for number in (one for one in numbers if one <= flags.max_members):
                name = f"{case}, {number}"
                result = measure_case(members(common, number), images, flags.device, flags.seconds)
                measured.setdefault(name, []).append(result)
                print(f"[{turn}/{flags.repeats}] {name}: {result}", file=sys.stderr, flush=True)
    table = []
    for case in cases:
        for number in (one for one in CASES[case][1] if one <= flags.max_members):
            runs = measured[f"{case}, {number}"]
            single = measured[f"{case}, {CASES[case][1][0]}"]
            gains = [one["samples_per_s"] / alone["samples_per_s"] for one, alone in zip(runs, single, strict=True)]
            table.append(
                {
                    "case": case,
                    "members": number,
                    "step and member, ms": statistics.median(one["step_s"] for one in runs) * 1e3 / number,
                    "evaluation and member, ms": statistics.median(one["eval_s"] for one in runs) * 1e3 / number,
                    "samples/s": statistics.median(one["samples_per_s"] for one in runs),
                    "to one alone": statistics.median(gains),
                    "min": min(gains),
                    "max": max(gains),
                }
            )
    publish(flags, f"Trials fused into one program, {flags.device}", measured, table)
    draw(table, flags.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
