"""Job status, read from the job folder."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tune_hpc.jobs.job_folder import Attempt, JobFolder, JobState
from tune_hpc.jobs.launchers import DriverState
from tune_hpc.storage.filesystem import pull
from tune_hpc.storage.process import is_running, this_process

#: Seconds without a heartbeat after which nothing is known of a driver that its launcher does not know to be gone.
SILENT_S = 60.0
#: Seconds within which a launcher has started a driver, or has failed.
LAUNCH_S = 120.0


@dataclass(frozen=True)
class ExperimentStatus:
    """Progress of one experiment of a job.

    Attributes:
        name: The experiment's name.
        state: That of its experiment.json; ``waiting`` if it has not begun.
        num_trials: Number of trials in all.
        metric: The column that ranks trials.
        counts: Number of trials that ended, by status.
        num_running: Number of trials that run.
        best_value: The best value of the metric so far; ``None`` if there is none.
        best_trial: The trial that has it.
        remaining_s: Estimated seconds until it ends; ``None`` if there is no estimate.
    """

    name: str
    state: str
    num_trials: int
    metric: str
    counts: Mapping[str, int] = field(default_factory=dict)
    num_running: int = 0
    best_value: float | None = None
    best_trial: str | None = None
    remaining_s: float | None = None

    @property
    def num_ended(self) -> int:
        """Number of trials that ended, whatever their status."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        words = [f"{self.num_running} running"] if self.num_running else []
        words += [f"{count} {status}" for status, count in self.counts.items() if status != "finished"]
        if self.best_value is not None:
            words.append(f"best {self.metric} {self.best_value:.4g} ({self.best_trial})")
        if self.remaining_s is not None and self.num_ended < self.num_trials and self.state == "running":
            words.append(f"about {_duration(self.remaining_s)} left")
        return "; ".join([f"{self.name}: {self.num_ended}/{self.num_trials} trials", *words])


@dataclass(frozen=True)
class JobStatus:
    """Status of a job.

    Attributes:
        id: The job.
        state: Its state.
        reason: Why it stopped, failed or was lost; empty if there is nothing to say.
        experiments: Progress of each of its experiments.
        attempt: The number of its latest attempt; 0: none was started.
        location: Where that runs, or ran.
        requested_at: When that was requested (UTC, ISO 8601).
        started_at: When its driver started; ``None``: it has not.
        ended_at: When its driver ended; ``None``: it has not, as far as is known.
    """

    id: str
    state: JobState
    reason: str
    experiments: tuple[ExperimentStatus, ...]
    attempt: int
    location: Mapping[str, Any]
    requested_at: str
    started_at: str | None
    ended_at: str | None

    @property
    def num_trials(self) -> int:
        """Number of trials in all."""
        return sum(one.num_trials for one in self.experiments)

    @property
    def num_ended(self) -> int:
        """Number of trials that ended, whatever their status."""
        return sum(one.num_ended for one in self.experiments)

    def __str__(self) -> str:
        head = f"{self.id}: {self.state}{f' ({self.reason})' if self.reason else ''}"
        return "\n".join([head, *(f"  {one}" for one in self.experiments)])


def job_status(job: JobFolder, driver: DriverState = DriverState.UNKNOWN, output: str = "") -> JobStatus:
    """Return the status of a job.

    Args:
        job: The job.
        driver: What its launcher knows of its driver.
        output: Output from before the driver could write to the log of the job.

    Raises:
        UnknownNameError: there is no such job.
        FolderError: a file of it cannot be read.
    """
    request = job.read()
    attempt = job.last_attempt() or Attempt(0, "start", str(request.get("submitted")))
    run = job.read_run(attempt.number)
    state, reason = _state(job, attempt, run, driver, output)
    return JobStatus(
        job.id,
        state,
        reason,
        tuple(_experiment_status(job, plain, attempt.number, state) for plain in request["experiments"]),
        attempt.number,
        attempt.location,
        attempt.requested_at,
        run.get("started_at"),
        run.get("ended_at"),
    )


def _state(
    job: JobFolder, attempt: Attempt, run: Mapping[str, Any], driver: DriverState, output: str
) -> tuple[JobState, str]:
    if attempt.number == 0:
        return JobState.FAILED, "no driver was started"
    if run.get("ended_at"):
        return JobState(run["state"]), str(run.get("error") or run.get("reason") or "")
    if not run:
        return _state_before_start(job, attempt, driver, output)
    process = run.get("process") or {}
    if process.get("host") == this_process()["host"] and process != this_process():
        driver = DriverState.ALIVE if is_running(process) else DriverState.GONE
    is_stopping = pull(job.stop_file(attempt.number))
    silence_s = job.silence_s(f"{attempt.number}.run.json")
    if driver is DriverState.GONE:
        if is_stopping:
            return JobState.STOPPED, "its driver was killed after a stop was requested"
        return JobState.LOST, f"its driver is gone; its last heartbeat was {_duration(silence_s)} ago"
    if silence_s > SILENT_S:
        known = "though its process is there" if driver is DriverState.ALIVE else "and where it runs does not answer"
        return JobState.UNKNOWN, f"no heartbeat for {_duration(silence_s)}, {known}"
    return (JobState.STOPPING if is_stopping else JobState.RUNNING), ""


def _state_before_start(job: JobFolder, attempt: Attempt, driver: DriverState, output: str) -> tuple[JobState, str]:
    if job.read_process(attempt.number) is None:
        if job.silence_s(f"{attempt.number}.json") < LAUNCH_S:
            return JobState.PENDING, ""
        return JobState.FAILED, "its driver was never started"
    if driver is DriverState.GONE:
        return JobState.FAILED, f"its driver ended before it began{f': {output}' if output else ''}"
    return JobState.PENDING, "the cluster does not answer" if driver is DriverState.UNKNOWN else ""


def _experiment_status(job: JobFolder, plain: Mapping[str, Any], attempt: int, state: JobState) -> ExperimentStatus:
    """Return the progress of an experiment.

    Args:
        job: The job.
        plain: The experiment in job.json.
        attempt: The job's latest attempt.
        state: The job's state.
    """
    folder = job.experiment(plain["name"])
    if not folder.holds_experiment:
        return ExperimentStatus(plain["name"], "waiting", plain["num_trials"], plain["metric"])
    description = folder.read()
    try:
        with job.open(folder.progress) as file:
            progress = json.load(file)
    except (FileNotFoundError, ValueError):
        progress = {}
    best = progress.get("best") or {}
    experiment_state = str(description.get("state"))
    # What an earlier attempt counted as running does not run any more.
    is_current = state.is_active and experiment_state == "running" and description.get("attempt", attempt) == attempt
    return ExperimentStatus(
        description["name"],
        experiment_state,
        int(description.get("num_trials", plain["num_trials"])),
        description["metric"],
        progress.get("ended", {}),
        progress.get("running", 0) if is_current else 0,
        best.get("value"),
        best.get("trial_id"),
        progress.get("left_s") if is_current else None,
    )


def _duration(seconds: float) -> str:
    """Return a duration in words: 40 s, 12 min, 3.5 h."""
    if math.isinf(seconds):
        return "an unknown time"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
