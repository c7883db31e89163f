"""Exercise 2's softmax table as a whole process: tune_hpc against other ways to run the same 72 trials.

    python benchmarks/softmax_table.py [--repeats 3]

Every contender is one process: ``tune-hpc run exercise2.softmax``, the same without fused trials, the same without Ray
(``--local``), a hand-written stack of all models that records nothing, a plain loop over a DataLoader, Optuna with one
thread per core, Ray Tune with reused actors, and Ray Tune with its defaults. Each trains 72 models for 500 steps of 100
images and evaluates each model 50 times (``--evaluations``) on 20,000 held-out images. tune_hpc makes no report, and
evaluates one training image instead of 50,000. Each contender prints the best learning rate of every optimizer. The
measurement fails if these differ for more than one of nine optimizers. CPU seconds are measured without Ray only.
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Measurement, benchmark_parser, measure, publish, run_process, run_tune_hpc, summarise
from benchmarks.peers.softmax import add_size_flags, best_rates, grid

PEERS = {
    "hand-written stack": "stack",
    "plain loop": "loop",
    "Optuna, a thread a core": "optuna",
    "Ray Tune, reused actors": "ray_reused",
    "Ray Tune, defaults": "ray_defaults",
}
OURS = {"tune_hpc": [], "tune_hpc, unfused": ["--fuse", "off"], "tune_hpc, local": ["--local"]}


def ours(more: list[str], trials: int, steps: int, evaluations: int, folder: Path) -> Measurement:
    """Run the search with tune_hpc and return the best rates."""
    settings = {**grid(trials), "steps": [steps], "num_evaluations": [evaluations], "num_fit_images": [1]}
    values = [f"--set={name}={','.join(map(str, choices))}" for name, choices in settings.items()]
    measured, (results,) = run_tune_hpc("exercise2.softmax", *values, *more, folder=folder)
    columns = results.trials[["optimizer", "learning_rate", "valid_loss"]]
    return measured | {"best_rates": best_rates(columns.itertuples(index=False, name=None))}


def peer(tool: str, trials: int, steps: int, evaluations: int, folder: Path) -> Measurement:
    """Run the search with another tool."""
    size = ("--trials", trials, "--steps", steps, "--evaluations", evaluations)
    return run_process("benchmarks.peers.softmax", tool, *size, folder=folder, counts_cpu=not tool.startswith("ray"))


def check_agreement(best: Mapping[str, Mapping[str, float]]) -> None:
    """Check that all contenders found the same best learning rates.

    Args:
        best: Each contender's best learning rates, by optimizer.

    Raises:
        RuntimeError: More than one optimizer in nine has another best rate.
    """
    first, expected = next(iter(best.items()))
    for name, found in best.items():
        differing = [
            optimizer for optimizer in expected.keys() | found if expected.get(optimizer) != found.get(optimizer)
        ]
        if len(differing) > len(expected) // 9:
            raise RuntimeError(f"{name} found {found}, {first} found {expected}")


def main() -> None:
    """Measure all contenders in turn and print the table."""
    parser = benchmark_parser(__file__, __doc__, [*OURS, *PEERS])
    add_size_flags(parser)
    flags = parser.parse_args()
    size = (flags.trials, flags.steps, flags.evaluations)
    contenders = {name: partial(ours, more, *size) for name, more in OURS.items()}
    contenders |= {name: partial(peer, tool, *size) for name, tool in PEERS.items()}
    measured = measure({name: one for name, one in contenders.items() if name in flags.only}, flags.repeats)
    for turn in range(flags.repeats):
        check_agreement({name: measurements[turn]["best_rates"] for name, measurements in measured.items()})
    title = (
        f"Seconds for {flags.trials} trials of {flags.steps} steps of 100 images with {flags.evaluations} evaluations, "
        "process start included; CPU seconds only without Ray"
    )
    publish(flags, title, measured, summarise(measured, "process_s"))


if __name__ == "__main__":
    main()
