"""What recording a learning curve costs per point: one trial of 30,000 points of one number each.

    python benchmarks/recording.py [--repeats 3] [--points 30000]

tune_hpc is given the points one by one and in blocks of 1000, Ray Tune (default loggers) and Optuna one by one. Counted
is the time from the trial's first report to the search's return, less the same time of a curve of one point. tune_hpc
and Ray Tune leave files, Optuna in memory leaves none. Optuna's SQLite storage takes milliseconds a point and is given
1000 points at most.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Measurement, benchmark_parser, measure, publish, run_process, summarise

MAX_SQLITE_POINTS = 1000
SQLITE = "Optuna, SQLite"
PEERS = {
    "tune_hpc, one by one": ["benchmarks.peers.record_tune_hpc"],
    "tune_hpc, blocks of 1000": ["benchmarks.peers.record_tune_hpc", "--block", "1000"],
    "Ray Tune, default loggers": ["benchmarks.peers.record_ray"],
    "Optuna, in memory": ["benchmarks.peers.record_optuna"],
    SQLITE: ["benchmarks.peers.record_optuna", "--storage", "sqlite"],
}


def record(command: list[str], points: int, folder: Path) -> Measurement:
    """Record a curve in a process of its own."""
    return run_process(*command, "--points", points, folder=folder)


def main() -> None:
    """Measure all contenders in turn and print the table."""
    parser = benchmark_parser(__file__, __doc__, list(PEERS))
    parser.add_argument("--points", type=int, default=30_000, metavar="N", help="of the curve (default: 30000)")
    flags = parser.parse_args()
    points = {name: min(flags.points, MAX_SQLITE_POINTS) if name == SQLITE else flags.points for name in PEERS}
    contenders = {name: partial(record, PEERS[name], points[name]) for name in PEERS if name in flags.only}
    measured = measure(contenders, flags.repeats)
    table = [{**row, "points": points[row["contender"]]} for row in summarise(measured, "us_per_point")]
    publish(flags, "Microseconds to record a point of one trial's curve", measured, table)


if __name__ == "__main__":
    main()
