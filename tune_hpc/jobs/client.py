"""Submit and find jobs on a Ray cluster, on this machine or in this process.

    client = Client("http://head:8265", storage="/nfs/runs")    # a Ray cluster
    client = LocalClient("runs/jobs")                           # processes of this machine
    client = InProcessClient("runs/jobs")                       # this process, for debugging

    job = client.submit(exercise2.softmax)
    print(job.status())
    job.wait()
    job.results()[0].best()

The storage has all data of a job under its id, so a job stays readable after its cluster is gone.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tune_hpc.errors import (
    ClusterError,
    ConflictError,
    FolderError,
    InvalidExperimentError,
    TuneHpcError,
    UnknownNameError,
)
from tune_hpc.jobs.job import KEYS, Job, as_json, reused_key_error
from tune_hpc.jobs.job_code import copy_code
from tune_hpc.jobs.job_folder import JobFolder, is_id, make_id, timestamp
from tune_hpc.jobs.launch import launch
from tune_hpc.jobs.launchers import InProcessLauncher, Launcher, LocalLauncher, RayJobsLauncher, as_url
from tune_hpc.search.command import Command
from tune_hpc.search.experiment import Experiment
from tune_hpc.storage.filesystem import Storage
from tune_hpc.storage.shared_folder import check_private

#: Limit on the lines of a history file; the oldest are dropped.
MAX_LINES = 100

#: Files of ``$XDG_STATE_HOME/tune_hpc``: the storages and clusters that this user has used, one per line, the latest
#: last. They make jobs findable by id alone, and limit tokens to known clusters.
Kind = Literal["storages", "clusters"]


class JobClient:
    """Jobs of one storage.

    Args:
        storage: The folder of all jobs, with the same path on every machine, or ``s3://bucket/folder``.
        launcher: Starts the drivers.
        shared_storage: Whether other users may write to the storage.
    """

    def __init__(self, storage: str | Path, launcher: Launcher, *, shared_storage: bool = False) -> None:
        self.storage = Storage(storage).absolute()
        self.launcher = launcher
        self.shared_storage = shared_storage

    def folder(self, job_id: str) -> JobFolder:
        """Return the folder of a job.

        Raises:
            UnknownNameError: the storage has no such job.
        """
        if not is_id(job_id):
            raise UnknownNameError(f"{job_id!r} is not a job id; one looks like exercise2.softmax-20261123-124533-4f1c")
        folder = JobFolder(self.storage.root / job_id)
        folder.read()
        return folder

    def job(self, job_id: str) -> Job:
        """Return a job of this storage.

        Raises:
            UnknownNameError: there is no such job.
        """
        return Job(self, self.folder(job_id).id)

    def list(self) -> Sequence[Job]:
        """Return all jobs of this storage, the latest first."""
        if self.storage.root.is_file():
            raise FolderError(f"{self.storage.uri} is a file; a storage is a folder")
        names = [name for name in self.storage.list_names() if is_id(name)]
        # The id ends with the time of submission and four random digits.
        latest_first = sorted(names, key=lambda name: (name[-20:-5], name), reverse=True)
        return [Job(self, name) for name in latest_first if JobFolder(self.storage.root / name).exists]

    def submit(
        self,
        experiments: Experiment | Sequence[Experiment],
        *,
        code: str | Path | None = None,
        job_id: str | None = None,
        **options: Any,
    ) -> Job:
        """Start experiments as a job, and return at once.

        Args:
            experiments: One experiment, or several that run as one stream of trials.
            code: A folder whose modules and package data are copied into the job; by default the packages of users'
                trainables, and what they import.
            job_id: An id made by ``make_id``; by default a new one.
            **options: Options of ``search.runner.run_all``.

        Raises:
            InvalidExperimentError: an experiment or option is invalid; nothing was submitted.
            ClusterError: the cluster does not answer or rejects the job; nothing was submitted.
            FolderError: the storage cannot be used.
            ConflictError: the job exists.
        """
        experiments = [experiments] if isinstance(experiments, Experiment) else list(experiments)
        if not experiments:
            raise InvalidExperimentError("a job has at least one experiment; got none")
        self._check(experiments, options)
        return self._submit(experiments, code, job_id or make_id(experiments[0].name), "", options)

    def submit_once(self, experiment: Experiment, key: str, digest: str, **options: Any) -> tuple[Job, bool]:
        """Start an experiment as a job, once per idempotency key; other errors are those of ``submit``.

        Args:
            experiment: The experiment.
            key: The idempotency key of the request.
            digest: Digest of the content of the request.
            **options: As for ``submit``.

        Returns:
            The job, and whether it is new.

        Raises:
            RequestError: the key was used for another request.
            ConflictError: another process is starting the job.
        """
        name = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
        file = f"{KEYS}/{name}"
        if (job := self._job_of_key(file, digest)) is not None:
            return job, False
        # The key must stay unused if the experiment is invalid.
        self._check([experiment], options)
        check_private(self.storage, shared=self.shared_storage)
        self.storage.make_folder(KEYS)
        self.storage.create_exclusive(file, json.dumps({"id": make_id(experiment.name), "digest": digest}))
        job_id = self._read_key(file, digest)
        try:
            return self._submit([experiment], None, job_id, name, options), True
        except ConflictError:
            if (job := self._job_of_key(file, digest)) is None:
                raise
            return job, False

    def _job_of_key(self, file: str, digest: str) -> Job | None:
        """Return the job of an idempotency key; ``None`` if there is none."""
        if not self.storage.exists(file):
            return None
        job_id = self._read_key(file, digest)
        return Job(self, job_id) if JobFolder(self.storage.root / job_id).exists else None

    def _read_key(self, file: str, digest: str) -> str:
        try:
            record = json.loads(self.storage.read_text(file))
            job_id, known_digest = str(record["id"]), record["digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FolderError(f"{self.storage.local_path(file)} cannot be read: {error}; remove it") from error
        if not is_id(job_id):
            raise FolderError(f"{self.storage.local_path(file)} names no job; remove it")
        if known_digest != digest:
            raise reused_key_error(job_id)
        return job_id

    def _check(self, experiments: Sequence[Experiment], options: Mapping[str, Any]) -> None:
        """Raise if experiments cannot be run."""
        self.launcher.check()
        folders = [self.storage.root / "new" / experiment.name for experiment in experiments]
        launch(experiments, folders, check_only=True, **options)

    def _submit(
        self,
        experiments: Sequence[Experiment],
        code: str | Path | None,
        job_id: str,
        key: str,
        options: Mapping[str, Any],
    ) -> Job:
        check_private(self.storage, shared=self.shared_storage)
        job = JobFolder(self.storage.root / job_id)
        if code:
            experiments = [_in_folder(experiment, job) for experiment in experiments]
        request = {
            "id": job.id,
            "submitted": timestamp(),
            "experiments": [experiment.to_json() for experiment in experiments],
            "options": as_json(options),
            "key": key,
        }
        job.make(request, shared=self.shared_storage)
        try:
            copy_code(job, experiments, code)
            Job(self, job.id).start("start", {}, last=0)
        except TuneHpcError:
            job.delete()
            raise
        return Job(self, job.id)


class Client(JobClient):
    """Jobs on a Ray cluster.

    Args:
        address: Address of the cluster's dashboard: ``http://HOST:PORT``, or ``HOST`` or ``HOST:PORT``.
        token: Token of the cluster; by default the token that Ray would use.
        storage: The folder of all jobs.
        shared_storage: Whether other users may write to the storage.

    Raises:
        ClusterError: the address is malformed.
    """

    def __init__(
        self, address: str, token: str | None = None, *, storage: str | Path, shared_storage: bool = False
    ) -> None:
        super().__init__(storage, RayJobsLauncher(address, token), shared_storage=shared_storage)


class LocalClient(JobClient):
    """Jobs as processes of this machine that outlive the process that submitted them.

    Args:
        storage: The folder of all jobs.
        shared_storage: Whether other users may write to the storage.

    Example:
        >>> from search_spaces.exercise1_1stpart import experiments
        >>> from tune_hpc import LocalClient
        >>> job = LocalClient("jobs").submit(experiments[0].with_values({"steps": 20}))
        >>> str(job.wait(120).state)
        'finished'
        >>> job.results()[0].counts()
        {'finished': 5}
    """

    def __init__(self, storage: str | Path, *, shared_storage: bool = False) -> None:
        super().__init__(storage, LocalLauncher(), shared_storage=shared_storage)


class InProcessClient(JobClient):
    """Jobs in a thread of this process, one after the other, for tests and debugging.

    Args:
        storage: The folder of all jobs.

    Example:
        >>> from search_spaces.exercise1_1stpart import experiments
        >>> from tune_hpc import InProcessClient
        >>> job = InProcessClient("jobs").submit(experiments[0].with_values({"steps": 20}))
        >>> str(job.wait(120).state)
        'finished'
    """

    def __init__(self, storage: str | Path) -> None:
        super().__init__(storage, InProcessLauncher())


def _in_folder(experiment: Experiment, job: JobFolder) -> Experiment:
    """Return an experiment whose command, if it has one, runs in the code of a job."""
    if not isinstance(experiment.trainable, Command):
        return experiment
    if job.storage.is_remote:
        raise FolderError(f"{job.uri}: a command cannot run in code on S3; leave code out, or use a shared folder")
    return experiment.replace(trainable=replace(experiment.trainable, folder=str(job.code)))


def _history_file(kind: Kind) -> Path:
    parent = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(parent) / "tune_hpc" / kind


def _recall(kind: Kind) -> list[str]:
    try:
        return _history_file(kind).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def remember(kind: Kind, value: str) -> None:
    """Add a value to the history as the latest one; an unwritable file is ignored."""
    lines = [*(line for line in _recall(kind) if line != value), value]
    try:
        _history_file(kind).parent.mkdir(parents=True, exist_ok=True)
        _history_file(kind).write_text("".join(f"{line}\n" for line in lines[-MAX_LINES:]), encoding="utf-8")
    except OSError:
        return


def known_storages(storage: str) -> list[str]:
    """Return a storage and all storages of the history, the latest first."""
    return list(dict.fromkeys([Storage(storage).absolute().uri, *reversed(_recall("storages"))]))


def find_job(job_id: str, storages: Sequence[str], address: str | None = None, *, shared_storage: bool = False) -> Job:
    """Return the job of an id; arguments as for ``job_in``. One of several storages may not respond.

    Raises:
        UnknownNameError: no storage has the job.
        FolderError: the only storage does not respond.
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
        return as_url(address) in {*_recall("clusters"), *(as_url(one) for one in variables if one.startswith("http"))}
    except ClusterError:
        return False
