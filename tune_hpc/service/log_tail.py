"""Tail of a log file."""

import os
from pathlib import Path

from tune_hpc.jobs.job_folder import JobFolder


def read_tail(job: JobFolder, path: Path, max_bytes: int) -> str:
    """Return the end of a text file of a job from the beginning of a line; empty if there is no such file.

    Raises:
        FolderError: the file cannot be read, or lies behind a symbolic link.
    """
    try:
        with job.open(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            data = file.read(max_bytes)
    except FileNotFoundError:
        return ""
    if size > max_bytes and b"\n" in data:
        data = data.partition(b"\n")[2]
    return data.decode("utf-8", errors="replace")
