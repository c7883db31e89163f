"""Recording of a curve with Ray Tune and its default loggers, point by point."""

from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from benchmarks.peers.ray_search import search, start_ray
from benchmarks.peers.recording import print_time_per_point, recording_parser, start_clock, value


def trainable(config: Mapping[str, Any]) -> None:
    """Report one number at a time."""
    start_clock(config["clock"])
    for step in range(1, config["points"] + 1):
        tune.report({"value": value(step)})


def main() -> None:
    """Record curves and print the time per point, without the start of Ray."""
    flags = recording_parser(__doc__).parse_args()

    def record(points: int, clock: str, name: str) -> Callable[[], float]:
        (result,) = search(trainable, {"points": [points], "clock": [clock]}, "defaults", name)
        return lambda: float(result.metrics_dataframe["value"].iloc[points - 1])

    start_ray()
    print_time_per_point(record, flags.points)


if __name__ == "__main__":
    main()
