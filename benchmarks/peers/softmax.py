"""Exercise 2's softmax table with other tools: ``python -m benchmarks.peers.softmax TOOL``.

A trial has 500 steps of 100 images in stored order, from a DataLoader, and 50 evaluations on 20,000 held-out images, as
``exercise2.softmax``. The optimizers are those of tune_hpc, which follow TensorFlow 1. The tools are a plain loop over
trials with PyTorch on all cores, Optuna with a grid in memory and one thread per core, and Ray Tune with one core per
trial and the data in the object store. A hand-written stack trains all models as one tensor on all cores, and
records nothing.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import num_cores
from tune_hpc.learning.data import load_images
from tune_hpc.learning.optimizers import build_optimizer

#: As in search_spaces.exercise2, which imports Ray Tune.
OPTIMIZERS = [
    "gradient_descent", "momentum", "adam", "nesterov", "adagrad", "adadelta", "rmsprop", "ftrl", "proximal_adagrad",
]  # fmt: skip
LEARNING_RATES = [0.5, 0.1, 0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001]
BATCH_SIZE = 100
NUM_EVALUATIONS = 50
#: All training images once.
MAX_STEPS = 500

Metrics = dict[str, float]
Report = Callable[[int, Metrics], None]


def add_size_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the size of the work."""
    whole = len(OPTIMIZERS) * len(LEARNING_RATES)
    parser.add_argument("--trials", type=_num_trials, default=whole, metavar="N",
                        help=f"the first N configurations; up to {len(LEARNING_RATES)}, or a multiple of it "
                             f"(default: {whole})")  # fmt: skip
    parser.add_argument("--steps", type=_num_steps, default=MAX_STEPS, metavar="N",
                        help=f"steps of a trial (default: {MAX_STEPS})")  # fmt: skip
    parser.add_argument("--evaluations", type=int, default=NUM_EVALUATIONS, metavar="N",
                        help=f"evaluations of a trial (default: {NUM_EVALUATIONS})")  # fmt: skip


def _num_trials(text: str) -> int:
    number, rates = int(text), len(LEARNING_RATES)
    if not (1 <= number <= rates or (number % rates == 0 and 0 < number <= rates * len(OPTIMIZERS))):
        raise argparse.ArgumentTypeError(f"up to {rates}, or a multiple of it; got {number}")
    return number


def _num_steps(text: str) -> int:
    number = int(text)
    if not 1 <= number <= MAX_STEPS:
        raise argparse.ArgumentTypeError(f"1 to {MAX_STEPS}; got {number}")
    return number


def grid(num_trials: int) -> dict[str, list[Any]]:
    """Return the values of the first configurations of the grid; the learning rate varies fastest."""
    rates = len(LEARNING_RATES)
    return {
        "optimizer": OPTIMIZERS[: max(1, num_trials // rates)],
        "learning_rate": LEARNING_RATES[: min(num_trials, rates)],
    }


def load_arrays() -> dict[str, np.ndarray]:
    """Return the images of each split, (N, 784) float32 from 0 to 1, and their labels."""
    images = load_images("mnist").to_arrays()
    arrays = {}
    for split in ("train", "valid", "test"):
        pixels = images[f"{split}_images"]
        arrays[f"{split}_images"] = pixels.reshape(len(pixels), -1).astype(np.float32) / 255
        arrays[f"{split}_labels"] = images[f"{split}_labels"]
    return arrays


def as_tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return tensors that share the arrays' memory."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def evaluation_steps(steps: int, evaluations: int) -> set[int]:
    """Return the steps of the evaluations."""
    number = min(steps, evaluations)
    return {round(steps * (point + 1) / number) for point in range(number)}


def train(
    config: Mapping[str, Any], data: Mapping[str, torch.Tensor], steps: int, evaluations: int, report: Report
) -> Metrics:
    """Train one model, report its held-out metrics at every evaluation, and return the last ones."""
    model = torch.nn.Linear(784, 10)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = build_optimizer(config["optimizer"], model.parameters(), config["learning_rate"])
    batches = DataLoader(TensorDataset(data["train_images"], data["train_labels"]), batch_size=BATCH_SIZE)
    evaluated = evaluation_steps(steps, evaluations)
    metrics: Metrics = {}
    for step, (images, labels) in zip(range(1, steps + 1), batches, strict=False):
        loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in evaluated:
            metrics = _evaluate(model, data)
            report(step, metrics)
    return metrics


@torch.inference_mode()
def _evaluate(model: torch.nn.Module, data: Mapping[str, torch.Tensor]) -> Metrics:
    metrics = {}
    for split in ("valid", "test"):
        labels = data[f"{split}_labels"]
        logits = model(data[f"{split}_images"])
        metrics[f"{split}_loss"] = functional.cross_entropy(logits, labels).item()
        metrics[f"{split}_accuracy"] = (logits.argmax(1) == labels).float().mean().item()
    return metrics


def best_rates(outcomes: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """Return each optimizer's best learning rate.

    Args:
        outcomes: Optimizer, learning rate and final validation loss of each trial.
    """
    best: dict[str, tuple[float, float]] = {}
    for optimizer, rate, loss in outcomes:
        best[optimizer] = min(best.get(optimizer, (float("inf"), 0.0)), (loss, rate))
    return {optimizer: rate for optimizer, (_, rate) in best.items()}


Outcomes = Iterator[tuple[str, float, float]]


def search_loop(num_trials: int, steps: int, evaluations: int) -> Outcomes:
    """Train the trials in sequence."""
    data = as_tensors(load_arrays())
    curves: dict[tuple[str, float], dict[int, Metrics]] = {}
    for optimizer, rate in itertools.product(*grid(num_trials).values()):
        curve: dict[int, Metrics] = {}
        train({"optimizer": optimizer, "learning_rate": rate}, data, steps, evaluations, curve.__setitem__)
        curves[optimizer, rate] = curve
    return ((*config, curve[steps]["valid_loss"]) for config, curve in curves.items())


def search_optuna(num_trials: int, steps: int, evaluations: int) -> Outcomes:
    """Train the trials in threads of Optuna."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Concurrent trials use all cores.
    torch.set_num_threads(1)
    data = as_tensors(load_arrays())
    values = grid(num_trials)

    def objective(trial: optuna.Trial) -> float:
        config = {name: trial.suggest_categorical(name, choices) for name, choices in values.items()}
        metrics = train(
            config, data, steps, evaluations, lambda step, metrics: trial.report(metrics["valid_loss"], step)
        )
        for name, value in metrics.items():
            trial.set_user_attr(name, value)
        return metrics["valid_loss"]

    study = optuna.create_study(sampler=optuna.samplers.GridSampler(values, seed=0))
    study.optimize(objective, n_trials=num_trials, n_jobs=num_cores())
    return (
        (trial.params["optimizer"], trial.params["learning_rate"], trial.value)
        for trial in study.trials
        if trial.value is not None
    )


def ray_trainable(config: Mapping[str, Any], data: Mapping[str, np.ndarray], steps: int, evaluations: int) -> None:
    """Train one model in an actor of Ray Tune, whose loggers record the learning curve."""
    from ray import tune

    torch.set_num_threads(1)
    # Ray shares the memory of arrays among actors, and would copy tensors for every trial.
    train(config, as_tensors(data), steps, evaluations, lambda step, metrics: tune.report({"step": step, **metrics}))


def search_ray(num_trials: int, steps: int, evaluations: int, mode: str) -> Outcomes:
    """Train the trials with Ray Tune."""
    from ray import tune

    from benchmarks.peers.ray_search import search, start_ray

    start_ray()
    trainable = tune.with_parameters(ray_trainable, data=load_arrays(), steps=steps, evaluations=evaluations)
    results = search(trainable, grid(num_trials), mode, "softmax")
    return ((one.config["optimizer"], one.config["learning_rate"], one.metrics["valid_loss"]) for one in results)


#: Initial values of the two slots of each optimizer, and its update of the slots: gradient, rates, slots and step to
#: the decrease of the parameter.
RULES: dict[str, tuple[tuple[float, float], Callable[..., Tensor]]] = {
    "gradient_descent": ((0, 0), lambda g, lr, a, b, t: lr * g),
    "momentum": ((0, 0), lambda g, lr, a, b, t: lr * a.mul_(0.9).add_(g)),
    "adam": ((0, 0), lambda g, lr, a, b, t: (
        lr * ((1 - 0.999**t) ** 0.5 / (1 - 0.9**t)) * a.lerp_(g, 0.1) / (b.lerp_(g * g, 0.001).sqrt() + 1e-8)
    )),
    "nesterov": ((0, 0), lambda g, lr, a, b, t: lr * (g + 0.9 * a.mul_(0.9).add_(g))),
    "adagrad": ((0.1, 0), lambda g, lr, a, b, t: lr * g * a.addcmul_(g, g).rsqrt()),
    "adadelta": ((0, 0), lambda g, lr, a, b, t: _adadelta(g, lr, a, b)),
    "rmsprop": ((1, 0), lambda g, lr, a, b, t: lr * g * (a.lerp_(g * g, 0.1) + 1e-10).rsqrt()),
    # From zero weights, and without regularization, both equal Adagrad.
    "ftrl": ((0.1, 0), lambda g, lr, a, b, t: lr * g * a.addcmul_(g, g).rsqrt()),
    "proximal_adagrad": ((0.1, 0), lambda g, lr, a, b, t: lr * g * a.addcmul_(g, g).rsqrt()),
}  # fmt: skip


def _adadelta(g: Tensor, lr: Tensor, a: Tensor, b: Tensor) -> Tensor:
    a.mul_(0.95).addcmul_(g, g, value=0.05)
    update = ((b + 1e-8) / (a + 1e-8)).sqrt() * g
    b.mul_(0.95).addcmul_(update, update, value=0.05)
    return lr * update


@torch.no_grad()
def search_stack(num_trials: int, steps: int, evaluations: int) -> Outcomes:
    """Train all models as one tensor with formulas for gradients and updates."""
    optimizers, rates = grid(num_trials).values()
    data = as_tensors(load_arrays())
    shape = (len(optimizers), len(rates), 785, 10)
    data |= {name: functional.pad(data[name], (0, 1), value=1.0) for name in data if name.endswith("images")}
    weights = torch.zeros(shape)
    slots = [
        torch.stack([torch.full(shape[1:], float(RULES[name][0][slot])) for name in optimizers]) for slot in (0, 1)
    ]
    learning_rates = torch.tensor(rates)[:, None, None]
    evaluated = evaluation_steps(steps, evaluations)
    metrics: dict[str, Tensor] = {}
    for step in range(1, steps + 1):
        batch = slice((step - 1) * BATCH_SIZE, step * BATCH_SIZE)
        images, labels = data["train_images"][batch], data["train_labels"][batch]
        errors = (images @ weights).softmax(-1)
        errors[..., torch.arange(len(labels)), labels] -= 1
        gradients = images.T @ errors / len(labels)
        for number, name in enumerate(optimizers):
            weights[number] -= RULES[name][1](
                gradients[number], learning_rates, slots[0][number], slots[1][number], step
            )
        if step in evaluated:
            # One product with all models as columns; parts fit into the caches.
            columns = weights.flatten(0, 1).transpose(0, 1).flatten(1).contiguous()
            for split in ("valid", "test"):
                pixels, classes = data[f"{split}_images"], data[f"{split}_labels"]
                losses, correct = torch.zeros(columns.shape[1] // 10), torch.zeros(columns.shape[1] // 10)
                for first in range(0, len(pixels), 1000):
                    logits = (pixels[first : first + 1000] @ columns).unflatten(1, (-1, 10))
                    targets = classes[first : first + 1000, None].expand(logits.shape[:2])
                    correct += (logits.argmax(2) == targets).sum(0)
                    losses += functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(0)
                metrics[f"{split}_accuracy"] = correct / len(pixels)
                metrics[f"{split}_loss"] = losses / len(pixels)
    configs = itertools.product(optimizers, rates)
    return ((*config, loss) for config, loss in zip(configs, metrics["valid_loss"].tolist(), strict=True))


TOOLS: dict[str, Callable[[int, int, int], Outcomes]] = {
    "stack": search_stack,
    "loop": search_loop,
    "optuna": search_optuna,
    "ray_defaults": partial(search_ray, mode="defaults"),
    "ray_reused": partial(search_ray, mode="reused"),
}


def main() -> None:
    """Train all models and print the best learning rate of each optimizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    add_size_flags(parser)
    flags = parser.parse_args()
    outcomes = list(TOOLS[flags.tool](flags.trials, flags.steps, flags.evaluations))
    print(json.dumps({"best_rates": best_rates(outcomes), "num_trials": len(set(outcomes))}))


if __name__ == "__main__":
    main()
