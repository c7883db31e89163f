"""One trial that reports a curve, and the time per point that recording it takes.

The clock starts in the trial, right before its first report, and stops when the search has returned: with everything
where the tool keeps it. The same of a curve of one point is subtracted; so what is left is neither the start of a
process nor the end of a search.
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
    """Note that the trial is about to report."""
    Path(file).write_text(repr(time.time()), encoding="utf-8")


def value(step: int) -> float:
    """Return the curve's value."""
    return 1.0 / step


def print_time_per_point(record: Callable[[int, str, str], Callable[[], float]], points: int) -> None:
    """Record curves and print the microseconds that a point takes.

    Args:
        record: Runs a search of one trial, given the number of points, the file for ``start_clock`` and a name for its
            results that is new; returns what reads the last value that the tool recorded.
        points: The length of the curve.

    Raises:
        RuntimeError: a curve was not recorded to its end.
    """

    def seconds(num_points: int, name: str) -> float:
        clock = Path.cwd() / f"{name}.clock"
        read_last = record(num_points, str(clock), name)
        ended = time.time()
        if (last := read_last()) != value(num_points):
            raise RuntimeError(f"the last of {num_points} points is {value(num_points)}; recorded was {last}")
        return ended - float(clock.read_text(encoding="utf-8"))

    # What is imported or set up once for all searches is no part of either.
    seconds(1, "warmup")
    one_point, whole_curve = seconds(1, "point"), seconds(points, "curve")
    measured = {"one_point_s": one_point, "whole_curve_s": whole_curve, "points": points}
    print(json.dumps(measured | {"us_per_point": 1e6 * (whole_curve - one_point) / (points - 1)}))
