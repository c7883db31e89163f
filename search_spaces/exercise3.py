"""Exercise 3: accuracy of a convolutional network, one hyperparameter after another (Tables 4.1 to 4.6).

The report states the best test accuracy of a run: ``best_test_accuracy``. The experiments rank trials by their best
validation accuracy instead; ``selected_test_accuracy`` is the test accuracy at that step.
"""

from typing import Any

from ray import tune

from tune_hpc.search.experiment import Claim, Experiment, Figure, Published, Space, Table
from tune_hpc.search.space.conditional import when

BATCH_SIZES = [150, 100, 50, 25, 10, 8, 6, 4]
LEARNING_RATES = [2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 7e-4, 8e-4, 9e-4, 10e-4]
DROPOUTS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]

#: Accuracies in percent, in the order of the values above.
TABLE_4_1 = [94.1, 95.0, 95.0, 95.5, 96.2, 97.3, 97.3, 96.4]
TABLE_4_2 = [98.9, 98.9, 98.6, 98.3, 97.7, 97.4, 97.4, 95.3]
TABLE_4_3 = {150: 99.0, 100: 99.0}
TABLE_4_4 = {
    150: [99.0, 99.1, 99.0, 99.2, 98.8, 99.1, 99.2, 99.0, 99.3],
    100: [99.1, 99.2, 99.1, 98.9, 99.1, 99.0, 99.1, 99.2, 99.2],
}
TABLE_4_5 = {
    150: [99.2, 99.1, 99.2, 99.1, 99.2, 99.3, 99.1, 99.0, 99.0, 99.0],
    100: [99.2, 99.2, 99.1, 99.1, 99.1, 99.2, 99.1, 99.2, 99.1, 99.0],
}


def _published(table: str, percent: float, **where: Any) -> Published:
    size = {"steps": 5000, "width": 1}
    source = f"report, Table {table}"
    return Published(where, "best_test_accuracy", round(percent / 100, 4), source, resolution=0.001, size=size)


_NETWORK = Space({"model": "cnn", "optimizer": "adam", "learning_rate": 1e-4, "dropout": 0.5, "steps": 5000})
_DECAYED = _NETWORK | {"batching": "shuffled", "decay_rate": 0.95}
_QUICK = {"steps": 200, "width": 0.25, "num_evaluations": 5, "num_evaluation_images": 1000}
_BESIDE = Figure("published", ("best_test_accuracy",), "Published and measured")
_BOTH_MEASURES = ("best_test_accuracy", "selected_test_accuracy")

baseline = Experiment(
    name="exercise3.baseline",
    title="The baseline",
    description="The basic code: 1000 steps of 50 images, exactly one pass over the training images.",
    source="report, Exercise 3",
    space=_NETWORK | {"batch_size": 50, "batching": "single_pass", "steps": 1000},
    metric="best_valid_accuracy",
    published=(
        Published(
            {"batch_size": 50}, "test_accuracy", 0.961, "report, Exercise 3", resolution=0.001,
            size={"steps": 1000, "width": 1},
        ),
    ),
    figures=(Figure("curve", ("test_accuracy",), "Test accuracy"),),
    quick_values=_QUICK,
)  # fmt: skip

batch_size_single_pass = Experiment(
    name="exercise3.batch_size_single_pass",
    title="Batch sizes, a single pass (Table 4.1)",
    description="Batches in fixed order end after one pass: with batches of 150 only 333 of the 5000 steps have data. "
    "Small batches look better here because they take more steps.",
    source="report, Table 4.1",
    space=_NETWORK | {"batch_size": tune.choice(BATCH_SIZES), "batching": "single_pass"},
    metric="best_valid_accuracy",
    published=tuple(
        _published("4.1", percent, batch_size=size) for size, percent in zip(BATCH_SIZES, TABLE_4_1, strict=True)
    ),
    figures=(
        Figure("response", ("best_test_accuracy",), "Accuracy by batch size, single pass", parameter="batch_size",
               log_x=True, published="best_test_accuracy"),
        Figure("curve", ("test_accuracy",), "Test accuracy", line="batch_size"),
        _BESIDE,
    ),
    quick_values=_QUICK,
)  # fmt: skip

batch_size_shuffled = Experiment(
    name="exercise3.batch_size_shuffled",
    title="Batch sizes, shuffled every epoch (Table 4.2)",
    description="The same batch sizes; all 5000 steps have data.",
    source="report, Table 4.2",
    space=_NETWORK | {"batch_size": tune.choice(BATCH_SIZES), "batching": "shuffled"},
    metric="best_valid_accuracy",
    published=tuple(
        _published("4.2", percent, batch_size=size) for size, percent in zip(BATCH_SIZES, TABLE_4_2, strict=True)
    ),
    figures=(
        Figure("response", ("best_test_accuracy",), "Accuracy by batch size, shuffled", parameter="batch_size",
               log_x=True, published="best_test_accuracy"),
        Figure("curve", ("test_accuracy",), "Test accuracy", line="batch_size"),
        _BESIDE,
    ),
    quick_values=_QUICK,
)  # fmt: skip

decay = Experiment(
    name="exercise3.decay",
    title="A decaying learning rate (Table 4.3)",
    description="The rate starts at 1e-4 and is multiplied by 0.95 after each pass over the training images.",
    source="report, Table 4.3",
    space=_DECAYED | {"batch_size": tune.choice([150, 100])},
    metric="best_valid_accuracy",
    published=tuple(_published("4.3", percent, batch_size=size) for size, percent in TABLE_4_3.items()),
    figures=(Figure("curve", ("test_accuracy",), "Test accuracy", line="batch_size"),),
    tables=(Table("best_per", "Accuracy by batch size", _BOTH_MEASURES, "batch_size"),),
    quick_values=_QUICK,
)

learning_rate = Experiment(
    name="exercise3.learning_rate",
    title="Initial learning rates with decay (Table 4.4)",
    description="Nine higher initial rates; decay by 0.95 after each pass.",
    source="report, Table 4.4",
    space=_DECAYED | {"learning_rate": tune.choice(LEARNING_RATES), "batch_size": tune.choice([150, 100])},
    metric="best_valid_accuracy",
    published=tuple(
        _published("4.4", percent, batch_size=size, learning_rate=rate)
        for size, row in TABLE_4_4.items()
        for rate, percent in zip(LEARNING_RATES, row, strict=True)
    ),
    claims=(
        Claim(
            "10e-4 is the best initial rate for batches of 150", "report, Table 4.4", "learning_rate",
            tuple(reversed(LEARNING_RATES)), "result", "best_test_accuracy", "first_highest", 5000,
            where={"batch_size": 150, "width": 1},
        ),
    ),
    figures=(
        Figure("response", ("best_test_accuracy",), "Accuracy by initial learning rate", parameter="learning_rate",
               line="batch_size", published="best_test_accuracy"),
        _BESIDE,
    ),
    tables=(Table("pivot", "Best test accuracy", ("best_test_accuracy",), "batch_size", "learning_rate"),),
    quick_values=_QUICK | {"learning_rate": tune.choice([2e-4, 5e-4, 10e-4])},
)  # fmt: skip

dropout = Experiment(
    name="exercise3.dropout",
    title="Dropout (Table 4.5)",
    description="Ten dropout probabilities; an initial rate of 10e-4, decay by 0.95 after each pass.",
    source="report, Table 4.5",
    space=_DECAYED
    | {"learning_rate": 10e-4, "dropout": tune.choice(DROPOUTS), "batch_size": tune.choice([150, 100])},
    metric="best_valid_accuracy",
    published=tuple(
        _published("4.5", percent, batch_size=size, dropout=probability)
        for size, row in TABLE_4_5.items()
        for probability, percent in zip(DROPOUTS, row, strict=True)
    ),
    figures=(
        Figure("response", ("best_test_accuracy",), "Accuracy by dropout", parameter="dropout", line="batch_size",
               published="best_test_accuracy"),
        _BESIDE,
    ),
    tables=(Table("pivot", "Best test accuracy", ("best_test_accuracy",), "batch_size", "dropout"),),
    quick_values=_QUICK | {"dropout": tune.choice([0.0, 0.5, 0.9])},
)  # fmt: skip

winner = Experiment(
    name="exercise3.winner",
    title="The winner (Table 4.6)",
    description="Batches of 150, rate 10e-4 with decay, dropout 0.5.",
    source="report, Table 4.6",
    space=_DECAYED | {"learning_rate": 10e-4, "batch_size": 150},
    metric="best_valid_accuracy",
    published=(_published("4.6", 99.3, batch_size=150),),
    figures=(Figure("curve", ("valid_accuracy", "test_accuracy"), "Accuracy on held-out images"),),
    quick_values=_QUICK,
)

#: Images of the report's winner (5000 batches of 150): the budget of every configuration of the open space.
NUM_IMAGES = 750_000

open = Experiment(
    name="exercise3.open",
    title="An open search space",
    description="The report's network with the number of images of its winner. Batch size, batching, optimizer, "
    "learning rate and its schedule, dropout, and random shifts, rotations and scalings of the images vary. "
    "Configurations are selected on the validation images only.",
    source="beyond the report",
    space=Space(
        {
            "model": "cnn",
            "batch_size": tune.choice([50, 100, 150, 250]),
            "steps": when(NUM_IMAGES // 50, batch_size=50)
            | when(NUM_IMAGES // 100, batch_size=100)
            | when(NUM_IMAGES // 150, batch_size=150)
            | when(NUM_IMAGES // 250, batch_size=250),
            "batching": tune.choice(["shuffled", "random"]),
            "optimizer": tune.choice(["adam", "rmsprop", "nesterov"]),
            "learning_rate": when(tune.loguniform(3e-4, 5e-3), optimizer="adam")
            | when(tune.loguniform(1e-4, 3e-3), optimizer="rmsprop")
            | tune.loguniform(1e-2, 0.2),
            "momentum": when(tune.uniform(0.8, 0.98), optimizer="nesterov"),
            "schedule": tune.choice(["staircase", "cosine", "one_cycle"]),
            "decay_rate": when(tune.uniform(0.6, 1.0), schedule="staircase"),
            "warmup": when(tune.uniform(0.1, 0.5), schedule="one_cycle"),
            "dropout": tune.uniform(0.0, 0.7),
            "max_shift": tune.uniform(0.0, 3.0),
            "max_rotation": tune.uniform(0.0, 20.0),
            "max_scaling": tune.uniform(0.0, 0.2),
        }
    ),
    metric="best_valid_accuracy",
    searcher="tpe",
    num_samples=64,
    figures=(
        Figure("response", ("best_valid_accuracy",), "Accuracy by learning rate", parameter="learning_rate",
               line="optimizer", log_x=True),
        Figure("parallel", ("best_valid_accuracy",), "All configurations of the open space"),
    ),
    quick_values=_QUICK,
)  # fmt: skip

open_winner = Experiment(
    name="exercise3.open_winner",
    title="The winner of the open search space",
    description="The best configuration of a search of the open space at a quarter of the network's width, rounded; "
    "selected on the validation images. The report's network with the number of images of its winner.",
    source="beyond the report",
    space=Space(
        {
            "model": "cnn", "optimizer": "adam", "learning_rate": 1.8e-3, "schedule": "one_cycle", "warmup": 0.23,
            "batch_size": 50, "batching": "random", "steps": NUM_IMAGES // 50, "dropout": 0.33,
            "max_shift": 1.7, "max_rotation": 4.8, "max_scaling": 0.12,
        }
    ),
    metric="best_valid_accuracy",
    figures=(Figure("curve", ("valid_accuracy", "test_accuracy"), "Accuracy on held-out images"),),
    quick_values=_QUICK,
)  # fmt: skip

experiments = (
    *(baseline, batch_size_single_pass, batch_size_shuffled, decay, learning_rate, dropout, winner),
    *(open, open_winner),
)
