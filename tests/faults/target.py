"""A search of 40 short trials in a process of its own: started, or resumed if its folder exists.

python -m tests.faults.target FOLDER EVENTS RUNNER
"""

import os
import sys
import time
from pathlib import Path

from tune_hpc import Experiment, Space, resume, run
from tune_hpc.errors import TuneHpcError
from tune_hpc.storage.experiment_folder import ExperimentFolder

NUM_TRIALS, NUM_STEPS = 40, 4


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


def record(file: str, trial_id: str, event: str) -> None:
    """Append a line to the events; one write is atomic."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{trial_id} {event} {os.getpid()}\n".encode())
    finally:
        os.close(descriptor)


def experiment(events: Path | str, pause_s: float = 0.01) -> Experiment:
    """Return the search; its trials are the same in every run."""
    from ray import tune

    space = Space({"x": tune.uniform(0.0, 1.0), "steps": NUM_STEPS, "pause_s": pause_s, "events": str(events)}, keys={})
    return Experiment(
        "faults", space, "tests.faults.target:train", metric="loss", mode="min", budget="steps", searcher="random",
        num_samples=NUM_TRIALS, seeds=(), keep_checkpoints="best",
    )  # fmt: skip


def main() -> int:
    """Run or resume the search; print an error of tune_hpc in one line."""
    folder, events, runner = sys.argv[1:]
    options = {"runner": runner, "show_progress": False, "checkpoint_interval_s": 0.0}
    try:
        if ExperimentFolder(folder).holds_experiment:
            resume(folder, **options)
        else:
            run(experiment(events), output_dir=folder, **options)
    except TuneHpcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
