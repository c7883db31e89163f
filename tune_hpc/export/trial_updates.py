"""Incremental reader of an experiment folder, during a search and after it.

Each trial writes a file when it ends and, at intervals, before. At the end of the search these files are merged into
the two frames. The reader reads only files that have changed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from tune_hpc.analysis.frames import read_frames
from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.process import may_be_running

#: Row of a trial without missing values, and its history.
Update = tuple[dict[str, Any], pd.DataFrame]


class TrialUpdates:
    """Trials of an experiment folder that have changed since the last call.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: ExperimentFolder) -> None:
        self.folder = folder
        self._ended: set[str] = set()
        self._versions: dict[Path, tuple[int, int] | None] = {}

    def is_search_running(self) -> bool:
        """Return whether a process still runs the search."""
        description = self.folder.read()
        return description.get("state") == "running" and may_be_running(description.get("process"))

    def trials(self) -> Iterator[Update]:
        """Yield each trial that has ended or reported more since the last call."""
        current = set()
        for trial_id in self.folder.trial_ids():
            file = self.folder.trial_file(trial_id)
            if trial_id not in self._ended and self._has_changed(file):
                try:
                    row, history = self.folder.read_trial(trial_id)
                except FolderError:
                    if file.exists():
                        raise
                    continue
                yield self._update(row, history)
            # A file that is missing by now has been merged into the frames.
            if self._versions.get(file):
                current.add(trial_id)
        # The history is the last file of a search: once it is new, both frames are.
        if self._has_changed(self.folder.history_file):
            trials, history = read_frames(self.folder)
            histories = dict(iter(history.groupby("trial_id", observed=True)))
            for values in trials.astype(object).where(trials.notna(), None).to_dict("records"):
                row = {str(name): value for name, value in values.items()}
                if row["trial_id"] not in self._ended | current:
                    yield self._update(row, histories.get(row["trial_id"], history.iloc[:0]).drop(columns="trial_id"))

    def _update(self, row: dict[str, Any], history: pd.DataFrame) -> Update:
        if row["status"] != "running":
            self._ended.add(row["trial_id"])
        return {name: value for name, value in row.items() if value is not None}, history

    def _has_changed(self, file: Path) -> bool:
        before = self._versions.get(file)
        try:
            status = file.stat()
            self._versions[file] = status.st_mtime_ns, status.st_size
        except FileNotFoundError:
            self._versions[file] = None
        return self._versions[file] not in (None, before)
