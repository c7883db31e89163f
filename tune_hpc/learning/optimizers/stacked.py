"""Optimizers and learning rates of a stack: each optimizer updates a slice of every stacked parameter.

Members with one optimizer and the same hyperparameters, apart from the learning rate, are adjacent and are updated
together. A single model is one slice with one member.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tune_hpc.learning.config import OPTIMIZER_DEFAULTS
from tune_hpc.learning.optimizers import update_rule

#: Of the one_cycle schedule: peak divided by the initial rate, and initial rate divided by the final one.
ONE_CYCLE_START = 25.0
ONE_CYCLE_END = 1e4

#: Learning rates by step, by step and member, or as a tensor with steps as first axis.
Rates = list[float] | list[list[float]] | Tensor


def stack_order(configs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the order of the members in a stack: those with one optimizer are adjacent, else the order is stable."""
    firsts: dict[str, int] = {}
    for position, config in enumerate(configs):
        firsts.setdefault(_rule(config), position)
    return sorted(range(len(configs)), key=lambda position: firsts[_rule(configs[position])])


class OptimizerStack:
    """Optimizers of all members of a stack.

    Args:
        configs: Completed configurations in ``stack_order``.
        parameters: Stacked parameters, (M, ...).
        rates_on_device: Whether learning rates are tensors, for captured steps.
    """

    def __init__(
        self, configs: Sequence[Mapping[str, Any]], parameters: Sequence[Tensor], rates_on_device: bool = False
    ) -> None:
        self.parameters = list(parameters)
        self._slices: list[_Slice] = []
        start = 0
        for _, group in groupby(configs, key=_rule):
            members = list(group)
            self._slices.append(_Slice(members, start, self.parameters, rates_on_device))
            start += len(members)

    def rates(self, steps: np.ndarray, epochs: np.ndarray, num_steps: int) -> list[Rates]:
        """Return the learning rates of each slice for steps; see ``learning_rates``."""
        return [part.rates(steps, epochs, num_steps) for part in self._slices]

    @torch.no_grad()
    def step(self, rates: Sequence[Any]) -> None:
        """Update all parameters with the learning rates of each slice."""
        gradients: list[Tensor] = [parameter.grad for parameter in self.parameters]  # type: ignore[misc]
        for part, rate in zip(self._slices, rates, strict=True):
            part.update(gradients, rate)

    def state_dict(self) -> dict[str, Any]:
        """Return the slots."""
        return {"slots": [part.slots for part in self._slices]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of ``state_dict``."""
        for part, slots in zip(self._slices, state["slots"], strict=True):
            for name, tensors in part.slots.items():
                # A state of momentum 0 lacks the slot of the momentum, which keeps its initial value.
                for tensor, saved in zip(tensors, slots.get(name, tensors), strict=True):
                    tensor.copy_(saved)


class _Slice:
    """Members with one update rule; all tensors are (members, numbers)."""

    def __init__(
        self, configs: list[Mapping[str, Any]], start: int, parameters: Sequence[Tensor], rates_on_device: bool
    ) -> None:
        self.configs = configs
        self.span = slice(start, start + len(configs))
        self.covers_stack = len(configs) == len(parameters[0])
        self.parameters = [parameter.detach()[self.span].flatten(1) for parameter in parameters]
        # The class suffices; an instance would import parts of torch's compiler, which takes seconds.
        self.rule, self.group = update_rule(configs[0]["optimizer"], **_hyperparameters(configs[0]))
        self.slots = {
            name: [torch.full_like(parameter, value) for parameter in self.parameters]
            for name, value in self.rule.initial_slots(self.group).items()
        }
        # Several members are updated in the same way for equal and different rates. Otherwise a change of one rate
        # would change the rounding of the other members' updates.
        self.is_single = len(configs) == 1
        self.rates_on_device = rates_on_device
        if not self.is_single and not self.rule.supports_rate_columns:
            members = range(len(configs))
            self.member_parameters = [[one[member : member + 1] for one in self.parameters] for member in members]
            self.member_slots = [
                {name: [one[member : member + 1] for one in tensors] for name, tensors in self.slots.items()}
                for member in members
            ]

    def rates(self, steps: np.ndarray, epochs: np.ndarray, num_steps: int) -> Rates:
        rates = np.stack([learning_rates(config, steps, epochs, num_steps) for config in self.configs], axis=1)
        rates = self.rule.effective_rate(self.group, rates, (steps[:, None] + 1).astype(np.float64))
        # torch would reject a rate beyond the range of float32 for all members; the maximum diverges as well.
        rates = np.minimum(rates, torch.finfo(self.parameters[0].dtype).max)
        if self.is_single:
            rates = rates[:, 0]
        elif self.rule.supports_rate_columns:
            rates = rates[:, :, None]
        if self.rates_on_device or rates.ndim == 3:
            first = self.parameters[0]
            # CUDA's fused kernels require a learning rate in float32.
            is_short = first.device.type == "cuda" and not self.rule.supports_rate_columns
            return torch.from_numpy(rates).to(first.device, torch.float32 if is_short else first.dtype)
        listed: list[float] | list[list[float]] = rates.tolist()
        return listed

    def update(self, gradients: Sequence[Tensor], rate: Any) -> None:
        if not self.covers_stack:
            gradients = [gradient[self.span] for gradient in gradients]
        gradients = [gradient.flatten(1) for gradient in gradients]
        if self.is_single or self.rule.supports_rate_columns:
            self.rule.update(self.group, self.parameters, gradients, self.slots, rate)
            return
        for member, (parameters, slots) in enumerate(zip(self.member_parameters, self.member_slots, strict=True)):
            member_gradients = [gradient[member : member + 1] for gradient in gradients]
            self.rule.update(self.group, parameters, member_gradients, slots, rate[member])


def _hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in OPTIMIZER_DEFAULTS[config["optimizer"]]}


def _rule(config: Mapping[str, Any]) -> str:
    """Return a string that is equal for members with one update rule."""
    return json.dumps([config["optimizer"], _hyperparameters(config)])


def learning_rates(config: Mapping[str, Any], steps: np.ndarray, epochs: np.ndarray, num_steps: int) -> np.ndarray:
    """Return the learning rates of steps by the schedule of a configuration, as float64.

    The rate of ``staircase`` decreases by ``decay_rate`` after each pass over the training data (report, Tables 4.3 to
    4.6). That of ``cosine`` decreases to 0 along half a cosine (Loshchilov and Hutter, 2017). ``one_cycle`` is torch's
    ``OneCycleLR`` with its defaults, without its momentum cycle: up to the rate in the first steps, then down to nearly
    0, both along half a cosine (Smith and Topin, 2018).

    Args:
        config: ``learning_rate``, ``schedule`` and the keys of the schedule.
        steps: Numbers of the steps, from 0.
        epochs: Number of complete passes over the training data before each step.
        num_steps: Number of steps of the training.
    """
    peak: float = config["learning_rate"]
    if config["schedule"] == "staircase":
        return peak * config["decay_rate"] ** epochs.astype(np.float64)
    if config["schedule"] == "cosine":
        return _between(peak, 0.0, steps / num_steps)
    start = peak / ONE_CYCLE_START
    # Step of the peak and last step; in a run of one or two steps both are 0 or 1.
    top, last = max(config["warmup"] * num_steps - 1, 0), max(num_steps - 1, 1)
    rising = _between(start, peak, steps / max(top, 1e-9))
    falling = _between(peak, start / ONE_CYCLE_END, (steps - top) / max(last - top, 1e-9))
    return np.where(steps <= top, rising, falling)


def _between(first: float, last: float, fraction: np.ndarray) -> np.ndarray:
    """Interpolate between two rates along half a cosine."""
    return last + (first - last) * (1 + np.cos(np.pi * np.clip(fraction, 0, 1))) / 2
