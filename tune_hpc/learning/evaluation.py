"""Evaluation on the validation and test images, which takes most of the time of a trial with a small model.

A linear model skips the pixels that are black in all images of a forward pass. They are 27 % of the pixels of all
images, and 46 % of those of 250 images of one class and similar width.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import lru_cache, reduce

import numpy as np
import torch
from torch.nn import functional

from tune_hpc.learning.data import ImageData
from tune_hpc.learning.models import Model

#: Numbers in the largest layer of a forward pass: few enough for the caches of a CPU, and enough to fill a GPU. Minimum
#: and maximum number of images.
FORWARD_SIZES = {"cpu": (6_300_000, 25, 1000), "cuda": (250_000_000, 50, 10_000)}
#: The same if black pixels are skipped: smaller parts have more of them.
SKIPPING_SIZES = {"cpu": (90_000, 200, 1000), "cuda": (250_000_000, 1000, 10_000)}

#: Pixels of one forward pass, (N, 1, 28, 28), or (N, L) with the L pixels that are lit in any image; labels, (N,);
#: indices of the L pixels, (L,), or ``None``.
Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def evaluate(
    model: Model,
    images: ImageData,
    num_images: Mapping[str, int],
    dtype: torch.dtype,
    products: Callable[[], AbstractContextManager[None]],
    num_threads: int = 1,
) -> tuple[dict[str, list[float]], np.ndarray]:
    """Return loss and accuracy on splits of the data, and the predicted classes of the test images.

    The metrics, like ``valid_loss``, have a number for each member. The predicted classes, (M, N), are uint8.

    Args:
        model: Stack of M models.
        images: Data set on the device of the model.
        num_images: Number of images of each split (``valid``, ``test``, or ``fit``, the training images), from its
            start; ``test`` is required.
        dtype: Type of the pixels and of the losses.
        products: Makes the context of the forward passes.
        num_threads: Number of forward passes at a time; the metrics do not depend on it.
    """
    num_members = len(next(model.parameters()))
    size = _part_size(model, num_members, images.valid_labels.device.type)
    with torch.inference_mode():
        frozen = model.frozen()

    @torch.inference_mode()
    def measure(part: Part) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the sum of the losses, the number of correct predictions and the predictions of each member."""
        pixels, labels, lit = part
        # The conversion of bytes to floats part by part is faster than a read of floats from memory.
        with products():
            logits = frozen(as_input(pixels, dtype), lit)
        logits = logits.to(dtype)
        targets = labels.expand(num_members, -1).contiguous()
        losses = functional.cross_entropy(logits, targets, reduction="none").sum(1)
        # argmax is faster over ten adjacent numbers.
        classes = logits.transpose(1, 2).contiguous().argmax(2)
        return losses.double(), (classes == targets).sum(1), classes.to(torch.uint8)

    metrics, predictions = {}, np.empty(0, np.uint8)
    with ThreadPoolExecutor(num_threads) as pool:
        for split, number in num_images.items():
            parts, positions = _parts(images, split, number, size, model.skips_zero_pixels)
            measured = pool.map(measure, parts) if num_threads > 1 else map(measure, parts)
            *sums, classes = zip(*measured, strict=True)
            losses, correct = (reduce(torch.add, part_sums) for part_sums in sums)
            num_seen = sum(len(labels) for _, labels, _ in parts)
            metrics[f"{split}_loss"] = losses / num_seen
            metrics[f"{split}_accuracy"] = correct.double() / num_seen
            if split == "test":
                predictions = torch.cat(classes, 1).cpu().numpy()[:, positions]
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True)), predictions


def as_input(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert bytes to fractions of full brightness."""
    return pixels.to(dtype).div_(255)


def _part_size(model: Model, num_members: int, device: str) -> int:
    numbers, low, high = (SKIPPING_SIZES if model.skips_zero_pixels else FORWARD_SIZES)[device]
    return min(high, max(low, numbers // (num_members * model.num_activations)))


@lru_cache(maxsize=6)
def _parts(
    images: ImageData, split: str, num_images: int, size: int, skips_zero_pixels: bool
) -> tuple[list[Part], np.ndarray]:
    """Return the first images of a split in parts, and the position of each image in them.

    If black pixels are skipped, a part has similar images.
    """
    parts: list[Part]
    name = "train" if split == "fit" else split
    pixels, labels = (getattr(images, f"{name}_{kind}")[:num_images] for kind in ("images", "labels"))
    if not skips_zero_pixels:
        parts = [(*part, None) for part in zip(pixels.split(size), labels.split(size), strict=True)]
        return parts, np.arange(len(labels))
    is_lit_column = pixels.flatten(0, 1).amax(1) > 0
    width = is_lit_column.sum(1)
    order = (labels * (width.max() + 1) + width).argsort(stable=True)
    parts = []
    for indices in order.split(size):
        flat = pixels[indices].flatten(1)
        lit = flat.amax(0).nonzero()[:, 0]
        parts.append((flat[:, lit].contiguous(), labels[indices], lit))
    return parts, order.argsort().cpu().numpy()
