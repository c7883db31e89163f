"""Exercise 4: training time of the winner of Exercise 3 on 1, 2 and 4 workers."""

from ray import tune

from search_spaces import exercise3
from tune_hpc.search.experiment import Claim, Experiment, Figure, Published, Table

WORKERS = [1, 2, 4]

#: Seconds for 5000 steps of 150 images on 1, 2 and 4 GPUs of a Power9 node.
PUBLISHED_SECONDS = [19.254, 18.463, 18.234]
#: Configuration with comparable speed-ups; the seconds are those of another machine.
_SIZE = {"width": 1, "batch_size": 150, "mode": "strong"}

experiment = Experiment(
    name="exercise4",
    title="Training time on 1, 2 and 4 workers",
    description="The network of Table 4.6. The workers share its batch of 150 images and average gradients at every "
    "step. The published seconds are those of 1, 2 and 4 GPUs of a Power9 node, a different machine.",
    source="report, Exercise 4",
    space=exercise3.winner.space | {"workers": tune.choice(WORKERS)},
    trainable="tune_hpc.scaling.workers:time_workers",
    metric="train_s",
    mode="min",
    published=tuple(
        Published({"workers": workers}, "train_s", seconds, "report, Exercise 4", resolution=0.001, size=_SIZE)
        for workers, seconds in zip(WORKERS, PUBLISHED_SECONDS, strict=True)
    ),
    claims=(
        Claim(
            "the time is roughly steady: the speed-up is 1",
            "report, Exercise 4",
            "workers",
            tuple(WORKERS[1:]),
            "result",
            "speedup",
            "within",
            0,
            bound=0.1,
            target=1,
            where={"width": 1},
        ),
    ),
    figures=(
        Figure("response", ("train_s",), "Training time by workers", parameter="workers", published="train_s"),
        Figure("speedup", ("speedup", "efficiency"), "Speed-up and efficiency by workers", parameter="workers"),
        Figure("stack", ("compute_s", "communicate_s", "data_s"), "Step time by component", parameter="workers"),
        Figure("cost", ("train_s", "worker_s"), "Time and cost by workers", parameter="workers"),
        Figure("links", ("speedup", "efficiency"), "Predicted: more workers, other links", parameter="workers"),
        Figure("widths", ("efficiency",), "Predicted: efficiency by the network's width"),
    ),
    tables=(
        Table(
            "trials",
            "Time by workers",
            (
                *("train_s", "extrapolated", "step_s", "compute_s", "communicate_s", "data_s"),
                *("speedup", "efficiency", "oversubscribed", "warmup_s", "startup_s"),
            ),
        ),
    ),
    quick_values={"num_timed_steps": 10, "repeats": 1},
    runner="scaling",
)

experiments = (experiment,)
