"""The keys of a trial's configuration: what each means, its default, and which values it may take.

A configuration is a plain mapping from these keys to numbers and strings; the same spelling serves in search spaces,
data frames, tables and command-line flags. ``complete`` checks one and fills in the defaults, so that a trial is a
function of the completed mapping alone. No torch is imported here: listing and validating spaces must stay cheap.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tune_hpc.errors import InvalidConfigError

MODELS = ("line", "softmax", "cnn")
BATCHING_POLICIES = ("single_pass", "sequential", "shuffled", "random")
#: Of MNIST's 60,000 training images the last 10,000 are kept for validation.
NUM_TRAINING_IMAGES = 50_000
#: Pixels, down and across.
IMAGE_SIDE = 28
DATA_SETS = ("line", "mnist", "fashion_mnist")

#: Which hyperparameters each optimizer has, with TensorFlow 1's defaults.
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

#: Which keys each schedule of the learning rate has, with their defaults.
SCHEDULE_DEFAULTS: dict[str, dict[str, float | bool]] = {
    "staircase": {"decay_rate": 1.0},
    "cosine": {},
    "one_cycle": {"warmup": 0.3},
}
SCHEDULES = tuple(SCHEDULE_DEFAULTS)

#: How the gradients of several workers may travel.
COMPRESSIONS = ("none", "bf16")


@dataclass(frozen=True)
class ConfigKey:
    """One key of a trial's configuration.

    Attributes:
        name: As it is spelled everywhere.
        kind: ``int``, ``float``, ``bool`` or ``str``; an ``int`` is accepted where a ``float`` is wanted.
        doc: Its meaning, in one line.
        default: Its value when absent; ``None``: another key decides, as ``doc`` says.
        choices: All allowed values, where there are few.
        low: Lowest allowed value.
        high: Highest allowed value.
        low_open: Whether ``low`` itself is excluded.
        high_open: Whether ``high`` itself is excluded.
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
        """The allowed values in words."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        if self.kind is bool:
            return "true or false"
        word = {"int": "a whole number", "float": "a number", "str": "a string"}[self.kind.__name__]
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'above' if self.low_open else 'at least'} {self.low:g}")
        if self.high < math.inf:
            bounds.append(f"{'below' if self.high_open else 'at most'} {self.high:g}")
        return " ".join([word, " and ".join(bounds)]).strip()

    def check(self, value: Any) -> Any:
        """Return ``value`` as this key's kind.

        Raises:
            InvalidConfigError: ``value`` is of another kind, out of bounds or not among the choices.
        """
        wrong = InvalidConfigError(f"{self.name} must be {self.allowed}; got {value!r}")
        if isinstance(value, bool) != (self.kind is bool):
            raise wrong
        if isinstance(value, int) and abs(value) > sys.float_info.max:
            raise wrong
        if self.kind is float and isinstance(value, int | float):
            value = float(value)
        elif self.kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, self.kind) or (self.choices and value not in self.choices):
            raise wrong
        if isinstance(value, int | float) and not isinstance(value, bool):
            too_low = value < self.low or (self.low_open and value == self.low)
            too_high = value > self.high or (self.high_open and value == self.high)
            if too_low or too_high or not math.isfinite(value):
                raise wrong
        return value


_KEYS = (
    ConfigKey("model", str, "the network", "softmax", MODELS),
    ConfigKey("data", str, "the data set; by default line for the model line, else mnist", None, DATA_SETS),
    ConfigKey("optimizer", str, "the update rule, as TensorFlow 1 defines it", "gradient_descent", OPTIMIZERS),
    ConfigKey("learning_rate", float, "the (initial) learning rate", 0.01, low=0, low_open=True),
    ConfigKey(
        "batch_size", int, "images a step; the line always takes its four points", 100, low=1, high=NUM_TRAINING_IMAGES
    ),
    ConfigKey("batching", str, "the order in which images are visited", "shuffled", BATCHING_POLICIES),
    ConfigKey(
        "schedule",
        str,
        "the course of the learning rate: staircase (decay_rate), cosine (down to 0), one_cycle (up, then down to 0)",
        "staircase",
        SCHEDULES,
    ),
    ConfigKey(
        "decay_rate",
        float,
        "factor on the learning rate after each pass over the training data, of the staircase (1: constant)",
        low=0,
        low_open=True,
        high=1,
    ),
    ConfigKey(
        "warmup",
        float,
        "fraction of the steps in which one_cycle's rate rises to learning_rate (0.3)",
        low=0,
        low_open=True,
        high=1,
        high_open=True,
    ),
    ConfigKey(
        "dropout", float, "probability that a hidden unit is dropped in training", 0.0, low=0, high=1, high_open=True
    ),
    ConfigKey(
        "max_shift",
        float,
        "pixels by which a training image is shifted at random",
        0.0,
        low=0,
        high=IMAGE_SIDE,
    ),
    ConfigKey("max_rotation", float, "degrees by which a training image is rotated at random", 0.0, low=0, high=180),
    ConfigKey(
        "max_scaling", float, "part by which a training image grows or shrinks at random, at most", 0.0, low=0, high=0.9
    ),
    ConfigKey("steps", int, "optimizer steps, one batch each", 1000, low=1),
    ConfigKey("seed", int, "fixes initial weights, data order, dropout and distortions", 0, low=0, high=2**31 - 1),
    ConfigKey("width", float, "factor on the number of features of the cnn", 1.0, low=0, low_open=True),
    ConfigKey(
        "initial_weights",
        str,
        "as in TensorFlow's tutorial (truncated normal 0.1, bias 0.1; zeros for softmax), or PyTorch's own",
        "tutorial",
        ("tutorial", "pytorch"),
    ),
    ConfigKey(
        "precision",
        str,
        "type of parameters and of products; with tf32 (on GPUs) and bfloat16 of products only, parameters are float32",
        "float32",
        ("float32", "float64", "tf32", "bfloat16"),
    ),
    ConfigKey("num_evaluations", int, "evaluations a run, evenly spaced", 50, low=1),
    ConfigKey(
        "num_evaluation_images",
        int,
        "images of each evaluation split that are used, from its start",
        10_000,
        low=1,
        high=10_000,
    ),
    ConfigKey(
        "momentum", float, "momentum of momentum, nesterov (0.9) and rmsprop (0)", None, low=0, high=1, high_open=True
    ),
    ConfigKey(
        "rho",
        float,
        "decay of the mean squared gradient of adadelta (0.95) and rmsprop (0.9)",
        None,
        low=0,
        high=1,
        high_open=True,
    ),
    ConfigKey("beta1", float, "decay of adam's mean gradient (0.9)", None, low=0, high=1, high_open=True),
    ConfigKey("beta2", float, "decay of adam's mean squared gradient (0.999)", None, low=0, high=1, high_open=True),
    ConfigKey("epsilon", float, "guards a division in adadelta, adam (1e-8) and rmsprop (1e-10)", None, low=0),
    ConfigKey("centered", bool, "rmsprop divides by the variance, not by the second moment (false)", None),
    ConfigKey(
        "initial_accumulator",
        float,
        "initial sum of squared gradients of adagrad, ftrl and proximal_adagrad (0.1)",
        None,
        low=0,
    ),
    ConfigKey("learning_rate_power", float, "ftrl's power of the accumulator (-0.5)", None, high=0),
    ConfigKey("l1", float, "l1 penalty of ftrl and the proximal optimizers (0)", None, low=0),
    ConfigKey("l2", float, "l2 penalty of ftrl and the proximal optimizers (0)", None, low=0),
    ConfigKey("l2_shrinkage", float, "ftrl's l2 penalty on the gradient's side (0)", None, low=0),
    ConfigKey(
        "workers", int, "processes that share each batch, by way of Ray Train; where it is not given, none do", low=1
    ),
    ConfigKey(
        "bucket_mb", float, "megabytes of gradients that workers average at a time (25)", low=0, low_open=True, high=1e6
    ),
    ConfigKey("bucket_view", bool, "whether gradients are views of what workers send (false)"),
    ConfigKey(
        "compression", str, "how gradients travel: none, or bf16, in two bytes a number (none)", None, COMPRESSIONS
    ),
    ConfigKey("local_steps", int, "workers average their parameters after so many steps, and no gradients (1)", low=1),
)

#: Every key of a trial's configuration, by name, in the order in which frames show them.
TRIAL_KEYS: dict[str, ConfigKey] = {key.name: key for key in _KEYS}

#: Keys of a trial that uses several workers: there where they are given.
WORKER_KEYS = ("workers", "bucket_mb", "bucket_view", "compression", "local_steps")

#: Keys that others decide on: which of them there are, and with which defaults, by the value of the key that decides.
OWNERS: dict[str, dict[str, dict[str, float | bool]]] = {
    "optimizer": OPTIMIZER_DEFAULTS,
    "schedule": SCHEDULE_DEFAULTS,
}


def owned_keys(owner: str) -> tuple[str, ...]:
    """Return the keys that ``owner``, one of ``OWNERS``, decides on."""
    return tuple(dict.fromkeys(name for defaults in OWNERS[owner].values() for name in defaults))


def check_key(name: str) -> ConfigKey:
    """Return the key of that name.

    Raises:
        InvalidConfigError: there is none.
    """
    if name not in TRIAL_KEYS:
        raise InvalidConfigError(f"no such key {name!r}; a trial's keys are {', '.join(TRIAL_KEYS)}")
    return TRIAL_KEYS[name]


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """Check a configuration and fill in what it leaves out.

    Args:
        config: Any of ``TRIAL_KEYS``.

    Returns:
        Every key with its value; of the keys of optimizers and schedules, those that the chosen ones have. Keys of
        others are dropped, so that one fixed value may serve a space over several optimizers.

    Raises:
        InvalidConfigError: an unknown key, or a value that its key does not allow.
    """
    given = {name: check_key(name).check(value) for name, value in config.items()}
    completed = {key.name: given.get(key.name, key.default) for key in _KEYS}
    if completed["data"] is None:
        completed["data"] = "line" if completed["model"] == "line" else "mnist"
    if (completed["model"] == "line") != (completed["data"] == "line"):
        raise InvalidConfigError(
            f"the model line fits the data line and no other; got model={completed['model']!r} "
            f"with data={completed['data']!r}"
        )
    for owner, defaults in OWNERS.items():
        own = defaults[completed[owner]]
        for name in owned_keys(owner):
            if name in own:
                completed[name] = given.get(name, own[name])
            else:
                del completed[name]
    for name in WORKER_KEYS:
        if name not in given:
            del completed[name]
    if "workers" in completed:
        _check_workers(completed)
    return completed


def _check_workers(completed: Mapping[str, Any]) -> None:
    if completed["model"] == "line":
        raise InvalidConfigError("the line's four points are not worth sharing; use model=softmax or model=cnn")
    if completed["workers"] > completed["batch_size"]:
        raise InvalidConfigError(
            f"workers must be at most the batch size {completed['batch_size']}; got {completed['workers']}"
        )
