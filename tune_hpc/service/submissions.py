"""One request, one search: a request that is sent twice with the same key starts nothing new.

The key's file is made in the storage before anything is started, by whoever comes first, and holds the id that the
search will have. So it holds for all services of a storage, and for one that ended between two lines of its work.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune_hpc.analysis.process import is_running, this_process
from tune_hpc.cluster.client import Job, JobClient
from tune_hpc.cluster.job_folder import JobFolder, make_id
from tune_hpc.errors import FolderError, RequestError
from tune_hpc.search.experiment import Experiment

#: The folder of the keys, in the storage; no job's id begins with a dot.
FOLDER = ".requests"
#: Seconds for which one waits until another service has started what both were asked for.
WAIT_S = 5.0


class Submissions:
    """Searches that are started, each once for a key.

    Args:
        client: Who starts them.
    """

    def __init__(self, client: JobClient) -> None:
        self._client = client
        self._folder = client.storage / FOLDER
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def submit(self, experiment: Experiment, options: Mapping[str, Any], key: str | None) -> tuple[Job, bool]:
        """Start a search, or find the one that was started with the same key.

        Args:
            experiment: What is searched.
            options: Those of a run.
            key: Of the request; ``None``: it is a new one.

        Returns:
            The search, and whether it is new.

        Raises:
            RequestError: the key was used for another search, or another service is starting it at this moment.
            TuneHpcError: as ``JobClient.submit``.
        """
        if key is None:
            return self._client.submit(experiment, **options), True
        name = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        try:
            with lock:
                return self._submit_once(experiment, options, self._folder / f"{name}.json")
        finally:
            with self._lock:
                self._locks.pop(name, None)

    def _submit_once(self, experiment: Experiment, options: Mapping[str, Any], file: Path) -> tuple[Job, bool]:
        asked = json.dumps([experiment.to_json(), dict(options)], sort_keys=True)
        mine = {
            "id": make_id(experiment.name),
            "asked": hashlib.sha256(asked.encode()).hexdigest(),
            "process": this_process(),
        }
        held = _claim(file, mine)
        if held["asked"] != mine["asked"]:
            raise RequestError(
                f"the Idempotency-Key of this request was used for another search, {held['id']}; choose a new key", 409
            )
        folder = JobFolder(self._client.storage / held["id"])
        if folder.is_there:
            return self._client.job(held["id"]), False
        if held is not mine and is_running(held["process"]):
            raise RequestError(f"{held['id']} is being started at this moment; ask again in a second", 409)
        try:
            return self._client.submit(experiment, job_id=held["id"], **options), True
        except FolderError as error:
            if isinstance(error.__cause__, FileExistsError):
                # Another service was quicker; what it starts is what was asked for.
                return self._made_by_another(folder), False
            file.unlink(missing_ok=True)
            raise
        except BaseException:
            file.unlink(missing_ok=True)
            raise

    def _made_by_another(self, folder: JobFolder) -> Job:
        end = time.monotonic() + WAIT_S
        while not folder.is_there:
            if time.monotonic() > end:
                raise RequestError(f"{folder.id} is being started at this moment; ask again in a second", 409)
            time.sleep(0.05)
        return self._client.job(folder.id)


def _claim(file: Path, mine: dict[str, Any]) -> dict[str, Any]:
    """Write a key's file; return what it holds, which is ``mine`` where nobody had written it before.

    Raises:
        FolderError: it cannot be written or read.
    """
    made = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(json.dumps(mine), encoding="utf-8")
        try:
            # A link appears whole, and only one can have the name.
            os.link(made, file)
        except FileExistsError:
            held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if not {"id", "asked", "process"} <= held.keys():
                raise ValueError("it names no search") from None
            return held
        finally:
            made.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise FolderError(f"{file} cannot be used: {error}; make room on the storage, or remove it") from error
    return mine
