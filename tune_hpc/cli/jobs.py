"""Commands on jobs: submit, jobs, status, logs, stop, fetch, delete, slurm, and resume and extend by id."""

import argparse
import json
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING

from tune_hpc.cli.options import (
    RUN_OPTIONS,
    AddCommand,
    add_experiment_flags,
    add_names,
    add_options,
    add_run_flags,
    run_options,
)
from tune_hpc.cli.selection import find_experiments, run_name
from tune_hpc.errors import FolderError, InvalidExperimentError

if TYPE_CHECKING:
    from tune_hpc.jobs.client import Job
    from tune_hpc.jobs.status import JobStatus

#: The default storage, and the environment variable that names another one.
DEFAULT_STORAGE = "runs/jobs"
STORAGE_VARIABLE = "TUNE_HPC_STORAGE"
_SLURM_EXAMPLES = """\
examples:
  tune-hpc slurm exercise3.open --time 12:00:00 --gpus-per-node 1 --cpus-per-node 8 -o search.sbatch
  tune-hpc slurm exercise2 --seeds 5 --nodes 2 --gpus-per-node 4 --time 02:00:00 --partition gpu > search.sbatch
  sbatch search.sbatch
"""

#: Flags of a run that the script sets.
_SCRIPT_FLAGS = ("output_dir", "resume")


def add_job_commands(add: AddCommand) -> None:
    """Add the commands on jobs."""
    submit = add("submit", _submit, "run experiments as a job, on a Ray cluster or in the background on this machine")
    add_names(submit)
    add_experiment_flags(submit)
    add_options(
        submit,
        RUN_OPTIONS.values(),
        address="dashboard of a Ray cluster, http://HEAD:8265; by default the job runs on this machine",
    )
    submit.add_argument(
        "--code",
        metavar="DIR",
        help="folder of the modules of your own trainable (default: its package and what it imports)",
    )
    add_storage_flags(submit, writes=True)

    jobs = add("jobs", _jobs, "list jobs, the latest first")
    status = add("status", _status, "show job status: trials that ended, best value, remaining time")
    status.add_argument("--wait", action="store_true", help="wait until the job ends")
    status.add_argument("--json", action="store_true", help="print JSON")
    logs = add("logs", _logs, "show the output of a job")
    logs.add_argument("--follow", action="store_true", help="print new output until the job ends")
    stop = add("stop", _stop, "stop a job; its trials save their state, and it can be resumed")
    stop.add_argument("--force", action="store_true", help="kill it; trials resume from their last checkpoint")
    fetch = add("fetch", _fetch, "copy the folder of a job to this machine")
    fetch.add_argument("-o", "--output", metavar="DIR", help="default: runs/ID")
    delete = add("delete", _delete, "delete jobs that have ended, and all their results")
    delete.add_argument("ids", nargs="+", metavar="ID")
    for command in (jobs, status, logs, stop, fetch, delete):
        if command not in (jobs, delete):
            command.add_argument("id", metavar="ID")
        add_storage_flags(command)
        command.add_argument(
            "--address", metavar="ADDRESS",
            help="cluster of the jobs, if it is new to this machine; its token is sent there",
        )  # fmt: skip


def add_storage_flags(parser: argparse.ArgumentParser, *, writes: bool = False) -> None:
    """Add the flags of the storage; ``writes``: the command starts drivers."""
    parser.add_argument(
        "--storage", metavar="DIR",
        help=f"folder of all jobs, visible to all machines (default: ${STORAGE_VARIABLE}, or {DEFAULT_STORAGE})",
    )  # fmt: skip
    if writes:
        parser.add_argument(
            "--shared-storage", action="store_true",
            help="accept a storage that other users can write to; they can run code with your rights",
        )  # fmt: skip


def _submit(flags: argparse.Namespace) -> int:
    from tune_hpc.jobs.client import client_at, remember
    from tune_hpc.storage.experiment_folder import ExperimentFolder

    experiments = find_experiments(flags)
    options = run_options(flags)
    client = client_at(options.pop("address"), storage_of(flags), shared_storage=flags.shared_storage)
    if flags.warm_start:
        options["warm_start"] = [ExperimentFolder(folder).absolute().uri for folder in flags.warm_start]
    job = client.submit(experiments, code=flags.code, **options)
    remember("storages", client.storage.uri)
    print(job.id)
    print(f"tune-hpc status {job.id}\ntune-hpc logs {job.id} --follow", file=sys.stderr)
    return 0


def _jobs(flags: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from tune_hpc.jobs.client import client_at, job_in

    table = Table("job", "state", "trials", "best", "requested", box=None)
    storages = _storages(flags)
    for storage in storages:
        try:
            jobs = client_at(flags.address, storage).list()
        except FolderError as error:
            if flags.storage is not None:
                raise
            # A storage of the history that does not answer hides no other storage.
            print(f"tune-hpc: {error}", file=sys.stderr)
            continue
        for job in jobs:
            try:
                table.add_row(*_row(job_in(storage, job.id, flags.address).status()))
            except Exception as error:  # noqa: BLE001
                # A damaged job hides no other job.
                table.add_row(job.id, "unreadable", "", " ".join(str(error).split()), "")
    if not table.row_count:
        print(f"there is no job in {', '.join(storages)}; to submit one: tune-hpc submit NAME")
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
    job = find_job(flags)
    target = Path(flags.output) if flags.output else Path("runs") / job.id
    print(f"{job.fetch(target)} files in {target}")
    return 0


def is_job(text: str) -> bool:
    """Return whether a text is the id of a job and no existing folder."""
    from tune_hpc.jobs.job_folder import is_id

    return is_id(text) and not Path(text).exists()


def restart(flags: argparse.Namespace) -> int:
    """Resume or extend the job whose id is ``flags.folder``."""
    if flags.runner:
        raise InvalidExperimentError(
            f"--local is for a folder; {flags.folder} is a job, which runs where it was started"
        )
    flags.id, options = (
        flags.folder,
        run_options(flags) | {"force": flags.force, "retry_failed": flags.retry_failed or None},
    )
    del options["address"]
    job = find_job(flags)
    if flags.num_samples is not None:
        job.extend(flags.num_samples, **options)
    else:
        job.resume(**options)
    print(_format(job.status()))
    return 0


def find_job(flags: argparse.Namespace) -> "Job":
    """Return the job of the flags."""
    from tune_hpc.jobs import client

    shared = getattr(flags, "shared_storage", False)
    return client.find_job(flags.id, _storages(flags), flags.address, shared_storage=shared)


def storage_of(flags: argparse.Namespace) -> str:
    """Return the storage of the flags, of the environment, or the default."""
    return str(flags.storage if flags.storage is not None else os.environ.get(STORAGE_VARIABLE) or DEFAULT_STORAGE)


def _storages(flags: argparse.Namespace) -> list[str]:
    """Return the storage of the flags, or all known storages, the latest first."""
    from tune_hpc.jobs.client import known_storages

    return [flags.storage] if flags.storage is not None else known_storages(storage_of(flags))


def add_slurm_command(add: AddCommand) -> None:
    """Add ``tune-hpc slurm``, which writes the batch script of a run and rejects invalid input before the job waits."""
    parser = add("slurm", _slurm, "write a Slurm batch script that runs experiments and requeues itself")
    parser.epilog = _SLURM_EXAMPLES
    add_names(parser)
    slurm = parser.add_argument_group("Slurm")
    slurm.add_argument("--time", required=True, metavar="TIME", help="time limit: minutes, HH:MM:SS or D-HH:MM:SS")
    slurm.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes (default: 1)")
    slurm.add_argument("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs per node (default: 0)")
    slurm.add_argument("--cpus-per-node", type=int, metavar="N", help="cores per node (default: whole nodes)")
    slurm.add_argument(
        "--memory", metavar="SIZE", help="per node: 16G (default: that of the site; all memory of whole nodes)"
    )
    slurm.add_argument("--partition", metavar="NAME", help="partition (default: that of the site)")
    slurm.add_argument("--account", metavar="NAME", help="Slurm account")
    slurm.add_argument(
        "--warning", type=int, default=120, metavar="SECONDS", dest="warning_s",
        help="time before the limit to save checkpoints and requeue (default: 120, at least 60)",
    )  # fmt: skip
    slurm.add_argument(
        "--max-requeues", type=int, default=100, metavar="N", help="maximum number of requeues (default: 100)"
    )
    slurm.add_argument("--job-name", metavar="NAME", help="default: the name of the experiment")
    slurm.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", dest="options",
        help="another option of sbatch, as --sbatch=--constraint=a100; repeatable",
    )  # fmt: skip
    slurm.add_argument(
        "--setup", action="append", default=[], metavar="LINE",
        help="a line of shell before the run: 'module load cuda'; repeatable",
    )  # fmt: skip
    slurm.add_argument(
        "--environment", default=sys.prefix, metavar="DIR", help="Python environment of the job (default: this one)"
    )
    slurm.add_argument(
        "--symmetric-run", action="store_true", default=None,
        help="use ray symmetric-run on one node, which must be whole (default: from two nodes)",
    )  # fmt: skip
    slurm.add_argument("-o", "--output", metavar="FILE", help="the script (default: standard output)")
    add_run_flags(parser)


def _slurm(flags: argparse.Namespace) -> int:
    from tune_hpc.jobs.launch import folders_in, launch
    from tune_hpc.jobs.sbatch import Allocation, batch_script
    from tune_hpc.storage.experiment_folder import new_folder
    from tune_hpc.storage.filesystem import Storage

    if flags.address:
        raise InvalidExperimentError("--address names a cluster, but the job starts its own Ray; leave it out")
    if flags.overwrite:
        raise InvalidExperimentError(
            "--overwrite would remove the results at each requeue; leave it out, or name a new --output-dir"
        )
    experiments = find_experiments(flags)
    name = run_name(flags) or experiments[0].name
    values = {one.name: getattr(flags, one.name) for one in fields(Allocation)}
    values |= {key: tuple(values[key]) for key in ("options", "setup")}
    allocation = Allocation(**values | {"job_name": flags.job_name or name[:64]})
    output_dir = flags.output_dir or str(new_folder(name[:100]))
    warm_start = {"warm_start": flags.warm_start} if flags.warm_start else {}
    folders = folders_in(Storage(output_dir).root, experiments)
    launch(experiments, folders, check_only=True, resume_started=True, **run_options(flags), **warm_start)
    command = ["tune-hpc", "run", *flags.names, *_run_flags(flags), f"--output-dir={output_dir}", "--resume"]
    text = batch_script(allocation, command)
    if not flags.output:
        print(text, end="")
        return 0
    Storage(".").write_atomic(flags.output, text)
    print(f"{flags.output}: results go to {output_dir}; submit with: sbatch {flags.output}")
    return 0


def _run_flags(flags: argparse.Namespace) -> list[str]:
    """Return the flags of a run that the user gave, as words of a command line."""
    parser = argparse.ArgumentParser(add_help=False)
    add_run_flags(parser)
    words = []
    for action in parser._actions:  # argparse has no public list of its flags.
        value = getattr(flags, action.dest)
        if action.dest in _SCRIPT_FLAGS or value == action.default:
            continue
        flag = action.option_strings[-1]
        if action.nargs == 0:
            words.append(flag)
        else:
            words += [f"{flag}={one}" for one in (value if isinstance(value, list) else [value])]
    return words
