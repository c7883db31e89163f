"""Training of the report's network: ``python -m benchmarks.peers.cnn TOOL``. Prints the samples per second.

- ``loop``: a plain loop, with one model on all cores and a shuffling DataLoader.
- ``tune_hpc``: one trial per core, with one thread each. All trials start together and train for equally many steps. A
  warm-up determines how many steps take the requested seconds. The result is the sum of all trials.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import num_cores
from tune_hpc.learning.data import ImageData, load_images
from tune_hpc.learning.training import train

LEARNING_RATE = 1e-4
DROPOUT = 0.5
#: Size of the warm-up, which fills caches and memory pools.
NUM_WARMUP_SAMPLES = 500
#: A failed process must not block the others.
BARRIER_TIMEOUT_S = 120.0

_barrier: Barrier
_images: ImageData


def _prepare(barrier: Barrier) -> None:
    global _barrier, _images
    torch.set_num_threads(1)
    _barrier, _images = barrier, load_images("mnist")


def _train(batch_size: int, steps: int) -> tuple[float, float, float]:
    """Train one model at the same time as all other processes.

    Returns:
        Samples per second of the training steps, and the times at which the training began and ended.
    """
    config = {
        "model": "cnn", "optimizer": "adam", "learning_rate": LEARNING_RATE, "dropout": DROPOUT, "batching": "shuffled",
        "batch_size": batch_size, "steps": steps, "num_evaluations": 1, "num_evaluation_images": 1000,
    }  # fmt: skip
    # The barrier gives each process exactly one of the tasks.
    _barrier.wait(BARRIER_TIMEOUT_S)
    began = time.time()
    outcome = train(config, lambda step, metrics: None, images=_images, device="cpu")
    if outcome["status"] != "finished":
        raise RuntimeError(f"the training {outcome['status']}: {outcome['stop_reason']}")
    return outcome["samples_per_s"], began, time.time()


def num_warmup_steps(batch_size: int) -> int:
    """Return the number of warm-up steps."""
    return max(5, NUM_WARMUP_SAMPLES // batch_size)


def train_loop(batch_size: int, duration_s: float) -> dict[str, float]:
    """Train one model on all cores and return the rate."""
    torch.set_num_threads(num_cores())
    images = load_images("mnist")
    loader = DataLoader(
        TensorDataset(images.train_images.float() / 255, images.train_labels), batch_size=batch_size, shuffle=True
    )
    model = nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(7 * 7 * 64, 1024), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(1024, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    loss_function = nn.CrossEntropyLoss()

    def samples_of_steps() -> Iterator[int]:
        while True:
            for inputs, labels in loader:
                optimizer.zero_grad()
                loss_function(model(inputs), labels).backward()
                optimizer.step()
                yield len(labels)

    steps = samples_of_steps()
    for _ in range(num_warmup_steps(batch_size)):
        next(steps)
    num_samples, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < duration_s:
        num_samples += next(steps)
    return {"samples_per_s": num_samples / seconds, "threads": torch.get_num_threads()}


def train_tune_hpc(batch_size: int, duration_s: float) -> dict[str, float]:
    """Train one trial per core and return the rate."""
    workers, spawn = num_cores(), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _prepare, (spawn.Barrier(workers),)) as executor:

        def train_everywhere(steps: int) -> list[tuple[float, float, float]]:
            return list(executor.map(_train, [batch_size] * workers, [steps] * workers))

        warm = train_everywhere(num_warmup_steps(batch_size))
        steps = max(1, round(duration_s * min(rate for rate, _, _ in warm) / batch_size))
        rates, began, ended = zip(*train_everywhere(steps), strict=True)
    overlap = (min(ended) - max(began)) / (max(ended) - min(began))
    return {"samples_per_s": sum(rates), "workers": workers, "steps": steps, "overlap": overlap}


TOOLS = {"loop": train_loop, "tune_hpc": train_tune_hpc}


def main() -> None:
    """Train and print the rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--batch-size", type=int, default=100, metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="duration of training (default: 10)")
    flags = parser.parse_args()
    print(json.dumps(TOOLS[flags.tool](flags.batch_size, flags.seconds)))


if __name__ == "__main__":
    main()
