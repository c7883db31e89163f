"""A bundle of trials, on the machine where Ray put it: from configurations to files.

``run_bundle`` is the function that Ray Tune runs. It hands the trainable what its signature asks for, keeps what it
reports, passes a little of it on to Ray, and leaves one file for each trial, with its row and history. What a trial
does wrong ends here: a non-finite metric marks it as diverged, an exception as failed, and the actor lives on for the
next one. Most bundles hold one trial; several are trained as one program, or one by one should that program fail.
Where the search is asked to stop, a trial ends when its state is kept, and its file says ``running``; so does the file
that a long trial leaves now and then of what it has reported.
"""

import inspect
import json
import math
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray

from tune_hpc.errors import FolderError
from tune_hpc.search.object_reference import load_reference
from tune_hpc.search.reporter import (
    Diverged,
    MonitoredMetric,
    RayReporter,
    Reporter,
    SchedulerReporter,
    Throttle,
    TrialCheckpoint,
    logged,
)
from tune_hpc.search.stop_request import StopRequest, StopRequested
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.filesystem import delete
from tune_hpc.storage.trial_file import TrialFileWriter, read_row, summarise, write_trial

#: How a trainable may say that it ended.
ENDS = ("finished", "stopped", "diverged")
#: Our own trainable, where each trial has workers of its own.
TRAIN_TOGETHER = "tune_hpc.scaling.distributed_trial:train"


@dataclass(frozen=True)
class WorkerPlacement:
    """Where a trial puts workers of its own.

    Attributes:
        per_worker: What each of them gets, as Ray writes it.
        folder: For the files of Ray Train.
        images: The trial's data set in the object store, as a list of one reference; empty without any.
    """

    per_worker: Mapping[str, float]
    folder: str
    images: tuple[ray.ObjectRef, ...] = ()


@dataclass(frozen=True)
class TrialContext:
    """What a trial needs to know of its experiment.

    Attributes:
        name: The experiment's name.
        folder: The experiment folder, by the name that every machine knows.
        trainable: The function, or where it is.
        metric: The column that ranks trials.
        attempt: The number of the attempt of the experiment that the trial belongs to.
        checkpoint_interval_s: Seconds between two states that are kept.
        watched: What a scheduler is shown; ``None``: there is none.
        num_steps: Steps of a whole trial, as the scheduler counts them.
        place: Where its workers go; ``None``: it has none.
    """

    name: str
    folder: str
    trainable: str | Callable[..., Any]
    metric: str
    attempt: int
    checkpoint_interval_s: float
    watched: MonitoredMetric | None = None
    num_steps: int = 1
    place: WorkerPlacement | None = None


def run_bundle(
    bundle: Mapping[str, Any], assignments: Mapping[str, TrialContext], images: Mapping[str, ray.ObjectRef]
) -> None:
    """Run the trials of a bundle to their ends, whatever these are.

    Args:
        bundle: ``bundle_id`` and ``members``, each ``experiment``, ``trial_id`` and ``config``; where it is
            ``in_turn`` they run one after another, else as one program. One that is alone may have ``until``, the step
            at which it saves its state and pauses.
        assignments: What to know of each experiment, by name.
        images: The image data sets in Ray's object store, by name.
    """
    members = bundle["members"]
    assignment = assignments[members[0]["experiment"]]
    folder = ExperimentFolder(assignment.folder, assignment.attempt)
    forward, request = RayReporter(), StopRequest(folder)
    began = time.perf_counter()
    rows: list[dict[str, Any]] = []
    # A scheduler wants every result to have what it is shown, be it that of a trial that does not begin.
    shown = (
        SchedulerReporter(bundle["bundle_id"], assignment.watched, lambda: None).shown() if assignment.watched else {}
    )
    if request.is_made:
        pass  # It came to its turn after the search was asked to stop.
    elif len(members) == 1:
        row, shown = _run_alone(members[0], assignment, folder, images, forward, request)
        rows = [row]
    elif bundle.get("in_turn"):
        rows = _run_in_turn(members, assignment, folder, images, forward, request)
    else:
        rows = _run_fused(bundle, assignment, folder, images, forward, request)
    took_s = (time.perf_counter() - began) / len(members)
    forward.ended(rows, assignment.metric, {"took_s": took_s, **shown})


def _run_in_turn(
    members: Sequence[Mapping[str, Any]],
    assignment: TrialContext,
    folder: ExperimentFolder,
    images: Mapping[str, ray.ObjectRef],
    forward: RayReporter,
    request: StopRequest,
) -> list[dict[str, Any]]:
    """Run trials one after another, but those that had ended before a process was lost; return the rows."""
    rows = []
    for sample in members:
        row = read_row(folder.part(sample["trial_id"]))
        if row is None or row["status"] == "running":
            if request.is_made:
                break
            row, _ = _run_alone(sample, assignment, folder, images, forward, request)
        rows.append(row)
    return rows


def _run_alone(
    sample: Mapping[str, Any],
    assignment: TrialContext,
    folder: ExperimentFolder,
    images: Mapping[str, ray.ObjectRef],
    forward: RayReporter,
    request: StopRequest,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Run one trial by itself; leave its file, and return its row and what a scheduler is shown of its end."""
    trial_id, config = sample["trial_id"], sample["config"]
    record = TrialFileWriter(identity_columns(assignment.name, trial_id, config))
    checkpoint = TrialCheckpoint(
        folder.checkpoint(trial_id), [record], assignment.checkpoint_interval_s, request, sample.get("until")
    )
    began = time.perf_counter()

    def keep() -> None:
        _leave(folder, record, {"status": "running"}, time.perf_counter() - began)

    decision = None
    if assignment.watched:
        pace = assignment.num_steps / config.get("steps", assignment.num_steps)
        decision = SchedulerReporter(trial_id, assignment.watched, keep, pace)
    limited = Throttle(lambda: write_unfinished(folder, [record], time.perf_counter() - began))
    report = Reporter(record, assignment.metric, forward.for_trial(trial_id), decision, limited)
    with logged(folder.log(trial_id)):
        outcome = _outcome(assignment, config, report, checkpoint, images)
    if checkpoint.has_stopped:
        # Whatever the trainable made of it.
        outcome = {"status": "running"}
    row = _leave(folder, record, outcome, time.perf_counter() - began)
    if not checkpoint.has_stopped and not folder.is_superseded():
        delete(checkpoint.path)
    return row, decision.shown() if decision else {}


def _run_fused(
    bundle: Mapping[str, Any],
    assignment: TrialContext,
    folder: ExperimentFolder,
    images: Mapping[str, ray.ObjectRef],
    forward: RayReporter,
    request: StopRequest,
) -> list[dict[str, Any]]:
    """Run several trials of our own trainable as one program; leave their files and return their rows."""
    from tune_hpc.learning.training import train_fused

    members = bundle["members"]
    records = [TrialFileWriter(identity_columns(assignment.name, one["trial_id"], one["config"])) for one in members]
    checkpoint = TrialCheckpoint(
        folder.checkpoint(bundle["bundle_id"]), records, assignment.checkpoint_interval_s, request
    )
    began = time.perf_counter()
    limited = Throttle(lambda: write_unfinished(folder, records, time.perf_counter() - began))
    reports = [
        Reporter(record, assignment.metric, forward.for_trial(one["trial_id"]), keep=limited)
        for record, one in zip(records, members, strict=True)
    ]
    data = members[0]["config"]["data"]
    with logged(folder.log(bundle["bundle_id"])):
        try:
            _match_threads()
            outcomes = train_fused(
                [one["config"] for one in members],
                reports,
                checkpoint=checkpoint,
                images=_fetch_images(images[data]) if data in images else None,
            )
        except StopRequested:
            outcomes = [{"status": "running"} for _ in members]
        except Exception as error:
            traceback.print_exc()
            if _device_is_lost(error):
                raise
            print("the trials of this program now run one by one, so that each ends as it would alone")
            outcomes = []
    if not outcomes:
        delete(checkpoint.path)
        return _run_in_turn(members, assignment, folder, images, forward, request)
    share_s = (time.perf_counter() - began) / len(members)
    rows = [_leave(folder, record, outcome, share_s) for record, outcome in zip(records, outcomes, strict=True)]
    if not checkpoint.has_stopped and not folder.is_superseded():
        delete(checkpoint.path)
    return rows


def write_unfinished(folder: ExperimentFolder, records: Sequence[TrialFileWriter], took_s: float) -> None:
    """Write the files of trials that go on, for whoever follows the search."""
    outcome = {"status": "running", "num_fused": len(records)}
    try:
        for record in records:
            _leave(folder, record, outcome, took_s / len(records))
    except FolderError as error:
        # A disk that is full for a while must not end a trial whose own file is due much later.
        print(f"what was reported until now is not kept: {error}")


def _leave(
    folder: ExperimentFolder, record: TrialFileWriter, outcome: Mapping[str, Any], took_s: float
) -> dict[str, Any]:
    """Write the file of a trial as far as it came, unless another attempt runs the trial by now; return its row."""
    history = record.history()
    row = {
        "attempt": folder.attempt,
        "host": socket.gethostname(),
        "train_s": took_s,
        "num_fused": 1,
        "steps_run": int(history["step"].max()) if len(history) else 0,
        **summarise(history),
        **outcome,
        **record.row,
    }
    if not folder.is_superseded():
        write_trial(folder.part(row["trial_id"]), {name: to_jsonable(value) for name, value in row.items()}, history)
    return row


def _outcome(
    assignment: TrialContext,
    config: Mapping[str, Any],
    report: Reporter,
    checkpoint: TrialCheckpoint,
    images: Mapping[str, ray.ObjectRef],
) -> dict[str, Any]:
    """Run the trainable; return how it ended, and the columns that it returned."""
    outcome: dict[str, Any] = {"status": "finished", "stop_reason": "the trainable returned"}
    try:
        trainable = assignment.trainable if assignment.place is None else TRAIN_TOGETHER
        if isinstance(trainable, str):
            trainable = load_reference(trainable)
        wanted = inspect.signature(trainable).parameters
        offered: dict[str, Any] = {}
        if "checkpoint" in wanted:
            offered["checkpoint"] = checkpoint
        if "images" in wanted and config.get("data") in images:
            offered["images"] = _fetch_images(images[config["data"]])
        if "place" in wanted and assignment.place is not None:
            own = (images[config["data"]],) if config.get("data") in images else ()
            offered["place"] = replace(assignment.place, images=own)
        _match_threads()
        returned = trainable(dict(config), report, **offered)
        if isinstance(returned, Mapping):
            outcome |= returned
        if outcome["status"] not in ENDS:
            raise ValueError(f"a trainable returns a status of {', '.join(ENDS)}; got {outcome['status']!r}")
    except StopRequested:
        outcome["status"] = "running"
    except Diverged as divergence:
        outcome |= {"status": "diverged", "stop_reason": str(divergence)}
    except Exception as error:
        # A trainable may raise anything; the trial is listed with it.
        traceback.print_exc()
        if _device_is_lost(error):
            raise
        outcome |= {"status": "failed", "stop_reason": "exception", "error": _last_line(error)}
    return outcome


def identity_columns(experiment: str, trial_id: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a trial that are known before it runs."""
    return {
        "experiment": experiment,
        "trial_id": trial_id,
        **{name: to_jsonable(value) for name, value in config.items()},
    }


def to_jsonable(value: Any) -> Any:
    """Return a value as JSON and Parquet can hold it; what they cannot becomes its JSON or its text."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return json.dumps(value, default=str)


def _last_line(error: Exception) -> str:
    text = traceback.format_exception_only(error)[-1].strip()
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{' '.join(text.split())} (in {where.name}, {Path(where.filename).name} line {where.lineno})"


def _device_is_lost(error: Exception) -> bool:
    """Whether a GPU's state may be damaged: then the process must end, or all later trials would fail in it."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def _match_threads() -> None:
    """Use as many threads as the trial has cores: sums are then the same whatever else runs on the machine."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))


@lru_cache(maxsize=2)
def _fetch_images(reference: ray.ObjectRef) -> Any:
    """Return a data set from the object store; the same object to every trial of this process."""
    from tune_hpc.learning.data import ImageData

    return ImageData.from_arrays(ray.get(reference))
