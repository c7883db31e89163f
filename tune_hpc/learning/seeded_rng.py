"""Uniform random numbers for the members of a stack, drawn on the device where they are needed."""

from collections.abc import Sequence
from typing import Any

import torch


class SeededRng:
    """Draws from one generator for each distinct seed: members of one seed get the same numbers.

    In float32 whatever the precision, so that the same units are dropped and the same images moved in each.

    Args:
        seeds: Each member's.
        device: Where to draw.
        stream: Numbers of different streams have nothing to do with each other: 0 or 1.

    Attributes:
        generators: One for each distinct seed.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, stream: int = 0) -> None:
        distinct = list(dict.fromkeys(seeds))
        # Of a seed torch's generator on a CPU takes 32 bits, and ours have 31.
        self.generators = [torch.Generator(device).manual_seed(seed + stream * 2**31) for seed in distinct]
        self._places = member_positions(seeds, distinct, device)
        self._device = device

    def draw(self, *shape: int) -> torch.Tensor:
        """Return numbers in [0, 1) of shape (M, *shape), or (1, *shape) where all members have one seed."""
        drawn = [torch.rand(shape, dtype=torch.float32, device=self._device, generator=one) for one in self.generators]
        noise = torch.stack(drawn)
        return noise if self._places is None else noise[self._places]

    def state_dict(self) -> list[torch.Tensor]:
        """Return all that the next numbers depend on."""
        return [generator.get_state() for generator in self.generators]

    def load_state_dict(self, state: Sequence[Any]) -> None:
        """Go on where ``state_dict`` was taken."""
        for generator, kept in zip(self.generators, state, strict=True):
            generator.set_state(kept)


def member_positions(values: Sequence[int], distinct: Sequence[int], device: torch.device) -> torch.Tensor | None:
    """Return where each value is among the distinct ones; ``None`` where there is but one."""
    if len(distinct) == 1:
        return None
    return torch.tensor([distinct.index(value) for value in values], device=device)
