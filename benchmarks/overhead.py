"""Overhead of a search per trial, with 96 trials that return at once.

    python benchmarks/overhead.py [--repeats 3] [--trials 96]

The overhead is the duration of the call of the search divided by the number of trials, in a new process each. Imports
and the start of Ray are excluded; the latter is recorded. With Ray Tune's defaults each trial starts a process, and 96
of them take minutes.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Measurement, benchmark_parser, measure, publish, run_process, summarise

PEERS = {
    "tune_hpc": "tune_hpc",
    "plain loop": "loop",
    "Optuna, a thread a core": "optuna",
    "Ray Tune, reused actors": "ray_reused",
    "Ray Tune, defaults": "ray_defaults",
}


def search(tool: str, trials: int, folder: Path) -> Measurement:
    """Run one search in a separate process."""
    return run_process("benchmarks.peers.noop", tool, "--trials", trials, folder=folder)


def main() -> None:
    """Measure all contenders in turn and print the table."""
    parser = benchmark_parser(__file__, __doc__, list(PEERS))
    parser.add_argument("--trials", type=int, default=96, metavar="N", help="trials of a search (default: 96)")
    flags = parser.parse_args()
    contenders = {name: partial(search, PEERS[name], flags.trials) for name in PEERS if name in flags.only}
    measured = measure(contenders, flags.repeats)
    title = f"Milliseconds a trial for {flags.trials} trials that return at once, Ray's start not counted"
    publish(flags, title, measured, summarise(measured, "ms_per_trial"))


if __name__ == "__main__":
    main()
