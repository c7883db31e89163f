"""Base class of the optimizers: iteration over parameter groups, slots, and checks of hyperparameters.

Each subclass defines its update rule in class methods without state. So one rule serves a torch optimizer (an instance
and its ``step``) and a stack of models (``stacked.py``). In a stack, parameters and gradients have a leading axis of
members, and the learning rate may be a column with a number for each member.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]
Group = dict[str, Any]
Tensors = list[Tensor]
#: Learning rate: a number, or a column with a number for each member of a stack.
Rate = float | Tensor
#: Slot tensors of each parameter, by slot name.
Slots = dict[str, Tensors]


class TensorFlowOptimizer(torch.optim.Optimizer, ABC):
    """Optimizer whose subclasses define the update of parameters of one group, device and dtype.

    Attributes:
        supports_rate_columns: Whether ``update`` broadcasts a column of learning rates over the axis of members.
    """

    supports_rate_columns = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; see ``torch.optim.Optimizer.step``."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            batches: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    batches.setdefault((parameter.device, parameter.dtype), []).append(parameter)
            for parameters in batches.values():
                self._update_all(group, parameters)
        return loss

    @classmethod
    def initial_slots(cls, group: Group) -> dict[str, float]:
        """Return the initial values of the slots of each parameter, by name."""
        return {}

    @classmethod
    def effective_rate(cls, group: Group, lr: Any, step: Any) -> Any:
        """Return the learning rate of ``update`` at a step, counted from 1; numbers or arrays."""
        return lr

    @classmethod
    @abstractmethod
    def update(cls, group: Group, parameters: Tensors, gradients: Tensors, slots: Slots, lr: Rate) -> None:
        """Update parameters and slots in place.

        Args:
            group: Hyperparameters; its ``lr`` and ``params`` are ignored.
            parameters: Parameters of one device and dtype.
            gradients: Gradient of each parameter, with the memory layout of the parameter.
            slots: Slots of ``initial_slots``.
            lr: Result of ``effective_rate``: a number, or with ``supports_rate_columns`` a column (members, 1) for
                tensors (members, numbers).
        """

    def _update_all(self, group: Group, parameters: Tensors) -> None:
        slots = self._slots(group, parameters)
        self.update(group, parameters, gradients_of(parameters), slots, float(group["lr"]))

    def _slots(self, group: Group, parameters: Tensors) -> Slots:
        """Return the slots of parameters; the first use creates them."""
        initial = self.initial_slots(group)
        for parameter in parameters:
            state = self.state[parameter]
            for name, value in initial.items():
                if name not in state:
                    state[name] = torch.full_like(parameter, value, memory_format=torch.preserve_format)
        return {name: [self.state[parameter][name] for parameter in parameters] for name in initial}


def gradients_of(parameters: Tensors) -> list[Tensor]:
    """Return the gradients of parameters, with the memory layout of the parameters."""
    gradients = []
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.stride() != parameter.stride():
            # Autograd keeps the layout, but users may set gradients. torch's fused CPU kernels would silently pair
            # numbers and parameters wrongly.
            gradient = torch.empty_like(parameter).copy_(gradient)
        gradients.append(gradient)
    return gradients


def require(holds: bool, rule: str, value: object) -> None:
    """Raise ``ValueError``, as torch's optimizers do, unless a rule about a value holds."""
    if not holds:
        raise ValueError(f"{rule}; got {value!r}")
