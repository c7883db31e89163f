"""TensorFlow 1's ten optimizers for PyTorch, equal to their originals to rounding at every step.

Each is an ordinary ``torch.optim.Optimizer``: parameter groups, ``state_dict``, learning rate schedulers, copying and
pickling work as with torch's own, and groups use torch's names (``lr``, ``betas``, ``eps``, ``momentum``) where torch
has one. Torch's fused kernels do the work where their arithmetic is TensorFlow's. Dense real gradients
only. What TensorFlow did, step by step, is recorded in ``tests/data/tensorflow1_*.json``.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning.config import OPTIMIZER_DEFAULTS, TRIAL_KEYS

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


def build_optimizer(
    name: str, parameters: Parameters, learning_rate: float, **hyperparameters: float | bool
) -> torch.optim.Optimizer:
    """Make the optimizer of that name.

    Args:
        name: One of ``OPTIMIZER_DEFAULTS``.
        parameters: Tensors, or torch's parameter groups.
        learning_rate: Above 0.
        **hyperparameters: The optimizer's own, as spelled in ``OPTIMIZER_DEFAULTS``; those left out take TensorFlow's
            default.

    Raises:
        InvalidConfigError: no such optimizer, a hyperparameter that it lacks, or a value out of bounds.
    """
    if name not in OPTIMIZER_DEFAULTS:
        raise InvalidConfigError(f"no such optimizer {name!r}; there are {', '.join(OPTIMIZER_DEFAULTS)}")
    defaults = OPTIMIZER_DEFAULTS[name]
    for key in hyperparameters:
        if key not in defaults:
            own = ", ".join(defaults) or "none beside learning_rate"
            raise InvalidConfigError(f"{name} has no hyperparameter {key!r}; its own are: {own}")
    lr = TRIAL_KEYS["learning_rate"].check(learning_rate)
    chosen = {key: TRIAL_KEYS[key].check(value) for key, value in (defaults | hyperparameters).items()}
    # Where no gradient has arrived yet these two divide 0 by the root of the accumulator.
    if name in ("adagrad", "proximal_adagrad") and chosen["initial_accumulator"] == 0:
        raise InvalidConfigError(f"initial_accumulator of {name} must be above 0; got 0.0")
    return _BUILDERS[name](parameters, lr, **chosen)


_BUILDERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "gradient_descent": lambda parameters, lr: torch.optim.SGD(parameters, lr, foreach=True),
    "momentum": lambda parameters, lr, momentum: Momentum(parameters, lr, momentum),
    "nesterov": lambda parameters, lr, momentum: Momentum(parameters, lr, momentum, nesterov=True),
    "adagrad": lambda parameters, lr, **own: Adagrad(parameters, lr, **own),
    "adadelta": lambda parameters, lr, rho, epsilon: Adadelta(parameters, lr, rho, epsilon),
    "adam": lambda parameters, lr, beta1, beta2, epsilon: Adam(parameters, lr, (beta1, beta2), epsilon),
    "rmsprop": lambda parameters, lr, rho, momentum, epsilon, centered: RMSprop(
        parameters, lr, rho, momentum, epsilon, centered
    ),
    "ftrl": lambda parameters, lr, **own: Ftrl(parameters, lr, **own),
    "proximal_adagrad": lambda parameters, lr, **own: ProximalAdagrad(parameters, lr, **own),
    "proximal_gradient_descent": lambda parameters, lr, **own: ProximalGradientDescent(parameters, lr, **own),
}


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{rule}; got {value!r}")


def _require_penalties(l1: float, l2: float) -> None:
    _require(l1 >= 0, "l1 must be at least 0", l1)
    _require(l2 >= 0, "l2 must be at least 0", l2)


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
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


Group = dict[str, Any]
Slots = dict[str, list[Tensor]]


class _TensorFlowOptimizer(torch.optim.Optimizer):
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
        raise NotImplementedError

    def _slot(self, parameters: list[Tensor], name: str, initial: float = 0.0) -> list[Tensor]:
        """Return the parameters' state of that name, made on first use."""
        for parameter in parameters:
            state = self.state[parameter]
            if name not in state:
                state[name] = torch.full_like(parameter, initial, memory_format=torch.preserve_format)
        return [self.state[parameter][name] for parameter in parameters]


class Momentum(_TensorFlowOptimizer):
    """Gradient descent along a decaying sum of gradients, by torch's fused kernel.

    ``torch.optim.SGD(fused=True)`` runs the same kernel but fails when a parameter gets its first gradient later than
    others of its group, and it refuses Nesterov's variant where the momentum is 0.
    """

    def __init__(self, parameters: Parameters, lr: float = 1e-2, momentum: float = 0.9, nesterov: bool = False) -> None:
        _require(lr >= 0, "lr must be at least 0", lr)
        _require(momentum >= 0, "momentum must be at least 0", momentum)
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "nesterov": nesterov})

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        torch._fused_sgd_(
            parameters,
            _gradients(parameters),
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


class Adagrad(_TensorFlowOptimizer):
    """Gradients over the root of the sum of their squares, without epsilon, by torch's fused kernel."""

    def __init__(self, parameters: Parameters, lr: float = 1e-2, initial_accumulator: float = 0.1) -> None:
        _require(lr >= 0, "lr must be at least 0", lr)
        _require(initial_accumulator > 0, "initial_accumulator must be above 0", initial_accumulator)
        super().__init__(parameters, {"lr": lr, "initial_accumulator": initial_accumulator})

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        torch._fused_adagrad_(
            parameters,
            _gradients(parameters),
            self._slot(parameters, "accumulator", group["initial_accumulator"]),
            # Only a decaying learning rate would need to know which step this is.
            [_step_number(1.0, parameters[0].device)] * len(parameters),
            lr=float(group["lr"]),
            lr_decay=0.0,
            weight_decay=0.0,
            eps=0.0,
            maximize=False,
        )


class Adam(_TensorFlowOptimizer):
    """Adam with epsilon beside the uncorrected root of the second moment, where torch has it beside the corrected."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        _require(lr >= 0, "lr must be at least 0", lr)
        _require(all(0 <= beta < 1 for beta in betas), "betas must be at least 0 and below 1", betas)
        _require(eps >= 0, "eps must be at least 0", eps)
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    def _update(self, group: Group, parameters: list[Tensor]) -> None:
        # Both bias corrections go into the learning rate, as in TensorFlow. torch's kernel must then add none of its
        # own: a step number of infinity makes its 1 - beta**step exactly 1. The true step numbers stay on the host, so
        # that a GPU is never waited for.
        beta1, beta2 = group["betas"]
        for step, members in self._by_step(parameters).items():
            torch._fused_adam_(
                members,
                _gradients(members),
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


class _ElementwiseOptimizer(_TensorFlowOptimizer):
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
        columns = [parameters, _gradients(parameters)]
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


class Adadelta(_ElementwiseOptimizer):
    """Steps scaled by the ratio of the root mean squares of past steps and past gradients.

    The same update as torch's, which takes three times as long on a CPU.
    """

    def __init__(self, parameters: Parameters, lr: float = 1.0, rho: float = 0.95, eps: float = 1e-8) -> None:
        _require(lr >= 0, "lr must be at least 0", lr)
        _require(0 <= rho < 1, "rho must be at least 0 and below 1", rho)
        _require(eps >= 0, "eps must be at least 0", eps)
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


class RMSprop(_ElementwiseOptimizer):
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
        _require(lr >= 0, "lr must be at least 0", lr)
        _require(0 <= rho < 1, "rho must be at least 0 and below 1", rho)
        _require(momentum >= 0, "momentum must be at least 0", momentum)
        _require(eps >= 0, "eps must be at least 0", eps)
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


class Ftrl(_ElementwiseOptimizer):
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
        _require(lr > 0, "lr must be above 0", lr)
        _require(learning_rate_power <= 0, "learning_rate_power must be at most 0", learning_rate_power)
        _require(initial_accumulator >= 0, "initial_accumulator must be at least 0", initial_accumulator)
        _require_penalties(l1, l2)
        _require(l2_shrinkage >= 0, "l2_shrinkage must be at least 0", l2_shrinkage)
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


class ProximalAdagrad(_ElementwiseOptimizer):
    """Adagrad, each step followed by the proximal step of the l1 and l2 penalties at Adagrad's own rates."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        initial_accumulator: float = 0.1,
        l1: float = 0.0,
        l2: float = 0.0,
    ) -> None:
        _require(lr >= 0, "lr must be at least 0", lr)
        _require(initial_accumulator > 0, "initial_accumulator must be above 0", initial_accumulator)
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


class ProximalGradientDescent(_ElementwiseOptimizer):
    """Gradient descent, each step followed by the proximal step of the l1 and l2 penalties."""

    def __init__(self, parameters: Parameters, lr: float = 1e-2, l1: float = 0.0, l2: float = 0.0) -> None:
        _require(lr >= 0, "lr must be at least 0", lr)
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
