"""Image data sets in memory.

A data set is read-only: many processes may share its memory, and a write to it would crash the process.
"""

import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tune_hpc.learning.download import read_arrays


@dataclass(frozen=True)
class ImageData:
    """Original images, (N, 1, 28, 28) uint8, and labels, (N,) int64, of ``mnist`` or ``fashion_mnist``.

    Of the 60,000 training images the first 50,000 are for training and the last 10,000 for validation.
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
        # torch has no read-only tensors and warns. A data set is never written.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def load_images(name: str, data_dir: Path | None = None) -> ImageData:
    """Read ``mnist`` or ``fashion_mnist``, and download it if necessary; see ``find_or_download``."""
    return ImageData.from_arrays(read_arrays(name, data_dir))
