import numpy as np
import pytest
import torch

from tune_hpc.learning.data import ImageData


@pytest.fixture(autouse=True)
def _one_thread():
    """One core a test: sums do not depend on the machine, and small tensors are not spread over idle threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def images():
    """600, 100 and 100 made-up images of ten classes: faint noise, and a bright square whose place is the class."""
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
