"""Loss and accuracy on images that are not trained on: for small models most of what a trial costs.

Images go through a stack of models in parts, each as large as the caches bear. Where a model is a plain product of its
pixels, those that are black in a whole part are left out of it: of all images 27 % are, of 250 images of one class and
about one width 46 %.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional

from tune_hpc.learning.data import ImageData
from tune_hpc.learning.models import Model

#: Numbers that a layer of a forward pass may hold: on a CPU few enough for the caches, on a GPU enough to fill it.
EVALUATION_NUMBERS = {"cpu": 6_300_000, "cuda": 250_000_000}
#: The fewest and the most images of a forward pass.
EVALUATION_IMAGES = {"cpu": (25, 1000), "cuda": (50, 10_000)}
#: The same where black pixels are left out: fewer images have more of them in common.
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
    """Return each member's mean cross-entropy and accuracy on the validation and the test images.

    Args:
        model: A stack of models.
        images: The data, on the device of the model.
        num_images: How many images of each split are used, from its start.
        dtype: The type of the pixels and of what comes of the logits.
        products: Opens the context in which the forward passes are made.

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
        seen = 0
        # Bytes become floats a part at a time: reading floats from memory takes longer than making them.
        for part in _parts(images, split, num_images, size, model.skips_zero_pixels):
            with products():
                logits = frozen(as_input(part.pixels, dtype), part.lit)
            logits = logits.to(dtype)
            truth = part.labels.expand(num_members, -1).contiguous()
            loss += functional.cross_entropy(logits, truth, reduction="none").sum(1)
            # Ten numbers side by side are compared faster than ten that are far apart.
            correct += (logits.transpose(1, 2).contiguous().argmax(2) == truth).sum(1)
            seen += len(part.labels)
        metrics[f"{split}_loss"] = loss / seen
        metrics[f"{split}_accuracy"] = correct.double() / seen
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))


def as_input(pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return bytes as fractions of full brightness."""
    return pixels.to(dtype).div_(255)


def _part_size(model: Model, num_members: int, device: str) -> int:
    numbers, images = (
        (SKIPPING_NUMBERS, SKIPPING_IMAGES) if model.skips_zero_pixels else (EVALUATION_NUMBERS, EVALUATION_IMAGES)
    )
    low, high = images[device]
    return min(high, max(low, numbers[device] // (num_members * model.num_activations)))


@dataclass(frozen=True)
class _Part:
    """Some images of an evaluation.

    Attributes:
        pixels: (N, 1, 28, 28) uint8, or (N, L) where only L of the pixels are lit in any of them.
        labels: (N,).
        lit: Which pixels these are, (L,); ``None``: all are there.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    lit: torch.Tensor | None


@lru_cache(maxsize=4)
def _parts(images: ImageData, split: str, num_images: int, size: int, skips_zero_pixels: bool) -> list[_Part]:
    """Return the first images of a split in parts; alike ones together where black pixels are left out."""
    pixels, labels = (getattr(images, f"{split}_{what}")[:num_images] for what in ("images", "labels"))
    if not skips_zero_pixels:
        return [_Part(*part, None) for part in zip(pixels.split(size), labels.split(size), strict=True)]
    is_lit_column = pixels.flatten(0, 1).amax(1) > 0
    width = is_lit_column.sum(1)
    parts = []
    for chosen in (labels * (width.max() + 1) + width).argsort(stable=True).split(size):
        flat = pixels[chosen].flatten(1)
        lit = flat.amax(0).nonzero()[:, 0]
        parts.append(_Part(flat[:, lit].contiguous(), labels[chosen], lit))
    return parts
