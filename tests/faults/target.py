"""A search of 40 short trials in a process of its own: started, or resumed if its folder exists.

python -m tests.faults.target FOLDER EVENTS RUNNER

RUNNER is ``local``, ``ray``, ``job`` (a job on this machine) or ``ray job`` (on the cluster of
``RAY_API_SERVER_ADDRESS``). A job is awaited.
"""

import os
import sys
from pathlib import Path

from tune_hpc import Client, Experiment, LocalClient, Space, resume, run
from tune_hpc.errors import TuneHpcError
from tune_hpc.jobs.status import JobState
from tune_hpc.storage.experiment_folder import ExperimentFolder

NUM_TRIALS, NUM_STEPS = 40, 4
#: Whether failed trials run again.
RETRY_FAILED = bool(os.environ.get("RETRY_FAILED"))


def experiment(events: Path | str, pause_s: float = 0.01) -> Experiment:
    """Return the search; its trials are the same in every run."""
    from ray import tune

    space = Space({"x": tune.uniform(0.0, 1.0), "steps": NUM_STEPS, "pause_s": pause_s, "events": str(events)}, keys={})
    return Experiment(
        "faults", space, "fault_trainable:train", metric="loss", mode="min", budget="steps", searcher="random",
        num_samples=NUM_TRIALS, seeds=(), keep_checkpoints="best",
    )  # fmt: skip


def main() -> int:
    """Run or resume the search; print an error of tune_hpc in one line."""
    folder, events, runner = sys.argv[1:]
    try:
        if runner.endswith("job"):
            return run_job(Path(folder), events, on_ray=runner == "ray job")
        options = {"runner": runner, "show_progress": False, "checkpoint_interval_s": 0.0}
        if ExperimentFolder(folder).holds_experiment:
            resume(folder, retry_failed=RETRY_FAILED, **options)
        else:
            run(experiment(events), output_dir=folder, **options)
    except TuneHpcError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3
    return 0


def run_job(storage: Path, events: str, *, on_ray: bool) -> int:
    """Submit the job of a storage, or resume it, and wait for its end."""
    client = Client(os.environ["RAY_API_SERVER_ADDRESS"], storage=storage) if on_ray else LocalClient(storage)
    if jobs := client.list():
        job = jobs[0].resume(retry_failed=RETRY_FAILED)
    else:
        job = client.submit(experiment(events), runner="ray" if on_ray else "local", checkpoint_interval_s=0.0)
    status = job.wait()
    print(f"{status.state}: {status.reason}", file=sys.stderr)
    return 0 if status.state is JobState.FINISHED else 3


if __name__ == "__main__":
    sys.exit(main())
