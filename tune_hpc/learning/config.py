"""Keys of a trial's configuration: meaning, default and valid values.

A configuration maps these keys to numbers and strings. Search spaces, data frames, tables and command-line flags use
the same spelling. The module does not import torch, because spaces are listed and validated often.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tune_hpc.errors import InvalidConfigError

MODELS = ("line", "softmax", "cnn")
BATCHING_POLICIES = ("single_pass", "sequential", "shuffled", "random")
#: The last 10,000 of the 60,000 training images of MNIST are for validation.
NUM_TRAINING_IMAGES = 50_000
#: Pixels in a row or column of an image.
IMAGE_SIDE = 28
DATA_SETS = ("line", "mnist", "fashion_mnist")

#: Hyperparameters of each optimizer, with the defaults of TensorFlow 1.
OPTIMIZER_DEFAULTS: dict[str, dict[str, float | bool]] = {
    "gradient_descent": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9},
    "adagrad": {"initial_accumulator": 0.1},
    "adadelta": {"rho": 0.95, "epsilon": 1e-8},
    "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
    "rmsprop": {"rho": 0.9, "momentum": 0.0, "epsilon": 1e-10, "centered": False},
    "ftrl": {"learning_rate_power": -0.5, "initial_accumulator": 0.1, "l1": 0.0, "l2": 0.0, "l2_shrinkage": 0.0},
    "proximal_adagrad": {"initial_accumulator": 0.1, "l1": 0.0, "l2": 0.0},
    "proximal_gradient_descent": {"l1": 0.0, "l2": 0.0},
}
OPTIMIZERS = tuple(OPTIMIZER_DEFAULTS)

#: Keys of each schedule of the learning rate, with their defaults.
SCHEDULE_DEFAULTS: dict[str, dict[str, float | bool]] = {
    "staircase": {"decay_rate": 1.0},
    "cosine": {},
    "one_cycle": {"warmup": 0.3},
}
SCHEDULES = tuple(SCHEDULE_DEFAULTS)

#: Formats of the gradients that workers exchange.
COMPRESSIONS = ("none", "bf16")


@dataclass(frozen=True)
class ConfigKey:
    """Key of a trial's configuration.

    Attributes:
        name: Name of the key.
        kind: ``int``, ``float``, ``bool`` or ``str``; a ``float`` key accepts an ``int``.
        doc: Meaning, in one line.
        default: ``None``: it depends on other keys, see ``doc``.
        choices: Valid values, if they are few.
        low: Lower bound, excluded if ``low_open``.
        high: Upper bound, excluded if ``high_open``.
    """

    name: str
    kind: type
    doc: str
    default: Any = None
    choices: tuple[Any, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    @property
    def allowed(self) -> str:
        """Valid values in words."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        if self.kind is bool:
            return "true or false"
        noun = {"int": "a whole number", "float": "a number", "str": "a string"}[self.kind.__name__]
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.low_open else 'at least'} {self.low:g}")
        if self.high < math.inf:
            bounds.append(f"{'below' if self.high_open else 'at most'} {self.high:g}")
        return " ".join([noun, " and ".join(bounds)]).strip()

    def check(self, value: Any) -> Any:
        """Return a value, converted to the kind of this key.

        Raises:
            InvalidConfigError: the value has another kind, or is out of bounds or not among the choices.
        """
        error = InvalidConfigError(f"{self.name} must be {self.allowed}; got {value!r}")
        if isinstance(value, bool) != (self.kind is bool):
            raise error
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            raise error
        if self.kind is float and isinstance(value, int | float):
            value = float(value)
        elif self.kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, self.kind) or (self.choices and value not in self.choices):
            raise error
        if isinstance(value, int | float) and not isinstance(value, bool):
            too_low = value < self.low or (self.low_open and value == self.low)
            too_high = value > self.high or (self.high_open and value == self.high)
            if too_low or too_high or not math.isfinite(value):
                raise error
        return value


_POSITIVE: dict[str, Any] = {"low": 0, "low_open": True}
_BELOW_ONE: dict[str, Any] = {"low": 0, "high": 1, "high_open": True}
_KEYS = (
    ConfigKey("model", str, "network", "softmax", MODELS),
    ConfigKey("data", str, "data set; by default line for the model line, else mnist", None, DATA_SETS),
    ConfigKey("optimizer", str, "optimizer, as defined by TensorFlow 1", "gradient_descent", OPTIMIZERS),
    ConfigKey("learning_rate", float, "(initial) learning rate", 0.01, **_POSITIVE),
    ConfigKey("batch_size", int, "images in a batch; the line always uses its four points", 100, low=1,
              high=NUM_TRAINING_IMAGES),
    ConfigKey("batching", str, "order of the training images", "shuffled", BATCHING_POLICIES),
    ConfigKey("schedule", str, "learning rate schedule: staircase (decay_rate), cosine (down to 0), or one_cycle (up, "
              "then down to 0)", "staircase", SCHEDULES),
    ConfigKey("decay_rate", float, "factor on the learning rate after each pass over the training data, in the "
              "staircase schedule (1: constant)", high=1, **_POSITIVE),
    ConfigKey("warmup", float, "fraction of the steps in which the one_cycle rate increases to learning_rate (0.3)",
              high=1, high_open=True, **_POSITIVE),
    ConfigKey("dropout", float, "probability to drop a hidden unit in training", 0.0, **_BELOW_ONE),
    ConfigKey("max_shift", float, "maximum random shift of a training image, in pixels", 0.0, low=0, high=IMAGE_SIDE),
    ConfigKey("max_rotation", float, "maximum random rotation of a training image, in degrees", 0.0, low=0, high=180),
    ConfigKey("max_scaling", float, "maximum random scaling of a training image, as a fraction of its size", 0.0,
              low=0, high=0.9),
    ConfigKey("steps", int, "optimizer steps, of one batch each", 1000, low=1),
    ConfigKey("seed", int, "seed of initial weights, data order, dropout and augmentation", 0, low=0, high=2**31 - 1),
    ConfigKey("width", float, "factor on the number of features of the cnn", 1.0, **_POSITIVE),
    ConfigKey("depth", int, "convolutions added to the cnn before its second pooling (0)", low=0, high=100),
    ConfigKey("initial_weights", str, "initial weights of TensorFlow's tutorial (truncated normal 0.1, bias 0.1; zeros "
              "for softmax), or of PyTorch", "tutorial", ("tutorial", "pytorch")),
    ConfigKey("precision", str, "type of parameters and products; tf32 (on GPUs) and bfloat16 apply to products only, "
              "with float32 parameters", "float32", ("float32", "float64", "tf32", "bfloat16")),
    ConfigKey("num_evaluations", int, "evenly spaced evaluations in a run", 50, low=1),
    ConfigKey("num_evaluation_images", int, "images of each evaluation split, from its start", 10_000, low=1,
              high=10_000),
    ConfigKey("num_fit_images", int, "training images, from their start, for fit_loss and fit_accuracy after the last "
              "step; none if absent", low=1, high=NUM_TRAINING_IMAGES),
    ConfigKey("momentum", float, "momentum of the optimizers momentum, nesterov (0.9) and rmsprop (0)", **_BELOW_ONE),
    ConfigKey("rho", float, "decay of the mean squared gradient of adadelta (0.95) and rmsprop (0.9)", **_BELOW_ONE),
    ConfigKey("beta1", float, "decay of adam's mean gradient (0.9)", **_BELOW_ONE),
    ConfigKey("beta2", float, "decay of adam's mean squared gradient (0.999)", **_BELOW_ONE),
    ConfigKey("epsilon", float, "term against division by zero in adadelta, adam (1e-8) and rmsprop (1e-10)", low=0),
    ConfigKey("centered", bool, "divide rmsprop by the variance instead of the second moment (false)"),
    ConfigKey("initial_accumulator", float, "initial sum of squared gradients of adagrad, ftrl and proximal_adagrad "
              "(0.1)", low=0),
    ConfigKey("learning_rate_power", float, "power of the accumulator of ftrl (-0.5)", high=0),
    ConfigKey("l1", float, "l1 penalty of ftrl and the proximal optimizers (0)", low=0),
    ConfigKey("l2", float, "l2 penalty of ftrl and the proximal optimizers (0)", low=0),
    ConfigKey("l2_shrinkage", float, "l2 penalty of ftrl that is added to the gradient (0)", low=0),
    ConfigKey("workers", int, "processes that share each batch through Ray Train; none if absent", low=1),
    ConfigKey("bucket_mb", float, "megabytes of gradients that workers average at a time (25)", high=1e6, **_POSITIVE),
    ConfigKey("bucket_view", bool, "make gradients views of the communication buffers (false)"),
    ConfigKey("compression", str, "format of exchanged gradients: none, or bf16, two bytes for each number (none)",
              choices=COMPRESSIONS),
    ConfigKey("local_steps", int, "steps between averages of the parameters; 1: average the gradients (1)", low=1),
)  # fmt: skip

#: Keys of a trial's configuration by name, in the order of the columns of frames.
TRIAL_KEYS: dict[str, ConfigKey] = {key.name: key for key in _KEYS}

#: Keys of a trial with several workers.
WORKER_KEYS = ("workers", "bucket_mb", "bucket_view", "compression", "local_steps")
#: Keys without a default in a completed configuration.
OPTIONAL_KEYS = (*WORKER_KEYS, "depth", "num_fit_images")

#: Conditional keys with their defaults, by the key that decides about them and its value.
OWNERS: dict[str, dict[str, dict[str, float | bool]]] = {
    "optimizer": OPTIMIZER_DEFAULTS,
    "schedule": SCHEDULE_DEFAULTS,
}


def owned_keys(owner: str) -> tuple[str, ...]:
    """Return the conditional keys of ``owner``, a key of ``OWNERS``."""
    return tuple(dict.fromkeys(name for defaults in OWNERS[owner].values() for name in defaults))


def check_key(name: str) -> ConfigKey:
    """Return the key of a name, or raise ``InvalidConfigError``."""
    if name not in TRIAL_KEYS:
        raise InvalidConfigError(f"no such key {name!r}; a trial's keys are {', '.join(TRIAL_KEYS)}")
    return TRIAL_KEYS[name]


def has_random_result(config: Mapping[str, Any]) -> bool:
    """Return whether the seed of a completed configuration has an effect; unknown configurations count as random."""
    if config.get("model") == "line":
        return False
    has_fixed_order = config.get("batching") in ("single_pass", "sequential")
    augmentation = [config.get(name, 0) for name in ("max_shift", "max_rotation", "max_scaling")]
    is_augmented = any(isinstance(value, int | float) and value > 0 for value in augmentation)
    has_zero_weights = config.get("model") == "softmax" and config.get("initial_weights") == "tutorial"
    return not (has_fixed_order and has_zero_weights) or is_augmented


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Validate a configuration and add the defaults, so that a trial is a function of the result.

    Returns:
        Every key with its value, but of the conditional keys only those of the selected optimizer and schedule. Others
        are dropped, so that a space over several optimizers may fix a key that only some of them have.

    Raises:
        InvalidConfigError: an unknown key, or a value that its key does not allow.
    """
    given = {name: check_key(name).check(value) for name, value in config.items()}
    completed = {key.name: given.get(key.name, key.default) for key in _KEYS}
    if completed["data"] is None:
        completed["data"] = "line" if completed["model"] == "line" else "mnist"
    if (completed["model"] == "line") != (completed["data"] == "line"):
        raise InvalidConfigError(
            f"the model line and the data line need each other; got model={completed['model']!r} "
            f"with data={completed['data']!r}"
        )
    for owner, defaults in OWNERS.items():
        selected = defaults[completed[owner]]
        for name in owned_keys(owner):
            if name in selected:
                completed[name] = given.get(name, selected[name])
            else:
                del completed[name]
    for name in OPTIONAL_KEYS:
        if name not in given or (name == "depth" and completed["model"] != "cnn"):
            del completed[name]
    if "workers" in completed:
        _check_workers(completed)
    return completed


def _check_workers(completed: Mapping[str, Any]) -> None:
    if completed["model"] == "line":
        raise InvalidConfigError("the model line cannot share its four points; use model=softmax or model=cnn")
    if completed["workers"] > completed["batch_size"]:
        raise InvalidConfigError(
            f"workers must be at most the batch size {completed['batch_size']}; got {completed['workers']}"
        )
