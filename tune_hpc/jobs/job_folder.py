"""Layout of a job folder, readable when the cluster that ran the job is gone.

    STORAGE/ID/
      job.json                 the request: experiments, options, time of submission
      attempts/1.json          one file for each start, resume and extension: request, time, location
      attempts/1.process.json  process of the driver, written by the launcher after the start
      attempts/1.run.json      state of the driver: process, start, end, outcome; rewritten as its heartbeat
      attempts/1.stop          exists once a stop of the attempt is requested
      attempts/1.room          disk space reserved for the final state, while the driver runs
      code/                    the packages of users' trainables, as they were at submission
      output.log               output of the drivers
      experiments/NAME/        the experiment folders
      report.html              the report on all of them

An id is ``NAME-YYYYMMDD-HHMMSS-xxxx``: the first experiment, the time of submission (UTC) and four random hexadecimal
digits. Attempts are numbered from 1. The number is claimed by compare-and-swap and is the fencing token of the job's
experiment folders, so a job has one driver at a time. No file is read through a symbolic link.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tune_hpc.errors import ConflictError, FolderError, UnknownNameError
from tune_hpc.storage.checksum import dump_json, load_json
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.filesystem import Storage, write_error
from tune_hpc.storage.process import this_process
from tune_hpc.storage.shared_folder import open_no_follow

#: Version of this layout. In format 1 experiment folders were beside ``code`` and ``attempts``.
FORMAT = 2
#: Suffix and size of the reserved disk space, enough for the final state on file systems with large blocks.
RESERVED_SUFFIX, RESERVED_BYTES = ".room", 256 * 1024
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*-\d{8}-\d{6}-(?:[0-9a-f]{4}|[0-9a-f]{8})")
_EXPERIMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_NUMBER = re.compile(r"[0-9]{1,9}")


def timestamp() -> str:
    """Return the current time (UTC, ISO 8601, seconds)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def make_id(name: str, moment: datetime | None = None) -> str:
    """Return a new id for a job with this first experiment; ``moment`` is now by default."""
    at = (moment or datetime.now(UTC)).astimezone(UTC)
    return f"{name}-{at:%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"


def is_id(text: str) -> bool:
    """Return whether a text is a valid id, and so names no folder outside the storage."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class Attempt:
    """One start, resume or extension of a job.

    Attributes:
        number: From 1.
        action: ``start``, ``resume``, ``extend`` or ``delete``.
        requested_at: Time (UTC, ISO 8601).
        location: ``kind`` of the launcher, and what it needs to find the driver.
        options: Options of this attempt.
        key: The idempotency key of the request; empty if it had none.
    """

    number: int
    action: str
    requested_at: str
    location: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""


class JobFolder:
    """Names and contents of the files of one job.

    Every method raises ``FolderError`` if a file cannot be read or written. ``path`` is the folder, or the working copy
    of its URI on this machine.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.storage = Storage(path)
        path = self.path = self.storage.root
        self.job_file = path / "job.json"
        self.attempts = path / "attempts"
        self.code = path / "code"
        self.output = path / "output.log"
        self.report = path / "report.html"

    @property
    def uri(self) -> str:
        """Name of the folder on every machine."""
        return self.storage.uri

    @property
    def id(self) -> str:
        """The job's id."""
        return self.path.name

    @property
    def exists(self) -> bool:
        """Return whether the folder holds a job."""
        return self.storage.download(self.job_file)

    def read_id(self) -> str | None:
        """Return the id in job.json, for a copy with another name; ``None`` if the folder holds no job."""
        return self._read_json(self.job_file).get("id")

    def make(self, request: Mapping[str, Any], *, shared: bool = False) -> None:
        """Make the folder of a new job with a job.json; if shared, other users may enter it, as the umask allows.

        Raises:
            ConflictError: the folder exists.
        """
        new = self.path.with_name(f".new-{secrets.token_hex(6)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new.mkdir(mode=0o777 if shared else 0o700)
            (new / "attempts").mkdir()
            text = dump_json({"format": FORMAT, **request}, indent=1)
            (new / self.job_file.name).write_text(text, encoding="utf-8")
            os.rename(new, self.path)
            self.storage.upload(self.job_file)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise ConflictError(f"{self.id} was submitted by another process; see its status") from error
            raise write_error(self.path, error) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def read(self) -> dict[str, Any]:
        """Return the contents of job.json.

        Raises:
            UnknownNameError: there is no such job.
        """
        if not self.exists:
            raise UnknownNameError(f"{self.path.parent} holds no job {self.id}; `tune-hpc jobs` lists the jobs")
        request = self._read_json(self.job_file)
        experiments = request.get("experiments")
        if not isinstance(experiments, list) or not experiments or not all(map(_is_experiment, experiments)):
            raise FolderError(f"{self.job_file} does not describe a job; restore it from a copy")
        return request

    def experiment(self, name: str) -> ExperimentFolder:
        """Return the folder of one of the job's experiments.

        Raises:
            UnknownNameError: the job has no such experiment.
        """
        request = self.read()
        if name not in (plain["name"] for plain in request["experiments"]):
            raise UnknownNameError(f"{self.id} has no experiment {name!r}; see its status")
        parent = self.path if request.get("format", 1) == 1 else self.path / "experiments"
        folder = ExperimentFolder(parent / name)
        files = (folder.experiment_file, folder.progress, folder.trials_file, folder.history_file)
        for path in (self.path, parent, folder.path, folder.trials, folder.logs, *files):
            if path.is_symlink() or (path in files and path.exists() and not path.is_file()):
                raise FolderError(f"{path} is a symbolic link or no regular file; a job has none: remove it")
        return folder

    def version(self) -> str:
        """Return a digest that changes when the status of the job or a result of its trials changes."""
        stamps = self.storage.list_files() if self.storage.is_remote else list(self._stamps())
        return hashlib.sha256(repr(stamps).encode()).hexdigest()[:32]

    def _stamps(self) -> Iterator[tuple[Any, ...]]:
        parents = [self.path / "experiments", self.path]
        entries = [entry for parent in parents for entry in _entries(parent)]
        folders = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
        names = ("", "experiment.json", "progress.json", "trials.parquet", "history.parquet", "trials", "logs")
        attempts = [Path(entry.path) for entry in _entries(self.attempts)]
        files = [self.job_file, self.output, self.report, *sorted(attempts)]
        for path in [*files, *(folder / name for folder in sorted(folders) for name in names)]:
            with suppress(OSError):
                status = os.lstat(path)
                yield str(path), status.st_mtime_ns, status.st_size, status.st_ino

    def add_attempt(
        self, action: str, location: Mapping[str, Any], options: Mapping[str, Any], *, last: int = 0, key: str = ""
    ) -> Attempt:
        """Claim the next attempt, an ``Attempt`` of these values: a compare-and-swap on its number.

        Raises:
            ConflictError: there is an attempt after ``last``, the latest one that the caller saw.
        """
        heads = (name.partition(".")[0] for name in self.storage.list_names(self.attempts))
        numbers = [int(head) for head in heads if _NUMBER.fullmatch(head)]
        # An experiment may have been resumed in its folder, without the job.
        numbers += [self.experiment(plain["name"]).last_attempt() for plain in self.read()["experiments"]]
        number = max(numbers, default=0) + 1
        attempt = Attempt(number, action, timestamp(), dict(location), dict(options), key)
        text = dump_json(asdict(attempt), indent=1)
        current = self.last_attempt()
        is_latest = (current.number if current else 0) == last
        if not is_latest or not self.storage.create_exclusive(self.attempts / f"{number}.json", text):
            raise ConflictError(f"another process changed {self.id} first; see its status")
        return attempt

    def delete_attempt(self, attempt: Attempt) -> None:
        """Delete an attempt that no launcher accepted; its number is not used again."""
        path = self.attempts / f"{attempt.number}.json"
        path.replace(path.with_suffix(".withdrawn"))
        self.storage.upload(path.with_suffix(".withdrawn"))
        self.storage.delete(path)

    def last_attempt(self) -> Attempt | None:
        """Return the latest attempt; ``None`` if there is none."""
        numbers = self.attempt_numbers()
        return self.read_attempt(numbers[-1]) if numbers else None

    def attempt_numbers(self) -> list[int]:
        """Return the numbers of all attempts, in order."""
        stems = (
            name.removesuffix(".json") for name in self.storage.list_names(self.attempts) if name.endswith(".json")
        )
        return sorted(int(stem) for stem in stems if _NUMBER.fullmatch(stem))

    def read_attempt(self, number: int) -> Attempt:
        """Return an attempt."""
        data = self._read_json(self.attempts / f"{number}.json")
        for name in ("location", "place", "options"):
            if not isinstance(data.get(name) or {}, Mapping):
                raise FolderError(f"attempt {number} of {self.id} cannot be read: {name} is no object; restore it")
        # Format 1 had other keys.
        return Attempt(
            number,
            str(data.get("action") or data.get("verb")),
            str(data.get("requested_at") or data.get("asked_at")),
            data.get("location") or data.get("place") or {},
            data.get("options") or {},
            str(data.get("key") or ""),
        )

    def claim(self, number: int) -> bool:
        """Become the driver of an attempt; return ``False`` if it has a driver or a newer attempt exists."""
        if self.attempt_numbers()[-1:] != [number]:
            return False
        return self._create_driver_status(number, {"process": this_process(), "started_at": timestamp()})

    def cancel(self, number: int, reason: str) -> bool:
        """End an attempt before its driver starts; return whether that was possible."""
        state = {"state": "stopped", "reason": reason, "ended_at": timestamp()}
        return self._create_driver_status(number, state)

    def _create_driver_status(self, number: int, state: Mapping[str, Any]) -> bool:
        return self.storage.create_exclusive(self.attempts / f"{number}.run.json", dump_json(state))

    def write_driver_status(self, number: int, state: Mapping[str, Any]) -> None:
        """Write the state of the driver of an attempt."""
        self._write_json(self.attempts / f"{number}.run.json", state)

    def read_driver_status(self, number: int) -> dict[str, Any]:
        """Return the state of the driver of an attempt; empty if it has not started."""
        run = self._read_json(self.attempts / f"{number}.run.json")
        # Format 1 had other keys.
        for new, old in (("started_at", "began"), ("ended_at", "ended")):
            if old in run:
                run.setdefault(new, run[old])
        return run

    def seconds_since_heartbeat(self, number: int) -> float:
        """Return the seconds since the driver of an attempt wrote its state, by the clock of the storage."""
        return Storage(self.path.parent).age_s(self.attempts / f"{number}.run.json")

    def seconds_since_request(self, number: int) -> float:
        """Return the seconds since an attempt was requested, by the clock of the storage."""
        return Storage(self.path.parent).age_s(self.attempts / f"{number}.json")

    def reserve_disk_space(self, number: int) -> None:
        """Reserve disk space, so that the final state can be written when the disk is full."""
        if self.storage.is_remote:
            return
        # A killed driver did not release its reservation.
        self.release_disk_space()
        with suppress(OSError):
            (self.attempts / f"{number}{RESERVED_SUFFIX}").write_bytes(bytes(RESERVED_BYTES))

    def release_disk_space(self) -> None:
        """Release the reserved disk space."""
        with suppress(OSError):
            for path in self.attempts.glob(f"*{RESERVED_SUFFIX}"):
                path.unlink(missing_ok=True)

    def write_process(self, number: int, process: Mapping[str, Any]) -> None:
        """Record that a launcher has started the driver of an attempt, and its process if known."""
        self._write_json(self.attempts / f"{number}.process.json", process)

    def read_process(self, number: int) -> dict[str, Any] | None:
        """Return the process of the driver of an attempt; ``None`` if the launcher has not started it."""
        path = self.attempts / f"{number}.process.json"
        return self._read_json(path) if self.storage.download(path) else None

    def stop_file(self, number: int) -> Path:
        """Return the file that requests the stop of an attempt."""
        return self.attempts / f"{number}.stop"

    def request_stop(self, number: int) -> None:
        """Request that the driver of an attempt stops."""
        self.storage.create_exclusive(self.stop_file(number), "")

    def open_output(self) -> int:
        """Open the log of the drivers for appending; return its file descriptor."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        try:
            return os.open(self.output, flags, 0o666)
        except OSError as error:
            raise FolderError(f"{self.output} cannot be written: {error.strerror}; remove it") from error

    def delete(self) -> None:
        """Delete the folder; it disappears at once."""
        trash = self.path.with_name(f".deleted-{secrets.token_hex(6)}")
        try:
            if self.storage.is_remote:
                self.storage.delete_tree()
            else:
                os.rename(self.path, trash)
                shutil.rmtree(trash)
        except OSError as error:
            raise FolderError(f"{self.path} cannot be deleted: {error.strerror or error}; check its owner") from error

    def _write_json(self, path: Path, data: Mapping[str, Any]) -> None:
        self.storage.write_atomic(path, dump_json(data, indent=1), make_folder=False)

    def _read_json(self, path: Path) -> dict[str, Any]:
        """Return the JSON object in a file; empty if the file is missing."""
        try:
            with open_no_follow(self.storage, path) as file:
                data = load_json(file.read())
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            raise FolderError(f"{path} cannot be read: {error}; restore it from a copy") from error
        if not isinstance(data, dict):
            raise FolderError(f"{path} cannot be read: it holds no JSON object; restore it from a copy")
        return data


def _is_experiment(plain: Any) -> bool:
    """Return whether an entry of job.json describes an experiment with a name that is safe as a folder."""
    if not isinstance(plain, Mapping):
        return False
    texts = all(isinstance(plain.get(key), str) for key in ("name", "metric", "searcher", "scheduler"))
    return texts and isinstance(plain.get("num_trials"), int) and _EXPERIMENT.fullmatch(plain["name"]) is not None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.name[0] != "."]
    except OSError:
        return []
