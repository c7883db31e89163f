"""What came of searches so far, read once for all who ask, and no more often than it is worth."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from tune_hpc.analysis.folder import ExperimentFolder
from tune_hpc.analysis.following import Following, Standing
from tune_hpc.analysis.histories import Histories
from tune_hpc.analysis.results import trials_frame
from tune_hpc.cluster.job_folder import JobFolder
from tune_hpc.errors import RequestError

#: What searches that were read may hold in all, in bytes.
MOST_BYTES = 1_000_000_000
#: A folder is looked at no more often than each so many seconds, and reading takes at most this part of a core; but
#: nobody is told what was so longer ago than this.
LEAST_S, MOST_S = 0.5, 10.0
MOST_SHARE = 0.01


@dataclass
class _Held:
    following: Following
    lock: threading.Lock = field(default_factory=threading.Lock)
    look_at: float = 0.0
    results: Standing | None = None
    num_bytes: int = 0


@dataclass(frozen=True)
class Reading:
    """The results of one experiment of a search, as they stood at a moment.

    Attributes:
        results: They.
        version: Changes when they do.
    """

    results: Standing
    version: tuple[str, int]


class Readings:
    """Results of experiments, kept as long as there is room."""

    def __init__(self) -> None:
        self._held: OrderedDict[Path, _Held] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, job: JobFolder, experiment: str | None = None) -> Reading:
        """Return what came of one experiment of a job so far.

        Args:
            job: The job.
            experiment: Which one; may be left out where there is one.

        Raises:
            RequestError: there is no such experiment, or several and none is named.
            FolderError: a file cannot be read.
        """
        plain = chosen(job, experiment)
        home = ExperimentFolder(job.path / str(plain["name"]))
        if not home.holds_experiment:
            return Reading(_nothing_yet(plain), (str(home.path), 0))
        with self._lock:
            held = self._held.setdefault(home.path, _Held(Following(home)))
            self._held.move_to_end(home.path)
        with held.lock:
            if held.results is None or time.monotonic() >= held.look_at:
                began = time.thread_time()
                results = held.following.results()
                # The first reading reads everything: it says nothing of what the next one will take.
                took_s = time.thread_time() - began if held.results else 0.0
                held.look_at = time.monotonic() + min(MOST_S, max(LEAST_S, took_s * (1 / MOST_SHARE - 1)))
                if results is not held.results:
                    held.results, held.num_bytes = results, results.num_bytes
            reading = Reading(held.results, (str(home.path), held.following.version))
        self._make_room()
        return reading

    def _make_room(self) -> None:
        with self._lock:
            while len(self._held) > 1 and sum(held.num_bytes for held in self._held.values()) > MOST_BYTES:
                self._held.popitem(last=False)


def chosen(job: JobFolder, experiment: str | None) -> dict[str, Any]:
    """Return what was asked for of one experiment of a job.

    Raises:
        RequestError: there is no such experiment, or several and none is named.
    """
    asked = {str(plain["name"]): plain for plain in job.read()["experiments"]}
    if experiment is None and len(asked) == 1:
        return dict(next(iter(asked.values())))
    if experiment is None:
        raise RequestError(f"{job.id} has several experiments; name one with experiment=: {', '.join(asked)}")
    if experiment not in asked:
        raise RequestError(f"{job.id} has no experiment {experiment!r}; it has {', '.join(asked)}", 404)
    return dict(asked[experiment])


def _nothing_yet(plain: dict[str, Any]) -> Standing:
    keys = list(dict.fromkeys([*plain.get("space", {}), *(["seed"] if plain.get("seeds") else [])]))
    history = pd.DataFrame({"trial_id": pd.Series(dtype="str"), "step": pd.Series(dtype="int64")})
    return Standing({**plain, "config_keys": keys, "state": "waiting"}, trials_frame([], keys), Histories(history, {}))
