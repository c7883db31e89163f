"""Exercise 1, part 1: line regression by gradient descent at five learning rates."""

from ray import tune

from tune_hpc.search.experiment import Claim, Experiment, Figure, Space, Table

LEARNING_RATES = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6]
SOURCE = "report, Exercise 1, part 1"

#: Claims of the report; the rates fall from left to right.
CLAIMS = tuple(
    Claim(text, SOURCE, "learning_rate", tuple(rates), measure, metric, relation, steps, bound, target, tolerance)
    for text, rates, measure, metric, relation, steps, bound, target, tolerance in (
        ("a lower rate converges more slowly", LEARNING_RATES, "value", "train_loss", "rising", 1000, 0, 0, 0),
        ("1000 steps show 1e-2 and 1e-3 converge", [1e-2, 1e-3], "settling_step", "W", "at_most", 1000, 1000, -1, 0.01),
        ("30,000 steps do not show 1e-6 converge", [1e-6], "settling_step", "W", "above", 30_000, 30_000, -1, 0.01),
        ("1e-2 reaches the lowest loss", LEARNING_RATES, "value", "train_loss", "first_lowest", 30_000, 0, 0, 0),
        ("W moves in one direction throughout", LEARNING_RATES, "reversals", "W", "at_most", 30_000, 0, 0, 0),
        ("b first moves away from its optimum", LEARNING_RATES, "max_departure", "b", "above", 30_000, 0, 1, 0),
        ("b moves farther away with a lower rate", LEARNING_RATES, "max_departure", "b", "rising", 30_000, 0, 1, 0),
        ("b moves away longer with a lower rate", LEARNING_RATES, "max_departure_step", "b", "rising", 30_000, 0, 1, 0),
    )
)

experiment = Experiment(
    name="exercise1_1stpart",
    title="Gradient descent on a line at five learning rates",
    description="A line W x + b is fitted to four points, starting at W = 0.3, b = -0.3. The optimum is W = -1, b = 1. "
    "The report prints no data: points and start are recovered from its statements. The loss is the sum of squared "
    "errors. One run of 30,000 steps includes the report's run of 1000.",
    source=SOURCE,
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
    claims=CLAIMS,
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
)

experiments = (experiment,)
