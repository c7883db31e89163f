"""What runs a job, wherever that is: ``python -m tune_hpc.cluster.driver FOLDER ATTEMPT``.

It brings the job's experiments to their ends: those that a folder holds already go on, the others begin. It says in the
job's folder that it lives, stops when it is asked to there, and writes the report at the end.
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
from pathlib import Path
from typing import Any, TextIO

from tune_hpc.analysis.folder import ExperimentFolder
from tune_hpc.analysis.object_store import pull, pull_tree, push
from tune_hpc.analysis.process import this_process
from tune_hpc.analysis.report import write_report
from tune_hpc.analysis.results import Results
from tune_hpc.cluster.job_folder import JobFolder, JobState, utc_now
from tune_hpc.errors import FolderError, InvalidExperimentError, TuneHpcError
from tune_hpc.search.experiment import Experiment, experiment_from_json
from tune_hpc.search.launch import launch
from tune_hpc.search.tuner import extend

#: Seconds between two signs of life.
BEAT_S = 5.0
#: Nobody wants a job any more whose folder was not there at so many of them in a row.
NUM_BEATS_GONE = 3

_log = logging.getLogger(__name__)


def drive(job: JobFolder, number: int, output: TextIO) -> JobState:
    """Bring a job to its end.

    Args:
        job: The job.
        number: Which of its attempts this is.
        output: Where progress is told.

    Returns:
        How it ended: ``FINISHED``, ``STOPPED`` or ``FAILED``.
    """
    if not job.claim(number):
        print(f"attempt {number} of {job.id} has a driver, or was called off", file=output)
        return JobState.STOPPED
    life = _Life(job, number)
    told: dict[str, Any] = {"state": JobState.FAILED}
    handler = logging.StreamHandler(output)
    logging.getLogger("tune_hpc").addHandler(handler)
    try:
        with life:
            told = _outcome(_run(job, number, output))
    except TuneHpcError as error:
        told["error"] = " ".join(str(error).split())
        print(told["error"], file=output)
    except KeyboardInterrupt:
        told |= {"state": JobState.STOPPED, "reason": "interrupted"}
    except BaseException as error:
        # Whatever it is: nobody but the job's folder tells those who are elsewhere.
        told["error"] = " ".join("".join(traceback.format_exception_only(error)).split())
        raise
    finally:
        logging.getLogger("tune_hpc").removeHandler(handler)
        life.end(told)
    return JobState(told["state"])


def _run(job: JobFolder, number: int, output: TextIO) -> list[Results]:
    asked, attempt = job.read(), job.last_attempt()
    if attempt is None or attempt.number != number:
        raise FolderError(f"attempt {number} of {job.id} is not its latest any more; look at its status")
    pull_tree(job.code)
    if job.code.is_dir():
        sys.path.insert(0, str(job.code))
    options = {**asked["options"], **attempt.options, "stream": output, "stop_file": job.stop_of(number)}
    experiments = [_as_it_stands(job, plain) for plain in asked["experiments"]]
    num_more, name = options.pop("num_samples", None), options.pop("experiment", None)
    if attempt.verb == "extend":
        extended = _one_of(experiments, name)
        extend(job.path / extended.name, num_samples=num_more, **options)
        experiments = [_as_it_stands(job, plain) for plain in asked["experiments"]]
    folders = [job.path / experiment.name for experiment in experiments]
    results = launch(experiments, folders, go_on=True, **options)
    try:
        print(f"report: {write_report(results, job.report, importance=_importance)}", file=output)
    except TuneHpcError as error:
        # The trials are what counts; the page can be made again from them.
        print(f"no report: {error}", file=output)
    return results


def _as_it_stands(job: JobFolder, plain: Mapping[str, Any]) -> Experiment:
    """Return an experiment as its folder has it, for it may have been extended; else as it was asked for."""
    home = ExperimentFolder(job.path / str(plain["name"]))
    return experiment_from_json(home.read() if home.holds_experiment else plain)


def _one_of(experiments: list[Experiment], name: str | None) -> Experiment:
    chosen = [one for one in experiments if name in (None, one.name)]
    if len(chosen) != 1:
        raise InvalidExperimentError(f"extend one experiment of {', '.join(one.name for one in experiments)}; name it")
    return chosen[0]


def _importance(results: Results) -> Any:
    from tune_hpc.search.importance import importance

    return importance(results)


def _outcome(results: list[Results]) -> dict[str, Any]:
    unfinished = [one.experiment for one in results if one.experiment["state"] != "finished"]
    if not unfinished:
        return {"state": JobState.FINISHED}
    return {"state": JobState.STOPPED, "reason": unfinished[0].get("ended_by") or "it was interrupted"}


class _Life:
    """Says that the driver lives, and ends it where another one has taken its place, or nobody wants it any more."""

    def __init__(self, job: JobFolder, number: int) -> None:
        self._job = job
        self._number = number
        self._told = {"process": this_process(), "began": utc_now().isoformat(timespec="seconds")}
        self._num_beats_gone = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="life", daemon=True)

    def __enter__(self) -> None:
        self._job.hold_room(self._number)
        self._write({})
        self._thread.start()

    def __exit__(self, *arguments: object) -> None:
        self._ended.set()
        self._thread.join()
        self._job.give_room()

    def end(self, told: Mapping[str, Any]) -> None:
        """Say how it ended."""
        self._show_output()
        self._write({**told, "ended": utc_now().isoformat(timespec="seconds")})

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._write({})
            self._show_output()
            try:
                self._end_if_unwanted()
            except FolderError as error:
                _log.warning("%s", error)

    def _end_if_unwanted(self) -> None:
        attempt = self._job.last_attempt()
        # A network may lose sight of a file for a moment.
        self._num_beats_gone = 0 if self._job.is_there else self._num_beats_gone + 1
        if self._num_beats_gone == NUM_BEATS_GONE:
            _log.warning("the folder of %s was removed: it stops", self._job.id)
            self._job.ask_to_stop(self._number)
        elif attempt is not None and attempt.number > self._number:
            _log.warning("attempt %d of %s goes on instead of this one", attempt.number, self._job.id)
            self._job.ask_to_stop(self._number)

    def _show_output(self) -> None:
        """Put what was printed where others see it."""
        with suppress(OSError):
            push(self._job.output)

    def _write(self, told: Mapping[str, Any]) -> None:
        try:
            self._job.write_run(self._number, {**self._told, "beat": utc_now().isoformat(timespec="seconds"), **told})
        except FolderError as error:
            # A storage that takes nothing for a while is no reason to end; whoever asks sees when it was last heard of.
            _log.warning("%s", error)


def main() -> int:
    """Drive a job as a process of its own."""
    parser = argparse.ArgumentParser(description="Run a job that was submitted; see tune-hpc submit.")
    parser.add_argument("folder")
    parser.add_argument("attempt", type=int)
    flags = parser.parse_args()
    job = JobFolder(flags.folder)
    pull(job.output)
    _print_to(job.output)
    # The folder that Ray or a terminal gave us may go; this one stays as long as there is anything to do.
    os.chdir(job.path)
    # Ray ends its jobs so, and batch systems theirs: there are seconds left, in which trials may save their state.
    signal.signal(signal.SIGTERM, lambda *arguments: job.ask_to_stop(flags.attempt))
    return 1 if drive(job, flags.attempt, sys.stderr) is JobState.FAILED else 0


def _print_to(path: Path) -> None:
    """Send all that this process and its children print to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
