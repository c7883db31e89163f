"""What is new in an experiment folder since one last looked: read while a search runs, and after it.

Each trial leaves a file of its own, when it ends and now and then before; they become the two frames when the search
ends. Only files that have changed are read.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tune_hpc.analysis.results import read_frames
from tune_hpc.errors import FolderError
from tune_hpc.storage.experiment_folder import ExperimentFolder
from tune_hpc.storage.process import may_be_running
from tune_hpc.storage.trial_file import read_trial


class TrialUpdates:
    """What is new in an experiment folder since one last looked.

    Args:
        home: The folder.
    """

    def __init__(self, home: ExperimentFolder) -> None:
        self.home = home
        self._ended: set[str] = set()
        self._stamps: dict[Path, tuple[int, int]] = {}

    def is_search_running(self) -> bool:
        """Whether the folder is still worked on."""
        description = self.home.read()
        return description.get("state") == "running" and may_be_running(description.get("process"))

    def trials(self) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
        """Yield each trial that has ended or reported more since the last call: its row and its history."""
        listed = set()
        for part in sorted(self.home.parts.glob("*.parquet")):
            if part.stem not in self._ended and self._has_changed(part):
                try:
                    row, history = read_trial(part)
                except FolderError:
                    if part.exists():
                        raise
                    continue
                self._note(row)
                yield {name: value for name, value in row.items() if value is not None}, history
            # A file that is gone by now has gone into the frames.
            if part in self._stamps:
                listed.add(part.stem)
        # The history is written after the trials: where it is new, both are.
        if self._has_changed(self.home.history_file):
            yield from self._trials_of_frames(self._ended | listed)

    def _trials_of_frames(self, known: set[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
        trials, history = read_frames(self.home)
        histories = dict(iter(history.groupby("trial_id", observed=True)))
        for named in trials.astype(object).where(trials.notna(), None).to_dict("records"):
            row = {str(name): value for name, value in named.items() if value is not None}
            if row["trial_id"] not in known:
                self._note(row)
                yield row, histories.get(row["trial_id"], history.iloc[:0]).drop(columns="trial_id")

    def _note(self, row: Mapping[str, Any]) -> None:
        if row["status"] != "running":
            self._ended.add(row["trial_id"])

    def _has_changed(self, path: Path) -> bool:
        try:
            told = path.stat()
        except FileNotFoundError:
            self._stamps.pop(path, None)
            return False
        stamp = told.st_mtime_ns, told.st_size
        is_same = self._stamps.get(path) == stamp
        self._stamps[path] = stamp
        return not is_same
