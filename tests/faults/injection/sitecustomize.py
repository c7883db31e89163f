"""Faults of a storage inside a process: calls on files below a folder fail for a while.

Each Python process whose path has this folder reads the file that ``FAULT_FILE`` names: an error number (0: calls are
slow instead), and the folder. Without the file nothing fails.
"""

import builtins
import os
import time

_FILE = os.environ.get("FAULT_FILE", "")


def _check(path):
    try:
        descriptor = _open(_FILE, os.O_RDONLY)
        try:
            number, folder = os.read(descriptor, 4096).decode().split(" ", 1)
        finally:
            os.close(descriptor)
    except (OSError, ValueError):
        return
    if isinstance(path, int) or not os.fspath(path).startswith(folder):
        return
    if int(number):
        raise OSError(int(number), os.strerror(int(number)), os.fspath(path))
    time.sleep(0.2)


def _failing(function, position=0):
    def call(*args, **options):
        if args and not isinstance(args[position], bytes):
            _check(args[position])
        return function(*args, **options)

    return call


if _FILE:
    _open = os.open
    os.open = _failing(os.open)
    os.replace = _failing(os.replace, 1)
    os.link = _failing(os.link, 1)
    builtins.open = _failing(builtins.open)
    import io

    io.open = builtins.open
