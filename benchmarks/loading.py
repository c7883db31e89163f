"""Time to load and group 10,000 recorded trials of 20 rows each: tune_hpc, Ray Tune's files, Optuna's SQLite study.

    python benchmarks/loading.py [--repeats 3] [--trials 10000] [--optuna-trials 10000]

Each measurement is a new process that loads the trials. It computes mean and deviation of a metric by optimizer and
learning rate, and the mean learning curve. The time is given with and without process start and imports. The synthetic
trials are written before, and the files are in the page cache. Files of Ray Tune are read as by
``ray.tune.ExperimentAnalysis``, without importing Ray and without the state of its controller. Writing Optuna's study
takes minutes: with fewer ``--optuna-trials`` its loading time is measured on those and scaled up, without CPU seconds.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Measurement, benchmark_parser, measure, publish, run_process, summarise

PEERS = {"tune_hpc": "tune_hpc", "Ray Tune, result.json": "ray", "Optuna, SQLite": "optuna"}


def load(tool: str, stored: Path, num_stored: int, num_trials: int, folder: Path) -> Measurement:
    """Load and group the stored trials in a separate process.

    Returns:
        ``load_s`` and ``process_s`` for ``num_trials``, and the measured time for ``num_stored``.

    Raises:
        RuntimeError: A trial was not loaded.
    """
    measured = run_process("benchmarks.peers.load", tool, stored, folder=folder, counts_cpu=num_stored == num_trials)
    if measured["trials"] != num_stored:
        raise RuntimeError(f"{tool} stored {num_stored} trials and loaded {measured['trials']}")
    seconds = measured["load_s"] * num_trials / num_stored
    return measured | {
        "measured_load_s": measured["load_s"],
        "load_s": seconds,
        "process_s": measured["process_s"] - measured["load_s"] + seconds,
    }


def main() -> None:
    """Write the trials, measure all contenders in turn and print the table."""
    parser = benchmark_parser(__file__, __doc__, list(PEERS))
    parser.add_argument("--trials", type=int, default=10_000, metavar="N", help="default: 10000")
    parser.add_argument(
        "--optuna-trials", type=int, metavar="N", help="trials of Optuna's study (default: as --trials)"
    )
    flags = parser.parse_args()
    flags.optuna_trials = flags.optuna_trials or flags.trials
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        contenders = {}
        for name, tool in PEERS.items():
            if name in flags.only:
                stored, number = Path(folder) / tool, flags.optuna_trials if tool == "optuna" else flags.trials
                run_process("benchmarks.peers.stored_trials", tool, stored, number, folder=Path(folder))
                contenders[name] = partial(load, tool, stored, number, flags.trials)
        measured = measure(contenders, flags.repeats)
    table = [
        {"counted": counted, **row}
        for counted, key in (("with process and imports", "process_s"), ("loading and grouping", "load_s"))
        for row in summarise(measured, key)
    ]
    scaled = "" if flags.optuna_trials == flags.trials else f" (Optuna's scaled from {flags.optuna_trials})"
    publish(flags, f"Seconds to load and group {flags.trials} trials{scaled}", measured, table)


if __name__ == "__main__":
    main()
