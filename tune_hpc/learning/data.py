"""What a trial learns from: MNIST, Fashion-MNIST, and the four points of Exercise 1's line.

Images are the original bytes, (N, 1, 28, 28) uint8; whoever trains scales them. Of the 60,000 training images the first
50,000 are for training and the last 10,000 for validation. A data set is read-only: it may lie in memory that many
processes share, where writing to it would end the process.
"""

import functools
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tune_hpc.learning.mnist_files import read_arrays


@dataclass(frozen=True)
class ImageData:
    """Images with their classes, in three splits.

    Attributes:
        name: ``mnist`` or ``fashion_mnist``.
        train_images: (50000, 1, 28, 28) uint8.
        train_labels: (50000,) int64, 0 to 9.
        valid_images: (10000, 1, 28, 28) uint8.
        valid_labels: (10000,) int64.
        test_images: (10000, 1, 28, 28) uint8.
        test_labels: (10000,) int64.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    valid_images: Tensor
    valid_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: torch.device | str) -> "ImageData":
        """Return the same data on a device; nothing is copied if they are there already."""
        return ImageData(self.name, *(getattr(self, split).to(device) for split in _SPLITS))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the data as arrays that share this memory, for an object store; CPU only."""
        return {"name": np.array(self.name)} | {split: getattr(self, split).numpy() for split in _SPLITS}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "ImageData":
        """Return the data that ``to_arrays`` gave, sharing the arrays' memory, which may be read-only."""
        return cls(str(arrays["name"]), *(_share(arrays[split]) for split in _SPLITS))


_SPLITS = tuple(field.name for field in fields(ImageData) if field.name != "name")


def _share(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # torch has no read-only tensors and says so; that nobody writes is this module's contract.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


@dataclass(frozen=True)
class LineData:
    """Exercise 1's points, which lie on y = 1 - x.

    Attributes:
        dtype: Of both tensors.
        device: Of both tensors.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    @functools.cached_property
    def x(self) -> Tensor:
        """(4,): 1, 2, 3, 4."""
        return torch.tensor([1, 2, 3, 4], dtype=self.dtype, device=self.device)

    @functools.cached_property
    def y(self) -> Tensor:
        """(4,): 0, -1, -2, -3."""
        return torch.tensor([0, -1, -2, -3], dtype=self.dtype, device=self.device)


def load_images(name: str, data_dir: Path | None = None) -> ImageData:
    """Read a data set, fetching it first if it is nowhere on this machine.

    Args:
        name: ``mnist`` or ``fashion_mnist``.
        data_dir: Where to look first, see ``find_or_fetch``.

    Raises:
        UnknownNameError: no such data set.
        DataUnavailableError: it is damaged, or can be neither found nor fetched.
    """
    return ImageData.from_arrays(read_arrays(name, data_dir))
