"""Data sets: MNIST, Fashion-MNIST, and the four points of Exercise 1's line.

Images are the original bytes, (N, 1, 28, 28) uint8; tasks scale them. Of the 60,000 training images the first 50,000
are for training and the last 10,000 for validation. A data set is read-only: many processes may share its memory, and
a write to it would crash the process.
"""

import functools
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tune_hpc.learning.download import read_arrays


@dataclass(frozen=True)
class ImageData:
    """Images and labels of a data set in three splits.

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
        """Return the data on a device; data that are there already are not copied."""
        return ImageData(self.name, *(getattr(self, split).to(device) for split in _SPLITS))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return arrays that share the memory of the data, for an object store; CPU only."""
        return {"name": np.array(self.name)} | {split: getattr(self, split).numpy() for split in _SPLITS}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "ImageData":
        """Build a data set that shares the memory of the arrays of ``to_arrays``; it may be read-only."""
        return cls(str(arrays["name"]), *(_share(arrays[split]) for split in _SPLITS))


_SPLITS = tuple(field.name for field in fields(ImageData) if field.name != "name")


def _share(array: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # torch has no read-only tensors and warns. By the contract of this module a data set is never written.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


@dataclass(frozen=True)
class LineData:
    """The points of Exercise 1, which lie on y = 1 - x.

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
    """Read a data set, and download it if necessary.

    Args:
        name: ``mnist`` or ``fashion_mnist``.
        data_dir: See ``find_or_download``.

    Raises:
        UnknownNameError: no such data set.
        DataUnavailableError: the files are damaged, or neither found nor downloadable.
    """
    return ImageData.from_arrays(read_arrays(name, data_dir))
