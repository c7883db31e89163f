"""Exercise 1, part 2: line regression by ten optimizers at learning rate 0.01."""

from ray import tune

from tune_hpc.search.experiment import Claim, Experiment, Figure, Space, Table

OPTIMIZERS = [
    "momentum", "gradient_descent", "nesterov", "adagrad", "adadelta", "adam", "rmsprop", "ftrl", "proximal_adagrad",
    "proximal_gradient_descent",
]  # fmt: skip
SOURCE = "report, Exercise 1, part 2"

_NINE = OPTIMIZERS[:-1]
_BY_GRADIENT_DESCENT = ["gradient_descent", *(name for name in _NINE if name != "gradient_descent")]
#: Claims of the report.
CLAIMS = tuple(
    Claim(text, SOURCE, "optimizer", tuple(names), measure, metric, relation, steps, bound, target, tolerance)
    for text, names, measure, metric, relation, steps, bound, target, tolerance in (
        ("all show signs of converging", _NINE, "remaining_fraction", "train_loss", "at_most", 2500, 0.5, 0, 0),
        ("not all beat gradient descent",
         _BY_GRADIENT_DESCENT, "value", "train_loss", "some_above_first", 2500, 0, 0, 0),
        ("momentum, Nesterov and gradient descent are the best, in that order: by their loss",
         ["momentum", "nesterov", "gradient_descent"], "value", "train_loss", "rising", 1000, 0, 0, 0),
        ("the same: by their speed",
         ["momentum", "nesterov", "gradient_descent"], "settling_step", "train_loss", "rising", 1000, 0, 0, 1e-6),
        ("momentum and Nesterov converge less smoothly than gradient descent",
         ["gradient_descent", "nesterov", "momentum"], "crossings", "W", "first_lowest", 1000, 0, -1, 1e-6),
        ("momentum oscillates less than Nesterov",
         ["momentum", "nesterov"], "crossings", "W", "rising", 1000, 0, -1, 1e-6),
    )
)  # fmt: skip

experiment = Experiment(
    name="exercise1_2ndpart",
    title="Ten optimizers on a line at learning rate 0.01",
    description="The line of part 1 with TensorFlow 1's optimizers and their defaults. Proximal gradient descent, "
    "which the report omits from its plots, equals gradient descent to the last bit.",
    source=SOURCE,
    space=Space({"model": "line", "optimizer": tune.choice(OPTIMIZERS), "learning_rate": 0.01, "steps": 2500}),
    metric="train_loss",
    mode="min",
    claims=CLAIMS,
    figures=tuple(
        Figure("curve", (metric,), f"{title}, {steps} steps", line="optimizer", last_step=steps, log_y=log_y)
        for steps in (1000, 2500)
        for metric, title, log_y in (
            ("train_loss", "Loss", False),
            ("train_loss", "Log loss", True),
            ("W", "W", False),
            ("b", "b", False),
        )
    ),
    tables=(Table("at_steps", "State after 1000 and 2500 steps", ("train_loss", "W", "b"), steps=(1000, 2500)),),
)

experiments = (experiment,)
