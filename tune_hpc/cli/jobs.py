"""The verbs of jobs: flags to calls and results to text, as in cli.py."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_hpc.analysis.object_store import here, place_of
from tune_hpc.errors import FolderError, UnknownNameError
from tune_hpc.cli.options import PLACE_FLAGS, add_place_flags, add_what_flags, find_experiments

if TYPE_CHECKING:
    from tune_hpc.cluster.client import Job, JobClient
    from tune_hpc.cluster.status import JobStatus

#: Where jobs are kept unless told otherwise, and what tells otherwise.
DEFAULT_STORAGE = "runs/jobs"
STORAGE_VARIABLE = "TUNE_HPC_STORAGE"


def add_job_verbs(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    """Add the verbs of jobs to a parser.

    Args:
        add: Makes the parser of a verb, of its name, its function and its help.
    """
    submit = add("submit", _submit, "have experiments run as a job, on a Ray cluster or in the background here")
    submit.add_argument("names", nargs="+", metavar="NAME", help="as for run")
    add_what_flags(submit)
    add_place_flags(submit, "the dashboard of a Ray cluster, http://HEAD:8265 (default: a process of this machine)")
    submit.add_argument(
        "--code", metavar="DIR", help="Python files that a trainable of one's own needs (default: its module)"
    )
    _add_storage(submit)

    jobs = add("jobs", _jobs, "list jobs, the latest first")
    _add_storage(jobs)

    status = add("status", _status, "say how a job stands: trials done, the best so far, the time left")
    status.add_argument("--wait", action="store_true", help="until it has ended")
    status.add_argument("--json", action="store_true", help="as JSON")
    logs = add("logs", _logs, "show what a job printed")
    logs.add_argument("--follow", action="store_true", help="until it has ended")
    stop = add("stop", _stop, "ask a job to stop; its trials save their state, and resume goes on with it")
    stop.add_argument("--force", action="store_true", help="at once: trials go on from the state they kept last")
    fetch = add("fetch", _fetch, "copy what a job has come to into a folder here")
    fetch.add_argument("-o", "--output", metavar="DIR", help="default: runs/ID")
    for verb in (status, logs, stop, fetch):
        verb.add_argument("id", metavar="ID")
        _add_storage(verb)


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage", metavar="DIR",
        help=f"where jobs are kept, seen by all who work on them (default: ${STORAGE_VARIABLE}, or {DEFAULT_STORAGE})",
    )  # fmt: skip


def _submit(flags: argparse.Namespace) -> int:
    from tune_hpc.cluster.known_storages import remember

    experiments = [experiment for name in flags.names for experiment in find_experiments(name, flags)]
    client = client_at(flags.address, _storage(flags))
    options = {key: getattr(flags, key) for key in PLACE_FLAGS if key != "address"}
    job = client.submit(experiments, code=flags.code, **options)
    remember(place_of(client.storage))
    print(job.id)
    print(f"tune-hpc status {job.id}    how it stands\ntune-hpc logs {job.id} --follow", file=sys.stderr)
    return 0


def _jobs(flags: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "state", "trials", "best", "asked for", box=None)
    storages = _storages(flags)
    for storage in storages:
        try:
            jobs = client_at(None, storage).list()
        except FolderError as error:
            if flags.storage:
                raise
            # One that was used before and does not answer now hides no other.
            print(f"tune-hpc: {error}", file=sys.stderr)
            continue
        for job in jobs:
            try:
                table.add_row(*_row(job_of(storage, job.id).status()))
            except FolderError as error:
                # One that is damaged hides no other.
                table.add_row(job.id, "unreadable", "", " ".join(str(error).split()), "")
    if not table.row_count:
        print(f"there is no job in {', '.join(map(str, storages))}; `tune-hpc submit NAME` makes one")
        return 0
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


def _row(status: "JobStatus") -> tuple[str, ...]:
    best = [f"{one.metric} {one.best_value:.4g}" for one in status.experiments if one.best_value is not None]
    trials = f"{status.num_ended}/{status.num_trials}"
    return status.id, status.state.value, trials, best[0] if best else "", status.asked_at


def _status(flags: argparse.Namespace) -> int:
    job = find_job(flags)
    status = job.wait() if flags.wait else job.status()
    print(json.dumps(asdict(status)) if flags.json else _told(status))
    return 1 if flags.wait and status.state in ("failed", "lost") else 0


def _told(status: "JobStatus") -> str:
    where = status.place.get("address") or status.place.get("host") or "nowhere"
    again = f", attempt {status.attempt}" if status.attempt > 1 else ""
    times = [f"asked for {status.asked_at}"]
    times += [f"began {status.began_at}"] if status.began_at else []
    times += [f"ended {status.ended_at}"] if status.ended_at else []
    return f"{status}\n  on {where}{again}: {', '.join(times)}"


def _logs(flags: argparse.Namespace) -> int:
    for text in find_job(flags).logs(follow=flags.follow):
        print(text, end="", flush=True)
    return 0


def _stop(flags: argparse.Namespace) -> int:
    print(_told(find_job(flags).stop(force=flags.force)))
    return 0


def _fetch(flags: argparse.Namespace) -> int:
    from tune_hpc.cluster.copies import fetch

    job = find_job(flags)
    target = Path(flags.output) if flags.output else Path("runs") / job.id
    print(f"{fetch(job.folder, target)} files in {target}")
    return 0


def is_job(text: str) -> bool:
    """Whether a text is the id of a job and no folder."""
    from tune_hpc.cluster.job_folder import is_id

    return is_id(text) and not Path(text).exists()


def go_on(flags: argparse.Namespace) -> int:
    """Resume or extend the job that ``flags.folder`` names by its id."""
    flags.id = flags.folder
    options = {key: getattr(flags, key) for key in PLACE_FLAGS if key != "address"}
    job = find_job(flags)
    if flags.num_samples is not None:
        job.extend(flags.num_samples, **options)
    else:
        job.resume(**options)
    print(_told(job.status()))
    return 0


def find_job(flags: argparse.Namespace) -> "Job":
    """Return the job of an id, in the storage that is named or in one that was used before.

    Raises:
        UnknownNameError: none of them holds it.
        FolderError: the storage that is named does not answer.
    """
    from tune_hpc.cluster.job_folder import JobFolder, is_id

    searched, silent = _storages(flags), ""
    for storage in searched:
        try:
            is_there = is_id(flags.id) and JobFolder(here(storage) / flags.id).is_there
        except FolderError as error:
            if flags.storage:
                raise
            silent += f"; {error}"
            continue
        if is_there:
            return job_of(storage, flags.id, getattr(flags, "address", None))
    raise UnknownNameError(f"no job {flags.id} in {', '.join(searched)}{silent}; --storage names another place")


def job_of(storage: str, job_id: str, address: str | None = None) -> "Job":
    """Return a job with the client of the place where it runs, or of another cluster."""
    from tune_hpc.cluster.job_folder import JobFolder

    attempt = JobFolder(here(storage) / job_id).last_attempt()
    return client_at(address or (attempt.place.get("address") if attempt else None), storage).job(job_id)


def client_at(address: str | None, storage: str) -> "JobClient":
    """Return the client of a cluster; of this machine where there is no address, or ``local``."""
    from tune_hpc.cluster.client import Client, LocalClient

    return LocalClient(storage) if address in (None, "local") else Client(address, storage=storage)


def _storage(flags: argparse.Namespace) -> str:
    chosen: Any = flags.storage or os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE
    return str(chosen)


def _storages(flags: argparse.Namespace) -> list[str]:
    """Return where to look for jobs: where it is said, or else where some have been, the latest first."""
    from tune_hpc.cluster.known_storages import storages

    if flags.storage:
        return [flags.storage]
    named = place_of(here(_storage(flags)).absolute())
    return list(dict.fromkeys([named, *reversed(storages())]))
