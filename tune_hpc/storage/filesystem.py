"""Files of a local folder or of an S3 bucket, behind one class.

A remote root has a working copy on every machine. The bucket is authoritative: a file is uploaded before it appears in
the working copy, and refreshed before it is read. pyarrow.fs has no conditional PUT, so ``create_exclusive`` on S3 is
atomic only among the processes of one machine.
"""

import errno
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tune_hpc.errors import FolderError
from tune_hpc.storage import s3
from tune_hpc.storage.retries import retry_read, retry_write

#: Errors of a file system that is full.
DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Seconds for which the clock of a storage is cached.
CLOCK_TTL_S = 10.0
_clocks: dict[Path, tuple[float, float]] = {}

#: A name relative to the root, or the path that ``local_path`` returned for one.
Name = str | Path


class FileInfo(NamedTuple):
    """A file in a listing: name relative to the root, size in bytes, modification time in nanoseconds."""

    name: str
    size: int
    mtime_ns: int


class Storage:
    """Files below one root, a local folder or ``s3://bucket/folder``.

    Args:
        root: The folder, its URI, or the working copy of a remote folder.

    Attributes:
        root: The folder, or its working copy on this machine.

    Raises:
        FolderError: the URI is malformed; in every method: the storage does not answer, cannot be read or written.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        text = str(root)
        if not text:
            raise FolderError("the name of a folder is empty")
        parts = PurePosixPath(text.removeprefix(f"{s3.SCHEME}://")).parts
        is_uri = text.startswith(f"{s3.SCHEME}://")
        if "://" in text and (not is_uri or not parts or ".." in parts or parts[0] == "/"):
            raise FolderError(f"a storage is a folder or {s3.SCHEME}://bucket/folder; got {text}")
        self.root = s3.working_copies().joinpath(s3.SCHEME, *parts) if is_uri else Path(root)

    @property
    def uri(self) -> str:
        """Name of the root on every machine."""
        return s3.uri_of(self.root)

    @property
    def is_remote(self) -> bool:
        """True if the root is in a bucket."""
        return s3.key_of(self.root) is not None

    def absolute(self) -> "Storage":
        """Return the same storage with an absolute root."""
        return Storage(self.root.absolute())

    def local_path(self, name: Name) -> Path:
        """Return the path of a file on this machine, for libraries that read and write files themselves."""
        return name if isinstance(name, Path) else self.root / name

    @retry_read
    def exists(self, name: Name) -> bool:
        """Return whether the storage has a file."""
        path = self.local_path(name)
        with _access(path):
            key = s3.key_of(path)
            return path.is_file() if key is None else bool(s3.filesystem().get_file_info(key).is_file)

    @retry_read
    def read_bytes(self, name: Name) -> bytes:
        """Return the contents of a file.

        Raises:
            FileNotFoundError: the file is missing.
        """
        path = self.local_path(name)
        if self.is_remote and not self.download(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), s3.uri_of(path))
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _read_error(path, error) from error

    def read_text(self, name: Name) -> str:
        """Return the contents of a UTF-8 file; raises as ``read_bytes``."""
        return self.read_bytes(name).decode("utf-8")

    def write_atomic(
        self,
        name: Name,
        data: bytes | str | Callable[[Path], object],
        *,
        make_folder: bool = True,
        is_durable: bool = True,
    ) -> None:
        """Write a temporary file and rename it, so that a reader never sees half of it, even after a power failure.

        Args:
            name: The file.
            data: Its contents, or a function that writes them to a path.
            make_folder: Make the folder of the file if it is missing; otherwise a deleted folder stays deleted.
            is_durable: Wait until the file is on the disk, and retry; not useful for a file that is soon rewritten.
        """
        write = self._write_durable if is_durable else self._write_atomic
        write(self.local_path(name), data, make_folder)

    @retry_write
    def _write_durable(self, path: Path, data: bytes | str | Callable[[Path], object], make_folder: bool) -> None:
        self._write_atomic(path, data, make_folder, _sync)

    def _write_atomic(
        self,
        path: Path,
        data: bytes | str | Callable[[Path], object],
        make_folder: bool,
        sync: Callable[[Path], object] = lambda path: None,
    ) -> None:
        temporary = _temporary(path)
        try:
            if make_folder or self.is_remote:
                path.parent.mkdir(parents=True, exist_ok=True)
            if callable(data):
                data(temporary)
            else:
                temporary.write_bytes(data.encode() if isinstance(data, str) else data)
            sync(temporary)
            s3.upload_file(path, temporary)
            os.replace(temporary, path)
            sync(path.parent)
        except OSError as error:
            raise write_error(path, error) from error
        finally:
            _remove(temporary)

    def create_exclusive(self, name: Name, text: str) -> bool:
        """Create a file with its whole content unless it exists: compare-and-swap.

        Returns:
            Whether this call created the file.
        """
        path = self.local_path(name)
        temporary = _temporary(path)
        try:
            if self.is_remote:
                path.parent.mkdir(parents=True, exist_ok=True)
                if self.download(path):
                    return False
            temporary.write_text(text, encoding="utf-8")
            _sync(temporary)
            # A link appears with the whole content, and only one process can make it.
            os.link(temporary, path)
            _sync(path.parent)
            s3.upload_file(path)
        except FileExistsError:
            return False
        except OSError as error:
            raise write_error(path, error) from error
        finally:
            _remove(temporary)
        return True

    def append(self, name: Name, text: str) -> None:
        """Append text to a file."""
        self._write_in_place(name, text, "a")

    @retry_write
    def rewrite(self, name: Name, text: str) -> None:
        """Rewrite a small file in place, for readers on other nodes that poll it.

        NFS shows the new content of an existing file at once, but may hide a renamed file for half a minute.
        """
        self._write_in_place(name, text, "w")

    def _write_in_place(self, name: Name, text: str, mode: str) -> None:
        path = self.local_path(name)
        try:
            with path.open(mode, encoding="utf-8") as file:
                file.write(text)
            if mode == "a":
                _sync(path)
            s3.upload_file(path)
        except OSError as error:
            raise write_error(path, error) from error

    @retry_write
    def make_folder(self, name: Name = "") -> None:
        """Make a folder in an existing one."""
        path = self.local_path(name)
        try:
            path.mkdir(parents=self.is_remote, exist_ok=True)
        except OSError as error:
            raise write_error(path, error) from error

    @retry_read
    def list_names(self, prefix: Name = "") -> list[str]:
        """Return the sorted names of all files and folders directly in a folder."""
        folder = self.local_path(prefix)
        with _access(folder):
            if (key := s3.key_of(folder)) is not None:
                return sorted(info.base_name for info in s3.list_infos(key, recursive=False))
            return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    @retry_read
    def list_files(self, prefix: Name = "") -> list[FileInfo]:
        """Return all files below a folder, in the order of their names; one request on S3."""
        folder = self.local_path(prefix)
        key = s3.key_of(folder)
        with _access(folder):
            if key is not None:
                found = [(s3.working_copy(info.path), info.size, info.mtime_ns) for info in s3.list_infos(key)]
            else:
                paths = [path for path in folder.rglob("*") if path.is_file()]
                found = [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        return sorted(FileInfo(path.relative_to(self.root).as_posix(), *details) for path, *details in found)

    @retry_write
    def delete(self, name: Name) -> None:
        """Delete a file if it exists."""
        path = self.local_path(name)
        with _access(path):
            s3.delete_file(path)
            path.unlink(missing_ok=True)

    @retry_write
    def delete_tree(self, prefix: Name = "") -> None:
        """Delete a folder and everything below it, if it exists."""
        folder = self.local_path(prefix)
        with _access(folder):
            s3.delete_folder(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def upload(self, name: Name) -> None:
        """Publish a file that was written to its local path; no effect on a local root.

        Raises:
            OSError: the bucket rejects the file.
        """
        s3.upload_file(self.local_path(name))

    @retry_read
    def download(self, name: Name) -> bool:
        """Refresh the working copy of a file, and return whether the storage has the file."""
        path = self.local_path(name)
        with _access(path):
            key = s3.key_of(path)
            return path.is_file() if key is None else s3.download_file(path, key)

    @retry_read
    def download_tree(self, prefix: Name = "") -> None:
        """Refresh the working copies of all files below a folder; no effect on a local root."""
        folder = self.local_path(prefix)
        with _access(folder):
            s3.download_folder(folder)

    def check_writable(self) -> None:
        """Raise unless the root can be made and written; change nothing.

        Raises:
            FolderError: the root or a part of its path is a file or not writable.
        """
        existing = next(path for path in (self.root, *self.root.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise FolderError(f"{self.root} cannot be made: {existing} is a file; choose another output folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise FolderError(f"{self.root} cannot be made: {existing} is not writable; choose another output folder")

    def age_s(self, name: Name) -> float:
        """Return the seconds since a file was written, by the clock of the storage alone.

        The result is infinite for a file of the future, written before the clock was set back.
        """
        path = self.local_path(name)
        try:
            self.download(path)
            written = _mtime(path)
        except OSError as error:
            raise FolderError(f"{path} cannot be read: {error.strerror or error}; check the storage") from error
        age = self._time() - written
        return max(0.0, age) if age > -CLOCK_TTL_S else math.inf

    def _time(self) -> float:
        """Return the time of the storage: the modification time of a file that is written now.

        Clocks of two machines may differ by hours, but one clock stamps all heartbeats of a storage. This machine's
        clock is the fallback for a storage that this process cannot write.
        """
        read_at, now = _clocks.get(self.root, (-CLOCK_TTL_S, 0.0))
        if time.monotonic() - read_at >= CLOCK_TTL_S:
            try:
                self.write_atomic(".clock", "\n", make_folder=False, is_durable=False)
                self.download(".clock")
                now = _mtime(self.root / ".clock")
            except OSError:
                now = time.time()
            read_at = time.monotonic()
            _clocks[self.root] = read_at, now
        return now + time.monotonic() - read_at


def write_error(path: Path, error: OSError) -> FolderError:
    """Return the error of a file or folder that cannot be written."""
    remedy = "make room there" if error.errno in DISK_FULL_ERRNOS else "choose another folder"
    return FolderError(f"{s3.uri_of(path)} cannot be written: {error.strerror or error}; {remedy}")


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; some file systems cannot sync folders."""
    file = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(file)
    finally:
        os.close(file)


def _mtime(path: Path) -> float:
    """Return the modification time of a file; NFS reports the current one only for an open file."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.fstat(file).st_mtime
    finally:
        os.close(file)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def _remove(temporary: Path) -> None:
    # The error that prevented the write is the one to report.
    with suppress(OSError):
        temporary.unlink(missing_ok=True)


def _read_error(path: Path, error: OSError) -> FolderError:
    if s3.key_of(path) is None:
        return FolderError(f"{path} cannot be read: {error.strerror or error}; choose another folder")
    reason = " ".join(str(error).split())[:200]
    return FolderError(f"{s3.uri_of(path)} does not answer ({reason}); check the bucket and the credentials")


@contextmanager
def _access(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _read_error(path, error) from error
