"""Job driver: ``python -m tune_hpc.jobs.driver FOLDER ATTEMPT``.

The driver runs the experiments of a job, resumes those that have started, and writes the report. As a heartbeat it
rewrites its state in the job folder. It stops on request, or when another attempt supersedes it.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

from tune_hpc.analysis.results import Results
from tune_hpc.errors import ConflictError, InvalidExperimentError, TuneHpcError
from tune_hpc.jobs.job_folder import JobFolder, timestamp
from tune_hpc.jobs.launch import launch
from tune_hpc.jobs.status import JobState
from tune_hpc.report.report import write_report
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.experiment_json import experiment_from_json
from tune_hpc.search.runner import extend
from tune_hpc.storage.process import this_process

#: Seconds between two heartbeats.
HEARTBEAT_S = 5.0
#: Exit codes, the same as those of the command line.
SUCCESS, FAILURE, TERMINATED = 0, 1, 143

_log = logging.getLogger(__name__)


def drive(job: JobFolder, number: int, output: TextIO) -> dict[str, Any]:
    """Run an attempt of a job until it ends, with its progress on ``output``.

    Returns:
        The final state: ``state`` (finished, stopped or failed), and ``reason`` or ``error``.
    """
    if not job.claim(number):
        print(f"attempt {number} of {job.id} has a driver, was stopped, or was superseded", file=output)
        return {"state": JobState.STOPPED}
    heartbeat = Heartbeat(job, number)
    final: dict[str, Any] = {"state": JobState.FAILED}
    handler = logging.StreamHandler(output)
    logging.getLogger("tune_hpc").addHandler(handler)
    try:
        with heartbeat:
            final = _final_state(_run(job, number, output))
    except ConflictError as error:
        final = {"state": JobState.STOPPED, "reason": str(error)}
        print(final["reason"], file=output)
    except TuneHpcError as error:
        final["error"] = str(error)
        print(final["error"], file=output)
    except (KeyboardInterrupt, SystemExit):
        final = {"state": JobState.STOPPED, "reason": "terminated before the first trial", "is_terminated": True}
    except BaseException as error:
        # Users on other machines see only the job folder.
        final["error"] = " ".join("".join(traceback.format_exception_only(error)).split())
        raise
    finally:
        logging.getLogger("tune_hpc").removeHandler(handler)
        with suppress(ValueError):
            sys.path.remove(str(job.code))
        heartbeat.finish(final)
    return final


def _run(job: JobFolder, number: int, output: TextIO) -> list[Results]:
    request, attempt = job.read(), job.read_attempt(number)
    job.storage.download_tree(job.code)
    if job.code.is_dir():
        sys.path.insert(0, str(job.code))
    # The client has checked that no other driver runs, or its user has forced the resume.
    options = {
        **request["options"], **attempt.options, "stream": output, "stop_file": job.stop_file(number),
        "attempt": number, "force": True,
    }  # fmt: skip
    experiments = [_current(job, plain) for plain in request["experiments"]]
    num_more, name = options.pop("num_samples", None), options.pop("experiment", None)
    if attempt.action == "extend":
        extended = _find(experiments, name)
        extend(job.experiment(extended.name).path, num_samples=num_more, **options)
        experiments = [_current(job, plain) for plain in request["experiments"]]
    folders = [job.experiment(experiment.name).path for experiment in experiments]
    results = launch(experiments, folders, resume_started=True, **options)
    if job.attempt_numbers()[-1:] != [number]:
        raise ConflictError(
            f"attempt {number} of {job.id} was superseded, or the job was deleted; it writes nothing more"
        )
    for result in results:
        if result.failures:
            print(f"{result.name}: {result.failures}", file=output)
    try:
        print(f"report: {write_report(results, job.report, importance=_importance)}", file=output)
    except TuneHpcError as error:
        # The report can be written again from the trials.
        print(f"no report: {error}", file=output)
    return results


def _current(job: JobFolder, plain: Mapping[str, Any]) -> Experiment:
    """Return an experiment from its folder, where it may have been extended; otherwise as it was requested."""
    folder = job.experiment(plain["name"])
    return experiment_from_json(folder.read() if folder.holds_experiment else plain)


def _find(experiments: list[Experiment], name: str | None) -> Experiment:
    found = [experiment for experiment in experiments if name in (None, experiment.name)]
    if len(found) != 1:
        names = ", ".join(experiment.name for experiment in experiments)
        raise InvalidExperimentError(f"extend one of the experiments {names}; got {name}")
    return found[0]


def _importance(results: Results) -> Any:
    from tune_hpc.search.importance import importance

    return importance(results)


def _final_state(results: list[Results]) -> dict[str, Any]:
    experiments = [result.experiment for result in results]
    unfinished = [experiment for experiment in experiments if experiment["state"] != "finished"]
    if not unfinished:
        failed = [result for result in results if set(result.counts()) == {"failed"}]
        error = {"error": f"{failed[0].name}: {failed[0].failures}"} if failed else {}
        return {"state": JobState.FAILED if failed else JobState.FINISHED, **error}
    if broken := [experiment for experiment in unfinished if experiment.get("has_failed")]:
        return {"state": JobState.FAILED, "error": f"{broken[0]['name']}: {broken[0]['ended_by']}"}
    final = {"state": JobState.STOPPED, "reason": unfinished[0].get("ended_by") or "interrupted"}
    return final | {"is_terminated": any(experiment.get("is_terminated") for experiment in unfinished)}


class Heartbeat:
    """Thread that rewrites the driver's state every few seconds; no error ends it.

    The age of the file, by the clock of the storage, is the age of the heartbeat.
    """

    def __init__(self, job: JobFolder, number: int) -> None:
        self._job = job
        self._number = number
        self._state = {"process": this_process(), "started_at": timestamp()}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._job.reserve_disk_space(self._number)
        self._thread.start()

    def __exit__(self, *arguments: object) -> None:
        self._ended.set()
        self._thread.join()
        self._job.release_disk_space()

    def finish(self, final: Mapping[str, Any]) -> None:
        """Write the final state."""
        self._push_output()
        try:
            self._job.write_driver_status(self._number, {**self._state, **final, "ended_at": timestamp()})
        except Exception as error:  # noqa: BLE001
            # Readers see the last heartbeat, or a deleted job.
            _log.warning("the final state of %s cannot be written: %s", self._job.id, error)

    def _loop(self) -> None:
        last_warning = ""
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self._beat()
                last_warning = ""
            except Exception as error:  # noqa: BLE001
                # A storage may fail temporarily with any error; the next heartbeat retries.
                if (warning := f"{type(error).__name__}: {error}") != last_warning:
                    _log.warning("a heartbeat of %s was not written: %s", self._job.id, warning)
                last_warning = warning

    def _beat(self) -> None:
        self._push_output()
        self._job.write_driver_status(self._number, {**self._state, "heartbeat_at": timestamp()})
        if any(number > self._number for number in self._job.attempt_numbers()):
            _log.warning("attempt %d of %s was superseded; it stops", self._number, self._job.id)
            self._job.request_stop(self._number)

    def _push_output(self) -> None:
        """Publish the log to readers of a remote storage."""
        with suppress(OSError):
            self._job.storage.upload(self._job.output)


def main() -> int:
    """Run the driver as a process.

    Returns:
        0; 1 if the job failed; 143 if SIGTERM stopped it after its trials had saved their states.
    """
    parser = argparse.ArgumentParser(description="Run a job; see tune-hpc submit.")
    parser.add_argument("folder")
    parser.add_argument("attempt", type=int)
    arguments = parser.parse_args()
    job = JobFolder(arguments.folder)
    job.storage.download(job.output)
    _redirect_output(job)
    # The initial working folder belongs to Ray or a terminal and may be deleted.
    os.chdir(job.path)

    def stop(*signal_arguments: object) -> None:
        with suppress(OSError):
            job.request_stop(arguments.attempt)

    # A running search replaces this handler.
    signal.signal(signal.SIGTERM, stop)
    final = drive(job, arguments.attempt, sys.stderr)
    if final.get("is_terminated"):
        return TERMINATED
    return FAILURE if final["state"] == JobState.FAILED else SUCCESS


def _redirect_output(job: JobFolder) -> None:
    """Append all output of this process and its children to the log of the job."""
    if job.storage.is_remote:
        job.path.mkdir(parents=True, exist_ok=True)
    log = job.open_output()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)


if __name__ == "__main__":
    sys.exit(main())
