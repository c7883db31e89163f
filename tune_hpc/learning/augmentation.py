"""Random affine augmentation of training images on their device: shifts, rotations and scalings.

Each use of an image has new random parameters. An augmented batch is a pure function of the random numbers of the
task's generators, so a CUDA graph can capture it.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from tune_hpc.learning.config import IMAGE_SIDE

#: Random numbers for each image: shift to the right, shift down, rotation and scaling.
NUMBERS_PER_IMAGE = 4


class RandomAffine:
    """Random shift, rotation and scaling of images within bounds; pixels from outside the image are black.

    Args:
        config: ``max_shift`` (pixels), ``max_rotation`` (degrees) and ``max_scaling`` (fraction of the size).
        dtype: Type of the images.
        device: Device of the images.
    """

    def __init__(self, config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> None:
        # The unit of grid_sample is half a side.
        shift = 2 * config["max_shift"] / IMAGE_SIDE
        bounds = [shift, shift, math.radians(config["max_rotation"]), config["max_scaling"]]
        self._bounds = torch.tensor(bounds, dtype=torch.float32, device=device)[:, None]
        centres = (2 * torch.arange(IMAGE_SIDE, dtype=dtype, device=device) + 1) / IMAGE_SIDE - 1
        down, right = torch.meshgrid(centres, centres, indexing="ij")
        self._positions = torch.stack([right.flatten(), down.flatten()])
        self._dtype = dtype

    @staticmethod
    def has_augmentation(config: Mapping[str, Any]) -> bool:
        """Return whether a configuration has any augmentation."""
        return any(config[name] for name in ("max_shift", "max_rotation", "max_scaling"))

    def __call__(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return augmented images, (S, N, 1, 28, 28).

        Args:
            images: (S, N, 1, 28, 28).
            noise: (S, 4, N) in [0, 1): positions of shift right, shift down, clockwise rotation and scaling between
                their bounds.
        """
        parameters = ((2 * noise - 1) * self._bounds).to(self._dtype).transpose(0, 1).flatten(1)
        right, down, angle, growth = parameters
        # grid_sample takes the source of each output pixel, which is the inverse transformation.
        cosine, sine = angle.cos() / (1 + growth), angle.sin() / (1 + growth)
        rotation = torch.stack([torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)], 1)
        positions = self._positions - torch.stack([right, down], 1)[:, :, None]
        sources = (rotation @ positions).transpose(1, 2).unflatten(1, (IMAGE_SIDE, IMAGE_SIDE))
        moved = functional.grid_sample(images.flatten(0, 1), sources, align_corners=False)
        return moved.unflatten(0, images.shape[:2])
