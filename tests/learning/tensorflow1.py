"""Recorded runs of TensorFlow 1 on Exercise 1's line, with translated names."""

import json
from pathlib import Path

LINE = json.loads((Path(__file__).parent.parent / "data" / "tensorflow1_line.json").read_text())

OPTIMIZER_NAMES = {
    "GradientDescent": "gradient_descent",
    "Momentum": "momentum",
    "Nesterov": "nesterov",
    "Adagrad": "adagrad",
    "Adadelta": "adadelta",
    "Adam": "adam",
    "RMSProp": "rmsprop",
    "Ftrl": "ftrl",
    "ProximalAdagrad": "proximal_adagrad",
    "ProximalGradientDescent": "proximal_gradient_descent",
}
_HYPERPARAMETERS = {
    "decay": "rho",
    "initial_accumulator_value": "initial_accumulator",
    "l1_regularization_strength": "l1",
    "l2_regularization_strength": "l2",
    "l2_shrinkage_regularization_strength": "l2_shrinkage",
}
TOLERANCE = {"float32": 3e-5, "float64": 1e-11}


def optimizer_name(run):
    """Return the optimizer of a recorded run, without the variant after an underscore."""
    return OPTIMIZER_NAMES[run["optimizer"].split("_")[0]]


def hyperparameters(run):
    """Return the translated hyperparameters of a recorded run."""
    translated = {_HYPERPARAMETERS.get(key, key): value for key, value in run["hyperparameters"].items()}
    translated.pop("use_nesterov", None)
    assert translated.pop("beta", 0.0) == 0.0
    return translated


def label(run):
    """Return the test id of a recorded run."""
    return "-".join(str(run[key]) for key in ("optimizer", "learning_rate", "sequence", "dtype") if key in run)
