"""Synthetic data set."""

import numpy as np

from tune_hpc.learning.data import ImageData


def synthetic_images() -> ImageData:
    """Return 600, 100 and 100 images of ten classes: faint noise, and a bright square at the position of the class."""
    rng = np.random.default_rng(0)
    arrays = {"name": np.array("mnist")}
    for split, number in (("train", 600), ("valid", 100), ("test", 100)):
        labels = rng.integers(0, 10, number)
        pixels = rng.integers(0, 64, (number, 1, 28, 28), dtype=np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            row, column = divmod(int(label), 4)
            image[0, 8 * row + 2 : 8 * row + 7, 7 * column + 1 : 7 * column + 6] = 255
        arrays |= {f"{split}_images": pixels, f"{split}_labels": labels}
    return ImageData.from_arrays(arrays)
