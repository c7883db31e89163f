"""The optimizers whose arithmetic torch's fused kernels share: Momentum and Nesterov, Adagrad, Adam.

Each calls the kernel itself, because torch's class around it differs from TensorFlow in its slots or corrections.
"""

import functools
import math

import torch
from torch import Tensor

from tune_hpc.learning.optimizer_base import Group, Parameters, TensorFlowOptimizer, gradients_of, require


class Momentum(TensorFlowOptimizer):
    """Gradient descent along a decaying sum of gradients, by torch's fused kernel.

    ``torch.optim.SGD(fused=True)`` runs the same kernel but fails when a parameter gets its first gradient later than
    others of its group, and it refuses Nesterov's variant where the momentum is 0.
    """

    def __init__(self, parameters: Parameters, lr: float = 1e-2, momentum: float = 0.9, nesterov: bool = False) -> None:
        require(lr >= 0, "lr must be at least 0", lr)
        require(momentum >= 0, "momentum must be at least 0", momentum)
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "nesterov": nesterov})

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        torch._fused_sgd_(
            parameters,
            gradients_of(parameters),
            self._slot(parameters, "momentum_buffer") if group["momentum"] else [],
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=float(group["lr"]),
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
            is_first_step=False,
        )


@functools.cache
def _step_number(value: float, device: torch.device) -> Tensor:
    return torch.full((), value, dtype=torch.float32, device=device)


class Adagrad(TensorFlowOptimizer):
    """Gradients over the root of the sum of their squares, without epsilon, by torch's fused kernel."""

    def __init__(self, parameters: Parameters, lr: float = 1e-2, initial_accumulator: float = 0.1) -> None:
        require(lr >= 0, "lr must be at least 0", lr)
        require(initial_accumulator > 0, "initial_accumulator must be above 0", initial_accumulator)
        super().__init__(parameters, {"lr": lr, "initial_accumulator": initial_accumulator})

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        torch._fused_adagrad_(
            parameters,
            gradients_of(parameters),
            self._slot(parameters, "accumulator", group["initial_accumulator"]),
            # Only a decaying learning rate would need to know which step this is.
            [_step_number(1.0, parameters[0].device)] * len(parameters),
            lr=float(group["lr"]),
            lr_decay=0.0,
            weight_decay=0.0,
            eps=0.0,
            maximize=False,
        )


class Adam(TensorFlowOptimizer):
    """Adam with epsilon beside the uncorrected root of the second moment, where torch has it beside the corrected."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        require(lr >= 0, "lr must be at least 0", lr)
        require(all(0 <= beta < 1 for beta in betas), "betas must be at least 0 and below 1", betas)
        require(eps >= 0, "eps must be at least 0", eps)
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        # Both bias corrections go into the learning rate, as in TensorFlow. torch's kernel must then add none of its
        # own: a step number of infinity makes its 1 - beta**step exactly 1. The true step numbers stay on the host, so
        # that a GPU is never waited for.
        beta1, beta2 = group["betas"]
        for step, members in self._by_step(parameters).items():
            torch._fused_adam_(
                members,
                gradients_of(members),
                self._slot(members, "exp_avg"),
                self._slot(members, "exp_avg_sq"),
                [],
                [_step_number(math.inf, members[0].device)] * len(members),
                lr=float(group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)),
                beta1=beta1,
                beta2=beta2,
                weight_decay=0.0,
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _by_step(self, parameters: list[Tensor]) -> dict[float, list[Tensor]]:
        """Count the step, and sort the parameters by how many they have taken."""
        members: dict[float, list[Tensor]] = {}
        for parameter in parameters:
            state = self.state[parameter]
            if "step" not in state:
                state["step"] = torch.tensor(0.0, dtype=torch.float32)
            state["step"] += 1
            members.setdefault(state["step"].item(), []).append(parameter)
        return members
