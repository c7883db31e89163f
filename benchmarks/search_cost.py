"""Cost of a search that finds as good a configuration as the grid of the report's Tables 4.3 to 4.5.

    python benchmarks/search_cost.py [--repeats 3] [--seeds 5] [--width 0.125] [--steps 1000]
    python benchmarks/search_cost.py --width 1 --steps 5000      # full size, for a GPU
    python benchmarks/search_cost.py --data fashion_mnist          # a second workload

The grid has 40 trials: batch sizes, initial rates and dropouts of the three tables. The other contenders search the
bounding box of the grid. Each selects its best configuration on the validation images and runs it again with fresh
seeds. Turn n searches with seed n. The unit is the search: the mean over the seeds of its winner. Differences to the
grid are paired by turn, with Student's 95 % interval over the turns. A contender is no worse if the interval excludes a
loss of 0.1 points (non-inferiority), and worse if it excludes 0.
"""

import sys
from collections.abc import Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from ray import tune

from benchmarks.harness import Measurement, benchmark_parser, measure, publish
from search_spaces import exercise3
from tune_hpc import Experiment, Results, run_all
from tune_hpc.analysis.intervals import mean_interval, non_inferiority
from tune_hpc.search.ray_session import ray_session

TABLES = (exercise3.decay, exercise3.learning_rate, exercise3.dropout)
#: Parameters that the tables vary.
VARIED = ("batch_size", "learning_rate", "dropout")
BOX = exercise3.winner.space | {
    "batch_size": tune.choice([150, 100]),
    "learning_rate": tune.loguniform(1e-4, 1e-3),
    "dropout": tune.uniform(0.0, 0.9),
}
#: Search options of each contender. The random search has a fifth of the trials and steps of the grid.
WAYS: dict[str, dict[str, Any]] = {
    "tpe and asha": {"searcher": "tpe", "scheduler": "asha", "num_samples": 50},
    "random and asha": {"searcher": "random", "scheduler": "asha", "num_samples": 50},
    "random, a fifth": {"searcher": "random", "num_samples": 8},
}
GRID = "grid"
#: Largest irrelevant loss of test accuracy.
MARGIN = 0.001
VERDICTS = {True: "yes", False: "no", None: "inconclusive"}


def search(name: str, size: Mapping[str, Any], seeds: int, turns: "count[int]", folder: Path) -> Measurement:
    """Search, run the winner again with fresh seeds, and return cost and accuracy."""
    turn = next(turns)
    if name == GRID:
        experiments = [one.with_values(size).replace(seeds=(turn,)) for one in TABLES]
    else:
        box = Experiment("box", BOX | size, metric="best_valid_accuracy", seeds=(turn,), search_seed=turn, **WAYS[name])
        experiments = [box]
    found = _run(experiments, folder / "search")
    best_search = max(found, key=lambda search: search.best()["best_valid_accuracy"])
    best, config = best_search.best(), best_search.best_config()
    winner_values = {key: config[key] for key in VARIED}
    fresh = range(1000 * (turn + 1), 1000 * (turn + 1) + seeds)
    winner = exercise3.winner.with_values({**size, **winner_values}).replace(seeds=tuple(fresh))
    (again,) = _run([winner], folder / "winner")
    return {
        "turn": turn,
        "trials": sum(len(one.trials) for one in found),
        "steps": int(sum(one.trials["steps_run"].sum() for one in found)),
        "chosen": winner_values,
        "valid_accuracy": float(best["best_valid_accuracy"]),
        "test_accuracy": again.trials["test_accuracy"].tolist(),
    }


def _run(experiments: list[Experiment], folder: Path) -> list[Results]:
    return run_all(experiments, folders=[folder / one.name for one in experiments], show_progress=False)


def compare(measured: Mapping[str, list[Measurement]]) -> list[dict[str, Any]]:
    """Return one row per contender: trials, steps relative to the grid, accuracy and its difference to the grid."""
    grid = measured[GRID]
    rows = []
    for name, runs in measured.items():
        accuracy, reference = (np.mean([one["test_accuracy"] for one in found], axis=1) for found in (runs, grid))
        lead = mean_interval(accuracy - reference)
        is_no_worse = non_inferiority(lead.low, lead.high, MARGIN)
        half = "" if np.isnan(lead.half) else f" ± {100 * lead.half:.2f}"
        rows.append(
            {
                "contender": name,
                "trials": runs[0]["trials"],
                "steps, % of the grid's": 100 * sum(one["steps"] for one in runs) / sum(one["steps"] for one in grid),
                "test accuracy, %": f"{100 * accuracy.mean():.2f}",
                "less the grid's": "" if name == GRID else f"{100 * lead.mean:+.2f}{half}",
                "no worse": "" if name == GRID else VERDICTS[is_no_worse],
            }
        )
    return rows


def main() -> None:
    """Measure all contenders in turn and print the table."""
    parser = benchmark_parser(__file__, __doc__, [GRID, *WAYS])
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="fresh seeds of a winner (default: 5)")
    parser.add_argument("--width", type=float, default=0.125, help="width of the network (default: 0.125)")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="steps of a trial (default: 1000)")
    parser.add_argument("--images", type=int, default=5000, metavar="N", help="images of an evaluation (default: 5000)")
    parser.add_argument("--data", choices=["mnist", "fashion_mnist"], default="mnist", help="images (default: mnist)")
    flags = parser.parse_args()
    size = {
        "data": flags.data, "width": flags.width, "steps": flags.steps, "num_evaluations": 27,
        "num_evaluation_images": flags.images,
    }  # fmt: skip
    selected = [GRID, *(name for name in flags.only if name != GRID)]
    with ray_session():
        contenders = {name: partial(search, name, size, flags.seeds, count()) for name in selected}
        measured = measure(contenders, flags.repeats)
    title = f"Searches of the box of Tables 4.3 to 4.5 at width {flags.width:g}, {flags.steps} steps a trial"
    title += "" if flags.data == "mnist" else f", {flags.data}"
    publish(flags, title, measured, compare(measured), "sums and means")


if __name__ == "__main__":
    main()
