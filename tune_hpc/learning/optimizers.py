"""TensorFlow 1's ten optimizers for PyTorch, equal to their originals to rounding at every step.

Each is an ordinary ``torch.optim.Optimizer``: parameter groups, ``state_dict``, learning rate schedulers, copying and
pickling work as with torch's own, and groups use torch's names (``lr``, ``betas``, ``eps``, ``momentum``) where torch
has one. Torch's fused kernels do the work where their arithmetic is TensorFlow's. Dense real gradients only. What
TensorFlow did, step by step, is recorded in ``tests/data/tensorflow1_*.json``.
"""

from collections.abc import Callable

import torch

from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning.config import OPTIMIZER_DEFAULTS, TRIAL_KEYS
from tune_hpc.learning.elementwise_optimizers import Adadelta, Ftrl, ProximalAdagrad, ProximalGradientDescent, RMSprop
from tune_hpc.learning.fused_optimizers import Adagrad, Adam, Momentum
from tune_hpc.learning.optimizer_base import Parameters

__all__ = [
    "Adadelta",
    "Adagrad",
    "Adam",
    "Ftrl",
    "Momentum",
    "ProximalAdagrad",
    "ProximalGradientDescent",
    "RMSprop",
    "build_optimizer",
]


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
