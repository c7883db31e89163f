"""Files of JSON lines that grow while a search runs, and tell it what it had decided when it goes on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.filesystem import pull, push


def append_line(folder: ExperimentFolder, path: Path, line: Mapping[str, Any]) -> None:
    """Append a line to a file of an experiment folder.

    Raises:
        ConflictError: another attempt may write now.
    """
    folder.check_attempt()
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")
    push(path)


def read_lines(path: Path, counter: str, first: int = 0, may_be_absent: bool = False) -> list[dict[str, Any]]:
    """Return all lines; what is left of one that was never finished is cut off.

    Args:
        path: The file.
        counter: The entry that numbers the lines.
        first: The first line's number.
        may_be_absent: Whether there may be no such file: then there are no lines.

    Raises:
        FolderError: the file is missing, or damaged elsewhere than in a last line that was never finished.
    """
    if not pull(path) and may_be_absent:
        return []
    try:
        *texts, rest = path.read_text(encoding="utf-8").split("\n")
        lines = [json.loads(text) for text in texts]
        if [line[counter] for line in lines] != list(range(first, first + len(lines))):
            raise ValueError(f"its numbers are not {first}, {first + 1}, {first + 2}, ...")
        if rest:
            # The process died while it wrote; nothing that this line tells of had begun.
            with path.open("r+", encoding="utf-8") as file:
                file.truncate(sum(len(text.encode()) + 1 for text in texts))
            push(path)
        return lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FolderError(f"{path} cannot be read: {error}; restore it from a copy") from error
