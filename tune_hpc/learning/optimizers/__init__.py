"""TensorFlow 1's ten optimizers for PyTorch, equal to their originals to rounding at every step.

Each is an ordinary ``torch.optim.Optimizer``: parameter groups, ``state_dict``, learning rate schedulers, copying and
pickling work as with torch's own, and groups use torch's names (``lr``, ``betas``, ``eps``, ``momentum``) where torch
has one. Torch's fused kernels do the work where their arithmetic is TensorFlow's. Dense real gradients only. What
TensorFlow did, step by step, is recorded in ``tests/data/tensorflow1_*.json``.
"""

from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning.config import OPTIMIZER_DEFAULTS, TRIAL_KEYS
from tune_hpc.learning.optimizers.base import Group, Parameters, TensorFlowOptimizer
from tune_hpc.learning.optimizers.elementwise import (
    Adadelta,
    Ftrl,
    GradientDescent,
    ProximalAdagrad,
    ProximalGradientDescent,
    RMSprop,
)
from tune_hpc.learning.optimizers.fused_kernels import Adagrad, Adam, Momentum

__all__ = [
    "Adadelta",
    "Adagrad",
    "Adam",
    "Ftrl",
    "GradientDescent",
    "Momentum",
    "ProximalAdagrad",
    "ProximalGradientDescent",
    "RMSprop",
    "build_optimizer",
    "update_rule",
]


def build_optimizer(
    name: str, parameters: Parameters, learning_rate: float, **hyperparameters: float | bool
) -> TensorFlowOptimizer:
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
    kind, group = update_rule(name, **hyperparameters)
    return kind(parameters, TRIAL_KEYS["learning_rate"].check(learning_rate), **group)


def update_rule(name: str, **hyperparameters: float | bool) -> tuple[type[TensorFlowOptimizer], Group]:
    """Return the class of that name and the hyperparameters that its methods and its constructor take.

    Args:
        name: One of ``OPTIMIZER_DEFAULTS``.
        **hyperparameters: See ``build_optimizer``.

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
    chosen = {key: TRIAL_KEYS[key].check(value) for key, value in (defaults | hyperparameters).items()}
    # Where no gradient has arrived yet these two divide 0 by the root of the accumulator.
    if name in ("adagrad", "proximal_adagrad") and chosen["initial_accumulator"] == 0:
        raise InvalidConfigError(f"initial_accumulator of {name} must be above 0; got 0.0")
    if "beta1" in chosen:
        chosen["betas"] = chosen.pop("beta1"), chosen.pop("beta2")
    if "epsilon" in chosen:
        chosen["eps"] = chosen.pop("epsilon")
    if "momentum" in defaults and name != "rmsprop":
        chosen["nesterov"] = name == "nesterov"
    return _KINDS[name], chosen


_KINDS: dict[str, type[TensorFlowOptimizer]] = {
    "gradient_descent": GradientDescent,
    "momentum": Momentum,
    "nesterov": Momentum,
    "adagrad": Adagrad,
    "adadelta": Adadelta,
    "adam": Adam,
    "rmsprop": RMSprop,
    "ftrl": Ftrl,
    "proximal_adagrad": ProximalAdagrad,
    "proximal_gradient_descent": ProximalGradientDescent,
}
