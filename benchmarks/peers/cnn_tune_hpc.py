"""Training of the report's network with tune_hpc: as many trials at once as there are cores, one thread each.

All trials start together and train for the same number of steps. A warm-up determines how many steps take the
requested seconds. Prints the samples per second of all trials together.
"""

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier

import torch

from benchmarks.harness import num_cores
from benchmarks.peers.cnn_size import DROPOUT, LEARNING_RATE, cnn_flags, num_warmup_steps
from tune_hpc.learning.data import ImageData, load_images
from tune_hpc.learning.training import train

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


def main() -> None:
    """Train on all cores and print the rate."""
    flags = cnn_flags(__doc__)
    workers, spawn = num_cores(), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _prepare, (spawn.Barrier(workers),)) as executor:

        def train_everywhere(steps: int) -> list[tuple[float, float, float]]:
            return list(executor.map(_train, [flags.batch_size] * workers, [steps] * workers))

        warm = train_everywhere(num_warmup_steps(flags.batch_size))
        steps = max(1, round(flags.seconds * min(rate for rate, _, _ in warm) / flags.batch_size))
        rates, began, ended = zip(*train_everywhere(steps), strict=True)
    overlap = (min(ended) - max(began)) / (max(ended) - min(began))
    print(json.dumps({"samples_per_s": sum(rates), "workers": workers, "steps": steps, "overlap": overlap}))


if __name__ == "__main__":
    main()
