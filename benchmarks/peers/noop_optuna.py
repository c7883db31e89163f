"""Overhead of Optuna: random sampling, in memory, one thread per core.

Optuna's grid sampler reads all earlier trials before each one and is about twenty times slower at 96 trials.
"""

import optuna

from benchmarks.harness import num_cores
from benchmarks.peers.noop import noop, time_search, trials_flag


def main() -> None:
    """Time the search."""
    num_trials = trials_flag(__doc__)
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def objective(trial: optuna.Trial) -> float:
        return noop({"x": trial.suggest_int("x", 0, num_trials - 1)})

    def search() -> list[float]:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(objective, n_trials=num_trials, n_jobs=num_cores())
        return [one.value for one in study.trials if one.value is not None]

    time_search(search, num_trials)


if __name__ == "__main__":
    main()
