"""Execution of trials in this process, a Ray actor or the driver: from configurations to trial files.

A trainable receives the arguments of its signature. What it reports is recorded, sent to the driver from time to time,
and written into one file per trial with its row and history. Failures end here: a non-finite metric marks a trial as
diverged, an exception as failed, and the next trial runs. Most groups have one trial. Several trials train as one
program, or one after another if that program fails.

A trial that is stopped with its search saves its state, and its file has the status ``running``. A long trial writes
such a file from time to time.
"""

import copy
import inspect
import socket
import sys
import time
import traceback
from bdb import BdbQuit
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import isnan, nan
from typing import Any

from tune_hpc.errors import FolderError, TimeLimitReached, TrialError
from tune_hpc.search.checkpoint_retention import TrialRetention
from tune_hpc.search.command import Command
from tune_hpc.search.experiment_checks import TRAIN
from tune_hpc.search.object_reference import load_entry_point, load_reference
from tune_hpc.search.reporter import (
    Diverged,
    JudgedValue,
    LiveReporter,
    Reporter,
    SchedulerReporter,
    SchedulerStop,
    Send,
    Throttle,
    returned_columns,
)
from tune_hpc.search.stopping import StopRequest, StopRequested, TimeLimit, reset_signals_in_children
from tune_hpc.search.trial import Trial, TrialDevices, num_visible_gpus
from tune_hpc.search.trial_checkpoint import TrialCheckpoint
from tune_hpc.search.trial_errors import describe_exception, is_device_lost
from tune_hpc.search.trial_log import redirect_output
from tune_hpc.search.trial_process import call_in_this_process, same_folder, set_seeds, set_threads
from tune_hpc.search.trial_spec import TrialContext, TrialGroup, TrialSpec, num_steps
from tune_hpc.search.user_code import PortableTrainable
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.trial_file import TrialFileWriter, now, summarise, to_error_text, to_jsonable

#: Statuses that a trainable may return.
END_STATUSES = ("finished", "stopped", "diverged")


class TrialRunner:
    """Runs groups of trials of one experiment in this process.

    Args:
        context: Context of the experiment.
        send: Sends a result to the driver (``reporter.LiveReporter``).
        images: Image data sets by name, in a form that can be passed to other processes.
        load_images: Returns the ``ImageData`` of such a data set.
        num_threads: Number of threads of PyTorch: sums must not depend on other load of the machine.
        evaluation_threads: Number of threads of the evaluations of built-in models.
        request: Stop request of the search; default: that of the control file.
        is_local: Whether the driver is this process: output stays on the terminal.
        fail_fast: Whether an exception of a trainable is raised, and not recorded.
    """

    def __init__(
        self,
        context: TrialContext,
        send: Send,
        images: Mapping[str, Any],
        load_images: Callable[[Any], Any],
        num_threads: int,
        *,
        evaluation_threads: int = 1,
        request: StopRequest | None = None,
        is_local: bool = False,
        fail_fast: bool = False,
    ) -> None:
        self.context = context
        self.images = images
        self.folder = ExperimentFolder(context.folder, context.attempt)
        self.request = request or StopRequest(self.folder)
        self.reporter = LiveReporter(send)
        self._send = send
        self._load_images = load_images
        self._num_threads = num_threads
        self._evaluation_threads = evaluation_threads
        self._is_local = is_local
        self._fail_fast = fail_fast

    def run(self, group: TrialGroup) -> None:
        """Run the trials of a group, and report their end to the driver."""
        reset_signals_in_children()
        started = time.perf_counter()
        rows: list[dict[str, Any]] = []
        # A scheduler requires its keys in every result, even if the trial does not start.
        result = {"step": 0, "progress": 0.0, "value": nan} if self.context.monitored else {}
        if self.request.is_made:
            pass  # The search stopped before the turn of this group.
        elif len(group.trials) == 1:
            row, result = self._run_single(group.trials[0])
            rows = [row]
        elif group.is_sequential:
            rows = self._run_sequential(group.trials)
        else:
            rows = self._run_fused(group)
        seconds = (time.perf_counter() - started) / len(group.trials)
        self.reporter.report_end(rows, self.context.metric, {"took_s": seconds, **result})

    def _run_sequential(self, trials: Sequence[TrialSpec]) -> list[dict[str, Any]]:
        """Run trials one after another, except those that ended before a process was lost; return their rows."""
        rows = []
        for trial in trials:
            row = self.folder.read_row(trial.trial_id)
            if row is None or row["status"] == "running":
                if self.request.is_made:
                    break
                row, _ = self._run_single(trial)
            rows.append(row)
        return rows

    def _run_single(self, trial: TrialSpec) -> tuple[dict[str, Any], dict[str, float]]:
        """Run one trial and write its file; return its row and the latest result for the scheduler."""
        context = self.context
        writer = TrialFileWriter(trial.columns())
        retention = TrialRetention(self.folder, writer, context.ranked, context.keep_checkpoints)
        judged = JudgedValue(writer, context.monitored or context.ranked)
        time_limit = TimeLimit(context.time_limit_s)
        checkpoint = self._checkpoint(
            trial.trial_id, [writer], [retention], time_limit, trial.max_step, lambda: not isnan(judged.update())
        )
        started = time.perf_counter()
        scheduler = None
        if context.monitored:
            pace = context.max_steps / num_steps(trial.config, context.budget, context.max_steps)
            scheduler = SchedulerReporter(
                self._send,
                trial.trial_id,
                context.monitored,
                writer,
                lambda: self._write(writer, {"status": "running"}, time.perf_counter() - started),
                pace,
            )
        report = Reporter(
            writer,
            context.ranked,
            self.reporter.for_trial(trial.trial_id),
            scheduler,
            Throttle(lambda: self._write_running([writer], time.perf_counter() - started)),
            time_limit,
        )
        devices = TrialDevices(self._num_threads, num_visible_gpus())
        argument = Trial(trial.trial_id, trial.config.get("seed"), devices, self.folder)
        with self._log(trial.trial_id), same_folder():
            outcome: dict[str, Any] = {"status": "running"}
            try:
                outcome = self._call_trainable(trial.config, report, checkpoint, argument, time_limit)
            finally:
                report.close()
                argument.close()
                if checkpoint.has_stopped:
                    # The trainable may have caught the exception.
                    outcome = {"status": "running"}
                else:
                    # A running trial was stopped by the scheduler.
                    retention.finish(outcome["status"])
        row = self._write(writer, outcome, time.perf_counter() - started)
        self._clean_up(checkpoint, [row])
        return row, scheduler.result() if scheduler else {}

    def _run_fused(self, group: TrialGroup) -> list[dict[str, Any]]:
        """Run trials of the built-in trainable as one program and write their files; return their rows."""
        from tune_hpc.learning.training import train_fused

        trials = group.trials
        writers = [TrialFileWriter(trial.columns()) for trial in trials]
        policy = self.context.keep_checkpoints
        retentions = [TrialRetention(self.folder, writer, self.context.ranked, policy) for writer in writers]
        checkpoint = self._checkpoint(group.group_id, writers, retentions, TimeLimit(self.context.time_limit_s))
        started = time.perf_counter()
        write = Throttle(lambda: self._write_running(writers, time.perf_counter() - started))
        reports = [
            Reporter(writer, self.context.ranked, self.reporter.for_trial(trial.trial_id), write=write)
            for writer, trial in zip(writers, trials, strict=True)
        ]
        with self._log(group.group_id):
            try:
                set_threads(self._num_threads)
                outcomes = train_fused(
                    [trial.config for trial in trials],
                    reports,
                    checkpoint=checkpoint,
                    images=self._images(trials[0].config),
                    evaluation_threads=self._evaluation_threads,
                )
            except StopRequested:
                outcomes = [{"status": "running"} for _ in trials]
            except Exception as error:
                if self._fail_fast:
                    raise
                traceback.print_exc()
                if is_device_lost(error):
                    raise
                print("the fused program failed: its trials now run one after another")
                outcomes = []
        if not outcomes:
            self.folder.storage.delete(checkpoint.path)
            return self._run_sequential(trials)
        seconds = (time.perf_counter() - started) / len(trials)
        if not checkpoint.has_stopped:
            for retention, outcome in zip(retentions, outcomes, strict=True):
                retention.finish(outcome["status"])
        rows = [self._write(writer, outcome, seconds) for writer, outcome in zip(writers, outcomes, strict=True)]
        self._clean_up(checkpoint, rows)
        return rows

    def _log(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if self._is_local else redirect_output(self.folder.log(name))

    def _checkpoint(
        self,
        name: str,
        writers: Sequence[TrialFileWriter],
        retentions: Sequence[TrialRetention],
        time_limit: TimeLimit,
        max_step: int | None = None,
        may_pause: Callable[[], bool] = lambda: True,
    ) -> TrialCheckpoint:
        path, interval_s = self.folder.checkpoint(name), self.context.checkpoint_interval_s
        return TrialCheckpoint(path, writers, interval_s, self.request, max_step, may_pause, time_limit, retentions)

    def _clean_up(self, checkpoint: TrialCheckpoint, rows: Sequence[Mapping[str, Any]]) -> None:
        """Delete the checkpoint of trials whose ends are recorded."""
        if any(row["status"] == "running" for row in rows):
            return
        try:
            if not self.folder.is_superseded():
                self.folder.storage.delete(checkpoint.path)
        except FolderError as error:
            print(f"the checkpoint is not deleted: {error}")

    def _write_running(self, writers: Sequence[TrialFileWriter], train_s: float) -> None:
        """Write the files of running trials, for readers of the running search."""
        for writer in writers:
            self._write(writer, {"status": "running", "num_fused": len(writers)}, train_s / len(writers))

    def _write(self, writer: TrialFileWriter, outcome: Mapping[str, Any], train_s: float) -> dict[str, Any]:
        """Write the file of a trial, unless another attempt runs the trial by now; return its row.

        If the storage rejects the file, the trial has the status ``running``, so that a resumed search runs it again.
        """
        history, unknown = writer.history(), writer.unknown_metrics()
        row = {
            "attempt": self.folder.attempt,
            "host": socket.gethostname(),
            "train_s": train_s,
            "num_fused": 1,
            "steps_run": int(history["step"].max()) if len(history) else 0,
            **{name: value for name, value in summarise(history).items() if name not in unknown},
            **self._ranked_value(history),
            **outcome,
            **writer.row,
        }
        if row["status"] == "finished" and _is_missing(row.get(self.context.metric)):
            names = ", ".join(history.columns.drop("step")) or "no metric"
            row |= {
                "status": "failed",
                "stop_reason": "no metric",
                "error": f"the trial never reported {self.context.metric}, which ranks trials; it reported {names}: "
                "name one of these as metric, with its mode",
            }
        if row["status"] != "running":
            row["ended_at"] = now("milliseconds")
        try:
            if not self.folder.is_superseded():
                jsonable = {name: to_jsonable(value) for name, value in row.items()}
                self.folder.write_trial(row["trial_id"], jsonable, history)
        except FolderError as error:
            print(f"the metrics are not saved: {error}")
            row["status"] = "running"
        return row

    def _ranked_value(self, history: Any) -> dict[str, float]:
        """Return the column of the metric that ranks trials, if it was reported."""
        metric = self.context.ranked
        if metric.column not in history:
            return {}
        return {self.context.metric: metric.value(history[metric.column].to_numpy(float))}

    def _call_trainable(
        self,
        config: Mapping[str, Any],
        report: Reporter,
        checkpoint: TrialCheckpoint,
        trial: Trial,
        time_limit: TimeLimit,
    ) -> dict[str, Any]:
        """Call the trainable; return the status of the trial and the columns that the trainable returned."""
        outcome: dict[str, Any] = {"status": "finished", "stop_reason": "the trainable returned"}
        try:
            trainable = self._load_trainable()
            parameters = inspect.signature(trainable).parameters
            offered = {"checkpoint": checkpoint, "trial": trial, "evaluation_threads": self._evaluation_threads}
            if isinstance(trainable, Command):
                offered |= {"stop_request": self.request, "metric": self.context.metric, "time_limit": time_limit}
            if "images" in parameters and config.get("data") in self.images:
                offered["images"] = self._images(config)
            if self.context.placement is not None:
                images = (self.images[config["data"]],) if config.get("data") in self.images else ()
                offered["placement"] = replace(self.context.placement, images=images)
            set_threads(self._num_threads)
            if not isinstance(self.context.trainable, str) and isinstance(seed := config.get("seed"), int):
                set_seeds(seed)
            kwargs = {name: value for name, value in offered.items() if name in parameters}
            returned = call_in_this_process(lambda: trainable(copy.deepcopy(dict(config)), report, **kwargs))
            if isinstance(returned, Mapping):
                if self.context.trainable != TRAIN and self.context.placement is None:
                    returned = returned_columns(returned, self.context.metric, report.writer.row)
                outcome |= returned
            if outcome["status"] not in END_STATUSES:
                status = outcome["status"]
                raise ValueError(f"the status that a trainable returns is {', '.join(END_STATUSES)}; got {status!r}")
        except StopRequested:
            outcome = {"status": "running"}
        except TimeLimitReached:
            outcome |= {"status": "stopped", "stop_reason": "time limit"}
        except Diverged as divergence:
            outcome |= {"status": "diverged", "stop_reason": str(divergence)}
        except (KeyboardInterrupt, SchedulerStop):
            raise
        except BdbQuit:
            raise KeyboardInterrupt from None  # The user left the debugger.
        except TrialError as error:
            # The cause is in other processes: a traceback of this one would not show it.
            if self._fail_fast:
                raise
            print(error, file=sys.stderr)
            outcome |= {"status": "failed", "stop_reason": "exception", "error": to_error_text(str(error))}
        except BaseException as error:
            # A trainable may raise anything, or call sys.exit.
            if self._fail_fast:
                raise
            traceback.print_exc()
            if is_device_lost(error):
                raise
            outcome |= {"status": "failed", **describe_exception(error)}
        if report.divergence is not None and outcome["status"] != "running":
            # The trainable may have caught the exception.
            outcome = {"status": "diverged", "stop_reason": str(report.divergence)}
        return outcome

    def _load_trainable(self) -> Callable[..., Any]:
        if self.context.placement is not None:
            return load_entry_point("tune_hpc.trainables", "distributed")
        trainable = self.context.trainable
        if isinstance(trainable, PortableTrainable):
            return trainable.load()
        return load_reference(trainable) if isinstance(trainable, str) else trainable

    def _images(self, config: Mapping[str, Any]) -> Any:
        data = config["data"]
        return self._load_images(self.images[data]) if data in self.images else None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and isnan(value))
