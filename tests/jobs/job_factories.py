"""Job folders without drivers, and a launcher that starts none."""

import json
import os
import time

from tune_hpc.jobs.job_folder import JobFolder, make_id, timestamp
from tune_hpc.jobs.status import DriverState


def job_in(storage, name="synthetic", **changes):
    """Return a new job of one experiment of five trials, with one started attempt."""
    storage.mkdir(mode=0o700, parents=True, exist_ok=True)
    job = JobFolder(storage / make_id(name))
    plain = {"name": name, "num_trials": 5, "metric": "loss", "searcher": "random", "scheduler": "none"} | changes
    job.make({"id": job.id, "submitted": "2026-01-01T00:00:00+00:00", "experiments": [plain], "options": {}})
    attempt = job.add_attempt("start", {"kind": "stand_in"}, {})
    job.write_process(attempt.number, {})
    return job


def beat(job, number=1, seconds_since_heartbeat=0.0, **state):
    """Write the heartbeat of a driver on another machine, some seconds ago."""
    process = {"host": "elsewhere", "pid": 1, "began": "then"}
    job.write_driver_status(number, {"process": process, "started_at": timestamp(), **state})
    set_age(job.attempts / f"{number}.run.json", seconds_since_heartbeat)


def set_age(path, seconds):
    """Set the modification time of a file to some seconds ago."""
    moment = time.time() - seconds
    os.utime(path, (moment, moment))


def write_progress(job, name="synthetic", attempt=1, **progress):
    """Write the progress of an experiment of a job."""
    folder = job.experiment(name)
    if not folder.holds_experiment:
        folder.claim(name)
    description = {"name": name, "metric": "loss", "mode": "min", "config_keys": [], "num_trials": 5}
    folder.write(description | {"state": "running", "attempt": attempt})
    folder.progress.write_text(json.dumps(progress), encoding="utf-8")


class StandInLauncher:
    """Starts nothing; reports a given state of all drivers after a given delay."""

    def __init__(self, driver=DriverState.ALIVE, delay_s=0.0):
        self.driver = driver
        self.delay_s = delay_s
        self.started = []
        self.ended = []

    def check(self, timeout_s=15.0):
        time.sleep(self.delay_s)

    def location(self, job):
        return {"kind": "stand_in"}

    def start(self, job, attempt):
        time.sleep(self.delay_s)
        self.started.append(attempt.number)
        return {}

    def state(self, job, attempt, timeout_s=15.0):
        time.sleep(self.delay_s)
        return self.driver

    def end(self, job, attempt):
        self.ended.append(attempt.number)

    def output(self, job, attempt, timeout_s=15.0):
        return ""
