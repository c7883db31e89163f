"""Time to record a learning curve, per point: one trial with 30,000 points.

    python benchmarks/recording.py [--repeats 3] [--points 30000]

tune_hpc records the points one by one and in blocks of 1000, Ray Tune (default loggers) and Optuna one by one. The time
from the first report of the trial to the return of the search counts, minus the same time for a curve of one point.
tune_hpc and Ray Tune write files, Optuna in memory writes none. Optuna's SQLite storage takes milliseconds per point
and gets at most 1000.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Measurement, benchmark_parser, measure, publish, run_process, summarise

MAX_SQLITE_POINTS = 1000
SQLITE = "Optuna, SQLite"
PEERS = {
    "tune_hpc, one by one": "tune_hpc",
    "tune_hpc, blocks of 1000": "tune_hpc_blocks",
    "Ray Tune, default loggers": "ray",
    "Optuna, in memory": "optuna",
    SQLITE: "optuna_sqlite",
}


def record(tool: str, points: int, folder: Path) -> Measurement:
    """Record a curve in a separate process."""
    return run_process("benchmarks.peers.record", tool, "--points", points, folder=folder)


def main() -> None:
    """Measure all contenders in turn and print the table."""
    parser = benchmark_parser(__file__, __doc__, list(PEERS))
    parser.add_argument("--points", type=int, default=30_000, metavar="N", help="points of the curve (default: 30000)")
    flags = parser.parse_args()
    points = {name: min(flags.points, MAX_SQLITE_POINTS) if name == SQLITE else flags.points for name in PEERS}
    contenders = {name: partial(record, PEERS[name], points[name]) for name in PEERS if name in flags.only}
    measured = measure(contenders, flags.repeats)
    table = [{**row, "points": points[row["contender"]]} for row in summarise(measured, "us_per_point")]
    publish(flags, "Microseconds to record a point of one trial's curve", measured, table)


if __name__ == "__main__":
    main()
