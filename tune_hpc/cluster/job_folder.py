"""The folder of a job: every file name in one place, and what stands in them.

    STORAGE/ID/
      job.json         what was asked: the experiments, the options, by whom and when
      attempts/1.json  who asked for it to run, when, and where: one file for each time (start, resume, extend)
      attempts/1.asked, attempts/1.claim  empty; only one can make them: who asks for it, and who is its driver
      attempts/1.stop  there when it is asked to stop
      attempts/1.process.json  which process its driver is, if it is one of whoever asked
      attempts/1.run.json  what its driver says: when it began, that it lives, how it ended
      attempts/1.room  as long as its driver lives: room on the disk, to be able to say how it ended
      code/            the modules of a trainable of one's own, as they were
      output.log       what its drivers printed
      NAME/            the experiment folders
      report.html      what came of them

An id is ``NAME-YYYYMMDD-HHMMSS-xxxx``: the first experiment, the moment of submission (UTC), and four random
hexadecimal digits. An attempt is called ``ID.1``, ``ID.2`` and so on.
"""

import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from tune_hpc.analysis.folder import write_whole
from tune_hpc.analysis.object_store import delete, delete_tree, here, is_remote, names_in, place_of, pull
from tune_hpc.errors import FolderError, UnknownNameError

#: What holds room, and how much: enough to say how an attempt ended, on file systems whose blocks are large, too.
ROOM, NUM_ROOM_BYTES = ".room", 256 * 1024
_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*-\d{8}-\d{6}-[0-9a-f]{4}")


class JobState(StrEnum):
    """What a job is doing, or how it ended."""

    PENDING = "pending"  #: asked for; its driver has not begun
    RUNNING = "running"
    STOPPING = "stopping"  #: asked to stop; its trials save their state
    STOPPED = "stopped"  #: ended before all its trials had, as it was asked to or by a limit of its own
    FINISHED = "finished"  #: all its trials ended
    FAILED = "failed"  #: its driver could not go on
    LOST = "lost"  #: its driver was running, and is gone or not heard of any more

    @property
    def is_active(self) -> bool:
        """Whether a driver works on it, or is about to."""
        return self in (JobState.PENDING, JobState.RUNNING, JobState.STOPPING)


def utc_now() -> datetime:
    """Return the present moment."""
    return datetime.now(UTC)


def make_id(name: str, moment: datetime | None = None) -> str:
    """Return a new id for a job whose first experiment has this name."""
    at = (moment or utc_now()).astimezone(UTC)
    return f"{name}-{at:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def is_id(text: str) -> bool:
    """Whether a text has the form of an id; one that has it names no other folder than one in the storage."""
    return _ID.fullmatch(text) is not None


@dataclass(frozen=True)
class Attempt:
    """One time that a job was asked to run.

    Attributes:
        number: From 1.
        verb: ``start``, ``resume`` or ``extend``.
        asked_at: When (UTC, ISO 8601).
        place: Where it runs, as its launcher writes it: ``kind`` and what else that one needs to find it.
        options: What is asked of this attempt.
    """

    number: int
    verb: str
    asked_at: str
    place: Mapping[str, Any]
    options: Mapping[str, Any]


class JobFolder:
    """Names and contents of the files of one job.

    Args:
        path: The folder, or its place in an object store.

    Attributes:
        path: The folder, or the working copy of it on this machine.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = self.path = here(path)
        self.job_file = path / "job.json"
        self.attempts = path / "attempts"
        self.code = path / "code"
        self.output = path / "output.log"
        self.report = path / "report.html"

    @property
    def place(self) -> str:
        """What the folder is called on whatever machine."""
        return place_of(self.path)

    @property
    def id(self) -> str:
        """The job's id."""
        return self.path.name

    @property
    def is_there(self) -> bool:
        """Whether it holds a job."""
        return pull(self.job_file)

    def read_id(self) -> str | None:
        """Return the id of the job that the folder is of, whatever it is called; ``None`` where it is of none."""
        return _read(self.job_file).get("id")

    def make(self, asked: Mapping[str, Any]) -> None:
        """Make the folder of a new job.

        Raises:
            FolderError: it is there already, or cannot be made.
        """
        try:
            self.path.mkdir(parents=True)
            self.attempts.mkdir()
        except OSError as error:
            raise FolderError(
                f"{self.path} cannot be made: {error.strerror or error}; choose another storage"
            ) from error
        try:
            _write(self.job_file, asked)
        except FolderError:
            delete_tree(self.path)
            raise

    def read(self) -> dict[str, Any]:
        """Return what was asked.

        Raises:
            UnknownNameError: there is no such job.
            FolderError: its file cannot be read.
        """
        if not self.is_there:
            raise UnknownNameError(
                f"{self.path.parent} holds no job {self.id}; `tune-hpc jobs` lists those that it does"
            )
        asked = _read(self.job_file)
        if not asked or not isinstance(asked.get("experiments"), list):
            raise FolderError(f"{self.job_file} describes no job; restore it from a copy")
        return asked

    def add_attempt(self, verb: str, place: Mapping[str, Any], options: Mapping[str, Any]) -> Attempt:
        """Ask for the job to run, again or for the first time.

        Raises:
            FolderError: somebody else asks for it at the same moment, or the folder cannot be written.
        """
        number = max(self._numbers(".asked"), default=0) + 1
        if not _make_first(self.attempts / f"{number}.asked"):
            raise FolderError(f"somebody else asked {self.id} to {verb} at this moment; look at its status")
        attempt = Attempt(number, verb, utc_now().isoformat(timespec="seconds"), place, options)
        told = {"verb": verb, "asked_at": attempt.asked_at, "place": place, "options": options}
        _write(self.attempts / f"{number}.json", told)
        return attempt

    def withdraw(self, attempt: Attempt) -> None:
        """Forget an attempt that nobody could be found to run; its number is not used again."""
        delete(self.attempts / f"{attempt.number}.json")

    def _numbers(self, ending: str) -> list[int]:
        stems = [name.removesuffix(ending) for name in names_in(self.attempts) if name.endswith(ending)]
        return [int(stem) for stem in stems if stem.isdigit()]

    def last_attempt(self) -> Attempt | None:
        """Return the latest time that the job was asked to run."""
        number = max(self._numbers(".json"), default=0)
        if not number:
            return None
        told = _read(self.attempts / f"{number}.json")
        return Attempt(
            number, str(told.get("verb")), str(told.get("asked_at")), told.get("place", {}), told.get("options", {})
        )

    def claim(self, number: int) -> bool:
        """Become the driver of an attempt; whether nobody else is."""
        return _make_first(self.attempts / f"{number}.claim")

    def write_run(self, number: int, told: Mapping[str, Any]) -> None:
        """Say what the driver of an attempt does."""
        _write(self.attempts / f"{number}.run.json", told)

    def read_run(self, number: int) -> dict[str, Any]:
        """Return what the driver of an attempt said last; empty where it has said nothing yet."""
        return _read(self.attempts / f"{number}.run.json")

    def hold_room(self, number: int) -> None:
        """Take some of the disk, that there be room to say how an attempt ended when others have filled it."""
        if is_remote(place_of(self.path)):
            return
        # A driver that was killed has not given its own back.
        self.give_room()
        with suppress(OSError):
            (self.attempts / f"{number}{ROOM}").write_bytes(bytes(NUM_ROOM_BYTES))

    def give_room(self) -> None:
        """Give back what was taken."""
        with suppress(OSError):
            for path in self.attempts.glob(f"*{ROOM}"):
                path.unlink(missing_ok=True)

    def write_process(self, number: int, process: Mapping[str, Any]) -> None:
        """Note which process is to be the driver of an attempt."""
        _write(self.attempts / f"{number}.process.json", process)

    def read_process(self, number: int) -> dict[str, Any]:
        """Return which process is to be the driver of an attempt; empty where nobody has noted it."""
        return _read(self.attempts / f"{number}.process.json")

    def stop_of(self, number: int) -> Path:
        """Return the file by which an attempt is asked to stop."""
        return self.attempts / f"{number}.stop"

    def ask_to_stop(self, number: int) -> None:
        """Ask the driver of an attempt to stop.

        Raises:
            FolderError: the folder cannot be written.
        """
        _make_first(self.stop_of(number))


def _write(path: Path, told: Mapping[str, Any]) -> None:
    text = json.dumps(told, indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    if not pull(path):
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FolderError(f"{path} cannot be read: {error}; restore it from a copy") from error
    return told if isinstance(told, dict) else {}


def _make_first(path: Path) -> bool:
    """Make a file; whether nobody had made it before.

    An object store has no way to tell: of two who do it in the same moment there both may be told that they did.
    """
    if is_remote(place_of(path)):
        if pull(path):
            return False
        write_whole(path, lambda temporary: temporary.write_text("made\n", encoding="utf-8"))
        return True
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    except OSError as error:
        raise FolderError(f"{path} cannot be written: {error.strerror or error}; make room on the storage") from error
    return True
