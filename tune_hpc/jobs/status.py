"""Job status, read from the job folder."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tune_hpc.errors import FolderError
from tune_hpc.jobs.job_folder import Attempt, JobFolder
from tune_hpc.storage.process import is_running, this_process
from tune_hpc.storage.shared_folder import open_no_follow

#: Seconds without a heartbeat after which the state of a driver is unknown, unless its launcher knows that it is gone.
HEARTBEAT_TIMEOUT_S = 60.0
#: Seconds within which a launcher starts a driver or fails.
LAUNCH_TIMEOUT_S = 120.0


class JobState(StrEnum):
    """State of a job."""

    PENDING = "pending"  #: submitted; the driver has not started
    RUNNING = "running"
    STOPPING = "stopping"  #: stop requested; the trials save their state
    STOPPED = "stopped"  #: ended before all trials did, on request or by a limit
    FINISHED = "finished"  #: all trials ended
    FAILED = "failed"  #: the driver ended with an error, or all trials of an experiment failed
    LOST = "lost"  #: the driver is gone and left no final state
    UNKNOWN = "unknown"  #: no heartbeat for a while, and the state of the driver is unknown

    @property
    def is_active(self) -> bool:
        """Return whether a driver runs or will start."""
        return self in (JobState.PENDING, JobState.RUNNING, JobState.STOPPING)


class DriverState(StrEnum):
    """State of a driver as its launcher sees it."""

    WAITING = "waiting"
    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"  #: a process of another machine, or a cluster that does not answer


@dataclass(frozen=True)
class ExperimentStatus:
    """Progress of one experiment of a job.

    Attributes:
        name: The experiment's name.
        state: The state in its experiment.json; ``waiting`` if it has not started.
        num_trials: Total number of trials.
        metric: The column that ranks trials.
        counts: Number of trials that ended, by status.
        num_running: Number of running trials.
        fraction: Mean fraction of their steps that they have done; ``None`` if it is unknown.
        best_value: The best value of the metric so far; ``None`` if there is none.
        best_trial: The trial with the best value.
        remaining_s: Estimated seconds until it ends; ``None`` if there is no estimate.
        first_error: First failed trial and its error; empty without any.
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
    first_error: str = ""
    fraction: float | None = None

    @property
    def num_ended(self) -> int:
        """Number of trials that ended, of any status."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        at = "" if self.fraction is None else f" at {self.fraction:.0%} of their steps"
        details = [f"{self.num_running} running{at}"] if self.num_running else []
        details += [f"{count} {status}" for status, count in self.counts.items() if status != "finished"]
        if self.best_value is not None:
            details.append(f"best {self.metric.removeprefix('best_')} {self.best_value:.4g} ({self.best_trial})")
        if self.remaining_s is not None and self.num_ended < self.num_trials and self.state == "running":
            details.append(f"about {_format_duration(self.remaining_s)} left")
        if self.first_error and self.counts.get("failed") != self.num_trials:
            details.append(f"first error: {self.first_error}")
        return "; ".join([f"{self.name}: {self.num_ended}/{self.num_trials} trials", *details])


@dataclass(frozen=True)
class JobStatus:
    """Status of a job.

    Attributes:
        id: The job.
        state: Its state.
        reason: Why it stopped, failed or was lost; may be empty.
        experiments: Progress of each experiment.
        attempt: Number of the latest attempt; 0 if none was started.
        location: Location of the attempt's driver; see ``Launcher.location``.
        requested_at: Time of the attempt's request (UTC, ISO 8601).
        started_at: Start of its driver; ``None`` before.
        ended_at: End of its driver; ``None`` before, or if unknown.
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
        """Total number of trials."""
        return sum(experiment.num_trials for experiment in self.experiments)

    @property
    def num_ended(self) -> int:
        """Number of trials that ended, of any status."""
        return sum(experiment.num_ended for experiment in self.experiments)

    def __str__(self) -> str:
        head = f"{self.id}: {self.state}{f' ({self.reason})' if self.reason else ''}"
        return "\n".join([head, *(f"  {experiment}" for experiment in self.experiments)])


def job_status(job: JobFolder, driver: DriverState = DriverState.UNKNOWN, output: str = "") -> JobStatus:
    """Return the status of a job.

    Args:
        job: The job.
        driver: State of its driver, from its launcher.
        output: Output of the driver from before it opened the log of the job.

    Raises:
        UnknownNameError: there is no such job.
    """
    request = job.read()
    attempt = job.last_attempt() or Attempt(0, "start", str(request.get("submitted")))
    run = job.read_driver_status(attempt.number)
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
    is_stopping = job.storage.exists(job.stop_file(attempt.number))
    elapsed_s = job.seconds_since_heartbeat(attempt.number)
    if driver is DriverState.GONE:
        if is_stopping:
            return JobState.STOPPED, "the driver was killed after a stop request"
        return JobState.LOST, f"the driver is gone; its last heartbeat was {_format_duration(elapsed_s)} ago"
    if elapsed_s > HEARTBEAT_TIMEOUT_S:
        detail = (
            "though its process exists" if driver is DriverState.ALIVE else "and its cluster or host is unreachable"
        )
        return JobState.UNKNOWN, f"no heartbeat for {_format_duration(elapsed_s)}, {detail}"
    return (JobState.STOPPING if is_stopping else JobState.RUNNING), ""


def _state_before_start(job: JobFolder, attempt: Attempt, driver: DriverState, output: str) -> tuple[JobState, str]:
    if job.read_process(attempt.number) is None:
        if job.seconds_since_request(attempt.number) < LAUNCH_TIMEOUT_S:
            return JobState.PENDING, ""
        return JobState.FAILED, "the driver was never started"
    if driver is DriverState.GONE:
        return JobState.FAILED, f"the driver ended before it started the job{f': {output}' if output else ''}"
    return JobState.PENDING, "the cluster is unreachable" if driver is DriverState.UNKNOWN else ""


def _experiment_status(job: JobFolder, plain: Mapping[str, Any], attempt: int, state: JobState) -> ExperimentStatus:
    """Return the progress of an experiment of job.json, in the latest attempt and state of the job."""
    folder = job.experiment(plain["name"])
    if not folder.holds_experiment:
        return ExperimentStatus(plain["name"], "waiting", plain["num_trials"], plain["metric"])
    description = folder.read()
    if not isinstance(description.get("metric"), str) or not isinstance(description.get("num_trials", 0), int):
        raise FolderError(f"{folder.experiment_file} is damaged: metric or num_trials; restore it from a copy")
    progress = _read_progress(job, folder.progress)
    best = progress.get("best") or {}
    experiment_state = str(description.get("state"))
    # Trials that an earlier attempt counted as running do not run any more.
    is_current = state.is_active and experiment_state == "running" and description.get("attempt", attempt) == attempt
    return ExperimentStatus(
        description["name"],
        experiment_state,
        description.get("num_trials", plain["num_trials"]),
        description["metric"],
        progress.get("ended") or {},
        progress.get("running") or 0 if is_current else 0,
        best.get("value"),
        best.get("trial_id"),
        progress.get("left_s") if is_current else None,
        progress.get("first_error") or "",
        progress.get("fraction") if is_current else None,
    )


def _read_progress(job: JobFolder, path: Path) -> dict[str, Any]:
    """Return progress.json; empty if it is missing, or has other contents than a search writes."""
    try:
        with open_no_follow(job.storage, path) as file:
            progress = json.load(file)
        counts = [*(progress.get("ended") or {}).values(), progress.get("running") or 0]
        numbers = [(progress.get("best") or {}).get("value"), progress.get("left_s"), progress.get("fraction")]
        has_counts = all(isinstance(count, int) for count in counts)
        has_numbers = all(isinstance(number, int | float | None) for number in numbers)
        return progress if has_counts and has_numbers and isinstance(progress.get("first_error") or "", str) else {}
    except (FileNotFoundError, ValueError, AttributeError):
        return {}


def _format_duration(seconds: float) -> str:
    """Return a duration as 40 s, 12 min or 3.5 h."""
    if math.isinf(seconds):
        return "an unknown time"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
