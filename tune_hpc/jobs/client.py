"""Submit and control jobs, on a Ray cluster, on this machine or in this process.

    client = Client("http://head:8265", storage="/nfs/runs")    # a Ray cluster
    client = LocalClient("runs/jobs")                           # processes of this machine
    client = InProcessClient("runs/jobs")                       # this process, for debugging

    job = client.submit(exercise2.softmax)
    print(job.status())
    job.wait()
    job.results()[0].best()

A job is found in the storage by its id, whatever has become of the cluster that ran it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tune_hpc.errors import (
    ConflictError,
    FolderError,
    InvalidExperimentError,
    TuneHpcError,
    UnknownNameError,
)
from tune_hpc.jobs.job import KEYS, Job, as_json, key_is_reused
from tune_hpc.jobs.job_folder import JobFolder, is_id, make_id, timestamp
from tune_hpc.jobs.launch import launch
from tune_hpc.jobs.launchers import InProcessLauncher, Launcher, LocalLauncher
from tune_hpc.jobs.ray_jobs import RayJobsLauncher
from tune_hpc.search.experiment import TRAIN, Experiment
from tune_hpc.storage.access import check_storage
from tune_hpc.storage.experiment_folder import create_exclusive, write_error
from tune_hpc.storage.filesystem import here, list_names, pull


class JobClient:
    """Jobs of one storage.

    Args:
        storage: The folder of all jobs, under the same name on every machine that works on them, or
            ``s3://bucket/folder``.
        launcher: Starts their drivers.
        shared_storage: Whether other users may write to the storage; see ``check_storage``.
    """

    def __init__(self, storage: str | Path, launcher: Launcher, *, shared_storage: bool = False) -> None:
        self.storage = here(storage).absolute()
        self.launcher = launcher
        self.shared_storage = shared_storage

    def folder(self, job_id: str) -> JobFolder:
        """Return the folder of a job.

        Raises:
            UnknownNameError: the storage has no such job.
        """
        if not is_id(job_id):
            raise UnknownNameError(f"{job_id!r} is not a job id; one looks like exercise2.softmax-20261123-124533-4f1c")
        folder = JobFolder(self.storage / job_id)
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
        names = [name for name in list_names(self.storage) if is_id(name)]
        # The time of submission is in the id, before four random digits.
        latest_first = sorted(names, key=lambda name: (name[-20:-5], name), reverse=True)
        return [Job(self, name) for name in latest_first if JobFolder(self.storage / name).exists]

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
            experiments: One, or several that run as one stream of trials.
            code: A folder whose Python files travel with the job, for a user's trainable; by default the trainable's
                own module.
            job_id: An id made by ``make_id``; by default a new one.
            **options: Those of ``tuner.run_all`` that have a meaning outside this process.

        Raises:
            InvalidExperimentError: a rule is broken; nothing was submitted.
            ClusterError: the cluster does not answer or refuses; nothing was submitted.
            FolderError: the storage cannot be used.
            ConflictError: the job exists.
        """
        chosen = [experiments] if isinstance(experiments, Experiment) else list(experiments)
        if not chosen:
            raise InvalidExperimentError("a job has at least one experiment; got none")
        self._check(chosen, options)
        return self._submit(chosen, code, job_id or make_id(chosen[0].name), "", options)

    def submit_once(self, experiment: Experiment, key: str, digest: str, **options: Any) -> tuple[Job, bool]:
        """Start an experiment as a job, unless a request with the same idempotency key has done so.

        Args:
            experiment: The experiment.
            key: The idempotency key, chosen by the client.
            digest: A digest of the request.
            **options: As for ``submit``.

        Returns:
            The job, and whether it is new.

        Raises:
            RequestError: the key was used for another request.
            ConflictError: another process starts the job at this moment.
            TuneHpcError: as for ``submit``.
        """
        name = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
        file = self.storage / KEYS / name
        if (job := self._job_of_key(file, digest)) is not None:
            return job, False
        # What would fail is refused before the key is used.
        self._check([experiment], options)
        check_storage(self.storage, shared=self.shared_storage)
        try:
            file.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(file.parent, error) from error
        create_exclusive(file, json.dumps({"id": make_id(experiment.name), "digest": digest}))
        job_id, known_digest = _read_key(file)
        if known_digest != digest:
            raise key_is_reused(job_id)
        try:
            return self._submit([experiment], None, job_id, name, options), True
        except ConflictError:
            if (job := self._job_of_key(file, digest)) is None:
                raise
            return job, False

    def _job_of_key(self, file: Path, digest: str) -> Job | None:
        """Return the job that a request with an idempotency key has started; ``None`` if there is none.

        Raises:
            RequestError: the key was used for another request.
        """
        if not pull(file):
            return None
        job_id, known_digest = _read_key(file)
        if known_digest != digest:
            raise key_is_reused(job_id)
        return Job(self, job_id) if JobFolder(self.storage / job_id).exists else None

    def _check(self, experiments: Sequence[Experiment], options: Mapping[str, Any]) -> None:
        """Raise if experiments cannot be run."""
        self.launcher.check()
        folders = [self.storage / "new" / one.name for one in experiments]
        launch(experiments, folders, check_only=True, **options)

    def _submit(
        self,
        experiments: Sequence[Experiment],
        code: str | Path | None,
        job_id: str,
        key: str,
        options: Mapping[str, Any],
    ) -> Job:
        check_storage(self.storage, shared=self.shared_storage)
        job = JobFolder(self.storage / job_id)
        request = {
            "id": job.id,
            "submitted": timestamp(),
            "experiments": [one.to_json() for one in experiments],
            "options": as_json(options),
            "key": key,
        }
        job.make(request, shared=self.shared_storage)
        try:
            _copy_code(job, experiments, code)
            Job(self, job.id).start("start", {}, last=0)
        except TuneHpcError:
            job.delete()
            raise
        return Job(self, job.id)


class Client(JobClient):
    """Jobs on a Ray cluster.

    Args:
        address: Of the cluster's dashboard: ``http://HOST:PORT``, or ``HOST`` or ``HOST:PORT``.
        token: The cluster's; by default the one that Ray would use.
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
    """Jobs as processes of this machine, which outlive the process that submitted them.

    Args:
        storage: The folder of all jobs.
        shared_storage: Whether other users may write to the storage.
    """

    def __init__(self, storage: str | Path, *, shared_storage: bool = False) -> None:
        super().__init__(storage, LocalLauncher(), shared_storage=shared_storage)


class InProcessClient(JobClient):
    """Jobs in a thread of this process, one after the other: for tests and for debugging.

    Args:
        storage: The folder of all jobs.
    """

    def __init__(self, storage: str | Path) -> None:
        super().__init__(storage, InProcessLauncher())


def _read_key(file: Path) -> tuple[str, str]:
    """Return the job and the digest of the request with an idempotency key.

    Raises:
        FolderError: the file is damaged.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        job_id, digest = record["id"], record["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{file} cannot be read: {error}; remove it") from error
    if not is_id(str(job_id)):
        raise FolderError(f"{file} names no job; remove it")
    return job_id, digest


def _copy_code(job: JobFolder, experiments: Sequence[Experiment], code: str | Path | None) -> None:
    """Copy the modules of users' trainables into the job folder.

    Raises:
        FolderError: they cannot be copied.
    """
    from tune_hpc.jobs.code_snapshot import copy_modules

    references = [one.to_json()["trainable"] for one in experiments if one.trainable != TRAIN]
    try:
        copy_modules(references, Path(code) if code else None, job.code)
    except OSError as error:
        raise FolderError(f"the code of {job.id} cannot be copied: {error}; name its folder with code") from error
