"""How the jobs of a storage stand, looked at once for all who ask; those that have ended are remembered."""

import threading
import time
from dataclasses import asdict
from typing import Any

from tune_hpc.analysis.object_store import is_remote
from tune_hpc.cluster.client import JobClient
from tune_hpc.cluster.job_folder import JobFolder, JobState
from tune_hpc.cluster.status import ExperimentStatus, JobStatus
from tune_hpc.errors import FolderError, RequestError, UnknownNameError

#: Jobs that have ended, and of which is remembered how.
MOST_REMEMBERED = 20_000
#: Seconds for which a look at all jobs holds, at least; and the part of a core that looking takes, at most.
LASTS_S = 1.0
MOST_SHARE = 0.02
_AT_REST = (JobState.FINISHED, JobState.STOPPED, JobState.FAILED)


class Statuses:
    """How jobs stand, as plain data.

    Args:
        client: Whose jobs they are.
    """

    def __init__(self, client: JobClient) -> None:
        self._client = client
        self._ended: dict[str, tuple[int, dict[str, Any]]] = {}
        self._all: tuple[float, list[dict[str, Any]]] = (0.0, [])
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Have all jobs looked at again."""
        self._all = (0.0, [])

    def one(self, job_id: str) -> dict[str, Any]:
        """Return how a job stands.

        Raises:
            UnknownNameError: it is none of this storage.
            FolderError: a file of it cannot be read.
        """
        held = self._ended.get(job_id)
        if held and held[0] == _stamp(JobFolder(self._client.storage / job_id)):
            return held[1]
        folder = find(self._client, job_id)
        stamp = _stamp(folder)
        status = self._client.status(job_id)
        told = described(status, folder.read()["experiments"])
        if status.state in _AT_REST and stamp:
            if len(self._ended) >= MOST_REMEMBERED:
                self._ended.clear()
            self._ended[job_id] = (stamp, told)
        return told

    def all(self) -> list[dict[str, Any]]:
        """Return how every job stands, the latest first; one whose files cannot be read is told as such."""
        with self._lock:
            until, told = self._all
            if time.monotonic() >= until:
                began = time.thread_time()
                told = self._look()
                lasts_s = max(LASTS_S, (time.thread_time() - began) / MOST_SHARE)
                self._all = (time.monotonic() + lasts_s, told)
            return told

    def _look(self) -> list[dict[str, Any]]:
        told = []
        for job in self._client.list():
            try:
                told.append(self.one(job.id))
            except UnknownNameError:
                continue
            except FolderError as error:
                told.append(_unreadable(job.id, " ".join(str(error).split())))
        return told


def _stamp(folder: JobFolder) -> int:
    """Return what differs once a job was asked to run again, or its driver said something; 0 where it has none."""
    try:
        # A store tells no time of a folder: what ended there is asked for again.
        return 0 if is_remote(folder.place) else folder.attempts.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def find(client: JobClient, job_id: str) -> JobFolder:
    """Return a job's folder.

    Raises:
        RequestError: it is none of this storage.
        FolderError: its file cannot be read.
    """
    try:
        return client.folder(job_id)
    except UnknownNameError:
        raise RequestError(
            f"this storage has no search {job_id!r}; GET /searches lists those that it has", 404
        ) from None


def described(status: JobStatus, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a job's status as plain data, with what one would otherwise have to count."""
    plain = {one["name"]: one for one in asked}
    return {
        "id": status.id,
        "state": status.state.value,
        "is_active": status.state.is_active,
        "reason": status.reason,
        "num_trials": status.num_trials,
        "num_ended": status.num_ended,
        "attempt": status.attempt,
        "place": {key: status.place.get(key) for key in ("kind", "host", "address")},
        "asked_at": status.asked_at,
        "began_at": status.began_at,
        "ended_at": status.ended_at,
        "experiments": [_experiment(one, plain.get(one.name, {})) for one in status.experiments],
    }


def _experiment(status: ExperimentStatus, asked: dict[str, Any]) -> dict[str, Any]:
    told = asdict(status) | {"num_ended": status.num_ended, "ended": dict(status.ended)}
    return told | {name: asked.get(name) for name in ("title", "mode", "quick", "searcher", "scheduler")}


def _unreadable(job_id: str, reason: str) -> dict[str, Any]:
    return {
        "id": job_id, "state": "unreadable", "is_active": False, "reason": reason, "num_trials": 0, "num_ended": 0,
        "attempt": 0, "place": {}, "asked_at": None, "began_at": None, "ended_at": None, "experiments": [],
    }  # fmt: skip
