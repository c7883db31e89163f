"""MNIST and Fashion-MNIST as NumPy arrays, read from their files without torch.

The driver of a search loads the images and hands them on through Ray's object store; it never computes with them, and
need not wait for torch.
"""

from pathlib import Path

import numpy as np

from tune_hpc.learning.config import NUM_TRAINING_IMAGES
from tune_hpc.learning.download import read_files


def read_arrays(name: str, data_dir: Path | None = None) -> dict[str, np.ndarray]:
    """Read a data set, fetching it first if it is nowhere on this machine.

    Args:
        name: ``mnist`` or ``fashion_mnist``.
        data_dir: Where to look first, see ``find_or_fetch``.

    Returns:
        ``name`` and, for each of the splits ``train``, ``valid`` and ``test``, ``<split>_images``, uint8 of shape
        (N, 1, 28, 28), and ``<split>_labels``, int64 of shape (N,): what ``ImageData.from_arrays`` takes.

    Raises:
        UnknownNameError: no such data set.
        DataUnavailableError: it is damaged, or can be neither found nor fetched.
    """
    _, files = read_files(name, data_dir)
    train_images = _parse_idx(files["train-images-idx3-ubyte"])[:, None]
    train_labels = _parse_idx(files["train-labels-idx1-ubyte"]).astype(np.int64)
    test_images = _parse_idx(files["t10k-images-idx3-ubyte"])[:, None]
    test_labels = _parse_idx(files["t10k-labels-idx1-ubyte"]).astype(np.int64)
    return {
        "name": np.array(name),
        "train_images": train_images[:NUM_TRAINING_IMAGES],
        "train_labels": train_labels[:NUM_TRAINING_IMAGES],
        "valid_images": train_images[NUM_TRAINING_IMAGES:],
        "valid_labels": train_labels[NUM_TRAINING_IMAGES:],
        "test_images": test_images,
        "test_labels": test_labels,
    }


def _parse_idx(content: bytes) -> np.ndarray:
    """Return an IDX file's array of bytes: its header is 0, 0, type, number of dimensions, then each size."""
    num_dimensions = content[3]
    sizes = np.frombuffer(content, dtype=">i4", count=num_dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * num_dimensions).reshape(sizes)
