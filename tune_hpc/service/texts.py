"""The ends of logs."""

import os
from pathlib import Path


def tail(path: Path, most: int) -> str | None:
    """Return the end of a text file from the beginning of a line; ``None`` where there is no such file.

    Args:
        path: The file.
        most: How many bytes at most.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most))
            data = file.read(most)
    except FileNotFoundError:
        return None
    if size > most and b"\n" in data:
        data = data.partition(b"\n")[2]
    return data.decode("utf-8", errors="replace")
