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
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_hpc.analysis.folder import create_exclusive, write_error
from tune_hpc.analysis.object_store import delete, here, names_in, pull
from tune_hpc.analysis.results import Results, load_all
from tune_hpc.analysis.storage_access import check_storage
from tune_hpc.cluster.job_folder import JobFolder, JobState, is_id, make_id, timestamp
from tune_hpc.cluster.launchers import TIMEOUT_S, DriverState, InProcessLauncher, Launcher, LocalLauncher
from tune_hpc.cluster.ray_jobs import RayJobsLauncher
from tune_hpc.cluster.status import SILENT_S, JobStatus, job_status
from tune_hpc.errors import (
    ConflictError,
    FolderError,
    InvalidExperimentError,
    RequestError,
    TuneHpcError,
    UnknownNameError,
)
from tune_hpc.search.experiment import TRAIN, Experiment
from tune_hpc.search.launch import launch

#: Seconds between two reads of the status of a job that is waited for.
POLL_INTERVAL_S = 1.0
#: Seconds since the last heartbeat within which the launcher is not asked about a driver.
FRESH_S = SILENT_S / 4
#: The folder of idempotency keys in a storage; no job's id begins with a dot.
KEYS = ".requests"


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        client: The client that found or submitted it.
        id: Its name in the storage.
    """

    client: "JobClient"
    id: str

    @property
    def folder(self) -> JobFolder:
        """Its folder in the storage."""
        return self.client.folder(self.id)

    def status(self, *, timeout_s: float = TIMEOUT_S) -> JobStatus:
        """Return its status.

        Args:
            timeout_s: Seconds within which a cluster must answer; after that nothing is known of the driver.

        Raises:
            UnknownNameError: it was deleted.
            FolderError: a file of it cannot be read, or is damaged.
        """
        try:
            return self._status(timeout_s)
        except UnknownNameError:
            raise
        except Exception as error:
            if not JobFolder(self.client.storage / self.id).exists:
                raise UnknownNameError(f"{self.id} was deleted; `tune-hpc jobs` lists the jobs") from error
            if isinstance(error, TuneHpcError):
                raise
            # Whatever stands in its files.
            reason = f"{type(error).__name__}: {error}"
            raise FolderError(f"a file of {self.id} is damaged ({reason}); restore it from a copy") from error

    def _status(self, timeout_s: float) -> JobStatus:
        folder = self.folder
        attempt = folder.last_attempt()
        if attempt is None:
            return job_status(folder)
        run = folder.read_run(attempt.number)
        is_starting = not run and folder.read_process(attempt.number) is None
        if is_starting or run.get("ended_at") or (run and folder.silence_s(f"{attempt.number}.run.json") < FRESH_S):
            return job_status(folder)
        launcher = self.client.launcher
        driver = launcher.state(folder, attempt, timeout_s)
        output = launcher.output(folder, attempt, timeout_s) if driver is DriverState.GONE and not run else ""
        return job_status(folder, driver, " ".join(output.split())[-500:])

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Yield the output of its drivers in pieces; with ``follow`` until it is not active any more."""
        folder = self.folder
        position = 0
        if not pull(folder.output) and (attempt := folder.last_attempt()):
            yield self.client.launcher.output(folder, attempt)
        while True:
            is_active = follow and self.status().state.is_active
            if pull(folder.output):
                with folder.open(folder.output) as file:
                    file.seek(position)
                    if text := file.read():
                        position += len(text)
                        yield text.decode("utf-8", errors="replace")
            if not is_active:
                return
            time.sleep(POLL_INTERVAL_S)

    def wait(self, timeout_s: float | None = None) -> JobStatus:
        """Wait until it is not active any more.

        Raises:
            TimeoutError: it is still active after this many seconds.
        """
        start = time.monotonic()
        while (status := self.status()).state.is_active:
            if timeout_s is not None and time.monotonic() - start > timeout_s:
                raise TimeoutError(f"{self.id} is {status.state} after {timeout_s:g} s")
            time.sleep(POLL_INTERVAL_S)
        return status

    def results(self) -> list[Results]:
        """Return the results so far, one for each experiment that has begun.

        Raises:
            FolderError: none has begun, or a file cannot be read.
        """
        return load_all(self.folder.place)

    def stop(self, *, force: bool = False) -> JobStatus:
        """Stop it: its trials save their state, and it can be resumed.

        Args:
            force: Kill its driver. Its trials resume from the state that they saved last.

        Returns:
            Its status; it may take half a minute until it has stopped.

        Raises:
            FolderError: the storage cannot be written.
        """
        folder, status = self.folder, self.status()
        attempt = folder.last_attempt()
        if attempt is None or not (status.state.is_active or status.state is JobState.UNKNOWN):
            return status
        folder.request_stop(attempt.number)
        is_cancelled = status.state is JobState.PENDING and folder.cancel(
            attempt.number, "it was stopped before it began"
        )
        if force or is_cancelled:
            self.client.launcher.end(folder, attempt)
        return self.status()

    def resume(self, *, attempt: int | None = None, force: bool = False, key: str = "", **options: Any) -> "Job":
        """Resume it, if it ended before all its trials had.

        Args:
            attempt: The latest attempt that the caller saw; by default the latest one.
            force: Resume it although nothing is known of its driver. If that runs, it stops, and writes nothing more.
            key: An idempotency key: a second call with it does nothing.
            **options: Changes to the options of its submission.

        Raises:
            ConflictError: it is active or has finished, another process was first, or nothing is known of its driver.
            ClusterError: the cluster does not answer or refuses.
        """
        status = self.status()
        if self._is_repeated("resume", key, options):
            return self
        if status.state is JobState.FINISHED:
            raise ConflictError(f"{self.id} has finished; extend it, or submit another search")
        return self._restart(status, "resume", options, attempt, force, key)

    def extend(
        self,
        num_samples: int,
        *,
        experiment: str | None = None,
        attempt: int | None = None,
        force: bool = False,
        key: str = "",
        **options: Any,
    ) -> "Job":
        """Try more configurations; its searcher knows the trials that it has.

        Args:
            num_samples: How many more.
            experiment: The experiment, if the job has several.
            attempt: As for ``resume``.
            force: As for ``resume``.
            key: As for ``resume``.
            **options: As for ``resume``.

        Raises:
            InvalidExperimentError: a number below 1.
            ConflictError: as for ``resume``, or its searcher has no more configurations.
            UnknownNameError: the job has no such experiment.
            ClusterError: the cluster does not answer or refuses.
        """
        by_name = {plain["name"]: plain for plain in self.folder.read()["experiments"]}
        name = experiment or (next(iter(by_name)) if len(by_name) == 1 else None)
        if name not in by_name:
            raise UnknownNameError(f"{self.id} has the experiments {', '.join(by_name)}; name one of them to extend it")
        if num_samples < 1:
            raise InvalidExperimentError(f"num_samples must be at least 1; got {num_samples}")
        options |= {"num_samples": num_samples, "experiment": name}
        status = self.status()
        if self._is_repeated("extend", key, options):
            return self
        if by_name[name]["searcher"] == "grid" or by_name[name]["scheduler"] == "pbt":
            kind = "a grid" if by_name[name]["searcher"] == "grid" else "population-based training"
            raise ConflictError(f"{name} uses {kind}, which cannot be extended; submit another search")
        return self._restart(status, "extend", options, attempt, force, key)

    def delete(self) -> None:
        """Delete it and all its results.

        Raises:
            ConflictError: it is active, or nothing is known of its driver.
            FolderError: the folder cannot be deleted.
        """
        folder, status = self.folder, self.status()
        _check_at_rest(status, "delete", force=False)
        # Nobody resumes it from now on.
        folder.add_attempt("delete", {}, {}, last=status.attempt)
        key = folder.read().get("key")
        folder.delete()
        if key:
            delete(self.client.storage / KEYS / str(key))

    def _is_repeated(self, action: str, key: str, options: Mapping[str, Any]) -> bool:
        """Whether an attempt carries the idempotency key of a request.

        Raises:
            RequestError: it does, and was another request.
        """
        folder = self.folder
        attempts = [folder.read_attempt(number) for number in folder.attempt_numbers()] if key else []
        for one in attempts:
            if one.key == key and (one.action, one.options) == (action, _as_json(options)):
                return True
            if one.key == key:
                raise _key_is_reused(f"attempt {one.number} of {self.id}")
        return False

    def _restart(
        self,
        status: JobStatus,
        action: str,
        options: Mapping[str, Any],
        attempt: int | None,
        force: bool,
        key: str,
    ) -> "Job":
        last = status.attempt if attempt is None else attempt
        if last != status.attempt:
            raise ConflictError(f"another process changed {self.id} first (attempt {status.attempt}); see its status")
        _check_at_rest(status, action, force=force)
        check_storage(self.client.storage, shared=self.client.shared_storage)
        self.client.launcher.check()
        try:
            self.start(action, _as_json(options), last=last, key=key)
        except ConflictError:
            # The request with the same key was first.
            if not self._is_repeated(action, key, options):
                raise
        return self

    def start(self, action: str, options: Mapping[str, Any], *, last: int, key: str = "") -> None:
        """Claim the next attempt and start its driver.

        Raises:
            ConflictError: another process was first.
            ClusterError: the cluster does not answer or refuses.
        """
        folder, launcher = self.folder, self.client.launcher
        attempt = folder.add_attempt(action, launcher.location(folder), options, last=last, key=key)
        try:
            folder.write_process(attempt.number, launcher.start(folder, attempt))
        except TuneHpcError:
            folder.withdraw(attempt)
            raise


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
        names = [name for name in names_in(self.storage) if is_id(name)]
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
            raise _key_is_reused(job_id)
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
            raise _key_is_reused(job_id)
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
            "options": _as_json(options),
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


def _check_at_rest(status: JobStatus, action: str, *, force: bool) -> None:
    """Raise if a job is active, or if nothing is known of its driver and that is not forced.

    Raises:
        ConflictError: as said.
    """
    if status.state.is_active:
        raise ConflictError(f"{status.id} is {status.state}; stop it first, or wait for its end, to {action} it")
    if status.state is JobState.UNKNOWN and not force:
        hint = "stop it with --force" if action == "delete" else "use --force"
        raise ConflictError(
            f"nothing is known of the driver of {status.id} ({status.reason}); make sure that it has ended, then {hint}"
        )


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


def _key_is_reused(what: str) -> RequestError:
    return RequestError(
        f"the Idempotency-Key of this request was used for another one ({what}); choose a new key",
        kind="idempotency-key-reused",
    )


def _as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON holds them, without those that were not given."""
    plain = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in options.items()}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in plain.items() if value is not None
    }


def _copy_code(job: JobFolder, experiments: Sequence[Experiment], code: str | Path | None) -> None:
    """Copy the modules of users' trainables into the job folder.

    Raises:
        FolderError: they cannot be copied.
    """
    from tune_hpc.cluster.code_snapshot import copy_modules

    references = [one.to_json()["trainable"] for one in experiments if one.trainable != TRAIN]
    try:
        copy_modules(references, Path(code) if code else None, job.code)
    except OSError as error:
        raise FolderError(f"the code of {job.id} cannot be copied: {error}; name its folder with code") from error
