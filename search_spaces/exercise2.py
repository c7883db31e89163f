"""Exercise 2: nine optimizers at eight learning rates on MNIST, for two models.

The report describes a convolutional network, but its numbers are those of softmax regression: loss and accuracy on the
training images, after one pass in their stored order. There is an experiment for each model; the published table
belongs to ``softmax``.
"""

from ray import tune

from tune_hpc.search.experiment import Claim, Experiment, Figure, Published, Space, Table

OPTIMIZERS = [
    "gradient_descent", "momentum", "adam", "nesterov", "adagrad", "adadelta", "rmsprop", "ftrl", "proximal_adagrad",
]  # fmt: skip
LEARNING_RATES = [0.5, 0.1, 0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001]

#: By optimizer: best learning rates, and the loss and accuracy of each of them.
PUBLISHED_BEST = {
    "gradient_descent": ((0.5,), 0.33, 0.91),
    "momentum": ((0.05, 0.1), 0.32, 0.91),
    "adam": ((0.005, 0.01), 0.30, 0.92),
    "nesterov": ((0.1,), 0.31, 0.91),
    "adagrad": ((0.1, 0.5), 0.32, 0.91),
    "adadelta": ((0.5,), 0.80, 0.84),
    "rmsprop": ((0.01, 0.005), 0.32, 0.91),
    "ftrl": ((0.1, 0.5), 0.32, 0.91),
    "proximal_adagrad": ((0.1, 0.5), 0.33, 0.91),
}
#: 30 numbers. With ``best_over``, each also states the best rates of its optimizer.
PUBLISHED = tuple(
    Published(
        {"optimizer": optimizer, "learning_rate": rate}, metric, value, "report, Exercise 2", "learning_rate", rates,
        resolution=0.01, size={"steps": 500, "width": 1},
    )
    for optimizer, (rates, loss, accuracy) in PUBLISHED_BEST.items()
    for rate in rates
    for metric, value in (("fit_loss", loss), ("fit_accuracy", accuracy))
)  # fmt: skip

_ALL_BUT_ADADELTA = [name for name in OPTIMIZERS if name != "adadelta"]
_ADAM_FIRST = ["adam", *(name for name in OPTIMIZERS if name != "adam")]
#: Claims of the report on the best learning rate of each optimizer.
CLAIMS = tuple(
    Claim(text, "report, Exercise 2", "optimizer", tuple(names), "result", metric, relation, 500, bound)
    for text, names, metric, relation, bound in (
        ("all but Adadelta reach a loss below 0.34", _ALL_BUT_ADADELTA, "fit_loss", "below", 0.34),
        ("all but Adadelta reach an accuracy above 0.90", _ALL_BUT_ADADELTA, "fit_accuracy", "above", 0.9),
        ("Adam is the most favourable: by its loss", _ADAM_FIRST, "fit_loss", "first_lowest", 0),
        ("the same: by its accuracy", _ADAM_FIRST, "fit_accuracy", "first_highest", 0),
    )
)

_SPACE = Space(
    {
        "optimizer": tune.choice(OPTIMIZERS),
        "learning_rate": tune.choice(LEARNING_RATES),
        "steps": 500,
        "num_fit_images": 50_000,
    },
)
_FIGURES = (
    Figure("curve", ("test_loss", "test_accuracy"), "Loss and accuracy", line="learning_rate", page="optimizer"),
    Figure(
        "response", ("test_accuracy",), "Accuracy by learning rate", parameter="learning_rate", line="optimizer",
        log_x=True,
    ),
    Figure(
        "heatmap", ("test_accuracy",), "Accuracy by optimizer and learning rate", parameter="learning_rate",
        line="optimizer",
    ),
    Figure("ranking", ("test_accuracy",), "Optimizers, each at its best rate", line="optimizer"),
    Figure("target", ("test_accuracy",), "When configurations reached 90 %", line="optimizer", target=0.9),
)  # fmt: skip
_BESIDE = Figure("published", ("fit_loss", "fit_accuracy"), "Published and measured")
_TABLES = (
    Table(
        "best_per", "Best learning rate of each optimizer", ("valid_loss", "test_loss", "test_accuracy"), "optimizer"
    ),
    Table("pivot", "Test accuracy", ("test_accuracy",), "optimizer", "learning_rate"),
)

softmax = Experiment(
    name="exercise2.softmax",
    title="Nine optimizers at eight learning rates, softmax regression",
    description="One layer from 784 pixels to 10 classes, zero initial weights, 500 steps of 100 images in their "
    "stored order. The report's table contains this model's loss and accuracy on the 50,000 training images.",
    source="report, Exercise 2",
    space=_SPACE | {"model": "softmax", "batch_size": 100, "batching": "sequential"},
    metric="valid_loss",
    mode="min",
    published=PUBLISHED,
    claims=CLAIMS,
    figures=(*_FIGURES, _BESIDE),
    tables=_TABLES,
)

cnn = Experiment(
    name="exercise2.cnn",
    title="Nine optimizers at eight learning rates, convolutional network",
    description="The network that the report describes (3,274,634 parameters, dropout 0.5), 500 steps of 50 images. "
    "The published table does not belong to this network.",
    source="report, Exercise 2",
    # Few evaluations: fifty on 20,000 images would process forty times as many images as the training.
    space=_SPACE
    | {
        "model": "cnn", "batch_size": 50, "batching": "shuffled", "dropout": 0.5, "num_evaluations": 10,
        "num_fit_images": 10_000,
    },
    metric="valid_loss",
    mode="min",
    published=PUBLISHED,
    figures=(*_FIGURES, _BESIDE),
    tables=_TABLES,
    quick_values={
        "learning_rate": tune.choice([0.1, 0.01, 0.001]),
        "steps": 40,
        "width": 0.25,
        "num_evaluations": 4,
        "num_evaluation_images": 1000,
        "num_fit_images": 1000,
    },
)  # fmt: skip

experiments = (softmax, cnn)
