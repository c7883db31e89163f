"""Experiment folders in an object store (``s3://bucket/folder``), each with a working copy on every machine.

The store is the truth, and what is here is a copy of what is there: a file is put there before it appears here, and is
asked for again before it is read, so that whoever works on a search sees what the others wrote. Code that knows paths
need know no more than that: a path below ``copies()`` is a copy, and every other path is just a file, for which all of
this does nothing.

The store is reached by pyarrow, with the credentials, the region and the endpoint that the environment gives
(``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` and so on) on every machine that works on the search.
"""

import os
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from tune_hpc.errors import FolderError

SCHEME = "s3"
#: What was written so many seconds ago is not written again in the same second, whatever clocks say.
_SETTLED_S = 1000.0
#: Files that only grow: the longer one is the newer one.
_GROWING = (".log", ".jsonl")


@cache
def cache_dir() -> Path:
    """Return the folder of all working copies of this user on this machine.

    Raises:
        FolderError: it is another user's.
    """
    folder = Path(tempfile.gettempdir()) / f"tune_hpc-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise FolderError(f"{folder} belongs to somebody else; set TMPDIR to a folder of your own")
    return folder / "copies"


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Whether a place is in an object store."""
    return str(place).startswith(f"{SCHEME}://")


def here(place: str | os.PathLike[str]) -> Path:
    """Return the path of a place: itself, or that of its working copy.

    Raises:
        FolderError: a place in a store without a bucket, or one that leads out of it.
    """
    if not is_remote(place):
        if "://" in str(place):
            raise FolderError(f"a storage is a folder or {SCHEME}://bucket/folder; got {place}")
        return Path(place)
    parts = PurePosixPath(str(place).removeprefix(f"{SCHEME}://")).parts
    if not parts or ".." in parts or parts[0] == "/":
        raise FolderError(f"a place in an object store reads {SCHEME}://bucket/folder; got {place}")
    return cache_dir().joinpath(SCHEME, *parts)


def uri(path: Path) -> str:
    """Return the place of a path: what everybody calls it, on whatever machine."""
    key = _key(path)
    return str(path) if key is None else f"{SCHEME}://{key}"


def push(path: Path, source: Path | None = None) -> None:
    """Put a file into the store.

    Args:
        path: Whose copy it is.
        source: Where the contents are; by default there.

    Raises:
        OSError: the store does not take it.
    """
    key = _key(path)
    if key is None:
        return
    with (source or path).open("rb") as file, _store().open_output_stream(key) as there:
        shutil.copyfileobj(file, there, 1 << 20)


def pull(path: Path) -> bool:
    """Make a copy what the store holds, and say whether it holds the file.

    Raises:
        FolderError: the storage does not answer.
    """
    key = _key(path)
    with _told(path):
        return path.is_file() if key is None else _fetch(path, key)


def pull_tree(folder: Path) -> None:
    """Make the copies of all files below a folder what the store holds.

    Raises:
        FolderError: the store does not answer.
    """
    key = _key(folder)
    if key is None:
        return
    from pyarrow.fs import FileSelector

    with _told(folder):
        for info in _store().get_file_info(FileSelector(key, recursive=True, allow_not_found=True)):
            path = cache_dir() / SCHEME / info.path
            if info.is_file and not _is_surely_same(path, info):
                _fetch(path, info.path)


def list_names(folder: Path) -> list[str]:
    """Return the names of all that is in a folder.

    Raises:
        FolderError: the store does not answer, or the folder cannot be looked into.
    """
    key = _key(folder)
    with _told(folder):
        if key is None:
            return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        from pyarrow.fs import FileSelector

        return sorted(info.base_name for info in _store().get_file_info(FileSelector(key, allow_not_found=True)))


def list_versions(folder: Path) -> list[tuple[str, int, int]]:
    """Return name, size and modification time (ns) of every file below a folder of an object store, in one request.

    Raises:
        FolderError: the store does not answer.
    """
    from pyarrow.fs import FileSelector

    with _told(folder):
        found = _store().get_file_info(FileSelector(_key(folder), recursive=True, allow_not_found=True))
        return sorted((info.path, info.size, info.mtime_ns) for info in found if info.is_file)


def delete(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        FolderError: the store does not answer.
    """
    key = _key(path)
    if key is not None:
        with _told(path):
            if _store().get_file_info(key).is_file:
                _store().delete_file(key)
    path.unlink(missing_ok=True)


def delete_tree(folder: Path) -> None:
    """Remove a folder with all that is in it, if it is there.

    Raises:
        FolderError: the store does not answer.
    """
    key = _key(folder)
    if key is not None:
        from pyarrow.fs import FileType

        with _told(folder):
            if _store().get_file_info(key).type is FileType.Directory:
                _store().delete_dir(key)
    shutil.rmtree(folder, ignore_errors=True)


def _fetch(path: Path, key: str) -> bool:
    """Make a copy what the store holds, if it is not; whether the store holds it."""
    try:
        with _store().open_input_file(key) as there:
            size, version = there.size(), _version(there.metadata())
            if path.is_file() and _is_same(path, size, version):
                return True
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
            try:
                with temporary.open("wb") as file:
                    shutil.copyfileobj(there, file, 1 << 20)
                os.utime(temporary, ns=(version, version))
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except FileNotFoundError:
        return False
    return True


def _is_same(path: Path, size: int, version: int) -> bool:
    mine = path.stat()
    if path.suffix in _GROWING and mine.st_size >= size:
        return True
    return (mine.st_size, mine.st_mtime_ns) == (size, version)


def _is_surely_same(path: Path, info: Any) -> bool:
    """Whether a copy is what a list tells of: a list knows the second, so what is new has to be asked for by itself."""
    try:
        mine = path.stat()
    except FileNotFoundError:
        return False
    is_settled = abs(time.time() - info.mtime.timestamp()) > _SETTLED_S
    return is_settled and (mine.st_size, int(mine.st_mtime)) == (info.size, int(info.mtime.timestamp()))


def _version(metadata: Mapping[str, bytes]) -> int:
    """Return the time that a copy is given: the second when the file was written, and nanoseconds that tell which one.

    A store tells the second only, and within one second a file may be written several times.
    """
    written = datetime.fromisoformat(metadata["Last-Modified"].decode())
    return int(written.timestamp()) * 10**9 + zlib.crc32(metadata["ETag"]) % 10**9


def _key(path: Path) -> str | None:
    """Return what the store calls a path; ``None`` where it is just a file."""
    root = f"{cache_dir()}/{SCHEME}/"
    text = str(path)
    return text.removeprefix(root) if text.startswith(root) else None


@cache
def _store() -> Any:
    from pyarrow.fs import S3FileSystem

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    scheme, _, host = (endpoint or "").rpartition("://")
    return S3FileSystem(
        endpoint_override=host or None, scheme=scheme or None, region=os.environ.get("AWS_REGION"),
        connect_timeout=10, request_timeout=60, allow_delayed_open=True,
    )  # fmt: skip


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if _key(path) is None:
            raise FolderError(f"{path} cannot be read: {error.strerror or error}; choose another folder") from error
        reason = " ".join(str(error).split())[:200]
        raise FolderError(f"{uri(path)} does not answer ({reason}); check the bucket and the credentials") from error
