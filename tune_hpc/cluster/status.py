"""How a job stands, as its folder tells: so that it can be told when whatever ran the job is gone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tune_hpc.analysis.folder import ExperimentFolder
from tune_hpc.analysis.object_store import pull
from tune_hpc.analysis.process import is_running, this_process
from tune_hpc.cluster.job_folder import Attempt, JobFolder, JobState, utc_now
from tune_hpc.cluster.launchers import DriverState

#: A driver that nobody can ask is lost when it has not been heard of for so many seconds.
SILENT_S = 60.0


@dataclass(frozen=True)
class ExperimentStatus:
    """How far one experiment of a job is.

    Attributes:
        name: The experiment's name.
        state: That of its experiment.json; ``waiting`` where it has not begun.
        num_trials: Trials in all.
        ended: How many ended with each status.
        running: How many are under way.
        metric: What ranks trials.
        best_value: The best so far; ``None`` where there is none.
        best_trial: Whose it is.
        left_s: Seconds that it will take, about; ``None`` where nobody can tell.
    """

    name: str
    state: str
    num_trials: int
    metric: str
    ended: Mapping[str, int]
    running: int = 0
    best_value: float | None = None
    best_trial: str | None = None
    left_s: float | None = None

    @property
    def num_ended(self) -> int:
        """How many trials ended, whatever their status."""
        return sum(self.ended.values())

    def __str__(self) -> str:
        words = [f"{self.running} running"] if self.running else []
        words += [f"{count} {status}" for status, count in self.ended.items() if status != "finished"]
        if self.best_value is not None:
            words.append(f"best {self.metric} {self.best_value:.4g} ({self.best_trial})")
        if self.left_s is not None and self.num_ended < self.num_trials and self.state == "running":
            words.append(f"about {_in_words(self.left_s)} left")
        return "; ".join([f"{self.name}: {self.num_ended}/{self.num_trials} trials", *words])


@dataclass(frozen=True)
class JobStatus:
    """How a job stands.

    Attributes:
        id: The job.
        state: What it is doing, or how it ended.
        reason: Why it stopped, failed or was lost; empty where there is nothing to say.
        experiments: How far each of its experiments is.
        attempt: How many times it was asked to run.
        place: Where it runs, or ran last.
        asked_at: When it was asked to run last (UTC, ISO 8601), and so on.
        began_at: When its driver began; ``None``: it has not.
        ended_at: When its driver ended; ``None``: it has not, as far as is known.
    """

    id: str
    state: JobState
    reason: str
    experiments: tuple[ExperimentStatus, ...]
    attempt: int
    place: Mapping[str, Any]
    asked_at: str
    began_at: str | None
    ended_at: str | None

    @property
    def num_trials(self) -> int:
        """Trials in all."""
        return sum(one.num_trials for one in self.experiments)

    @property
    def num_ended(self) -> int:
        """How many trials ended, whatever their status."""
        return sum(one.num_ended for one in self.experiments)

    def __str__(self) -> str:
        head = f"{self.id}: {self.state}{f' ({self.reason})' if self.reason else ''}"
        return "\n".join([head, *(f"  {one}" for one in self.experiments)])


def status_of(job: JobFolder, driver: DriverState = DriverState.UNKNOWN, said: str = "") -> JobStatus:
    """Return how a job stands.

    Args:
        job: The job.
        driver: What its launcher knows of its driver.
        said: What was said before the driver could write to the job's own log.

    Raises:
        UnknownNameError: there is no such job.
        FolderError: a file of it cannot be read.
    """
    asked = job.read()
    attempt = job.last_attempt() or Attempt(0, "start", str(asked.get("submitted")), {}, {})
    run = job.read_run(attempt.number)
    state, reason = _state(job, attempt, run, driver, said)
    began = run.get("began") if state.is_active else None
    return JobStatus(
        job.id,
        state,
        reason,
        tuple(experiment_status(job, plain, began) for plain in asked["experiments"]),
        attempt.number,
        attempt.place,
        attempt.asked_at,
        run.get("began"),
        run.get("ended"),
    )


def _state(
    job: JobFolder, attempt: Attempt, run: Mapping[str, Any], driver: DriverState, said: str
) -> tuple[JobState, str]:
    if attempt.number == 0:
        return JobState.FAILED, "nobody was found to run it"
    if run.get("ended"):
        return JobState(run["state"]), str(run.get("error") or run.get("reason") or "")
    if not run.get("began"):
        if driver is DriverState.GONE:
            return JobState.FAILED, f"its driver ended before it began{f': {said}' if said else ''}"
        return JobState.PENDING, "where it is to run does not answer" if driver is DriverState.UNKNOWN else ""
    process = run.get("process") or {}
    if driver is DriverState.UNKNOWN and process.get("host") == this_process()["host"] and process != this_process():
        driver = DriverState.ALIVE if is_running(process) else DriverState.GONE
    is_asked_to_stop = pull(job.stop_of(attempt.number))
    if driver is DriverState.GONE or (driver is DriverState.UNKNOWN and silent_s(run) > SILENT_S):
        if is_asked_to_stop:
            return JobState.STOPPED, "it was asked to stop, and its driver was ended"
        return JobState.LOST, f"its driver was last heard of at {run['beat']}"
    return (JobState.STOPPING if is_asked_to_stop else JobState.RUNNING), ""


def silent_s(run: Mapping[str, Any]) -> float:
    """Return how many seconds ago a driver said something, by the clocks of its machine and this one."""
    return (utc_now() - datetime.fromisoformat(run["beat"])).total_seconds()


def experiment_status(job: JobFolder, plain: Mapping[str, Any], began: str | None) -> ExperimentStatus:
    """Return how far an experiment of a job is, by its folder.

    Args:
        job: The job.
        plain: The experiment, as the job was asked for it.
        began: When the job's driver began, if there is one; what was under way before is not any more.
    """
    home = ExperimentFolder(job.path / str(plain["name"]))
    if not home.holds_experiment:
        return ExperimentStatus(plain["name"], "waiting", plain["num_trials"], plain["metric"], {})
    held = home.read()
    try:
        pull(home.progress)
        told = json.loads(home.progress.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = {}
    best = told.get("best") or {}
    state = str(held.get("state"))
    is_under_way = state == "running" and began is not None and told.get("at", "") >= began
    return ExperimentStatus(
        held["name"],
        state,
        int(held.get("num_trials", plain["num_trials"])),
        held["metric"],
        told.get("ended", {}),
        told.get("running", 0) if is_under_way else 0,
        best.get("value"),
        best.get("trial_id"),
        told.get("left_s") if is_under_way else None,
    )


def _in_words(seconds: float) -> str:
    """Return a time as one says it: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
