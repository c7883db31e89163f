"""Trainables of users, for the tests on Ray."""

import os
import time
from functools import partial
from pathlib import Path


def parabola(config, report):
    """Gradient descent on (x - 3)²."""
    x = 0.0
    for step in range(1, config.get("steps", 50) + 1):
        x -= config["learning_rate"] * 2 * (x - 3)
        report(step, {"loss": (x - 3) ** 2})


def fails_at_two(config, report):
    """Raise for one value."""
    report(1, {"loss": 1.0 / config["x"]})
    if config["x"] == 2:
        print("about to fail")
        raise RuntimeError("two is\nnot allowed")
    report(2, {"loss": 0.5 / config["x"]})


def not_finite(config, report):
    """Report a non-finite loss at step 4, for one value."""
    for step in range(1, 11):
        report(step, {"loss": float("nan") if config["x"] == 2 and step == 4 else 1.0 / step})


def dies(config, report):
    """End the process, for one value."""
    report(1, {"loss": 1.0})
    if config["x"] == 2:
        os._exit(7)


def train_and_die_once(config, report, *, checkpoint, images):
    """Train, but end the process once, right after the state in the middle was saved."""
    from tune_hpc.learning.training import train  # imports torch, which the others do not need

    marker = Path(config["marker"])
    config = {key: value for key, value in config.items() if key != "marker"}

    class DeadlyCheckpoint:
        def load(self):
            return checkpoint.load()

        def save(self, step, make_state):
            checkpoint.save(step, make_state)
            if step >= config["steps"] // 2 and not marker.exists():
                marker.touch()
                os._exit(7)

        def keep(self, step, make_state, **options):
            checkpoint.keep(step, make_state, **options)

    return train(config, report, checkpoint=DeadlyCheckpoint(), images=images)


def which_gpu(config, report):
    """Report the GPU of this trial, after all trials have started."""
    meeting = Path(config["meeting"])
    (meeting / str(config["number"])).touch()
    deadline = time.monotonic() + 120
    while len(list(meeting.iterdir())) < config["of"] and time.monotonic() < deadline:
        time.sleep(0.05)
    report(1, {"loss": 0.0})
    return {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "met": len(list(meeting.iterdir()))}


def valley(config, report):
    """Append the start to a file, and report a loss with its minimum at 0.3; above 0.7 it is not finite."""
    with Path(config["journal"]).open("a", encoding="utf-8") as file:
        file.write(f"{config['x']}\n")
    for step in (1, 2):
        _pause(config)
        report(step, {"loss": float("inf") if config["x"] > 0.7 else (config["x"] - 0.3) ** 2 + 1 / step})


def descend(config, report):
    """Report a loss that falls to ``x``, step by step; above 0.67 it is not finite from the start."""
    for step in range(1, config["steps"] + 1):
        report(step, {"loss": float("nan") if config["x"] > 0.67 else config["x"] + 1 / step})


def returns_at_once(config, report):
    """Report a number; for one value end the process instead."""
    if config["x"] == config.get("deadly"):
        os._exit(7)
    report(1, {"loss": float(config["x"])})


def method(config, report):
    """Approach 1 by a rate, from a start that depends on the seed; a broken method raises."""
    if config["method"] == config.get("broken"):
        raise RuntimeError("broken")
    x = config["seed"] / 100
    for step in range(1, config["steps"] + 1):
        x += config["rate"] * (1 - x)
        report(step, {"loss": (1 - x) ** 2})


def counts(config, report, *, checkpoint):
    """Append each step to a file, and resume from the saved state; a careless trial catches all exceptions."""
    state = checkpoint.load() or {"step": 0}
    for step in range(state["step"] + 1, config["steps"] + 1):
        try:
            _pause(config)
            with Path(config["journal"]).open("a", encoding="utf-8") as file:
                file.write(f"{config['x']} {step}\n")
            report(step, {"loss": config["x"] + 1 / step})
            checkpoint.save(step, lambda step=step: {"step": step})
        except Exception:
            if not config.get("is_careless"):
                raise


def lingers(config, report):
    """Take a while, without a state."""
    with Path(config["journal"]).open("a", encoding="utf-8") as file:
        file.write(f"{config['x']}\n")
    for step in range(1, config["steps"] + 1):
        _pause(config)
        report(step, {"loss": config["x"] + 1 / step})


def _pause(config):
    """Wait for the time of a step, unless the file ``hurry`` exists."""
    if config.get("pause") and not Path(config["hurry"]).exists():
        time.sleep(config["pause"])


def climbs(config, report, *, checkpoint):
    """Climb by ``rate`` each step, and offer the state at each tenth step."""
    step, height = checkpoint.load() or (0, 0.0)
    while step < config["steps"]:
        time.sleep(config.get("pause", 0))
        step, height = step + 1, height + config["rate"]
        report(step, {"height": height})
        if step % 10 == 0:
            checkpoint.save(step, partial(tuple, (step, height)))


def slides(config, report, *, checkpoint):
    """Report a loss that falls to ``x``, and offer the state after each step; above 0.67 it is not finite."""
    for step in range((checkpoint.load() or 0) + 1, config["steps"] + 1):
        report(step, {"loss": float("nan") if config["x"] > 0.67 else config["x"] + 1 / step})
        checkpoint.save(step, partial(int, step))


def mean_image(config, report, *, images):
    """Report the mean of the first ten training images."""
    report(1, {"mean": float(images.train_images[:10].double().mean())})
