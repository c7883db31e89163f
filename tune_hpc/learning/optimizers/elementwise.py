"""Optimizers without a torch kernel. Each is a formula on one tensor; large CPU tensors are processed in pieces."""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from tune_hpc.learning.optimizers.base import Group, Rate, Slots, TensorFlowOptimizer, Tensors

#: Slots of one parameter, by name.
TensorSlots = dict[str, Tensor]


class ElementwiseOptimizer(TensorFlowOptimizer):
    """Optimizer whose subclasses define ``_formula``, the update of one tensor and its slots."""

    supports_rate_columns = True

    #: Numbers that a thread processes at a time, so that temporaries stay in its cache. This is several times faster
    #: than operations on the whole of a large tensor.
    PIECE = 131_072

    @classmethod
    @abstractmethod
    def _formula(cls, group: Group, parameter: Tensor, gradient: Tensor, slots: TensorSlots, lr: Rate) -> None:
        """Update the parameter and its slots in place."""

    @classmethod
    def update(cls, group: Group, parameters: Tensors, gradients: Tensors, slots: Slots, lr: Rate) -> None:
        """Update parameters and slots; see the base class."""
        for row in zip(parameters, gradients, *slots.values(), strict=True):
            parts = [row]
            if row[0].numel() > cls.PIECE and row[0].device.type == "cpu":
                parts = list(_pieces(row, cls.PIECE * torch.get_num_threads()))
            for parameter, gradient, *parameter_slots in parts:
                cls._formula(group, parameter, gradient, dict(zip(slots, parameter_slots, strict=True)), lr)


def _pieces(row: tuple[Tensor, ...], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors of one shape into pieces, each with all members of a stack."""
    first = row[0]
    if not all(tensor.is_contiguous() for tensor in row):
        yield row
    elif first.ndim == 2 and first.shape[0] < size:
        yield from zip(*(tensor.split(max(1, size // first.shape[0]), dim=1) for tensor in row), strict=True)
    else:
        yield from zip(*(tensor.view(-1).split(size) for tensor in row), strict=True)


def _descend(parameter: Tensor, direction: Tensor, lr: Rate) -> None:
    """Subtract ``lr * direction``; a single learning rate needs only one pass over memory."""
    if isinstance(lr, Tensor):
        parameter.sub_(direction * lr)
    else:
        parameter.add_(direction, alpha=-lr)


class GradientDescent(ElementwiseOptimizer):
    """Gradient descent."""

    names = ("gradient_descent",)

    @classmethod
    def _formula(cls, group: Group, parameter: Tensor, gradient: Tensor, slots: TensorSlots, lr: Rate) -> None:
        _descend(parameter, gradient, lr)


class Adadelta(ElementwiseOptimizer):
    """Adadelta (Zeiler, 2012), with the same update as torch's, which takes three times as long on a CPU."""

    names = ("adadelta",)
    default_lr = 1.0

    @classmethod
    def initial_slots(cls, group: Group) -> dict[str, float]:
        """Return the initial slots; see the base class."""
        return {"square_avg": 0.0, "acc_delta": 0.0}

    @classmethod
    def _formula(cls, group: Group, parameter: Tensor, gradient: Tensor, slots: TensorSlots, lr: Rate) -> None:
        rho, eps = group["rho"], group["eps"]
        square_avg, acc_delta = slots["square_avg"], slots["acc_delta"]
        square_avg.mul_(rho).addcmul_(gradient, gradient, value=1 - rho)
        step = torch.add(acc_delta, eps).div_(torch.add(square_avg, eps)).sqrt_().mul_(gradient)
        _descend(parameter, step, lr)
        acc_delta.mul_(rho).addcmul_(step, step, value=1 - rho)


class RMSprop(ElementwiseOptimizer):
    """RMSprop with an initial mean square of 1 and epsilon inside the root; torch has 0 and outside."""

    names = ("rmsprop",)

    @classmethod
    def initial_slots(cls, group: Group) -> dict[str, float]:
        """Return the initial slots; see the base class."""
        slots = {"mean_square": 1.0}
        if group["centered"]:
            slots["mean"] = 0.0
        if group["momentum"]:
            slots["velocity"] = 0.0
        return slots

    @classmethod
    def _formula(cls, group: Group, parameter: Tensor, gradient: Tensor, slots: TensorSlots, lr: Rate) -> None:
        rho, momentum = group["rho"], group["momentum"]
        mean_square = slots["mean_square"]
        # The order of operations is TensorFlow's, because rounding matters: if the update oscillates around a minimum,
        # the last digit decides on which side it ends.
        mean_square.add_(torch.mul(gradient, gradient).sub_(mean_square).mul_(1 - rho))
        root = torch.add(mean_square, group["eps"])
        if group["centered"]:
            slots["mean"].lerp_(gradient, 1 - rho)
            root.addcmul_(slots["mean"], slots["mean"], value=-1.0)
        step = torch.mul(gradient, lr).div_(root.sqrt_())
        if momentum:
            step = slots["velocity"].mul_(momentum).add_(step)
        parameter.sub_(step)


class Ftrl(ElementwiseOptimizer):
    """Follow the regularized leader (FTRL-Proximal; McMahan et al., 2013), with an initial linear term of 0.

    Therefore the first step shrinks the initial parameter, too. From zero this is Adagrad.
    """

    names = ("ftrl",)
    positive = ("lr",)

    @classmethod
    def initial_slots(cls, group: Group) -> dict[str, float]:
        """Return the initial slots; see the base class."""
        return {"accumulator": group["initial_accumulator"], "linear": 0.0}

    @classmethod
    def _formula(cls, group: Group, parameter: Tensor, gradient: Tensor, slots: TensorSlots, lr: Rate) -> None:
        power, l1 = -group["learning_rate_power"], group["l1"]
        accumulator, linear = slots["accumulator"], slots["linear"]
        growth = _power(accumulator, power)
        accumulator.addcmul_(gradient, gradient)
        denominator = _power(accumulator, power)
        growth.sub_(denominator).mul_(parameter).div_(lr)
        linear.add_(gradient)
        if group["l2_shrinkage"]:
            linear.add_(parameter, alpha=2 * group["l2_shrinkage"])
        linear.add_(growth)

        # Numerator and denominator are multiplied by lr, which saves a pass over memory.
        if group["l2"]:
            denominator.add_(lr * (2 * group["l2"]))
        elif group["initial_accumulator"] == 0:
            # Before the first non-zero gradient, 0 / 0 must be 0.
            denominator.clamp_min_(torch.finfo(denominator.dtype).tiny)
        torch.mul(_shrink(linear, l1) if l1 else linear, -lr, out=parameter).div_(denominator)


class ProximalAdagrad(ElementwiseOptimizer):
    """Adagrad with a proximal step of the l1 and l2 penalties at Adagrad's rates after each step."""

    names = ("proximal_adagrad",)
    positive = ("initial_accumulator",)

    @classmethod
    def initial_slots(cls, group: Group) -> dict[str, float]:
        """Return the initial slots; see the base class."""
        return {"accumulator": group["initial_accumulator"]}

    @classmethod
    def _formula(cls, group: Group, parameter: Tensor, gradient: Tensor, slots: TensorSlots, lr: Rate) -> None:
        l1, l2 = group["l1"], group["l2"]
        accumulator = slots["accumulator"].addcmul_(gradient, gradient)
        root = accumulator.sqrt()
        parameter.sub_(torch.mul(gradient, lr).div_(root))
        if l1 or l2:
            rate = root.reciprocal_().mul_(lr)
        if l1:
            excess = parameter.abs().sub_(rate, alpha=l1).clamp_min_(0.0)
            parameter.sign_().mul_(excess)
        if l2:
            parameter.div_(rate.mul_(l2).add_(1.0))


class ProximalGradientDescent(ElementwiseOptimizer):
    """Gradient descent with a proximal step of the l1 and l2 penalties after each step."""

    names = ("proximal_gradient_descent",)

    @classmethod
    def _formula(cls, group: Group, parameter: Tensor, gradient: Tensor, slots: TensorSlots, lr: Rate) -> None:
        l1, l2 = group["l1"], group["l2"]
        _descend(parameter, gradient, lr)
        if l1:
            parameter.copy_(_shrink(parameter, lr * l1))
        if l2:
            parameter.div_(1 + lr * l2)


def _power(tensor: Tensor, power: float) -> Tensor:
    return tensor.sqrt() if power == 0.5 else tensor.pow(power)


def _shrink(tensor: Tensor, threshold: float | Tensor) -> Tensor:
    """Return sign(x) * max(abs(x) - threshold, 0) as x - clamp(x), which is exactly 0 within the threshold."""
    return tensor - tensor.clamp_min(-threshold).clamp_max_(threshold)
