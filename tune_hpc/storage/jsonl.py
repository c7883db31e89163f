"""Append to and read JSON-lines files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.filesystem import Storage


def append_line(folder: ExperimentFolder, path: Path, line: Mapping[str, Any]) -> None:
    """Append a line to a file of an experiment folder.

    Raises:
        ConflictError: another attempt may write now.
        FolderError: the file cannot be written.
    """
    folder.check_attempt()
    folder.storage.append(path, json.dumps(line, allow_nan=False) + "\n")


def read_lines(path: Path, counter: str, first: int = 0, may_be_absent: bool = False) -> list[dict[str, Any]]:
    """Return all lines; remove an unfinished last line from the file.

    Args:
        path: The file.
        counter: The key that numbers the lines.
        first: The number of the first line.
        may_be_absent: Whether a missing file counts as an empty one.

    Raises:
        FolderError: the file is missing, or damaged before its last line.
    """
    storage = Storage(path.parent)
    if not storage.download(path) and may_be_absent:
        return []
    try:
        *texts, rest = path.read_text(encoding="utf-8").split("\n")
        lines = [json.loads(text) for text in texts]
        if [line[counter] for line in lines] != list(range(first, first + len(lines))):
            raise ValueError(f"its numbers are not {first}, {first + 1}, {first + 2}, ...")
        if rest:
            # The process died during the write, before it acted on this line.
            with path.open("r+", encoding="utf-8") as file:
                file.truncate(sum(len(text.encode()) + 1 for text in texts))
            storage.upload(path)
        return lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{path} cannot be read: {error}; restore it from a copy") from error
