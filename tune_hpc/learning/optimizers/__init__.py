"""TensorFlow 1's ten optimizers for PyTorch, equal to the originals within rounding at every step.

Each class is a ``torch.optim.Optimizer``: parameter groups, ``state_dict``, learning rate schedulers, copies and
pickles work as usual. Groups use torch's names (``lr``, ``betas``, ``eps``, ``momentum``) if torch has one. The classes
call torch's fused kernels if their arithmetic is TensorFlow's. They support dense real gradients only.
``tests/data/tensorflow1_*.json`` contains the recorded steps of TensorFlow.

To add an optimizer:

1. Write its class. An ``ElementwiseOptimizer`` (``elementwise.py``) needs ``__init__`` with the checks of its
   hyperparameters, ``initial_slots`` and ``_formula``. A class on a fused kernel (``fused_kernels.py``) has ``update``
   instead of ``_formula``.
2. Register its name, hyperparameters and defaults in ``OPTIMIZER_DEFAULTS`` of ``tune_hpc/learning/config.py``; new
   hyperparameters are keys in ``_KEYS`` there.
3. Register its class in ``_CLASSES`` below, and translate names of hyperparameters in ``update_rule`` if they differ.
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
    """Build an optimizer by name.

    Args:
        name: Name in ``OPTIMIZER_DEFAULTS``.
        parameters: Tensors, or torch's parameter groups.
        learning_rate: Above 0.
        **hyperparameters: Hyperparameters as spelled in ``OPTIMIZER_DEFAULTS``; TensorFlow's defaults if missing.

    Raises:
        InvalidConfigError: no such optimizer, no such hyperparameter, or a value out of bounds.
    """
    optimizer, group = update_rule(name, **hyperparameters)
    return optimizer(parameters, TRIAL_KEYS["learning_rate"].check(learning_rate), **group)


def update_rule(name: str, **hyperparameters: float | bool) -> tuple[type[TensorFlowOptimizer], Group]:
    """Return the class of an optimizer and the hyperparameters of its methods; see ``build_optimizer``."""
    if name not in OPTIMIZER_DEFAULTS:
        raise InvalidConfigError(f"no such optimizer {name!r}; there are {', '.join(OPTIMIZER_DEFAULTS)}")
    defaults = OPTIMIZER_DEFAULTS[name]
    for key in hyperparameters:
        if key not in defaults:
            known = ", ".join(defaults) or "none beside learning_rate"
            raise InvalidConfigError(f"{name} has no hyperparameter {key!r}; its hyperparameters are: {known}")
    group = {key: TRIAL_KEYS[key].check(value) for key, value in (defaults | hyperparameters).items()}
    # Before the first non-zero gradient these two divide 0 by the root of the accumulator.
    if name in ("adagrad", "proximal_adagrad") and group["initial_accumulator"] == 0:
        raise InvalidConfigError(f"initial_accumulator of {name} must be above 0; got 0.0")
    if "beta1" in group:
        group["betas"] = group.pop("beta1"), group.pop("beta2")
    if "epsilon" in group:
        group["eps"] = group.pop("epsilon")
    if "momentum" in defaults and name != "rmsprop":
        group["nesterov"] = name == "nesterov"
    return _CLASSES[name], group


_CLASSES: dict[str, type[TensorFlowOptimizer]] = {
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
