"""What the ported optimizers have in common: the walk over parameter groups, the slots, the checks of values.

Each subclass is its update rule, in class methods without state; so the same rule serves torch's way of using an
optimizer (an instance and its ``step``) and a stack of models that train as one program (optimizer_stack.py), where
parameters and gradients have a leading axis of members and the learning rate may be a column, a number for each.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]
Group = dict[str, Any]
#: By name, one tensor for each parameter.
Slots = dict[str, list[Tensor]]


class TensorFlowOptimizer(torch.optim.Optimizer, ABC):
    """Walks over the groups; a subclass says how the parameters of one group, device and dtype change.

    Attributes:
        supports_rate_columns: Whether ``update`` broadcasts a column of learning rates over its parameters' first axis.
    """

    supports_rate_columns = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Evaluates the model again and returns the loss.

        Returns:
            What ``closure`` returned, else None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
            for parameters in alike.values():
                self._update_all(group, parameters)
        return loss

    @classmethod
    def initial_slots(cls, group: Group) -> dict[str, float]:
        """Return the slots that each parameter has, with their first values."""
        return {}

    @classmethod
    def effective_rate(cls, group: Group, lr: Any, step: Any) -> Any:
        """Return the learning rate that ``update`` wants at a step, counted from 1; numbers or arrays."""
        return lr

    @classmethod
    @abstractmethod
    def update(
        cls, group: Group, parameters: list[Tensor], gradients: list[Tensor], slots: Slots, lr: float | Tensor
    ) -> None:
        """Change parameters and slots in place.

        Args:
            group: The hyperparameters; its ``lr`` and ``params`` are not looked at.
            parameters: Of one device and dtype.
            gradients: One for each parameter, laid out in memory like it.
            slots: Those of ``initial_slots``.
            lr: What ``effective_rate`` gave; a column (members, 1) only where the optimizer takes them, and then all
                tensors are (members, numbers).
        """

    def _update_all(self, group: Group, parameters: list[Tensor]) -> None:
        slots = self._slots(group, parameters)
        self.update(group, parameters, gradients_of(parameters), slots, float(group["lr"]))

    def _slots(self, group: Group, parameters: list[Tensor]) -> Slots:
        """Return the parameters' slots, made on first use."""
        initial = self.initial_slots(group)
        for parameter in parameters:
            state = self.state[parameter]
            for name, value in initial.items():
                if name not in state:
                    state[name] = torch.full_like(parameter, value, memory_format=torch.preserve_format)
        return {name: [self.state[parameter][name] for parameter in parameters] for name in initial}


def gradients_of(parameters: list[Tensor]) -> list[Tensor]:
    """Return the gradients, each laid out in memory as its parameter."""
    gradients = []
    for parameter in parameters:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.stride() != parameter.stride():
            # Autograd never gives such a one, a hand-written gradient may: torch's fused CPU kernels would silently
            # pair its numbers with the wrong parameters.
            gradient = torch.empty_like(parameter).copy_(gradient)
        gradients.append(gradient)
    return gradients


def require(holds: bool, rule: str, value: object) -> None:
    """Refuse a value as torch's own optimizers do.

    Raises:
        ValueError: the rule does not hold.
    """
    if not holds:
        raise ValueError(f"{rule}; got {value!r}")
