"""Time per point to record the curve of one trial.

The clock starts in the trial before its first report, and stops when the search returns with all data stored. The time
for a curve of one point is subtracted, which removes process start and end of the search.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path


def recording_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the number of points."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--points", type=int, default=30_000, metavar="N")
    return parser


def start_clock(file: str) -> None:
    """Write the time of the first report to a file."""
    Path(file).write_text(repr(time.time()), encoding="utf-8")


def value(step: int) -> float:
    """Return the curve's value."""
    return 1.0 / step


def print_time_per_point(record: Callable[[int, str, str], Callable[[], float]], points: int) -> None:
    """Record curves and print the microseconds that a point takes.

    Args:
        record: Runs a search of one trial, given the number of points, the file for ``start_clock`` and a new name
            for its results. Returns a function that reads the last recorded value.
        points: Length of the curve.

    Raises:
        RuntimeError: A curve is incomplete.
    """

    def seconds(num_points: int, name: str) -> float:
        clock = Path.cwd() / f"{name}.clock"
        read_last = record(num_points, str(clock), name)
        ended = time.time()
        if (last := read_last()) != value(num_points):
            raise RuntimeError(f"the last of {num_points} points must be {value(num_points)}; recorded: {last}")
        return ended - float(clock.read_text(encoding="utf-8"))

    # Imports and other one-time work are in neither of the timed searches.
    seconds(1, "warmup")
    one_point, whole_curve = seconds(1, "point"), seconds(points, "curve")
    measured = {"one_point_s": one_point, "whole_curve_s": whole_curve, "points": points}
    print(json.dumps(measured | {"us_per_point": 1e6 * (whole_curve - one_point) / (points - 1)}))
