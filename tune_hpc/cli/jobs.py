"""Commands on jobs: submit, jobs, status, logs, stop, fetch, delete, and resume and extend by id."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_hpc.cli.options import PLACE_FLAGS, add_place_flags, add_what_flags, find_experiments
from tune_hpc.errors import ClusterError, FolderError, UnknownNameError
from tune_hpc.storage.filesystem import here, uri

if TYPE_CHECKING:
    from tune_hpc.jobs.client import Job, JobClient
    from tune_hpc.jobs.status import JobStatus

#: The default storage, and the variable that names another one.
DEFAULT_STORAGE = "runs/jobs"
STORAGE_VARIABLE = "TUNE_HPC_STORAGE"


def add_job_verbs(add: Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]) -> None:
    """Add the commands on jobs to a parser.

    Args:
        add: Makes the parser of a command from its name, its function and its help.
    """
    submit = add("submit", _submit, "run experiments as a job, on a Ray cluster or in the background on this machine")
    submit.add_argument("names", nargs="+", metavar="NAME", help="as for run")
    add_what_flags(submit)
    add_place_flags(submit, "the dashboard of a Ray cluster, http://HEAD:8265 (default: a process of this machine)")
    submit.add_argument(
        "--code", metavar="DIR", help="Python files that your own trainable needs (default: its module)"
    )
    add_storage_flags(submit, writes=True)

    jobs = add("jobs", _jobs, "list jobs, the latest first")
    add_storage_flags(jobs)

    status = add("status", _status, "show the status of a job: trials done, best value, remaining time")
    status.add_argument("--wait", action="store_true", help="wait until it has ended")
    status.add_argument("--json", action="store_true", help="print JSON")
    logs = add("logs", _logs, "show the output of a job")
    logs.add_argument("--follow", action="store_true", help="until it has ended")
    stop = add("stop", _stop, "stop a job; its trials save their state, and it can be resumed")
    stop.add_argument("--force", action="store_true", help="kill it: trials resume from the state they saved last")
    fetch = add("fetch", _fetch, "copy the folder of a job to this machine")
    fetch.add_argument("-o", "--output", metavar="DIR", help="default: runs/ID")
    delete = add("delete", _delete, "delete jobs that have ended, and all their results")
    delete.add_argument("ids", nargs="+", metavar="ID")
    add_storage_flags(delete)
    for command in (status, logs, stop, fetch):
        command.add_argument("id", metavar="ID")
        add_storage_flags(command)
    for command in (jobs, status, logs, stop, fetch, delete):
        command.add_argument(
            "--address", metavar="ADDRESS",
            help="the cluster of the jobs, if you have not used it before: its token is sent there",
        )  # fmt: skip


def add_storage_flags(parser: argparse.ArgumentParser, *, writes: bool = False) -> None:
    """Add the flags that name the storage; ``writes``: of a command that starts drivers."""
    parser.add_argument(
        "--storage", metavar="DIR",
        help=f"the folder of all jobs, on storage that all machines see (default: ${STORAGE_VARIABLE}, or "
        f"{DEFAULT_STORAGE})",
    )  # fmt: skip
    if writes:
        parser.add_argument(
            "--shared-storage", action="store_true",
            help="accept a storage that other users can write to; they can run code as you",
        )  # fmt: skip


def _submit(flags: argparse.Namespace) -> int:
    from tune_hpc.jobs.storage_history import remember

    experiments = [experiment for name in flags.names for experiment in find_experiments(name, flags)]
    client = client_at(flags.address, _storage(flags), shared_storage=flags.shared_storage)
    options = {key: getattr(flags, key) for key in PLACE_FLAGS if key != "address"}
    job = client.submit(experiments, code=flags.code, **options)
    remember("storages", uri(client.storage))
    print(job.id)
    print(f"tune-hpc status {job.id}\ntune-hpc logs {job.id} --follow", file=sys.stderr)
    return 0


def _jobs(flags: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "state", "trials", "best", "requested", box=None)
    storages = _storages(flags)
    for storage in storages:
        try:
            jobs = client_at(flags.address, storage).list()
        except FolderError as error:
            if flags.storage:
                raise
            # One that was used before and does not answer now hides no other.
            print(f"tune-hpc: {error}", file=sys.stderr)
            continue
        for job in jobs:
            try:
                table.add_row(*_row(job_in(storage, job.id, flags.address).status()))
            except Exception as error:  # noqa: BLE001
                # A damaged job hides no other job, whatever is wrong with it.
                table.add_row(job.id, "unreadable", "", " ".join(str(error).split()), "")
    if not table.row_count:
        print(f"there is no job in {', '.join(map(str, storages))}; `tune-hpc submit NAME` makes one")
        return 0
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 0


def _row(status: "JobStatus") -> tuple[str, ...]:
    best = [f"{one.metric} {one.best_value:.4g}" for one in status.experiments if one.best_value is not None]
    trials = f"{status.num_ended}/{status.num_trials}"
    return status.id, status.state.value, trials, best[0] if best else "", status.requested_at


def _status(flags: argparse.Namespace) -> int:
    job = find_job(flags)
    status = job.wait() if flags.wait else job.status()
    print(json.dumps(asdict(status)) if flags.json else _format(status))
    return 1 if flags.wait and status.state in ("failed", "lost", "unknown") else 0


def _format(status: "JobStatus") -> str:
    where = status.location.get("address") or status.location.get("host") or "no machine"
    attempt = f", attempt {status.attempt}" if status.attempt > 1 else ""
    times = [f"requested {status.requested_at}"]
    times += [f"started {status.started_at}"] if status.started_at else []
    times += [f"ended {status.ended_at}"] if status.ended_at else []
    return f"{status}\n  on {where}{attempt}: {', '.join(times)}"


def _logs(flags: argparse.Namespace) -> int:
    for text in find_job(flags).logs(follow=flags.follow):
        print(text, end="", flush=True)
    return 0


def _stop(flags: argparse.Namespace) -> int:
    print(_format(find_job(flags).stop(force=flags.force)))
    return 0


def _delete(flags: argparse.Namespace) -> int:
    for job_id in flags.ids:
        flags.id = job_id
        find_job(flags).delete()
        print(f"deleted {job_id}")
    return 0


def _fetch(flags: argparse.Namespace) -> int:
    from tune_hpc.jobs.fetch import fetch

    job = find_job(flags)
    target = Path(flags.output) if flags.output else Path("runs") / job.id
    print(f"{fetch(job.folder, target)} files in {target}")
    return 0


def is_job(text: str) -> bool:
    """Return whether a text is the id of a job and does not name a folder."""
    from tune_hpc.jobs.job_folder import is_id

    return is_id(text) and not Path(text).exists()


def restart(flags: argparse.Namespace) -> int:
    """Resume or extend the job that ``flags.folder`` names by its id."""
    flags.id = flags.folder
    options = {key: getattr(flags, key) for key in PLACE_FLAGS if key != "address"} | {"force": flags.force}
    job = find_job(flags)
    if flags.num_samples is not None:
        job.extend(flags.num_samples, **options)
    else:
        job.resume(**options)
    print(_format(job.status()))
    return 0


def find_job(flags: argparse.Namespace) -> "Job":
    """Return the job of an id, in the storage that the flags name or in one that was used before.

    Raises:
        UnknownNameError: none of them holds it.
        FolderError: the storage that the flags name does not answer.
    """
    from tune_hpc.jobs.job_folder import JobFolder, is_id

    searched, silent = _storages(flags), ""
    for storage in searched:
        try:
            exists = is_id(flags.id) and JobFolder(here(storage).absolute() / flags.id).exists
        except FolderError as error:
            if flags.storage:
                raise
            silent += f"; {error}"
            continue
        if exists:
            shared = getattr(flags, "shared_storage", False)
            return job_in(storage, flags.id, flags.address, shared_storage=shared)
    raise UnknownNameError(f"no job {flags.id} in {', '.join(searched)}{silent}; --storage names another storage")


def job_in(storage: str, job_id: str, address: str | None, *, shared_storage: bool = False) -> "Job":
    """Return a job, with the client of the cluster that runs it or of the one that the user gives.

    A job folder can name any address. The token of a cluster goes only to addresses that the user has given, in this
    command, in ``RAY_ADDRESS`` or before.
    """
    from tune_hpc.jobs.client import JobClient
    from tune_hpc.jobs.job_folder import JobFolder
    from tune_hpc.jobs.ray_jobs import RayJobsLauncher

    attempt = JobFolder(here(storage).absolute() / job_id).last_attempt()
    named = str(attempt.location.get("address") or "") if attempt else ""
    if named and not address and not _is_known(named):
        launcher = RayJobsLauncher(named, is_trusted=False)
        return JobClient(storage, launcher, shared_storage=shared_storage).job(job_id)
    return client_at(address or named or None, storage, shared_storage=shared_storage).job(job_id)


def _is_known(address: str) -> bool:
    from tune_hpc.jobs.ray_jobs import as_url
    from tune_hpc.jobs.storage_history import recall

    given = [os.environ.get(name, "") for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")]
    try:
        return as_url(address) in {*recall("clusters"), *(as_url(one) for one in given if one.startswith("http"))}
    except ClusterError:
        return False


def client_at(address: str | None, storage: str, *, shared_storage: bool = False) -> "JobClient":
    """Return the client of a cluster that the user has given; of this machine for ``None`` or ``local``."""
    from tune_hpc.jobs.client import Client, LocalClient
    from tune_hpc.jobs.ray_jobs import as_url
    from tune_hpc.jobs.storage_history import remember

    if address in (None, "local"):
        return LocalClient(storage, shared_storage=shared_storage)
    remember("clusters", as_url(address))
    return Client(address, storage=storage, shared_storage=shared_storage)


def _storage(flags: argparse.Namespace) -> str:
    chosen: Any = flags.storage or os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE
    return str(chosen)


def _storages(flags: argparse.Namespace) -> list[str]:
    """Return the storage that the flags name, or all that were used before, the latest first."""
    from tune_hpc.jobs.storage_history import recall

    if flags.storage:
        return [flags.storage]
    named = uri(here(_storage(flags)).absolute())
    return list(dict.fromkeys([named, *reversed(recall("storages"))]))
