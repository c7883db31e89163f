"""Uniform random numbers on the device for the members of a stack."""

from collections.abc import Sequence
from typing import Any

import torch


class SeededRng:
    """Random numbers from one generator for each distinct seed; members of one seed get the same numbers.

    The numbers are float32 in every precision, so that all precisions drop the same units and move the same images.

    Args:
        seeds: Seed of each member.
        device: Device of the numbers.
        stream: 0 or 1; the streams are independent.

    Attributes:
        generators: Generator of each distinct seed.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, stream: int = 0) -> None:
        distinct = list(dict.fromkeys(seeds))
        # torch's CPU generator takes a seed of 32 bits, and those of a configuration have 31.
        self.generators = [torch.Generator(device).manual_seed(seed + stream * 2**31) for seed in distinct]
        self._positions = member_positions(seeds, distinct, device)
        self._device = device

    def draw(self, *shape: int) -> torch.Tensor:
        """Return numbers in [0, 1) of shape (M, *shape), or (1, *shape) if all members have one seed."""
        noise = torch.stack(
            [torch.rand(shape, dtype=torch.float32, device=self._device, generator=one) for one in self.generators]
        )
        return noise if self._positions is None else noise[self._positions]

    def state_dict(self) -> list[torch.Tensor]:
        """Return the states of the generators."""
        return [generator.get_state() for generator in self.generators]

    def load_state_dict(self, state: Sequence[Any]) -> None:
        """Restore the states of ``state_dict``."""
        for generator, generator_state in zip(self.generators, state, strict=True):
            generator.set_state(generator_state)


def member_positions(values: Sequence[int], distinct: Sequence[int], device: torch.device) -> torch.Tensor | None:
    """Return the index of each value in ``distinct``; ``None`` if there is only one distinct value."""
    if len(distinct) == 1:
        return None
    return torch.tensor([distinct.index(value) for value in values], device=device)
