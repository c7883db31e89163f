"""Trainable of the fault harness; a module without a package, so that a job copies this file only."""

import os
import time


def train(config, report, checkpoint, trial):
    """Train for a few steps whose values depend on all steps before; record each start and end."""
    state = checkpoint.load() or {"step": 0, "loss": 1.0}
    step, loss = state["step"], state["loss"]
    record(config["events"], trial.id, "start")
    while step < config["steps"]:
        time.sleep(config["pause_s"])
        step, loss = step + 1, 0.7 * loss + config["x"] / (step + 1)
        report(step, {"loss": loss})
        checkpoint.save(step, lambda step=step, loss=loss: {"step": step, "loss": loss})
    record(config["events"], trial.id, "end")


def record(file, trial_id, event):
    """Append a line to the events; one write is atomic."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{trial_id} {event} {os.getpid()}\n".encode())
    finally:
        os.close(descriptor)
