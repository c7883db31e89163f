"""Exercise 1, part 1: gradient descent on a line, at five learning rates."""

from ray import tune

from tune_hpc.search.experiment import Experiment, Figure, Space, Table

LEARNING_RATES = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6]

experiment = Experiment(
    name="exercise1_1stpart",
    title="Gradient descent on a line at five learning rates",
    description="A line W x + b is fitted to four points, from W = 0.3, b = -0.3; the optimum is W = -1, b = 1. "
    "The loss is the sum of squared errors. One run of 30,000 steps holds the report's 1000, too.",
    source="report, Exercise 1, part 1",
    space=Space(
        {
            "model": "line",
            "optimizer": "gradient_descent",
            "learning_rate": tune.choice(LEARNING_RATES),
            "steps": 30_000,
        }
    ),
    metric="train_loss",
    mode="min",
    figures=tuple(
        Figure("curve", (metric,), f"{title}, {steps} steps", line="learning_rate", last_step=steps, log_y=log_y)
        for steps in (1000, 30_000)
        for metric, title, log_y in (
            ("train_loss", "Loss", False),
            ("train_loss", "Log loss", True),
            ("W", "W", False),
            ("b", "b", False),
        )
    ),
    tables=(Table("at_steps", "State after 1000 and 30,000 steps", ("train_loss", "W", "b"), steps=(1000, 30_000)),),
    quick_values={"steps": 3000},
)

experiments = (experiment,)
