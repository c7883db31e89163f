"""A bundle of trials, on the machine where Ray put it: from configurations to files.

``run_bundle`` is the function that Ray Tune runs. It hands the trainable what its signature asks for, keeps what it
reports, passes a little of it on to Ray, and leaves one file for each trial, with its row and history. What a trial
does wrong ends here: a non-finite metric marks it as diverged, an exception as failed, and the actor lives on for the
next one. Most bundles hold one trial; several are trained as one program, or one by one should that program fail.
"""

import inspect
import io
import json
import math
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

from tune_hpc.analysis.folder import ExperimentFolder, write_whole
from tune_hpc.analysis.results import TrialRecord, summarise, write_part
from tune_hpc.search.reference import load_reference

#: How a trainable may say that it ended.
ENDS = ("finished", "stopped", "diverged")

#: Each report to Ray costs milliseconds; the progress bar needs no more than this.
REPORT_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Assignment:
    """What a trial needs to know of its experiment.

    Attributes:
        name: The experiment's name.
        folder: The experiment folder.
        trainable: The function, or where it is.
        metric: The column that ranks trials.
        checkpoint_interval_s: Seconds between two states that are kept.
    """

    name: str
    folder: str
    trainable: str | Callable[..., Any]
    metric: str
    checkpoint_interval_s: float


class _Diverged(Exception):
    """Unwinds a trainable that reported a non-finite metric."""


class Reporter:
    """The ``report`` that a trainable is given.

    Args:
        record: Where everything is kept.
        metric: The metric that must stay finite.
        forward: Called with the metric's latest value.
    """

    def __init__(self, record: TrialRecord, metric: str, forward: Callable[[float], None]) -> None:
        self.record = record
        self.metric = metric
        self._forward = forward

    def __call__(self, step: Any, metrics: Mapping[str, Any]) -> None:
        """Keep metrics at one step, or arrays of them at an array of steps.

        A non-finite value of the metric that ranks trials, or of a loss, ends the trial as diverged; what was reported
        for the steps before is kept.
        """
        steps = np.atleast_1d(np.asarray(step, dtype=np.int64))
        values = {name: _at(steps, name, value) for name, value in metrics.items()}
        finite = {
            name: np.isfinite(own) for name, own in values.items() if name == self.metric or name.endswith("loss")
        }
        num_finite = min((int(np.argmin([*own, False])) for own in finite.values()), default=len(steps))
        if num_finite:
            self.record.add(steps[:num_finite], {name: own[:num_finite] for name, own in values.items()})
        if num_finite < len(steps):
            broken = next(name for name, own in finite.items() if not own[num_finite])
            raise _Diverged(f"non-finite {broken} at step {steps[num_finite]}")
        if num_finite and self.metric in values:
            self._forward(float(values[self.metric][-1]))


def _at(steps: np.ndarray, name: str, value: Any) -> np.ndarray:
    """Return a metric as one number for each step."""
    try:
        return np.broadcast_to(np.asarray(value, dtype=float), steps.shape)
    except ValueError as error:
        raise ValueError(f"report takes one number for each step; {name} has {value!r} for {len(steps)}") from error


class TrialCheckpoint:
    """Keeps a trainable's state, and all it reported so far, in one file of the experiment folder.

    Args:
        path: The file.
        records: What each trial of a bundle reported; filled again by ``load``.
        interval_s: Seconds between two states that are kept.
    """

    def __init__(self, path: Path, records: Sequence[TrialRecord], interval_s: float) -> None:
        self.path = path
        self.records = records
        self.interval_s = interval_s
        self._saved_at = time.monotonic()

    def load(self) -> Mapping[str, Any] | None:
        """Return the latest state, or ``None``."""
        if not self.path.is_file():
            return None
        from tune_hpc.learning.checkpoint import load_state

        kept = load_state(self.path)
        for record, reported in zip(self.records, kept["reported"], strict=True):
            record.blocks[:] = [
                (steps.numpy(), {name: values.numpy() for name, values in metrics.items()})
                for steps, metrics in reported
            ]
        return kept["state"]

    def save(self, step: int, make_state: Callable[[], Mapping[str, Any]]) -> None:
        """Keep a state, if the last one is old enough."""
        if time.monotonic() - self._saved_at < self.interval_s:
            return
        import torch

        from tune_hpc.learning.checkpoint import save_state

        reported = [
            [
                (torch.from_numpy(steps), {name: torch.from_numpy(values) for name, values in metrics.items()})
                for steps, metrics in record.blocks
            ]
            for record in self.records
        ]
        state = {"step": step, "state": make_state(), "reported": reported}
        write_whole(self.path, lambda path: save_state(path, state))
        self._saved_at = time.monotonic()


class _Log(io.TextIOBase):
    """A text file that is there from the first word on, and not before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.TextIOWrapper | None = None

    def write(self, text: str) -> int:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
        return self._file.write(text)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Send what Python prints inside the block to a file."""
    with _Log(path) as log, redirect_stdout(log), redirect_stderr(log):
        yield


def run_bundle(
    bundle: Mapping[str, Any], assignments: Mapping[str, Assignment], images: Mapping[str, ray.ObjectRef]
) -> None:
    """Run the trials of a bundle to their ends, whatever these are.

    Args:
        bundle: ``bundle_id`` and ``members``, each ``experiment``, ``trial_id`` and ``config``.
        assignments: What to know of each experiment, by name.
        images: The image data sets in Ray's object store, by name.
    """
    members = bundle["members"]
    assignment = assignments[members[0]["experiment"]]
    folder = ExperimentFolder(assignment.folder)
    forward = _Forward()
    if len(members) == 1:
        rows = [_run_alone(members[0], assignment, folder, images, forward)]
    else:
        rows = _run_fused(bundle, assignment, folder, images, forward)
    forward.ended(rows, assignment.metric)


def _run_alone(
    sample: Mapping[str, Any],
    assignment: Assignment,
    folder: ExperimentFolder,
    images: Mapping[str, ray.ObjectRef],
    forward: "_Forward",
) -> dict[str, Any]:
    """Run one trial by itself; leave its file and return its row."""
    trial_id, config = sample["trial_id"], sample["config"]
    record = TrialRecord(identity(assignment.name, trial_id, config))
    checkpoint = TrialCheckpoint(folder.checkpoint(trial_id), [record], assignment.checkpoint_interval_s)
    report = Reporter(record, assignment.metric, forward.for_trial(trial_id))
    began = time.perf_counter()
    with _logged(folder.log(trial_id)):
        outcome = _outcome(assignment, config, report, checkpoint, images)
    row = _leave(folder, record, outcome, time.perf_counter() - began)
    checkpoint.path.unlink(missing_ok=True)
    return row


def _run_fused(
    bundle: Mapping[str, Any],
    assignment: Assignment,
    folder: ExperimentFolder,
    images: Mapping[str, ray.ObjectRef],
    forward: "_Forward",
) -> list[dict[str, Any]]:
    """Run several trials of our own trainable as one program; leave their files and return their rows."""
    from tune_hpc.learning.training import train_fused

    members = bundle["members"]
    records = [TrialRecord(identity(assignment.name, one["trial_id"], one["config"])) for one in members]
    checkpoint = TrialCheckpoint(folder.checkpoint(bundle["bundle_id"]), records, assignment.checkpoint_interval_s)
    reports = [
        Reporter(record, assignment.metric, forward.for_trial(one["trial_id"]))
        for record, one in zip(records, members, strict=True)
    ]
    data = members[0]["config"]["data"]
    began = time.perf_counter()
    with _logged(folder.log(bundle["bundle_id"])):
        try:
            _match_threads()
            outcomes = train_fused(
                [one["config"] for one in members],
                reports,
                checkpoint=checkpoint,
                images=_fetch_images(images[data]) if data in images else None,
            )
        except Exception as error:
            traceback.print_exc()
            if _device_is_lost(error):
                raise
            print("the trials of this program now run one by one, so that each ends as it would alone")
            outcomes = []
    if not outcomes:
        checkpoint.path.unlink(missing_ok=True)
        return [_run_alone(one, assignment, folder, images, forward) for one in members]
    share_s = (time.perf_counter() - began) / len(members)
    rows = [_leave(folder, record, outcome, share_s) for record, outcome in zip(records, outcomes, strict=True)]
    checkpoint.path.unlink(missing_ok=True)
    return rows


def _leave(folder: ExperimentFolder, record: TrialRecord, outcome: Mapping[str, Any], took_s: float) -> dict[str, Any]:
    """Write the file of a trial that ended and return its row."""
    history = record.history()
    row = {
        "host": socket.gethostname(),
        "train_s": took_s,
        "num_fused": 1,
        "steps_run": int(history["step"].max()) if len(history) else 0,
        **summarise(history),
        **outcome,
        **record.row,
    }
    write_part(folder.part(row["trial_id"]), {name: plain(value) for name, value in row.items()}, history)
    return row


def _outcome(
    assignment: Assignment,
    config: Mapping[str, Any],
    report: Reporter,
    checkpoint: TrialCheckpoint,
    images: Mapping[str, ray.ObjectRef],
) -> dict[str, Any]:
    """Run the trainable; return how it ended, and the columns that it returned."""
    outcome: dict[str, Any] = {"status": "finished", "stop_reason": "the trainable returned"}
    try:
        trainable = assignment.trainable
        if isinstance(trainable, str):
            trainable = load_reference(trainable)
        wanted = inspect.signature(trainable).parameters
        offered: dict[str, Any] = {}
        if "checkpoint" in wanted:
            offered["checkpoint"] = checkpoint
        if "images" in wanted and config.get("data") in images:
            offered["images"] = _fetch_images(images[config["data"]])
        _match_threads()
        returned = trainable(dict(config), report, **offered)
        if isinstance(returned, Mapping):
            outcome |= returned
        if outcome["status"] not in ENDS:
            raise ValueError(f"a trainable returns a status of {', '.join(ENDS)}; got {outcome['status']!r}")
    except _Diverged as divergence:
        outcome |= {"status": "diverged", "stop_reason": str(divergence)}
    except Exception as error:
        # A trainable may raise anything; the trial is listed with it.
        traceback.print_exc()
        if _device_is_lost(error):
            raise
        outcome |= {"status": "failed", "stop_reason": "exception", "error": _last_line(error)}
    return outcome


class _Forward:
    """Tells Ray now and then how the trials of a bundle fare."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}
        self._told_at = time.monotonic()

    def for_trial(self, trial_id: str) -> Callable[[float], None]:
        """Return what notes a trial's latest value, and passes all on about once a second."""

        def note(value: float) -> None:
            self._values[trial_id] = value
            if time.monotonic() - self._told_at >= REPORT_INTERVAL_S:
                self._told_at = time.monotonic()
                tune.report({"members": [{"trial_id": one, "value": value} for one, value in self._values.items()]})
                self._values.clear()

        return note

    def ended(self, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
        """Tell how all trials of the bundle ended."""
        members = [
            {
                "trial_id": row["trial_id"],
                "status": row["status"],
                "value": _finite(row.get(metric)),
                "steps": row["steps_run"],
            }
            for row in rows
        ]
        tune.report({"members": members, "last": True})


def identity(experiment: str, trial_id: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a trial that are known before it runs."""
    return {"experiment": experiment, "trial_id": trial_id, **{name: plain(value) for name, value in config.items()}}


def plain(value: Any) -> Any:
    """Return a value as JSON and Parquet can hold it; what they cannot becomes its JSON or its text."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return json.dumps(value, default=str)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


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
