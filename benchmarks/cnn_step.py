"""Training steps of the report's network (3,274,634 parameters, Adam, dropout 0.5): samples per second on all cores.

    python benchmarks/cnn_step.py [--repeats 3] [--seconds 10] [--batch-sizes 4 10 25 50 100 150]

tune_hpc trains one model per core, on one thread each, as in a search; the result is the sum of their rates. The plain
loop trains one model on all cores, with a shuffling DataLoader and PyTorch's Adam. The ratio therefore compares the
throughput of a search with the speed of a single training. Each measurement is a new process with a warm-up, and
excludes evaluations. The rate of float32 matrix products (``torch.mm``, by MKL) is measured in the same turns. Each row
has the training's rate relative to it. It is no upper bound: oneDNN, which computes the convolutions, is faster.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Measurement, benchmark_parser, measure, publish, run_process, summarise

PEERS = {"tune_hpc": "tune_hpc", "plain loop": "loop"}
MATRIX_PRODUCT = "matrix product"
BATCH_SIZES = [4, 10, 25, 50, 100, 150]

#: Multiply-adds of an image's forward pass: kernel x channels in x channels out x positions.
MACS = {
    "conv1": 25 * 1 * 32 * 28 * 28,
    "conv2": 25 * 32 * 64 * 14 * 14,
    "hidden": 7 * 7 * 64 * 1024,
    "output": 1024 * 10,
}
#: 82.0 million. A layer's backward pass has two products as large as the forward one, for the gradients of weights and
#: inputs. The first layer's input needs no gradient. Padding is included, although a convolution may skip it (up to
#: 16 % of the second layer's multiplications).
FLOP_PER_IMAGE = 2 * (3 * sum(MACS.values()) - MACS["conv1"])


def train(tool: str, batch_size: int, seconds: float, folder: Path) -> Measurement:
    """Train in a separate process."""
    return run_process("benchmarks.peers.cnn", tool, "--batch-size", batch_size, "--seconds", seconds, folder=folder)


def matrix_product(folder: Path) -> Measurement:
    """Measure the rate of matrix products in a separate process."""
    return run_process("benchmarks.peers.matrix_product", folder=folder)


def main() -> None:
    """Measure all batch sizes in turn and print the table."""
    parser = benchmark_parser(__file__, __doc__, list(PEERS))
    parser.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="duration of one training (default: 10)"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES, metavar="N")
    flags = parser.parse_args()
    selected = [name for name in PEERS if name in flags.only]
    contenders = {MATRIX_PRODUCT: matrix_product} | {
        f"{name}, batch {size}": partial(train, PEERS[name], size, flags.seconds)
        for size in flags.batch_sizes
        for name in selected
    }
    measured = measure(contenders, flags.repeats)
    peak = max(one["gflop_per_s"] for one in measured[MATRIX_PRODUCT])
    table = []
    for size in flags.batch_sizes:
        rows = summarise({name: measured[f"{name}, batch {size}"] for name in selected}, "samples_per_s")
        for row in rows:
            share = row["median"] * FLOP_PER_IMAGE / (peak * 1e9)
            table.append({"batch size": size, **row, "relative to matrix products by MKL": share})
    title = f"Training samples per second on all cores; float32 matrix products by MKL reach {peak:.0f} GFLOP/s"
    publish(flags, title, measured, table)


if __name__ == "__main__":
    main()
