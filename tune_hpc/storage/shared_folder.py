"""Protection of a storage in a folder that other users can reach: its owner, its mode and symbolic links."""

import errno
import os
import stat
from typing import BinaryIO

from tune_hpc.errors import FolderError
from tune_hpc.storage.filesystem import Name, Storage


def check_private(storage: Storage, *, shared: bool = False) -> None:
    """Make the root if it is missing, and raise if other users can write to it.

    A user who can write to a storage can run code as those who resume jobs in it. The rules of a bucket are not
    checked.

    Args:
        storage: The storage.
        shared: Accept a folder that other users can write to.

    Raises:
        FolderError: other users can write to the root, or it cannot be made.
    """
    path = storage.root.absolute()
    if storage.is_remote:
        return
    try:
        path.mkdir(mode=0o777 if shared else 0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise FolderError(f"{path} cannot be made: {error.strerror}; choose another storage") from error
    if not shared and status.st_mode & 0o022:
        raise FolderError(
            f"other users can write to {path} (mode {status.st_mode & 0o777:o}) and run code as you; "
            f"chmod go-w {path}, or use --shared-storage if you trust them"
        )
    if not shared and status.st_uid not in (0, os.geteuid()):
        raise FolderError(
            f"{path} belongs to another user (uid {status.st_uid}), who can run code as you; "
            "choose a storage that you own, or use --shared-storage if you trust them"
        )


def open_no_follow(storage: Storage, name: Name) -> BinaryIO:
    """Open a file for reading, through no symbolic link, the root included.

    Raises:
        FileNotFoundError: the file is missing.
        FolderError: a part of the path is a symbolic link, or the file cannot be read.
    """
    path = storage.local_path(name)
    storage.download(path)
    *folders, base = path.relative_to(storage.root).parts
    folder = -1
    try:
        folder = os.open(storage.root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        for part in folders:
            outer, folder = folder, os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(outer)
        file = os.fdopen(os.open(base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise FolderError(f"{path} is or lies behind a symbolic link; remove the link") from None
        raise FolderError(f"{path} cannot be read: {error.strerror}; check the storage") from error
    finally:
        if folder >= 0:
            os.close(folder)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FolderError(f"{path} is not a regular file; remove it")
    return file
