"""A job: read its status and log, stop, resume, extend and delete it."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_hpc.analysis.results import Results, load_all
from tune_hpc.errors import (
    ConflictError,
    FolderError,
    InvalidExperimentError,
    RequestError,
    TuneHpcError,
    UnknownNameError,
)
from tune_hpc.jobs.job_folder import JobFolder, JobState
from tune_hpc.jobs.launchers import TIMEOUT_S, DriverState
from tune_hpc.jobs.status import SILENT_S, JobStatus, job_status
from tune_hpc.storage.access import check_storage
from tune_hpc.storage.filesystem import delete, pull

if TYPE_CHECKING:
    from tune_hpc.jobs.client import JobClient

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
        # No other process can resume it from now on.
        folder.add_attempt("delete", {}, {}, last=status.attempt)
        key = folder.read().get("key")
        folder.delete()
        if key:
            delete(self.client.storage / KEYS / str(key))

    def _is_repeated(self, action: str, key: str, options: Mapping[str, Any]) -> bool:
        """Return whether an attempt carries the idempotency key of a request.

        Raises:
            RequestError: it does, and was another request.
        """
        folder = self.folder
        attempts = [folder.read_attempt(number) for number in folder.attempt_numbers()] if key else []
        for one in attempts:
            if one.key == key and (one.action, one.options) == (action, as_json(options)):
                return True
            if one.key == key:
                raise key_is_reused(f"attempt {one.number} of {self.id}")
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
            ClusterError: the cluster does not answer or refuses.
        """
        folder, launcher = self.folder, self.client.launcher
        attempt = folder.add_attempt(action, launcher.location(folder), options, last=last, key=key)
        try:
            folder.write_process(attempt.number, launcher.start(folder, attempt))
        except TuneHpcError:
            folder.withdraw(attempt)
            raise


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


def key_is_reused(what: str) -> RequestError:
    """Return the error of a request whose idempotency key belongs to another one."""
    return RequestError(
        f"the Idempotency-Key of this request was used for another one ({what}); choose a new key",
        kind="idempotency-key-reused",
    )


def as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON holds them, without those that were not given."""
    plain = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in options.items()}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in plain.items() if value is not None
    }
