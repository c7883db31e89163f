"""Evaluation on the validation and test images, which takes most of the time of a trial with a small model.

Images pass through a stack of models in parts that fit the caches. A linear model skips the pixels that are black in
all images of a part. They are 27 % of the pixels of all images, and 46 % of those of 250 images of one class and
similar width.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional

from tune_hpc.learning.data import ImageData
from tune_hpc.learning.models import Model

#: Numbers in the largest layer of a forward pass: few enough for the caches of a CPU, and enough to fill a GPU.
EVALUATION_NUMBERS = {"cpu": 6_300_000, "cuda": 250_000_000}
#: Minimum and maximum number of images in a forward pass.
EVALUATION_IMAGES = {"cpu": (25, 1000), "cuda": (50, 10_000)}
#: The same if black pixels are skipped: smaller parts have more of them.
SKIPPING_NUMBERS = {"cpu": 90_000, "cuda": 250_000_000}
SKIPPING_IMAGES = {"cpu": (200, 1000), "cuda": (1000, 10_000)}

SPLITS = ("valid", "test")


@torch.inference_mode()
def evaluate(
    model: Model,
    images: ImageData,
    num_images: int,
    dtype: torch.dtype,
    products: Callable[[], AbstractContextManager[None]],
) -> dict[str, list[float]]:
    """Return the mean cross-entropy and the accuracy of each member on the validation and test images.

    Args:
        model: Stack of M models.
        images: Data set on the device of the model.
        num_images: Number of images of each split, from its start.
        dtype: Type of the pixels and of the losses.
        products: Makes the context of the forward passes.

    Returns:
        ``valid_loss``, ``valid_accuracy``, ``test_loss`` and ``test_accuracy``, M numbers each.
    """
    device = images.valid_labels.device
    num_members = len(next(model.parameters()))
    size = _part_size(model, num_members, device.type)
    frozen = model.frozen()
    metrics = {}
    for split in SPLITS:
        loss = torch.zeros(num_members, dtype=torch.float64, device=device)
        correct = torch.zeros(num_members, dtype=torch.int64, device=device)
        num_seen = 0
        # The conversion of bytes to floats part by part is faster than a read of floats from memory.
        for part in _parts(images, split, num_images, size, model.skips_zero_pixels):
            with products():
                logits = frozen(as_input(part.pixels, dtype), part.lit)
            logits = logits.to(dtype)
            targets = part.labels.expand(num_members, -1).contiguous()
            loss += functional.cross_entropy(logits, targets, reduction="none").sum(1)
            # argmax is faster over ten adjacent numbers.
            correct += (logits.transpose(1, 2).contiguous().argmax(2) == targets).sum(1)
            num_seen += len(part.labels)
        metrics[f"{split}_loss"] = loss / num_seen
        metrics[f"{split}_accuracy"] = correct.double() / num_seen
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))


def as_input(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert bytes to fractions of full brightness."""
    return pixels.to(dtype).div_(255)


def _part_size(model: Model, num_members: int, device: str) -> int:
    numbers, images = (
        (SKIPPING_NUMBERS, SKIPPING_IMAGES) if model.skips_zero_pixels else (EVALUATION_NUMBERS, EVALUATION_IMAGES)
    )
    low, high = images[device]
    return min(high, max(low, numbers[device] // (num_members * model.num_activations)))


@dataclass(frozen=True)
class _Part:
    """Images of one forward pass.

    Attributes:
        pixels: (N, 1, 28, 28) uint8, or (N, L) with the L pixels that are lit in any image.
        labels: (N,).
        lit: Indices of these pixels, (L,); ``None``: all pixels are present.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    lit: torch.Tensor | None


@lru_cache(maxsize=4)
def _parts(images: ImageData, split: str, num_images: int, size: int, skips_zero_pixels: bool) -> list[_Part]:
    """Return the first images of a split in parts; if black pixels are skipped, a part has similar images."""
    pixels, labels = (getattr(images, f"{split}_{kind}")[:num_images] for kind in ("images", "labels"))
    if not skips_zero_pixels:
        return [_Part(*part, None) for part in zip(pixels.split(size), labels.split(size), strict=True)]
    is_lit_column = pixels.flatten(0, 1).amax(1) > 0
    width = is_lit_column.sum(1)
    parts = []
    for indices in (labels * (width.max() + 1) + width).argsort(stable=True).split(size):
        flat = pixels[indices].flatten(1)
        lit = flat.amax(0).nonzero()[:, 0]
        parts.append(_Part(flat[:, lit].contiguous(), labels[indices], lit))
    return parts
