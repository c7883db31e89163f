"""Retries of storage calls during a search: an outage of seconds must not end a search of a night.

Inside ``retries``, a call that the storage rejects is repeated until it succeeds, or reads (or writes) have failed for
``RETRY_S``. After that, each fails at once until one succeeds. Outside, for example on the command line, every call
fails at once.
"""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from tune_hpc.errors import FolderError

#: Seconds for which a call is repeated.
RETRY_S = 10.0
#: Seconds between two attempts.
PAUSE_S = 0.2

#: Errors that another attempt would repeat.
_PERMANENT = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)

_Method = TypeVar("_Method", bound=Callable[..., Any])
_num_blocks = 0
_failing_since: dict[str, float] = {}


@contextmanager
def retries() -> Iterator[None]:
    """Repeat storage calls that fail, in all threads of this process, inside the block."""
    global _num_blocks
    _num_blocks += 1
    try:
        yield
    finally:
        _num_blocks -= 1


def retry_read(method: _Method) -> _Method:
    """Decorate a method that reads, and raises ``FolderError`` from an ``OSError`` if the storage fails."""
    return _decorate(method, "read")


def retry_write(method: _Method) -> _Method:
    """Decorate a method that writes, and may be repeated after it has done a part of its work."""
    return _decorate(method, "write")


def _decorate(method: _Method, kind: str) -> _Method:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        while True:
            try:
                result = method(*args, **kwargs)
            except FolderError as error:
                if (
                    not _num_blocks
                    or not isinstance(error.__cause__, OSError)
                    or isinstance(error.__cause__, _PERMANENT)
                ):
                    raise
                if time.monotonic() - _failing_since.setdefault(kind, time.monotonic()) > RETRY_S:
                    raise
                time.sleep(PAUSE_S)
            else:
                _failing_since.pop(kind, None)
                return result

    return cast(_Method, call)
