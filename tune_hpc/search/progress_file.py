"""How far an experiment is, as a small file in its folder: for whoever follows it from elsewhere.

``progress.json`` holds ``num_trials``, ``ended`` (how many with each status), ``running``, ``best`` (the best value so
far and its trial, or null), ``elapsed_s`` (of this run), ``left_s`` (about how long it will take; null where nobody can
tell yet) and ``at``, the moment of all this (UTC).
"""

import contextlib
import json
import time

from tune_hpc.errors import ConflictError, FolderError
from tune_hpc.search.progress import TrialCounts
from tune_hpc.search.provenance import now
from tune_hpc.storage.experiment_folder import ExperimentFolder, write_atomic

#: The file is written no more often; a run that has no news writes it once in ``IDLE_S``, for it shows that it lives.
INTERVAL_S = 2.0
IDLE_S = 20.0


class ProgressFile:
    """The file of one experiment.

    Args:
        home: The experiment folder.
        tally: What is known of it; it changes under way.
    """

    def __init__(self, home: ExperimentFolder, tally: TrialCounts) -> None:
        self._home = home
        self._tally = tally
        self._began = time.monotonic()
        self._num_before = tally.num_ended
        self._told: object = None
        self._told_at = -IDLE_S

    def write(self, *, is_last: bool = False) -> None:
        """Write it if there is news and it is due; a storage that takes nothing for a while is no reason to end."""
        news = (self._tally.num_ended, self._tally.running, dict(self._tally.best))
        moment = time.monotonic()
        due_s = INTERVAL_S if news != self._told else IDLE_S
        if not is_last and moment - self._told_at < due_s:
            return
        self._told, self._told_at = news, moment
        with contextlib.suppress(FolderError, ConflictError):
            self._home.check_attempt()
            write_atomic(
                self._home.progress, lambda path: path.write_text(self._text(moment - self._began), encoding="utf-8")
            )

    def _text(self, elapsed_s: float) -> str:
        tally = self._tally
        num_done = tally.num_ended - self._num_before
        left_s = elapsed_s / num_done * (tally.num_trials - tally.num_ended) if num_done else None
        best = next(iter(tally.best.values()), None)
        told = {
            "at": now(),
            "num_trials": tally.num_trials,
            "ended": {status: count for status, count in tally.ended.items() if count},
            "running": tally.running,
            "best": best and {"value": best[0], "trial_id": best[1]},
            "elapsed_s": round(elapsed_s, 1),
            "left_s": None if left_s is None else round(left_s, 1),
        }
        return json.dumps(told) + "\n"
