"""One experiment's results, again and again while its search runs: only what has changed is read."""

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from tune_hpc.analysis.folder import ExperimentFolder
from tune_hpc.analysis.results import Results, load_folder, read_part_table
from tune_hpc.errors import FolderError

#: A part that has gone between a listing and its reading has gone into the frames: look again, so many times.
_LOOKS = 4
_PAUSE_S = 0.05

_Stamp = tuple[int, int, int]


class Following:
    """The results of one experiment folder, as they stand.

    Args:
        home: The folder; an experiment was begun in it.

    Attributes:
        version: Changes whenever ``results`` gives something new; 0: nothing was read yet.
    """

    def __init__(self, home: ExperimentFolder) -> None:
        self.home = home
        self.version = 0
        self._state: dict[Path, _Stamp | None] = {}
        self._results: Results | None = None
        self._tables: dict[Path, tuple[_Stamp, dict[str, Any], pa.Table]] = {}

    @property
    def num_bytes(self) -> int:
        """The memory that it holds, about."""
        if self._results is None:
            return 0
        frames = sum(int(df.memory_usage(deep=True).sum()) for df in (self._results.trials, self._results.history))
        return frames + sum(table.nbytes for _, _, table in self._tables.values())

    def results(self) -> Results:
        """Return what happened so far; the very same object where nothing has changed.

        Raises:
            FolderError: a file cannot be read.
        """
        state = self._look()
        if self._results is None or state != self._state:
            self._results = self._load()
            self._state = state
            self.version += 1
            self._tables = {part: held for part, held in self._tables.items() if part in state}
        return self._results

    def _look(self) -> dict[Path, _Stamp | None]:
        frames = (self.home.experiment_file, self.home.trials_file, self.home.history_file)
        return {path: _stamp(path) for path in (*frames, *sorted(self.home.parts.glob("*.parquet")))}

    def _load(self) -> Results:
        for look in range(_LOOKS):
            try:
                return load_folder(self.home, self._read)
            except FolderError:
                if look == _LOOKS - 1:
                    raise
                time.sleep(_PAUSE_S)
        raise AssertionError("it returns or raises")

    def _read(self, part: Path) -> tuple[dict[str, Any], pa.Table]:
        stamp = _stamp(part)
        held = self._tables.get(part)
        if held is None or held[0] != stamp:
            row, table = read_part_table(part)
            if stamp is None:
                return row, table
            held = self._tables[part] = (stamp, row, table)
        return held[1], held[2]


def _stamp(path: Path) -> _Stamp | None:
    """Return what differs once a file was replaced; ``None`` where there is none."""
    try:
        told = os.stat(path)
    except FileNotFoundError:
        return None
    return told.st_mtime_ns, told.st_size, told.st_ino
