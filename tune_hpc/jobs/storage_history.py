"""Storages and clusters that this user has used before, and the jobs in them.

They make jobs findable by id alone, and limit tokens to known clusters. ``$XDG_STATE_HOME/tune_hpc/storages`` and
``clusters`` have one per line, the latest last.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tune_hpc.errors import ClusterError, FolderError, UnknownNameError
from tune_hpc.jobs.client import Client, Job, JobClient, LocalClient
from tune_hpc.jobs.job_folder import JobFolder, is_id
from tune_hpc.jobs.ray_jobs import RayJobsLauncher, as_url
from tune_hpc.storage.filesystem import Storage

#: Limit on the lines of a file; the oldest are dropped.
MAX_LINES = 100

Kind = Literal["storages", "clusters"]


def remember(kind: Kind, value: str) -> None:
    """Add a value as the latest one; an unwritable file is ignored."""
    lines = [*(line for line in recall(kind) if line != value), value]
    try:
        _file(kind).parent.mkdir(parents=True, exist_ok=True)
        _file(kind).write_text("".join(f"{line}\n" for line in lines[-MAX_LINES:]), encoding="utf-8")
    except OSError:
        return


def recall(kind: Kind) -> list[str]:
    """Return the values, the latest last."""
    try:
        return _file(kind).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _file(kind: Kind) -> Path:
    parent = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(parent) / "tune_hpc" / kind


def known_storages(storage: str) -> list[str]:
    """Return a storage and all storages of the history, the latest first."""
    return list(dict.fromkeys([Storage(storage).absolute().uri, *reversed(recall("storages"))]))


def find_job(job_id: str, storages: Sequence[str], address: str | None = None, *, shared_storage: bool = False) -> Job:
    """Return the job of an id; of several storages, one that does not respond hides no other.

    Args:
        job_id: Id of the job.
        storages: Storages to search.
        address: Address of its cluster, as for ``job_in``.
        shared_storage: Whether other users may write to the storage.

    Raises:
        UnknownNameError: No storage has the job.
        FolderError: The only storage does not respond.
    """
    unreachable = ""
    for storage in storages:
        try:
            exists = is_id(job_id) and JobFolder(Storage(storage).absolute().root / job_id).exists
        except FolderError as error:
            if len(storages) == 1:
                raise
            unreachable += f"; {error}"
            continue
        if exists:
            return job_in(storage, job_id, address, shared_storage=shared_storage)
    raise UnknownNameError(f"no job {job_id} in {', '.join(storages)}{unreachable}; --storage names another storage")


def job_in(storage: str, job_id: str, address: str | None, *, shared_storage: bool = False) -> Job:
    """Return a job of a storage, with the client of its cluster or of an address that the user gives.

    A job folder can name any address. The token of a cluster is sent only to addresses that the user has given: now, in
    an earlier command, or in ``RAY_ADDRESS``.
    """
    attempt = JobFolder(Storage(storage).absolute().root / job_id).last_attempt()
    location = str(attempt.location.get("address") or "") if attempt else ""
    if location and not address and not _is_known(location):
        launcher = RayJobsLauncher(location, is_trusted=False)
        return JobClient(storage, launcher, shared_storage=shared_storage).job(job_id)
    return client_at(address or location or None, storage, shared_storage=shared_storage).job(job_id)


def client_at(address: str | None, storage: str, *, shared_storage: bool = False) -> JobClient:
    """Return the client of a cluster, whose address becomes known; of this machine for None or ``local``."""
    if address in (None, "local"):
        return LocalClient(storage, shared_storage=shared_storage)
    remember("clusters", as_url(address))
    return Client(address, storage=storage, shared_storage=shared_storage)


def _is_known(address: str) -> bool:
    variables = [os.environ.get(name, "") for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")]
    try:
        return as_url(address) in {*recall("clusters"), *(as_url(one) for one in variables if one.startswith("http"))}
    except ClusterError:
        return False
