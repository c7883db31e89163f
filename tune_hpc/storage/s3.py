"""Files of S3 buckets and their working copies on this machine.

A path below ``working_copies()`` denotes the file of a bucket. pyarrow.fs reaches the bucket with the credentials, the
region and the endpoint of the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` and so on).
"""

import os
import shutil
import tempfile
import threading
import time
import zlib
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from tune_hpc.errors import FolderError

SCHEME = "s3"
#: Age in seconds from which the second in a listing identifies a version, whatever the difference of the clocks.
_SETTLED_S = 1000.0
#: Suffixes of files that only grow: the longer version is the newer one.
_APPENDED = (".log", ".jsonl")


@cache
def working_copies() -> Path:
    """Return the folder of this user's working copies on this machine.

    Raises:
        FolderError: the folder belongs to another user.
    """
    folder = Path(tempfile.gettempdir()) / f"tune_hpc-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise FolderError(f"{folder} belongs to another user; set TMPDIR to a folder that you own")
    return folder / "copies"


def working_copy(key: str) -> Path:
    """Return the working copy of a file: bucket and key."""
    return working_copies() / SCHEME / key


def key_of(path: Path) -> str | None:
    """Return bucket and key of a path in the working copies; ``None`` for any other path."""
    copies, text = f"{working_copies()}/{SCHEME}/", str(path)
    return text.removeprefix(copies) if text.startswith(copies) else None


def uri_of(path: Path) -> str:
    """Return the name of a path on every machine."""
    key = key_of(path)
    return str(path) if key is None else f"{SCHEME}://{key}"


@cache
def filesystem() -> Any:
    """Return the client of the store that the environment names."""
    from pyarrow.fs import S3FileSystem

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    scheme, _, host = (endpoint or "").rpartition("://")
    return S3FileSystem(
        endpoint_override=host or None, scheme=scheme or None, region=os.environ.get("AWS_REGION"),
        connect_timeout=10, request_timeout=60, allow_delayed_open=True,
    )  # fmt: skip


def list_infos(key: str, *, recursive: bool = True) -> list[Any]:
    """Return the files below a key; without ``recursive`` the files and folders directly in it."""
    from pyarrow.fs import FileSelector

    found = filesystem().get_file_info(FileSelector(key, recursive=recursive, allow_not_found=True))
    return [info for info in found if info.is_file or not recursive]


def delete_file(path: Path) -> None:
    """Delete the remote file of a working copy, if it exists."""
    key = key_of(path)
    if key is not None and filesystem().get_file_info(key).is_file:
        filesystem().delete_file(key)


def delete_folder(folder: Path) -> None:
    """Delete the remote folder of a working copy, if it exists."""
    key = key_of(folder)
    if key is not None and list_infos(key, recursive=False):
        filesystem().delete_dir(key)


def download_folder(folder: Path) -> None:
    """Refresh the working copies of all files below a folder."""
    if (key := key_of(folder)) is not None:
        for info in list_infos(key):
            if not _is_surely_current(working_copy(info.path), info):
                download_file(working_copy(info.path), info.path)


def upload_file(path: Path, source: Path | None = None) -> None:
    """Upload a working copy, from another path if ``source`` is given."""
    if (key := key_of(path)) is not None:
        with (source or path).open("rb") as file, filesystem().open_output_stream(key) as remote:
            shutil.copyfileobj(file, remote, 1 << 20)


def download_file(path: Path, key: str) -> bool:
    """Refresh a working copy if it differs; return whether the bucket has the file."""
    try:
        with filesystem().open_input_file(key) as remote:
            size, version = remote.size(), _version(remote.metadata())
            if _is_current(path, size, version):
                return True
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
            try:
                with temporary.open("wb") as file:
                    shutil.copyfileobj(remote, file, 1 << 20)
                os.utime(temporary, ns=(version, version))
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
    except FileNotFoundError:
        return False
    return True


def _is_current(path: Path, size: int, version: int) -> bool:
    if not path.is_file():
        return False
    local = path.stat()
    is_longer = path.suffix in _APPENDED and local.st_size >= size
    return is_longer or (local.st_size, local.st_mtime_ns) == (size, version)


def _is_surely_current(path: Path, info: Any) -> bool:
    """Return whether a working copy is the version in a listing, which knows the second only."""
    try:
        local, mtime = path.stat(), int(info.mtime.timestamp())
    except FileNotFoundError:
        return False
    return abs(time.time() - mtime) > _SETTLED_S and (local.st_size, int(local.st_mtime)) == (info.size, mtime)


def _version(metadata: Mapping[str, bytes]) -> int:
    """Return the modification time of a working copy: the second of the upload, and nanoseconds from the ETag.

    S3 knows the second only, and a file may be written several times within one.
    """
    written = datetime.fromisoformat(metadata["Last-Modified"].decode())
    return int(written.timestamp()) * 10**9 + zlib.crc32(metadata["ETag"]) % 10**9
