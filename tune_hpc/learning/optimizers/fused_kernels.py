"""Optimizers on torch's fused kernels: Momentum, Nesterov, Adagrad and Adam.

They call the kernels directly, because torch's classes differ from TensorFlow in their slots or corrections.
"""

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tune_hpc.learning.optimizers.base import Group, Rate, Slots, TensorFlowOptimizer, Tensors, gradients_of


class Momentum(TensorFlowOptimizer):
    """Gradient descent with momentum or Nesterov momentum.

    ``torch.optim.SGD(fused=True)`` runs the same kernel. But it fails if a parameter gets its first gradient later than
    others of its group, and it rejects Nesterov momentum of 0.
    """

    names = ("momentum", "nesterov")

    @classmethod
    def initial_slots(cls, group: Group) -> dict[str, float]:
        """Return the decaying sum of gradients, if the momentum is not 0."""
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    @classmethod
    def update(cls, group: Group, parameters: Tensors, gradients: Tensors, slots: Slots, lr: Rate) -> None:
        """Update parameters and slots; see the base class."""
        torch._fused_sgd_(
            parameters,
            gradients,
            slots.get("momentum_buffer", []),
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=lr,
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
            is_first_step=False,
        )


@functools.cache
def _step_number(value: float, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=torch.float32, device=device)


class Adagrad(TensorFlowOptimizer):
    """Adagrad (Duchi et al., 2011) without epsilon."""

    names = ("adagrad",)
    positive = ("initial_accumulator",)

    @classmethod
    def initial_slots(cls, group: Group) -> dict[str, float]:
        """Return the sum of squared gradients."""
        return {"accumulator": group["initial_accumulator"]}

    @classmethod
    def update(cls, group: Group, parameters: Tensors, gradients: Tensors, slots: Slots, lr: Rate) -> None:
        """Update parameters and slots; see the base class."""
        torch._fused_adagrad_(
            parameters,
            gradients,
            slots["accumulator"],
            # The kernel uses the step number only to decay the learning rate.
            [_step_number(1.0, parameters[0].device)] * len(parameters),
            lr=lr,
            lr_decay=0.0,
            weight_decay=0.0,
            eps=0.0,
            maximize=False,
        )


class Adam(TensorFlowOptimizer):
    """Adam (Kingma and Ba, 2015); epsilon is added to the uncorrected root of the second moment, unlike in torch."""

    names = ("adam",)
    default_lr = 1e-3

    @classmethod
    def initial_slots(cls, group: Group) -> dict[str, float]:
        """Return the two moments."""
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    @classmethod
    def effective_rate(cls, group: Group, lr: Any, step: Any) -> Any:
        """Return the learning rate with both bias corrections, as in TensorFlow."""
        beta1, beta2 = group["betas"]
        return lr * np.sqrt(1 - beta2**step) / (1 - beta1**step)

    @classmethod
    def update(cls, group: Group, parameters: Tensors, gradients: Tensors, slots: Slots, lr: Rate) -> None:
        """Update parameters and slots; see the base class."""
        # The learning rate includes the bias corrections. A step number of infinity disables those of torch's kernel,
        # because its 1 - beta**step is exactly 1.
        beta1, beta2 = group["betas"]
        torch._fused_adam_(
            parameters,
            gradients,
            slots["exp_avg"],
            slots["exp_avg_sq"],
            [],
            [_step_number(math.inf, parameters[0].device)] * len(parameters),
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _update_all(self, group: Group, parameters: Tensors) -> None:
        # The step numbers stay on the host, which avoids synchronization with a GPU.
        for step, members in self._by_step(parameters).items():
            lr = float(self.effective_rate(group, float(group["lr"]), step))
            self.update(group, members, gradients_of(members), self._slots(group, members), lr)

    def _by_step(self, parameters: Tensors) -> dict[float, list[Tensor]]:
        """Increment the step numbers and group the parameters by them."""
        members: dict[float, list[Tensor]] = {}
        for parameter in parameters:
            state = self.state[parameter]
            if "step" not in state:
                state["step"] = torch.tensor(0.0, dtype=torch.float32)
            state["step"] += 1
            members.setdefault(state["step"].item(), []).append(parameter)
        return members
