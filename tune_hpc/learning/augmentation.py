"""Random shifts, rotations and scalings of training images, on the device where they are.

Every image of every batch is drawn anew, from numbers that the task's generators give; so a distorted batch is a pure
function of those numbers, and a step that distorts can be recorded and replayed like any other.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from tune_hpc.learning.config import IMAGE_SIDE

#: Uniform numbers that one image takes: for its shift to the right and down, its rotation and its scaling.
NUMBERS_PER_IMAGE = 4


class RandomAffine:
    """Shifts, rotates and scales images within bounds; what moves in from outside is black.

    Args:
        config: ``max_shift`` (pixels), ``max_rotation`` (degrees) and ``max_scaling`` (part of the size) are read.
        dtype: Of the images.
        device: Where they are.
    """

    def __init__(self, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> None:
        # In grid_sample's unit half a side is 1.
        shift = 2 * config["max_shift"] / IMAGE_SIDE
        bounds = [shift, shift, math.radians(config["max_rotation"]), config["max_scaling"]]
        self.bounds = torch.tensor(bounds, dtype=torch.float32, device=device)[:, None]
        centres = (2 * torch.arange(IMAGE_SIDE, dtype=dtype, device=device) + 1) / IMAGE_SIDE - 1
        down, right = torch.meshgrid(centres, centres, indexing="ij")
        self.places = torch.stack([right.flatten(), down.flatten()])
        self.dtype = dtype

    @staticmethod
    def has_augmentation(config: Mapping[str, Any]) -> bool:
        """Whether a configuration asks for any."""
        return any(config[name] for name in ("max_shift", "max_rotation", "max_scaling"))

    def __call__(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return distorted images.

        Args:
            images: (S, N, 1, 28, 28).
            noise: (S, 4, N) in [0, 1): where between its bounds each image's shift right, shift down, rotation
                (clockwise) and growth are.

        Returns:
            (S, N, 1, 28, 28).
        """
        drawn = ((2 * noise - 1) * self.bounds).to(self.dtype).transpose(0, 1).flatten(1)
        right, down, angle, growth = drawn
        # grid_sample wants to know where each pixel comes from: shifted back, turned back, shrunk.
        cosine, sine = angle.cos() / (1 + growth), angle.sin() / (1 + growth)
        turn = torch.stack([torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)], 1)
        places = self.places - torch.stack([right, down], 1)[:, :, None]
        sources = (turn @ places).transpose(1, 2).unflatten(1, (IMAGE_SIDE, IMAGE_SIDE))
        moved = functional.grid_sample(images.flatten(0, 1), sources, align_corners=False)
        return moved.unflatten(0, images.shape[:2])
