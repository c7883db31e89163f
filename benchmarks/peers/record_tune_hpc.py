"""Recording of a curve with tune_hpc, point by point or in blocks."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.peers.ray_search import start_ray
from benchmarks.peers.recording import print_time_per_point, recording_parser, start_clock, value
from tune_hpc import Experiment, Space, run


def trainable(config: Mapping[str, Any], report: Callable[[Any, Mapping[str, Any]], None]) -> None:
    """Report a curve in blocks of ``config["block"]`` points."""
    points, block = config["points"], config["block"]
    start_clock(config["clock"])
    if block == 1:
        for step in range(1, points + 1):
            report(step, {"value": value(step)})
    else:
        for first in range(1, points + 1, block):
            steps = np.arange(first, min(first + block, points + 1))
            report(steps, {"value": 1.0 / steps})


def main() -> None:
    """Record curves and print the time per point, without the start of Ray."""
    parser = recording_parser(__doc__)
    parser.add_argument("--block", type=int, default=1, metavar="N", help="points a report (default: 1)")
    flags = parser.parse_args()

    def record(points: int, clock: str, name: str) -> Callable[[], float]:
        space = Space({"points": points, "block": flags.block, "clock": clock}, keys={})
        experiment = Experiment(name, space, trainable, metric="value", mode="min", seeds=())
        results = run(experiment, output_dir=name, show_progress=False)
        return lambda: float(results.history["value"].iloc[points - 1])

    start_ray()
    print_time_per_point(record, flags.points)


if __name__ == "__main__":
    main()
