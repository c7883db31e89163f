"""Exercise 1, part 2: ten optimizers on a line, at learning rate 0.01."""

from ray import tune

from tune_hpc.search.experiment import Experiment, Figure, Space, Table

OPTIMIZERS = [
    "momentum", "gradient_descent", "nesterov", "adagrad", "adadelta", "adam", "rmsprop", "ftrl", "proximal_adagrad",
    "proximal_gradient_descent",
]  # fmt: skip

experiment = Experiment(
    name="exercise1_2ndpart",
    title="Ten optimizers on a line at learning rate 0.01",
    description="The line of part 1. The optimizers and their defaults are TensorFlow 1's. Proximal gradient descent, "
    "which the report leaves out of its plots, equals gradient descent to the last bit.",
    source="report, Exercise 1, part 2",
    space=Space({"model": "line", "optimizer": tune.choice(OPTIMIZERS), "learning_rate": 0.01, "steps": 2500}),
    metric="train_loss",
    mode="min",
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
    quick_values={"steps": 1000},
)

experiments = (experiment,)
