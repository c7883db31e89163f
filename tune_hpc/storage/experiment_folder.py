"""The experiment folder: every file name in one place, and how files get there whole.

    experiment.json    what was asked, by whom, where and with what; its state
    progress.json      while the search runs: how many trials ended, and how long it will take (progress_file.py)
    trials.parquet     one row per trial (columns: results.py)
    history.parquet    long form: trial_id, step, one column per metric
    proposals.jsonl    the configurations that a searcher which learns has proposed, one a line
    rungs.jsonl        who came to which rung of a successive halving, and who goes on, one a line
    population.jsonl   who copied whom at the end of each generation of a population, one a line
    attempts/N         one file for each start, resume and extension: the process that claimed it
    trials/            while the search runs: ID.parquet for each trial that ended or has reported for some seconds,
                       ID.checkpoint for one under way, bundles.json: which trials train as one program, control: the
                       number of the attempt that may write, and whether its trials are to stop
    logs/              ID.log for each trial that wrote to its output or raised an exception
    tables/ figures/   what was made from the frames
    report.html        the same on one page
    tensorboard/       the search as other tools read it, where it is exported: event files in a folder for each trial,
    optuna.journal     an Optuna study,
    mlflow.db          and runs of MLflow
    ray/               Ray's own

A file appears under a temporary name and is then renamed, so that a reader never sees half of it. A folder is enough
to analyse a search on any machine.
"""

import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tune_hpc.errors import ConflictError, FolderError
from tune_hpc.storage.filesystem import (
    delete,
    delete_tree,
    here,
    is_remote,
    list_names,
    pull,
    pull_tree,
    push,
    uri,
)
from tune_hpc.storage.process import this_process

#: The version of this layout.
FORMAT = 1
#: What the system says where there is no room for a file any more.
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PART = ".parquet"


def write_atomic(path: Path, write: Callable[[Path], object], *, make_folder: bool = True) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it.

    Args:
        path: The file.
        write: Writes the content to a path.
        make_folder: Make the folder of the file if it is missing; otherwise one that was deleted stays deleted.

    Raises:
        FolderError: the folder cannot be written, or the disk is full.
    """
    temporary = _temporary(path)
    try:
        if make_folder or is_remote(uri(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        push(path, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        _remove(temporary)


def create_exclusive(path: Path, text: str) -> bool:
    """Create a file with its whole content, unless it exists; the compare-and-swap of this package.

    An object store has no such operation: there it holds among the processes of one machine.

    Returns:
        Whether this call created it.

    Raises:
        FolderError: the folder is missing or cannot be written.
    """
    temporary = _temporary(path)
    try:
        if is_remote(uri(path)):
            path.parent.mkdir(parents=True, exist_ok=True)
            if pull(path):
                return False
        temporary.write_text(text, encoding="utf-8")
        # A link appears with the whole content, and only one process can make it.
        os.link(temporary, path)
        push(path)
    except FileExistsError:
        return False
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        _remove(temporary)
    return True


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _remove(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError:
        # The error that prevented the write is the one to report.
        return


def write_error(path: Path, error: OSError) -> FolderError:
    """Return the error of a file or folder that cannot be written."""
    remedy = "make room there" if error.errno in DISK_FULL_ERRNOS else "choose another folder"
    return FolderError(f"{uri(path)} cannot be written: {error.strerror or error}; {remedy}")


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made, or not written to; change nothing.

    Raises:
        FolderError: it, or a part of its path, is a file or not writable.
    """
    existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not existing.is_dir():
        raise FolderError(f"{folder} cannot be made: {existing} is a file; choose another output folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise FolderError(f"{folder} cannot be made: {existing} is not writable; choose another output folder")


class ExperimentFolder:
    """Names and states of the files of one experiment.

    Args:
        path: The folder, or its place in an object store.

    Attributes:
        path: The folder, or the working copy of it on this machine.
        attempt: The number of the attempt that this process works for; ``None``: it only reads.
    """

    def __init__(self, path: str | os.PathLike[str], attempt: int | None = None) -> None:
        self.path = here(path)
        self.attempt = attempt
        self.attempts = self.path / "attempts"
        self.experiment_file = self.path / "experiment.json"
        self.progress = self.path / "progress.json"
        self.trials_file = self.path / "trials.parquet"
        self.history_file = self.path / "history.parquet"
        self.proposals = self.path / "proposals.jsonl"
        self.rungs = self.path / "rungs.jsonl"
        self.population = self.path / "population.jsonl"
        self.parts = self.path / "trials"
        self.bundles = self.parts / "bundles.json"
        self.control = self.parts / "control"
        self.logs = self.path / "logs"
        self.tables = self.path / "tables"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"
        self.tensorboard = self.path / "tensorboard"
        self.optuna_journal = self.path / "optuna.journal"
        self.mlflow = self.path / "mlflow.db"
        self.ray = self.path / "ray"

    def part(self, trial_id: str) -> Path:
        """Return the file of one trial, as far as it came."""
        return self.parts / f"{trial_id}{_PART}"

    def trial_ids(self) -> list[str]:
        """Return the trials that have a file of their own, in order.

        Raises:
            FolderError: nobody may look there.
        """
        names = [child.name for child in _children(self.parts)] if self.parts.exists() else []
        return [name.removesuffix(_PART) for name in names if name.endswith(_PART)]

    def checkpoint(self, trial_id: str) -> Path:
        """Return the file that holds the state of one trial under way."""
        return self.parts / f"{trial_id}.checkpoint"

    def log(self, trial_id: str) -> Path:
        """Return the file of what one trial wrote to its output, and of its traceback."""
        return self.logs / f"{trial_id}.log"

    def last_attempt(self) -> int:
        """Return the number of the latest attempt; 0 if there is none.

        Raises:
            FolderError: the folder cannot be read.
        """
        names = list_names(self.attempts)
        return max((int(name) for name in names if name.isascii() and name.isdigit()), default=0)

    def claim_attempt(self, last: int, number: int | None = None) -> None:
        """Become the only driver of the folder: a compare-and-swap on the number of the attempt.

        The number is a fencing token: earlier drivers and their trials stop, and write nothing from now on.

        Args:
            last: The latest attempt that the caller saw.
            number: The number to claim; by default the next one.

        Raises:
            ConflictError: another process has claimed the folder since.
            FolderError: the folder cannot be written.
        """
        number = last + 1 if number is None else number
        try:
            self.attempts.mkdir(parents=is_remote(uri(self.path)), exist_ok=True)
        except OSError as error:
            raise write_error(self.attempts, error) from error
        is_first = self.last_attempt() == last and number > last
        if not is_first or not create_exclusive(self.attempts / str(number), json.dumps(this_process()) + "\n"):
            raise ConflictError(f"another process resumed {self.path} (attempt {self.last_attempt()}); see its status")
        self.attempt = number
        self.write_control()

    def write_control(self, *, stop: bool = False) -> None:
        """Publish the attempt that may write, and whether its trials are to save their state and stop.

        Raises:
            FolderError: the folder cannot be written, or the disk is full.
        """
        # The file is rewritten in place: NFS shows the new content of a file that is opened again at once, but may
        # deny a new file for half a minute.
        try:
            self.parts.mkdir(exist_ok=True)
            self.control.write_text(f"{self.attempt} {'stop' if stop else 'run'}\n", encoding="utf-8")
            push(self.control)
        except OSError as error:
            raise write_error(self.control, error) from error

    def read_control(self) -> tuple[int | None, bool]:
        """Return the attempt that may write, and whether its trials are to stop.

        The number is ``None`` if there is no such file: the search has ended, or its folder was deleted.

        Raises:
            FolderError: the storage does not answer.
        """
        try:
            pull(self.control)
            number, _, order = self.control.read_text(encoding="utf-8").partition(" ")
        except FileNotFoundError:
            return None, False
        except OSError as error:
            raise FolderError(f"{self.control} cannot be read: {error.strerror or error}; check the storage") from error
        # A reader may open the file while it is rewritten: an empty file orders nothing.
        return (int(number), order.strip() == "stop") if number.isdigit() else (self.attempt, False)

    def is_superseded(self) -> bool:
        """Return whether another attempt may write now, and this one must not.

        Raises:
            FolderError: the storage does not answer.
        """
        return self.attempt is not None and self.read_control()[0] != self.attempt

    def check_attempt(self) -> None:
        """Raise unless the attempt of this process may still write.

        Raises:
            ConflictError: another process has resumed the search, or the folder was deleted.
            FolderError: the storage does not answer.
        """
        if self.is_superseded():
            raise ConflictError(
                f"attempt {self.attempt} of {self.path} was superseded (attempt {self.last_attempt()}), or the folder "
                "was deleted; it writes nothing more"
            )

    @property
    def place(self) -> str:
        """What the folder is called on whatever machine."""
        return uri(self.path)

    @property
    def holds_experiment(self) -> bool:
        """Whether an experiment was begun here.

        Raises:
            FolderError: the folder cannot be read, or no file can have that name.
        """
        return pull(self.experiment_file)

    def check_free(self, name: str, *, overwrite: bool = False) -> None:
        """Refuse a folder that a new experiment must not use; change nothing.

        Args:
            name: The experiment's name.
            overwrite: What an experiment of the same name left here may go.

        Raises:
            FolderError: the folder holds an experiment, holds anything else, or lies where no folder can be made.
        """
        if self.holds_experiment:
            held = self.read()["name"]
            if not overwrite or held != name:
                raise FolderError(f"{self.path} already holds the experiment {held}; choose another output folder")
        elif list_names(self.path):
            raise FolderError(f"{self.path} is not empty and holds no experiment; choose an empty or new output folder")
        check_writable(self.path)

    def claim(self, name: str, *, overwrite: bool = False) -> None:
        """Make the folder, empty, for a new experiment.

        Args:
            name: The experiment's name.
            overwrite: Remove what an experiment of the same name left here.

        Raises:
            FolderError: as ``check_free``, or the folder cannot be written.
        """
        self.check_free(name, overwrite=overwrite)
        for leftover in (self.parts, self.logs, self.tables, self.figures, self.tensorboard, self.ray):
            delete_tree(leftover)
        frames, journals = (self.trials_file, self.history_file), (self.proposals, self.rungs, self.population)
        others = (self.progress, self.report, self.optuna_journal, self.mlflow)
        for file in (*frames, *journals, *others, self.experiment_file):
            delete(file)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(
                f"{self.path} cannot be made: {error.strerror or error}; choose another output folder"
            ) from error

    def read(self) -> dict[str, Any]:
        """Return the contents of experiment.json.

        Raises:
            FolderError: there is none, or it is not readable.
        """
        if not self.holds_experiment:
            raise FolderError(f"{self.path} is no experiment folder: it has no experiment.json")
        try:
            experiment = json.loads(self.experiment_file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FolderError(f"{self.experiment_file} cannot be read: {error}; restore it from a copy") from error
        if not isinstance(experiment, dict) or "name" not in experiment:
            raise FolderError(f"{self.experiment_file} describes no experiment: it has no name; restore it from a copy")
        keys, space = experiment.get("config_keys", []), experiment.get("space") or {}
        if not isinstance(space, dict) or not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise FolderError(f"{self.experiment_file} is damaged: space or config_keys; restore it from a copy")
        return experiment

    def write(self, experiment: Mapping[str, Any]) -> None:
        """Replace experiment.json.

        Raises:
            ConflictError: another attempt may write now.
            FolderError: the folder cannot be written.
        """
        self.check_attempt()
        text = json.dumps(experiment, indent=1, allow_nan=False) + "\n"
        write_atomic(self.experiment_file, lambda path: path.write_text(text, encoding="utf-8"))


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise FolderError(
            f"{folder} cannot be looked into: {error.strerror or error}; choose another folder"
        ) from error


def find_experiments(path: str | os.PathLike[str]) -> list[ExperimentFolder]:
    """Return the experiment folders at ``path`` or below it, in the order of their names.

    Raises:
        FolderError: there is none.
    """
    root = here(path)
    pull_tree(root)

    def walk(folder: Path) -> Iterator[ExperimentFolder]:
        if ExperimentFolder(folder).holds_experiment:
            yield ExperimentFolder(folder)
        elif folder.is_dir():
            for child in _children(folder):
                if child.is_dir() and child.name != "ray":
                    yield from walk(child)

    found = list(walk(root))
    if not found:
        reason = "there is no such folder" if not root.exists() else "no experiment.json in it or below it"
        raise FolderError(f"{uri(root)} is no experiment folder: {reason}")
    return found


def find_one(path: str | os.PathLike[str]) -> ExperimentFolder:
    """Return the experiment folder at ``path``.

    Raises:
        FolderError: there is none, or ``path`` holds several.
    """
    found = find_experiments(path)
    if found[0].path != here(path):
        names = ", ".join(str(one.path.relative_to(here(path))) for one in found)
        raise FolderError(f"{path} is no experiment folder, but holds some ({names}); name one, or use load_all")
    return found[0]


def new_folder(name: str, parent: str | Path = "runs") -> Path:
    """Return ``runs/NAME``, or ``runs/NAME-2`` and so on where that is taken."""
    number = 1
    while True:
        folder = Path(parent) / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            return folder
        number += 1
