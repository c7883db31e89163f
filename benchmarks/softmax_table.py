"""Exercise 2's softmax table from the command to the result: tune_hpc against other ways to run the same 72 trials.

    python benchmarks/softmax_table.py [--repeats 3]

Every contender is one process, measured from its start to its end: ``tune-hpc run exercise2.softmax``, the same without
the fusion of trials, a plain loop over a DataLoader, Optuna with one thread a core, Ray Tune with reused actors, and
Ray Tune as it comes. Each trains 72 models for 500 steps of 100 images, evaluates every one 50 times on 20,000 held-out
images, and names each optimizer's best learning rate; the measurement fails when they name different ones, except for
one optimizer of nine at most.
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Measurement, benchmark_parser, measure, publish, run_process, run_tune_hpc, summarise
from benchmarks.peers.softmax_training import add_size_flags, best_rates, grid

PEERS = {
    "plain loop": ["benchmarks.peers.softmax_loop"],
    "Optuna, a thread a core": ["benchmarks.peers.softmax_optuna"],
    "Ray Tune, reused actors": ["benchmarks.peers.softmax_ray", "--mode", "reused"],
    "Ray Tune, defaults": ["benchmarks.peers.softmax_ray", "--mode", "defaults"],
}
OURS = {"tune_hpc": [], "tune_hpc, unfused": ["--fuse", "off"]}


def ours(more: list[str], trials: int, steps: int, folder: Path) -> Measurement:
    """Run the search with tune_hpc and read the best rates off its data frame."""
    settings = {**grid(trials), "steps": [steps]}
    values = [f"--set={name}={','.join(map(str, choices))}" for name, choices in settings.items()]
    measured, (results,) = run_tune_hpc("exercise2.softmax", *values, *more, folder=folder)
    columns = results.trials[["optimizer", "learning_rate", "valid_loss"]]
    return measured | {"best_rates": best_rates(columns.itertuples(index=False, name=None))}


def peer(command: list[str], trials: int, steps: int, folder: Path) -> Measurement:
    """Run the search in another way."""
    return run_process(*command, "--trials", trials, "--steps", steps, folder=folder)


def check_agreement(best: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse contenders that found something else than the first one.

    Args:
        best: Each contender's best learning rates, by optimizer.

    Raises:
        RuntimeError: more than one optimizer in nine has another best rate.
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
    contenders = {name: partial(ours, more, flags.trials, flags.steps) for name, more in OURS.items()}
    contenders |= {name: partial(peer, command, flags.trials, flags.steps) for name, command in PEERS.items()}
    measured = measure({name: one for name, one in contenders.items() if name in flags.only}, flags.repeats)
    for turn in range(flags.repeats):
        check_agreement({name: measurements[turn]["best_rates"] for name, measurements in measured.items()})
    title = f"Seconds for {flags.trials} trials of {flags.steps} steps of 100 images, process start included"
    publish(flags, title, measured, summarise(measured, "process_s"))


if __name__ == "__main__":
    main()
