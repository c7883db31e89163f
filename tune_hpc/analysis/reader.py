"""Incremental reader of an experiment folder while its search runs: only changed files are read."""

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from tune_hpc.analysis.frames import LazyHistory, read_folder, read_trial_table
from tune_hpc.analysis.results import Results
from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder

#: Modification time in nanoseconds, size and inode of a file.
_Stamp = tuple[int, int, int]


class ResultsSnapshot(Results):
    """Results of a search at one moment; the history is concatenated on request and not cached."""

    histories: LazyHistory

    def __init__(
        self, experiment: Mapping[str, Any], trials: pd.DataFrame, histories: LazyHistory, folder: Path | None = None
    ) -> None:
        self.__dict__.update(experiment=experiment, trials=trials, histories=histories, folder=folder)

    @property
    def history(self) -> pd.DataFrame:
        """Long form, one row per trial and step."""
        return self.histories.frame()

    @cached_property
    def num_bytes(self) -> int:
        """Approximate memory in bytes."""
        return int(self.trials.memory_usage(deep=True).sum()) + self.histories.num_bytes


class ResultsReader:
    """Reader of the current results of one experiment folder.

    Attributes:
        version: Increases when ``results`` returns something new; 0 before the first call.
    """

    def __init__(self, folder: ExperimentFolder) -> None:
        self.folder = folder
        self.version = 0
        self._stamps: dict[str, _Stamp | None] = {}
        self._results: ResultsSnapshot | None = None
        self._trials: dict[str, tuple[_Stamp, dict[str, Any], pa.Table]] = {}

    def results(self) -> ResultsSnapshot:
        """Return the current results; the same object if no file has changed."""
        stamps = self._read_stamps()
        if self._results is None or stamps != self._stamps:
            # A file that changes after its stamp was taken is read again by the next call.
            self._stamps = stamps
            try:
                self._results = ResultsSnapshot(*read_folder(self.folder, self._read_trial), self.folder.path)
            except FolderError:
                self._stamps = {}
                raise
            self.version += 1
            self._trials = {trial_id: cached for trial_id, cached in self._trials.items() if trial_id in stamps}
        return self._results

    def _read_stamps(self) -> dict[str, _Stamp | None]:
        """Return the stamps of experiment.json and the frames by path, and of trial files by trial."""
        folder = self.folder
        folder.storage.download_tree()
        paths = (folder.experiment_file, folder.trials_file, folder.history_file)
        for path in paths:
            # NFS revalidates its cached attributes when a file is opened.
            with suppress(OSError):
                os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        stamps = {str(path): _stamp(path) for path in paths}
        return stamps | {trial_id: _stamp(folder.trial_file(trial_id)) for trial_id in folder.trial_ids()}

    def _read_trial(self, trial_id: str) -> tuple[dict[str, Any], pa.Table]:
        stamp = self._stamps.get(trial_id)
        cached = self._trials.get(trial_id)
        if cached is None or cached[0] != stamp:
            row, table = read_trial_table(self.folder.trial_file(trial_id))
            if stamp is None:
                return row, table
            cached = self._trials[trial_id] = (stamp, row, table)
        return cached[1], cached[2]


def _stamp(path: Path) -> _Stamp | None:
    """Return the stamp of a file; ``None`` if it is missing."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise FolderError(f"{path} is a symbolic link or no regular file; a search writes none: remove it")
    return status.st_mtime_ns, status.st_size, status.st_ino
