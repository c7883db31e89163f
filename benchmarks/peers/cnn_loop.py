"""Training of the report's network by a plain loop: one model on all cores, batches from a shuffling DataLoader.

Prints the samples per second.
"""

import json
import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness import num_cores
from benchmarks.peers.cnn_size import DROPOUT, LEARNING_RATE, cnn_flags, num_warmup_steps
from tune_hpc.learning.data import load_images


def main() -> None:
    """Train on all cores and print the rate."""
    flags = cnn_flags(__doc__)
    torch.set_num_threads(num_cores())
    images = load_images("mnist")
    loader = DataLoader(
        TensorDataset(images.train_images.float() / 255, images.train_labels), batch_size=flags.batch_size, shuffle=True
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
    for _ in range(num_warmup_steps(flags.batch_size)):
        next(steps)
    num_samples, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < flags.seconds:
        num_samples += next(steps)
    print(json.dumps({"samples_per_s": num_samples / seconds, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
