"""One experiment's results, again and again while its search runs: only what has changed is read."""

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from tune_hpc.analysis.frames import LazyHistory, read_folder, read_trial_table
from tune_hpc.analysis.results import Results
from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.filesystem import pull_tree

_Stamp = tuple[int, int, int]


class ResultsSnapshot(Results):
    """Results of a search as it stands: histories are put together when they are asked for, and not kept.

    Attributes:
        histories: They.
    """

    histories: LazyHistory

    def __init__(
        self, experiment: Mapping[str, Any], trials: pd.DataFrame, histories: LazyHistory, folder: Path | None = None
    ) -> None:
        for name, value in (
            ("experiment", experiment), ("trials", trials), ("histories", histories), ("folder", folder)
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    @property
    def history(self) -> pd.DataFrame:
        """Long form, one row per trial and step."""
        return self.histories.of()

    @property
    def num_bytes(self) -> int:
        """The memory that it takes, about."""
        return int(self.trials.memory_usage(deep=True).sum()) + self.histories.num_bytes


class ResultsReader:
    """The results of one experiment folder, as they stand.

    Args:
        home: The folder; an experiment was begun in it.

    Attributes:
        version: Changes whenever ``results`` gives something new; 0: nothing was read yet.
    """

    def __init__(self, home: ExperimentFolder) -> None:
        self.home = home
        self.version = 0
        self._stamps: dict[str, _Stamp | None] = {}
        self._results: ResultsSnapshot | None = None
        self._parts: dict[str, tuple[_Stamp, dict[str, Any], pa.Table]] = {}

    def results(self) -> ResultsSnapshot:
        """Return what happened so far; the very same object where nothing has changed.

        Raises:
            FolderError: a file cannot be read.
        """
        stamps = self._look()
        if self._results is None or stamps != self._stamps:
            # What is read may be newer than its stamp, and is then read once more; never older.
            self._stamps = stamps
            try:
                self._results = ResultsSnapshot(*read_folder(self.home, self._read), self.home.path)
            except FolderError:
                self._stamps = {}
                raise
            self.version += 1
            self._parts = {trial_id: held for trial_id, held in self._parts.items() if trial_id in stamps}
        return self._results

    def _look(self) -> dict[str, _Stamp | None]:
        """Return the stamps of all files that tell something: of the frames by path, of parts by trial."""
        pull_tree(self.home.path)
        frames = (self.home.experiment_file, self.home.trials_file, self.home.history_file)
        for path in frames:
            # NFS shows that a file was replaced to those who open it.
            with suppress(OSError):
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        stamps = {str(path): _stamp(path) for path in frames}
        return stamps | {trial_id: _stamp(self.home.part(trial_id)) for trial_id in self.home.trial_ids()}

    def _read(self, trial_id: str) -> tuple[dict[str, Any], pa.Table]:
        stamp = self._stamps.get(trial_id)
        held = self._parts.get(trial_id)
        if held is None or held[0] != stamp:
            row, table = read_trial_table(self.home.part(trial_id))
            if stamp is None:
                return row, table
            held = self._parts[trial_id] = (stamp, row, table)
        return held[1], held[2]


def _stamp(path: Path) -> _Stamp | None:
    """Return what differs once a file was replaced; ``None`` where there is none.

    Raises:
        FolderError: the file is a symbolic link.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise FolderError(f"{path} is a symbolic link or no regular file; a search has none: remove it")
    return status.st_mtime_ns, status.st_size, status.st_ino
