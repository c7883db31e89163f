"""Access to a storage: who may write to it, its clock, and files that are read without following symbolic links."""

import errno
import math
import os
import stat
import time
from pathlib import Path
from typing import BinaryIO

from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import write_atomic
from tune_hpc.storage.filesystem import here, is_remote, pull, uri

#: Seconds for which the clock of a storage is not read again.
CLOCK_LASTS_S = 10.0
_clocks: dict[Path, tuple[float, float]] = {}


def check_storage(storage: str | Path, *, shared: bool = False) -> Path:
    """Make a storage if it is missing, and refuse one that other users can write to.

    A user who can write to a storage runs code with the rights of those who resume jobs in it.

    Args:
        storage: A folder, or ``s3://bucket/folder``, whose access rules are the bucket's.
        shared: Accept a folder that other users can write to.

    Returns:
        Its absolute path, or that of its working copy.

    Raises:
        FolderError: other users can write to it, or it cannot be made.
    """
    path = here(storage).absolute()
    if is_remote(uri(path)):
        return path
    try:
        path.mkdir(mode=0o777 if shared else 0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise FolderError(f"{path} cannot be made: {error.strerror}; choose another storage") from error
    if not shared and status.st_mode & 0o022:
        raise FolderError(
            f"other users can write to {path} (mode {status.st_mode & 0o777:o}), and those who can run code as you; "
            f"chmod go-w {path}, or use --shared-storage if you trust them"
        )
    if not shared and status.st_uid not in (0, os.geteuid()):
        raise FolderError(
            f"{path} belongs to another user (uid {status.st_uid}), who can run code as you; choose a storage of your "
            "own, or use --shared-storage if you trust them"
        )
    return path


def open_inside(root: Path, path: Path) -> BinaryIO:
    """Open a file below a folder for reading, through no symbolic link, the folder itself included.

    Raises:
        FileNotFoundError: there is no such file.
        FolderError: a part of the path is a symbolic link, or the file cannot be read.
    """
    pull(path)
    *folders, name = path.relative_to(root).parts
    folder = -1
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        for part in folders:
            outer, folder = folder, os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(outer)
        file = os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise FolderError(f"{path} is or lies behind a symbolic link; a job has none: remove it") from None
        raise FolderError(f"{path} cannot be read: {error.strerror}; check the storage") from error
    finally:
        if folder >= 0:
            os.close(folder)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FolderError(f"{path} is not a regular file; remove it")
    return file


def age_s(path: Path, storage: Path) -> float:
    """Return the seconds since a file of a storage was written, by the clock of the storage alone.

    A file of the future, of before the clock was set back, is infinitely old: nothing is known of it.

    Raises:
        FolderError: the file cannot be read.
    """
    try:
        pull(path)
        written = _written_at(path)
    except OSError as error:
        raise FolderError(f"{path} cannot be read: {error.strerror or error}; check the storage") from error
    age = _storage_time(storage) - written
    return max(0.0, age) if age > -CLOCK_LASTS_S else math.inf


def _written_at(path: Path) -> float:
    """Return the modification time of a file; NFS tells the present one only of a file that is opened."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.fstat(file).st_mtime
    finally:
        os.close(file)


def _storage_time(storage: Path) -> float:
    """Return the time of a storage: the modification time of a file that is written now.

    Clocks of two machines may differ by hours; heartbeats are compared by the one clock that stamps all of them. A
    storage that this process cannot write to is taken to have this machine's clock.
    """
    read_at, moment = _clocks.get(storage, (-CLOCK_LASTS_S, 0.0))
    if time.monotonic() - read_at >= CLOCK_LASTS_S:
        path = storage / ".clock"
        try:
            write_atomic(path, lambda temporary: temporary.write_text("\n", encoding="utf-8"), make_folder=False)
            pull(path)
            moment = _written_at(path)
        except OSError:
            moment = time.time()
        read_at = time.monotonic()
        _clocks[storage] = read_at, moment
    return moment + time.monotonic() - read_at
