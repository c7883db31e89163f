"""Exercise 2's softmax table, process start included: tune_hpc against a plain Python loop over the same trials.

    python benchmarks/softmax_table.py [--repeats 3]

The loop is what one would write by hand: PyTorch, a DataLoader over the stored order, 72 trials of 500 steps of 100
images one after the other, each evaluated as often as ours (50 times on 20,000 held-out images, from tensors in
memory). Both run as whole processes, in turn. Prints a table and writes benchmarks/results/softmax_table.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent


def plain_loop() -> None:
    """Train the 72 models one after the other, as one would without a search tool."""
    import torch
    from torch.nn import functional
    from torch.utils.data import DataLoader, TensorDataset

    from search_spaces.exercise2 import LEARNING_RATES, OPTIMIZERS
    from tune_hpc.learning.data import load_images
    from tune_hpc.learning.optimizers import build_optimizer

    images = load_images("mnist")

    def as_floats(pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1).float() / 255

    training = TensorDataset(as_floats(images.train_images), images.train_labels)
    held_out = [
        (as_floats(images.valid_images), images.valid_labels),
        (as_floats(images.test_images), images.test_labels),
    ]
    best: dict[str, tuple[float, float]] = {}
    for optimizer_name in OPTIMIZERS:
        for rate in LEARNING_RATES:
            model = torch.nn.Linear(784, 10)
            torch.nn.init.zeros_(model.weight)
            torch.nn.init.zeros_(model.bias)
            optimizer = build_optimizer(optimizer_name, model.parameters(), rate)
            for step, (inputs, labels) in enumerate(DataLoader(training, batch_size=100), start=1):
                loss = functional.cross_entropy(model(inputs), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if step % 10 == 0:
                    with torch.inference_mode():
                        losses = [functional.cross_entropy(model(x), y).item() for x, y in held_out]
                        [(model(x).argmax(1) == y).float().mean().item() for x, y in held_out]
            best[optimizer_name] = min(best.get(optimizer_name, (float("inf"), 0.0)), (losses[0], rate))
    print({name: rate for name, (_, rate) in best.items()})


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Time both in turn and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain-loop", action="store_true", help="be the plain loop")
    flags = parser.parse_args()
    if flags.plain_loop:
        plain_loop()
        return
    seconds: dict[str, list[float]] = {"tune_hpc": [], "plain loop": []}
    for _ in range(flags.repeats):
        with tempfile.TemporaryDirectory() as folder:
            ours = ["-m", "tune_hpc.cli", "run", "exercise2.softmax", "--output-dir", f"{folder}/run", "--no-report"]
            seconds["tune_hpc"].append(_seconds([sys.executable, *ours]))
        seconds["plain loop"].append(_seconds([sys.executable, __file__, "--plain-loop"]))
    machine = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "ray", "tune-hpc")},
    }
    print(f"72 trials of 500 steps of 100 images, {flags.repeats} runs each, seconds; {machine}")
    print("| who | median | min | max |\n|:--|--:|--:|--:|")
    for who, measured in seconds.items():
        print(f"| {who} | {statistics.median(measured):.1f} | {min(measured):.1f} | {max(measured):.1f} |")
    ratios = [plain / ours for ours, plain in zip(seconds["tune_hpc"], seconds["plain loop"], strict=True)]
    print(f"plain loop / tune_hpc: {statistics.median(ratios):.2f}")
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "softmax_table.json").write_text(json.dumps({"machine": machine, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
