"""Source of a trainable that saves its state, records each start, and is slow unless the file ``hurry`` exists."""

import time
from collections import Counter

from ray import tune

from tune_hpc import Experiment, Space

WALK = '''
import time
from pathlib import Path

def walk(config, report, checkpoint):
    """Gradient descent on (x - 3)^2, slowly."""
    with open(config["journal"], "a", encoding="utf-8") as journal:
        journal.write(f"{config['rate']}\\n")
    state = checkpoint.load() or {"step": 0, "x": 0.0}
    x = state["x"]
    for step in range(state["step"] + 1, config["steps"] + 1):
        x -= config["rate"] * 2 * (x - 3)
        report(step, {"loss": (x - 3) ** 2})
        checkpoint.save(step, lambda: {"step": step, "x": x})
        if not Path(config["hurry"]).exists():
            time.sleep(0.02)
'''


def walk(folder, **changes):
    """Return an experiment with the trainable in ``walks_here.py``; its trials write to ``folder``."""
    space = Space(
        {
            "rate": tune.uniform(0.01, 0.4), "steps": 400,
            "journal": str(folder / "journal"), "hurry": str(folder / "hurry"),
        },
        keys={},
    )  # fmt: skip
    settings = {"searcher": "random", "num_samples": 4, "metric": "loss", "mode": "min", "seeds": ()}
    return Experiment("walk", space, "walks_here:walk", **(settings | changes))


def until(job, holds, timeout_s=90):
    """Wait until the status of a job meets a condition; fail if the job ends."""
    start = time.monotonic()
    while not holds(status := job.status()):
        assert status.state.is_active, status
        assert time.monotonic() - start < timeout_s, status
        time.sleep(0.1)


def minimum(rate):
    """Return the last loss of the trainable at a rate."""
    x = 0.0
    for _ in range(400):
        x -= rate * 2 * (x - 3)
    return (x - 3) ** 2


def num_starts(folder):
    """Return how often each trial started, by rate."""
    return Counter((folder / "journal").read_text(encoding="utf-8").split())
