"""The optimizers that torch has no kernel for: Adadelta, RMSprop, Ftrl and the two proximal ones.

Each is a formula of ``torch._foreach`` operations, taken over large CPU tensors in pieces that fit a core's cache.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tune_hpc.learning.optimizer_base import Group, Parameters, TensorFlowOptimizer, gradients_of, require

Slots = dict[str, list[Tensor]]


class ElementwiseOptimizer(TensorFlowOptimizer):
    """For updates that torch has no fused kernel for: a subclass gives the formula as torch._foreach operations.

    ``_formula(group, parameters, gradients, slots)`` changes parameters and slots in place; ``_initial(group)`` names
    the slots and their first values.
    """

    #: Numbers a thread takes through the whole formula at a time, so that temporaries stay in its cache: several times
    #: faster than one operation after another over all of a large tensor.
    PIECE = 131_072

    def _initial(self, group: Group) -> dict[str, float]:
        return {}

    def _formula(self, group: Group, parameters: list[Tensor], gradients: list[Tensor], slots: Slots) -> None:
        raise NotImplementedError

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        initial = self._initial(group)
        columns = [parameters, gradients_of(parameters)]
        columns += [self._slot(parameters, name, value) for name, value in initial.items()]
        on_cpu = parameters[0].device.type == "cpu"
        for part in _pieces(columns, self.PIECE * torch.get_num_threads()) if on_cpu else [columns]:
            self._formula(group, part[0], part[1], dict(zip(initial, part[2:], strict=True)))


def _pieces(columns: list[list[Tensor]], size: int) -> Iterator[list[list[Tensor]]]:
    for row in zip(*columns, strict=True):
        if row[0].numel() > size and all(tensor.is_contiguous() for tensor in row):
            for piece in zip(*(tensor.view(-1).split(size) for tensor in row), strict=True):
                yield [[tensor] for tensor in piece]
        else:
            yield [[tensor] for tensor in row]


class Adadelta(ElementwiseOptimizer):
    """Steps scaled by the ratio of the root mean squares of past steps and past gradients.

    The same update as torch's, which takes three times as long on a CPU.
    """

    def __init__(self, parameters: Parameters, lr: float = 1.0, rho: float = 0.95, eps: float = 1e-8) -> None:
        require(lr >= 0, "lr must be at least 0", lr)
        require(0 <= rho < 1, "rho must be at least 0 and below 1", rho)
        require(eps >= 0, "eps must be at least 0", eps)
        super().__init__(parameters, {"lr": lr, "rho": rho, "eps": eps})

    def _initial(self, group: Group) -> dict[str, float]:
        return {"square_avg": 0.0, "acc_delta": 0.0}

    def _formula(self, group: Group, parameters: list[Tensor], gradients: list[Tensor], slots: Slots) -> None:
        lr, rho, eps = group["lr"], group["rho"], group["eps"]
        torch._foreach_mul_(slots["square_avg"], rho)
        torch._foreach_addcmul_(slots["square_avg"], gradients, gradients, value=1 - rho)
        steps = torch._foreach_add(slots["acc_delta"], eps)
        torch._foreach_div_(steps, torch._foreach_add(slots["square_avg"], eps))
        torch._foreach_sqrt_(steps)
        torch._foreach_mul_(steps, gradients)
        torch._foreach_add_(parameters, steps, alpha=-lr)
        torch._foreach_mul_(slots["acc_delta"], rho)
        torch._foreach_addcmul_(slots["acc_delta"], steps, steps, value=1 - rho)


class RMSprop(ElementwiseOptimizer):
    """RMSprop whose mean square starts at one and whose epsilon is inside the root; torch has zero and outside."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        rho: float = 0.9,
        momentum: float = 0.0,
        eps: float = 1e-10,
        centered: bool = False,
    ) -> None:
        require(lr >= 0, "lr must be at least 0", lr)
        require(0 <= rho < 1, "rho must be at least 0 and below 1", rho)
        require(momentum >= 0, "momentum must be at least 0", momentum)
        require(eps >= 0, "eps must be at least 0", eps)
        super().__init__(parameters, {"lr": lr, "rho": rho, "momentum": momentum, "eps": eps, "centered": centered})

    def _initial(self, group: Group) -> dict[str, float]:
        slots = {"mean_square": 1.0}
        if group["centered"]:
            slots["mean"] = 0.0
        if group["momentum"]:
            slots["velocity"] = 0.0
        return slots

    def _formula(self, group: Group, parameters: list[Tensor], gradients: list[Tensor], slots: Slots) -> None:
        lr, rho, momentum = group["lr"], group["rho"], group["momentum"]
        # TensorFlow's own order of operations, rounding for rounding: where this update oscillates around a minimum a
        # difference in the last digit decides on which side it ends.
        changes = torch._foreach_mul(gradients, gradients)
        torch._foreach_sub_(changes, slots["mean_square"])
        torch._foreach_mul_(changes, 1 - rho)
        torch._foreach_add_(slots["mean_square"], changes)
        roots = torch._foreach_add(slots["mean_square"], group["eps"])
        if group["centered"]:
            torch._foreach_lerp_(slots["mean"], gradients, 1 - rho)
            torch._foreach_addcmul_(roots, slots["mean"], slots["mean"], value=-1.0)
        torch._foreach_sqrt_(roots)
        steps = list(torch._foreach_mul(gradients, lr))
        torch._foreach_div_(steps, roots)
        if momentum:
            torch._foreach_mul_(slots["velocity"], momentum)
            torch._foreach_add_(slots["velocity"], steps)
            steps = slots["velocity"]
        torch._foreach_sub_(parameters, steps)


class Ftrl(ElementwiseOptimizer):
    """Follow the regularized leader, whose linear term starts at 0 wherever the parameter does.

    The first step therefore shrinks the initial parameter too; from zero this is Adagrad.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        learning_rate_power: float = -0.5,
        initial_accumulator: float = 0.1,
        l1: float = 0.0,
        l2: float = 0.0,
        l2_shrinkage: float = 0.0,
    ) -> None:
        require(lr > 0, "lr must be above 0", lr)
        require(learning_rate_power <= 0, "learning_rate_power must be at most 0", learning_rate_power)
        require(initial_accumulator >= 0, "initial_accumulator must be at least 0", initial_accumulator)
        _require_penalties(l1, l2)
        require(l2_shrinkage >= 0, "l2_shrinkage must be at least 0", l2_shrinkage)
        own = {"learning_rate_power": learning_rate_power, "initial_accumulator": initial_accumulator}
        super().__init__(parameters, {"lr": lr, **own, "l1": l1, "l2": l2, "l2_shrinkage": l2_shrinkage})

    def _initial(self, group: Group) -> dict[str, float]:
        return {"accumulator": group["initial_accumulator"], "linear": 0.0}

    def _formula(self, group: Group, parameters: list[Tensor], gradients: list[Tensor], slots: Slots) -> None:
        lr, power, l1 = group["lr"], -group["learning_rate_power"], group["l1"]
        accumulators, linears = slots["accumulator"], slots["linear"]
        growths = _foreach_power(accumulators, power)
        torch._foreach_addcmul_(accumulators, gradients, gradients)
        denominators = _foreach_power(accumulators, power)
        torch._foreach_sub_(growths, denominators)
        torch._foreach_add_(linears, gradients)
        if group["l2_shrinkage"]:
            torch._foreach_add_(linears, parameters, alpha=2 * group["l2_shrinkage"])
        torch._foreach_addcmul_(linears, growths, parameters, value=1 / lr)

        # Numerator and denominator are both multiplied by lr, which spares a pass over memory.
        if group["l2"]:
            torch._foreach_add_(denominators, 2 * lr * group["l2"])
        elif group["initial_accumulator"] == 0:
            # Nothing divided by nothing, where no gradient has arrived yet, is nothing.
            torch._foreach_clamp_min_(denominators, torch.finfo(denominators[0].dtype).tiny)
        torch._foreach_zero_(parameters)
        torch._foreach_addcdiv_(parameters, _foreach_shrink(linears, l1) if l1 else linears, denominators, value=-lr)


class ProximalAdagrad(ElementwiseOptimizer):
    """Adagrad, each step followed by the proximal step of the l1 and l2 penalties at Adagrad's own rates."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        initial_accumulator: float = 0.1,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        require(lr >= 0, "lr must be at least 0", lr)
        require(initial_accumulator > 0, "initial_accumulator must be above 0", initial_accumulator)
        _require_penalties(l1, l2)
        super().__init__(parameters, {"lr": lr, "initial_accumulator": initial_accumulator, "l1": l1, "l2": l2})

    def _initial(self, group: Group) -> dict[str, float]:
        return {"accumulator": group["initial_accumulator"]}

    def _formula(self, group: Group, parameters: list[Tensor], gradients: list[Tensor], slots: Slots) -> None:
        lr, l1, l2 = group["lr"], group["l1"], group["l2"]
        accumulators = slots["accumulator"]
        torch._foreach_addcmul_(accumulators, gradients, gradients)
        rates = torch._foreach_sqrt(accumulators)
        torch._foreach_addcdiv_(parameters, gradients, rates, value=-lr)
        if l1 or l2:
            torch._foreach_reciprocal_(rates)
            torch._foreach_mul_(rates, lr)
        if l1:
            excesses = torch._foreach_abs(parameters)
            torch._foreach_sub_(excesses, torch._foreach_mul(rates, l1))
            torch._foreach_clamp_min_(excesses, 0.0)
            torch._foreach_sign_(parameters)
            torch._foreach_mul_(parameters, excesses)
        if l2:
            torch._foreach_mul_(rates, l2)
            torch._foreach_add_(rates, 1.0)
            torch._foreach_div_(parameters, rates)


class ProximalGradientDescent(ElementwiseOptimizer):
    """Gradient descent, each step followed by the proximal step of the l1 and l2 penalties."""

    def __init__(self, parameters: Parameters, lr: float = 1e-2, l1: float = 0.0, l2: float = 0.0) -> None:
        require(lr >= 0, "lr must be at least 0", lr)
        _require_penalties(l1, l2)
        super().__init__(parameters, {"lr": lr, "l1": l1, "l2": l2})

    def _formula(self, group: Group, parameters: list[Tensor], gradients: list[Tensor], slots: Slots) -> None:
        lr, l1, l2 = group["lr"], group["l1"], group["l2"]
        torch._foreach_add_(parameters, gradients, alpha=-lr)
        if l1:
            torch._foreach_copy_(parameters, _foreach_shrink(parameters, lr * l1))
        if l2:
            torch._foreach_div_(parameters, 1 + lr * l2)


def _foreach_power(tensors: list[Tensor], power: float) -> list[Tensor]:
    return list(torch._foreach_sqrt(tensors) if power == 0.5 else torch._foreach_pow(tensors, power))


def _foreach_shrink(tensors: list[Tensor], threshold: float) -> list[Tensor]:
    """Return sign(x) * max(abs(x) - threshold, 0) as x less x clamped, which is exactly 0 within the threshold."""
    clamped = torch._foreach_clamp_min(tensors, -threshold)
    torch._foreach_clamp_max_(clamped, threshold)
    return list(torch._foreach_sub(tensors, clamped))


def _require_penalties(l1: float, l2: float) -> None:
    require(l1 >= 0, "l1 must be at least 0", l1)
    require(l2 >= 0, "l2 must be at least 0", l2)
