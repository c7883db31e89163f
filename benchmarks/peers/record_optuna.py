"""Recording of a curve with Optuna, point by point, in memory or in SQLite."""

from collections.abc import Callable

import optuna

from benchmarks.peers.recording import print_time_per_point, recording_parser, start_clock, value

STORAGES = {"memory": None, "sqlite": "sqlite:///optuna.db"}


def main() -> None:
    """Record curves and print the time per point."""
    parser = recording_parser(__doc__)
    parser.add_argument("--storage", choices=STORAGES, default="memory")
    flags = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def record(points: int, clock: str, name: str) -> Callable[[], float]:
        def objective(trial: optuna.Trial) -> float:
            start_clock(clock)
            for step in range(1, points + 1):
                trial.report(value(step), step)
            return value(points)

        study = optuna.create_study(storage=STORAGES[flags.storage], study_name=name)
        study.optimize(objective, n_trials=1)
        return lambda: study.trials[0].intermediate_values[points]

    print_time_per_point(record, flags.points)


if __name__ == "__main__":
    main()
