"""Base class of the optimizers: checks of hyperparameters, iteration over parameter groups, and slots."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning.config import OPTIMIZER_DEFAULTS, TRIAL_KEYS, ConfigKey

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]
Group = dict[str, Any]
Tensors = list[Tensor]
#: Learning rate: a number, or a column with a number for each member of a stack.
Rate = float | Tensor
#: Slot tensors of each parameter, by slot name.
Slots = dict[str, Tensors]


#: Values of hyperparameters by torch's names, where these differ from the keys of a trial.
_TORCH_KEYS = {
    "lr": replace(TRIAL_KEYS["learning_rate"], name="lr", low_open=False),
    "betas": replace(TRIAL_KEYS["beta1"], name="betas"),
    "eps": replace(TRIAL_KEYS["epsilon"], name="eps"),
    "nesterov": ConfigKey("nesterov", bool, "Nesterov momentum"),
}


def with_torch_names(name: str, hyperparameters: Mapping[str, Any]) -> Group:
    """Return the hyperparameters of the optimizer ``name`` by torch's names."""
    group = dict(hyperparameters)
    if "beta1" in group:
        group["betas"] = group.pop("beta1"), group.pop("beta2")
    if "epsilon" in group:
        group["eps"] = group.pop("epsilon")
    if name in ("momentum", "nesterov"):
        group["nesterov"] = name == "nesterov"
    return group


class TensorFlowOptimizer(torch.optim.Optimizer, ABC):
    """Optimizer whose subclasses define the update of parameters of one group, device and dtype.

    The update rule consists of class methods without state. So it serves a torch optimizer (an instance and its
    ``step``) and a stack of models (``stacked.py``), whose tensors have a leading axis of members.

    Args:
        parameters: Tensors, or torch's parameter groups.
        lr: Learning rate; by default ``default_lr``.
        **hyperparameters: Hyperparameters by torch's names; by default TensorFlow's values.

    Attributes:
        names: Names in ``OPTIMIZER_DEFAULTS``; the defaults of an instance are those of the first one.
        default_lr: Default learning rate of an instance.
        positive: Hyperparameters that must be above 0, because the update divides by them.
        supports_rate_columns: Whether ``update`` broadcasts a column of learning rates over the axis of members.

    Raises:
        InvalidConfigError: a value out of bounds.
    """

    names: tuple[str, ...]
    default_lr = 1e-2
    positive: tuple[str, ...] = ()
    supports_rate_columns = False

    def __init__(self, parameters: Parameters, lr: float | None = None, **hyperparameters: Any) -> None:
        group = {"lr": self.default_lr} | with_torch_names(self.names[0], OPTIMIZER_DEFAULTS[self.names[0]])
        if unknown := hyperparameters.keys() - group.keys():
            raise TypeError(f"{type(self).__name__} has no hyperparameter {', '.join(sorted(unknown))}")
        group |= hyperparameters | ({} if lr is None else {"lr": lr})
        self.check(group)
        super().__init__(parameters, group)

    @classmethod
    def check(cls, group: Group) -> None:
        """Check the values of hyperparameters."""
        for name, value in group.items():
            key = _TORCH_KEYS.get(name) or TRIAL_KEYS[name]
            for number in value if isinstance(value, tuple) else (value,):
                key.check(number)
            if name in cls.positive and not value:
                raise InvalidConfigError(f"{name} must be above 0 for {cls.names[0]}; got {value!r}")

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
