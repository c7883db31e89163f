"""TensorFlow 1's ten optimizers for PyTorch, equal to the originals within rounding at every step.

Each class is a ``torch.optim.Optimizer``: parameter groups, ``state_dict``, learning rate schedulers, copies and
pickles work as usual. Groups use torch's names (``lr``, ``betas``, ``eps``, ``momentum``) if torch has one. The classes
call torch's fused kernels if their arithmetic is TensorFlow's. They support dense real gradients only.
``tests/data/tensorflow1_*.json`` contains the recorded steps of TensorFlow.

To add an optimizer, write its class in ``elementwise.py`` (``initial_slots`` and ``_formula``) or, on a fused kernel,
in ``fused_kernels.py`` (``initial_slots`` and ``update``), and add it to ``_CLASSES`` below. Its hyperparameters and
defaults belong to ``OPTIMIZER_DEFAULTS`` of ``tune_hpc/learning/config.py``; new hyperparameters are keys there.
"""

from tune_hpc.errors import InvalidConfigError
from tune_hpc.learning.config import OPTIMIZER_DEFAULTS, TRIAL_KEYS
from tune_hpc.learning.optimizers.base import Group, Parameters, TensorFlowOptimizer, with_torch_names
from tune_hpc.learning.optimizers.elementwise import (
    Adadelta,
    Ftrl,
    GradientDescent,
    ProximalAdagrad,
    ProximalGradientDescent,
    RMSprop,
)
from tune_hpc.learning.optimizers.fused_kernels import Adagrad, Adam, Momentum

_CLASSES: dict[str, type[TensorFlowOptimizer]] = {
    name: optimizer
    for optimizer in (
        *(GradientDescent, Momentum, Adagrad, Adadelta, Adam),
        *(RMSprop, Ftrl, ProximalAdagrad, ProximalGradientDescent),
    )
    for name in optimizer.names
}


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
    checked = {key: TRIAL_KEYS[key].check(value) for key, value in (defaults | hyperparameters).items()}
    group = with_torch_names(name, checked)
    _CLASSES[name].check(group)
    return _CLASSES[name], group
