"""Settings of both trainings of the report's network."""

import argparse

LEARNING_RATE = 1e-4
DROPOUT = 0.5
#: Size of the warm-up, which fills caches and memory pools.
NUM_WARMUP_SAMPLES = 500


def cnn_flags(description: str) -> argparse.Namespace:
    """Return the flags of one training."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--batch-size", type=int, default=100, metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of training (default: 10)")
    return parser.parse_args()


def num_warmup_steps(batch_size: int) -> int:
    """Return the number of warm-up steps."""
    return max(5, NUM_WARMUP_SAMPLES // batch_size)
