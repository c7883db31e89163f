"""Exercise 2's softmax table with Optuna: a grid in memory, one thread per core."""

import json

import optuna
import torch

from benchmarks.harness import num_cores
from benchmarks.peers.softmax_training import as_tensors, best_rates, grid, load_arrays, size_flags, train


def main() -> None:
    """Train all models and print each optimizer's best learning rate."""
    flags = size_flags(__doc__)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Concurrent trials use all cores.
    torch.set_num_threads(1)
    data = as_tensors(load_arrays())
    values = grid(flags.trials)

    def objective(trial: optuna.Trial) -> float:
        config = {name: trial.suggest_categorical(name, choices) for name, choices in values.items()}

        def report(step: int, metrics: dict[str, float]) -> None:
            trial.report(metrics["valid_loss"], step)

        metrics = train(config, data, flags.steps, report)
        for name, value in metrics.items():
            trial.set_user_attr(name, value)
        return metrics["valid_loss"]

    study = optuna.create_study(sampler=optuna.samplers.GridSampler(values, seed=0))
    study.optimize(objective, n_trials=flags.trials, n_jobs=num_cores())
    outcomes = [
        (one.params["optimizer"], one.params["learning_rate"], one.value)
        for one in study.trials
        if one.value is not None
    ]
    print(json.dumps({"best_rates": best_rates(outcomes), "num_trials": len(set(outcomes))}))


if __name__ == "__main__":
    main()
