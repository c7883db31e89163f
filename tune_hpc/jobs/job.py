"""A job: read its status and log, fetch, stop, resume, extend and delete it."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_hpc.analysis.loading import load_all
from tune_hpc.analysis.results import Results
from tune_hpc.errors import (
    ConflictError,
    FolderError,
    InvalidExperimentError,
    RequestError,
    TuneHpcError,
    UnknownNameError,
)
from tune_hpc.jobs.job_folder import RESERVED_SUFFIX, JobFolder
from tune_hpc.jobs.launchers import TIMEOUT_S
from tune_hpc.jobs.status import HEARTBEAT_TIMEOUT_S, DriverState, JobState, JobStatus, job_status
from tune_hpc.storage.shared_folder import check_private, open_no_follow

if TYPE_CHECKING:
    from tune_hpc.jobs.client import JobClient

#: Seconds between two reads of the status in ``Job.wait`` and ``Job.logs``.
POLL_INTERVAL_S = 1.0
#: Age of a heartbeat in seconds up to which the driver counts as alive without a request to the launcher.
FRESH_S = HEARTBEAT_TIMEOUT_S / 4
#: Folder of idempotency keys in a storage; no job's id starts with a dot.
KEYS = ".requests"
#: List of the files that the last fetch wrote; only these are updated and deleted.
FETCHED = ".fetched.json"


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        client: The client that found or submitted the job.
        id: Name of its folder in the storage.
    """

    client: "JobClient"
    id: str

    @property
    def folder(self) -> JobFolder:
        """Folder of the job in the storage."""
        return self.client.folder(self.id)

    def status(self, *, timeout_s: float = TIMEOUT_S) -> JobStatus:
        """Return the status of the job.

        Args:
            timeout_s: Limit in seconds on a request to the cluster; after that the state of the driver is unknown.

        Raises:
            UnknownNameError: the job was deleted.
            FolderError: a file of the job cannot be read, or is damaged.
        """
        try:
            return self._status(timeout_s)
        except UnknownNameError:
            raise
        except Exception as error:
            if not JobFolder(self.client.storage.root / self.id).exists:
                raise UnknownNameError(f"{self.id} was deleted; `tune-hpc jobs` lists the jobs") from error
            if isinstance(error, TuneHpcError):
                raise
            # Malformed files raise errors of any class.
            reason = f"{type(error).__name__}: {error}"
            raise FolderError(f"a file of {self.id} is damaged ({reason}); restore it from a copy") from error

    def _status(self, timeout_s: float) -> JobStatus:
        folder = self.folder
        attempt = folder.last_attempt()
        if attempt is None:
            return job_status(folder)
        run = folder.read_driver_status(attempt.number)
        is_starting = not run and folder.read_process(attempt.number) is None
        if is_starting or run.get("ended_at") or (run and folder.seconds_since_heartbeat(attempt.number) < FRESH_S):
            return job_status(folder)
        launcher = self.client.launcher
        driver = launcher.state(folder, attempt, timeout_s)
        output = launcher.output(folder, attempt, timeout_s) if driver is DriverState.GONE and not run else ""
        return job_status(folder, driver, " ".join(output.split())[-500:])

    def logs(self, *, follow: bool = False) -> Iterator[str]:
        """Yield the output of the drivers in pieces; with ``follow`` until the job is not active any more."""
        folder = self.folder
        position = 0
        if not folder.storage.download(folder.output) and (attempt := folder.last_attempt()):
            yield self.client.launcher.output(folder, attempt)
        while True:
            is_active = follow and self.status().state.is_active
            if folder.storage.download(folder.output):
                with open_no_follow(folder.storage, folder.output) as file:
                    file.seek(position)
                    if text := file.read():
                        position += len(text)
                        yield text.decode("utf-8", errors="replace")
            if not is_active:
                return
            time.sleep(POLL_INTERVAL_S)

    def wait(self, timeout_s: float | None = None) -> JobStatus:
        """Wait until the job is not active any more.

        Raises:
            TimeoutError: the job is still active after ``timeout_s`` seconds.
        """
        start = time.monotonic()
        while (status := self.status()).state.is_active:
            if timeout_s is not None and time.monotonic() - start > timeout_s:
                raise TimeoutError(f"{self.id} is {status.state} after {timeout_s:g} s")
            time.sleep(POLL_INTERVAL_S)
        return status

    def results(self) -> list[Results]:
        """Return the results so far, one for each experiment that has started.

        Raises:
            FolderError: none has started, or a file cannot be read.
        """
        return load_all(self.folder.uri)

    def fetch(self, target: Path) -> int:
        """Copy the job folder to this machine, or update an earlier copy; other files in the target stay.

        Returns:
            The number of files copied.

        Raises:
            FolderError: ``target`` holds other files, or cannot be written.
        """
        folder, fetched = self.folder, target / FETCHED
        if target.is_dir() and any(target.iterdir()) and JobFolder(target.resolve()).read_id() != self.id:
            raise FolderError(
                f"{target} is not empty and holds no copy of {self.id}; choose another folder with --output"
            )
        try:
            earlier = {str(name) for name in json.loads(fetched.read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError):
            earlier = set()
        folder.storage.download_tree()
        names: list[str] = []
        for path in sorted(folder.path.rglob("*")):
            relative = path.relative_to(folder.path)
            # experiments/NAME/ray has files of Ray; those of users are in experiments/NAME/artifacts.
            kind = relative.parts[2] if relative.parts[0] == "experiments" and len(relative.parts) > 2 else ""
            is_hidden = any(part[0] == "." for part in relative.parts) or path.suffix == RESERVED_SUFFIX
            if path.is_dir() or path.is_symlink() or kind == "ray" or (is_hidden and kind != "artifacts"):
                continue
            copy = target / relative
            try:
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
            except FileNotFoundError:
                # Trial files are deleted once the trials are in the frames.
                continue
            except OSError as error:
                reason = error.strerror or error
                raise FolderError(f"{copy} cannot be written: {reason}; choose another folder") from error
            names.append(str(relative))
        for name in earlier.difference(names):
            if ".." not in Path(name).parts and not Path(name).is_absolute():
                (target / name).unlink(missing_ok=True)
        fetched.write_text(json.dumps(names), encoding="utf-8")
        return len(names)

    def stop(self, *, force: bool = False) -> JobStatus:
        """Stop the job: its trials save their state, so that it can be resumed.

        Args:
            force: Kill the driver. The trials resume from their last checkpoints.

        Returns:
            The status; the job may take half a minute to stop.

        Raises:
            FolderError: the storage cannot be written.
        """
        folder, status = self.folder, self.status()
        attempt = folder.last_attempt()
        if attempt is None or not (status.state.is_active or status.state is JobState.UNKNOWN):
            return status
        folder.request_stop(attempt.number)
        is_cancelled = status.state is JobState.PENDING and folder.cancel(attempt.number, "stopped before the start")
        if force or is_cancelled:
            self.client.launcher.end(folder, attempt)
        return self.status()

    def resume(self, *, attempt: int | None = None, force: bool = False, key: str = "", **options: Any) -> "Job":
        """Resume the job, if it ended before all its trials did.

        Args:
            attempt: The latest attempt that the caller saw; by default the latest one.
            force: Resume although the state of the driver is unknown. A driver that still runs stops and writes
                nothing more.
            key: An idempotency key: a second call with it does nothing.
            **options: Changes to the options of the submission.

        Raises:
            ConflictError: the job is active or finished, another process was first, or the driver's state is unknown.
            ClusterError: the cluster does not answer or rejects the request.
        """
        status = self.status()
        if self._is_repeated("resume", key, options):
            return self
        retries = options.get("retry_failed", False)
        if status.state is JobState.FINISHED and not retries:
            raise ConflictError(f"{self.id} has finished; extend it, or submit a new job")
        has_ended = all(experiment.state == "finished" for experiment in status.experiments)
        if status.state is JobState.FAILED and has_ended and not retries:
            raise ConflictError(
                f"the trials of {self.id} have ended, with errors; correct the code in {self.folder.code} and resume "
                "with retry_failed, or submit it again"
            )
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
        """Run more configurations; the searcher learns from the existing trials.

        Args:
            num_samples: Number of configurations to add.
            experiment: The experiment, if the job has several.
            attempt: As for ``resume``.
            force: As for ``resume``.
            key: As for ``resume``.
            **options: As for ``resume``.

        Raises:
            InvalidExperimentError: a number below 1.
            ConflictError: as for ``resume``, or the searcher has no more configurations.
            UnknownNameError: the job has no such experiment.
            ClusterError: the cluster does not answer or rejects the request.
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
            raise ConflictError(f"{name} uses {kind}, which cannot be extended; submit a new job")
        return self._restart(status, "extend", options, attempt, force, key)

    def delete(self) -> None:
        """Delete the job and all its results.

        Raises:
            ConflictError: the job is active, or the state of its driver is unknown.
            FolderError: the folder cannot be deleted.
        """
        folder, status = self.folder, self.status()
        _check_at_rest(status, "delete", force=False)
        # From here on, no other process can resume the job.
        folder.add_attempt("delete", {}, {}, last=status.attempt)
        key = folder.read().get("key")
        folder.delete()
        if key:
            self.client.storage.delete(f"{KEYS}/{key}")

    def _is_repeated(self, action: str, key: str, options: Mapping[str, Any]) -> bool:
        """Return whether an attempt has the idempotency key and the content of a request.

        Raises:
            RequestError: the key belongs to another request.
        """
        folder = self.folder
        attempts = [folder.read_attempt(number) for number in folder.attempt_numbers()] if key else []
        for attempt in attempts:
            if attempt.key == key and (attempt.action, attempt.options) == (action, as_json(options)):
                return True
            if attempt.key == key:
                raise reused_key_error(f"attempt {attempt.number} of {self.id}")
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
        check_private(self.client.storage, shared=self.client.shared_storage)
        self.client.launcher.check()
        try:
            self.start(action, as_json(options), last=last, key=key)
        except ConflictError:
            # The request with the same key was first.
            if not self._is_repeated(action, key, options):
                raise
        return self

    def start(self, action: str, options: Mapping[str, Any], *, last: int, key: str = "") -> None:
        """Claim the next attempt and start its driver.

        Raises:
            ConflictError: another process was first.
            ClusterError: the cluster does not answer or rejects the request.
        """
        folder, launcher = self.folder, self.client.launcher
        attempt = folder.add_attempt(action, launcher.location(folder), options, last=last, key=key)
        try:
            folder.write_process(attempt.number, launcher.start(folder, attempt))
        except TuneHpcError:
            folder.delete_attempt(attempt)
            raise


def _check_at_rest(status: JobStatus, action: str, *, force: bool) -> None:
    """Raise ``ConflictError`` if a job is active, or if the state of its driver is unknown, unless forced."""
    if status.state.is_active:
        raise ConflictError(f"{status.id} is {status.state}; stop it first, or wait for its end, to {action} it")
    if status.state is JobState.UNKNOWN and not force:
        hint = "stop it with --force" if action == "delete" else "use --force"
        raise ConflictError(
            f"the driver of {status.id} may be running ({status.reason}); make sure that it has ended, then {hint}"
        )


def reused_key_error(owner: str) -> RequestError:
    """Return the error of a request whose idempotency key belongs to another one."""
    return RequestError(
        f"the Idempotency-Key of this request was used for another request ({owner}); choose a new key",
        kind="idempotency-key-reused",
    )


def as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON values, without those that are ``None``."""
    plain = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in options.items()}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in plain.items() if value is not None
    }
