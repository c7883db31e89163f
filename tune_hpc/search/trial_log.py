"""Log of a trial: its output, with that of subprocesses and C libraries, in one file."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from typing import TextIO

from tune_hpc.storage.filesystem import Storage

#: File descriptors of standard output and standard error.
_DESCRIPTORS = (1, 2)


@contextmanager
def redirect_output(path: Path) -> Iterator[None]:
    """Append the output inside the block to a file: that of Python, of subprocesses and of C libraries.

    The file descriptors 1 and 2 refer to the file. A log handler of a trainable outlives its trial and retains its
    stream, so that ``sys.stdout`` and ``sys.stderr`` are the same objects in all blocks of a process.
    """
    storage = Storage(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.download(path)
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        # A disk that is full for a while must not end a trial whose final file is due much later.
        print(f"the trial has no log: {error}", file=sys.stderr)
        yield
        return
    _flush_output()
    previous = [os.dup(descriptor) for descriptor in _DESCRIPTORS]
    for descriptor in _DESCRIPTORS:
        os.dup2(log, descriptor)
    os.close(log)
    try:
        with redirect_stdout(_stream(1)), redirect_stderr(_stream(2)):
            yield
    finally:
        _flush_output()
        for descriptor, copy in zip(_DESCRIPTORS, previous, strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        # A log that cannot be uploaded does not fail its trial.
        with suppress(OSError):
            if path.stat().st_size:
                storage.upload(path)
            else:
                path.unlink()


@cache
def _stream(descriptor: int) -> TextIO:
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _flush_output() -> None:
    """Write the buffers of Python and of the C library to the file descriptors."""
    for descriptor in _DESCRIPTORS:
        _stream(descriptor).flush()
    ctypes.CDLL(None).fflush(None)
