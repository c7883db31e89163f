"""What the ported optimizers have in common: the walk over parameter groups, the slots, the checks of values."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]
Group = dict[str, Any]


class TensorFlowOptimizer(torch.optim.Optimizer):
    """Walks over the groups; a subclass says how the parameters of one group, device and dtype change."""

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
                self._update(group, parameters)
        return loss

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        """Change parameters, all of one device and dtype and each with a gradient, and their slots in place."""
        raise NotImplementedError

    def _slot(self, parameters: list[Tensor], name: str, initial: float = 0.0) -> list[Tensor]:
        """Return the parameters' state of that name, made on first use."""
        for parameter in parameters:
            state = self.state[parameter]
            if name not in state:
                state[name] = torch.full_like(parameter, initial, memory_format=torch.preserve_format)
        return [self.state[parameter][name] for parameter in parameters]


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
