"""Process function of the replica tests: training on several processes without Ray."""

from pathlib import Path

import torch
from torch import distributed

from tests.learning.synthetic_data import synthetic_images
from tune_hpc.learning.config import complete
from tune_hpc.learning.training import Training
from tune_hpc.scaling.plan import GradientSync
from tune_hpc.scaling.workers import WorkerContext

NUM_STEPS = 20
NUMBERS = (1, 2, 4)
#: Batches of 150, shared by four workers as 37, 38, 37 and 38; in float64, because the order of sums differs.
SHARED = {"batch_size": 150, "precision": "float64", "steps": 5000, "batching": "shuffled", "seed": 3}
CONFIGS = {
    "softmax": {**SHARED, "model": "softmax", "optimizer": "adam", "learning_rate": 0.01},
    "cnn": {**SHARED, "model": "cnn", "width": 0.0625, "optimizer": "momentum", "learning_rate": 0.01},
    "dropout": {**SHARED, "model": "cnn", "width": 0.0625, "optimizer": "adam", "dropout": 0.5, "max_shift": 2.0},
}
#: Options of the synchronization on two workers of the softmax model.
SYNCS = {
    "small_buckets": GradientSync(bucket_mb=0.001),
    "bucket_view": GradientSync(bucket_view=True),
    "bf16": GradientSync(compression="bf16"),
    "local_steps": GradientSync(local_steps=8),
}


def train_together(rank: int, folder: str) -> None:
    """Train each configuration on the first 1, 2 and 4 processes, and save the parameters of each process."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=max(NUMBERS))
    images = synthetic_images()
    for number in NUMBERS:
        context = WorkerContext(images, torch.device("cpu"), rank, {number: distributed.new_group(list(range(number)))})

        def make_training(name, gradient_sync=None, number=number, context=context):
            communicator = context.communicator(number, gradient_sync)
            return Training([complete(CONFIGS[name])], images, context.device, communicator)

        for name in CONFIGS:
            if rank < number:
                training = make_training(name)
                training.run(0, NUM_STEPS)
                torch.save(list(training.model.parameters()), Path(folder) / f"{name}-{number}-{rank}.pt")
        if number == 2 and rank < number:
            for name, gradient_sync in SYNCS.items():
                training = make_training("softmax", gradient_sync)
                training.run(0, NUM_STEPS)
                before = [one.detach().clone() for one in training.model.parameters()]
                training.communicator.sync_parameters(training.model)
                after = [one.detach().clone() for one in training.model.parameters()]
                torch.save((before, after), Path(folder) / f"{name}-{rank}.pt")
        distributed.barrier()
    distributed.destroy_process_group()
