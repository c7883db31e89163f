"""Shared services of the routes: job client, registered experiments, caches."""

import asyncio
import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any, TypeVar

import pandas as pd
from pydantic import ValidationError
from starlette.responses import Response

from tune_hpc.analysis.frames import LazyHistory, trials_frame
from tune_hpc.analysis.reader import ResultsReader, ResultsSnapshot
from tune_hpc.errors import FolderError, RequestError, UnknownNameError
from tune_hpc.jobs.client import Job, JobClient
from tune_hpc.jobs.job_folder import JobFolder, is_id
from tune_hpc.jobs.status import JobState, JobStatus
from tune_hpc.service import schemas
from tune_hpc.service.experiments import Registry
from tune_hpc.service.problems import to_json
from tune_hpc.storage.experiment_folder import ExperimentFolder

#: Sizes of the caches of responses and results.
MAX_RESPONSE_BYTES, MAX_RESULT_BYTES = 64_000_000, 1_000_000_000
NUM_THREADS = 8
#: Lifetime of a response about a running search.
MAX_AGE_S = 1.0
#: Seconds in which a cluster must report whether a driver is alive; after that its state is unknown.
CLUSTER_TIMEOUT_S = 2.0
_MAX_SNAPSHOTS = 20_000
_FINAL = (JobState.FINISHED, JobState.STOPPED, JobState.FAILED)
T = TypeVar("T")
_CHANGES: Mapping[type[schemas.Body], Callable[..., object]] = {
    schemas.StopRequest: Job.stop,
    schemas.ResumeRequest: Job.resume,
    schemas.ExtendRequest: Job.extend,
    schemas.DeleteRequest: Job.delete,
}


@dataclass(frozen=True)
class CachedResponse:
    """A response for all clients that send the same request."""

    body: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        """Return a response to one request."""
        return Response(self.body, headers=self.headers, media_type=self.media_type)


class ResponseCache:
    """LRU cache of responses; a thread pool computes each response once for all concurrent requests."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, tuple[str, float, CachedResponse]] = OrderedDict()
        self._num_bytes = 0
        self._flights: dict[Hashable, asyncio.Future[Any]] = {}
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="read")

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a thread of the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def once(self, key: Hashable, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in a thread, once for all concurrent calls with this key."""
        return await self._share(key, lambda: self.run(function, *arguments))

    async def _share(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.ensure_future(start())
            flight.add_done_callback(lambda done: (self._flights.pop(key, None), done.cancelled() or done.exception()))
        # A client that disconnects does not cancel the response to other clients.
        result: T = await asyncio.shield(flight)
        return result

    async def get(self, key: str, version: str, is_final: bool, make: Callable[[], CachedResponse]) -> CachedResponse:
        """Return the response to a request, from the cache if the version of its data, which was read before, is equal.

        Responses expire after ``MAX_AGE_S`` unless the data changes only with its version (``is_final``).
        """
        entry = self._entries.get(key)
        if entry and entry[0] == version and (is_final or monotonic() - entry[1] < MAX_AGE_S):
            self._entries.move_to_end(key)
            return entry[2]

        async def fill() -> CachedResponse:
            moment = monotonic()
            response = await self.run(make)
            # Before the flight ends, so that the next request finds the response.
            self._store(key, version, moment, response)
            return response

        return await self._share((key, version), fill)

    def _store(self, key: str, version: str, moment: float, response: CachedResponse) -> None:
        if replaced := self._entries.pop(key, None):
            self._num_bytes -= _weight(key, replaced[2])
        self._entries[key] = version, moment, response
        self._num_bytes += _weight(key, response)
        while self._num_bytes > MAX_RESPONSE_BYTES:
            oldest, (_, _, dropped) = self._entries.popitem(last=False)
            self._num_bytes -= _weight(oldest, dropped)


def _weight(key: str, response: CachedResponse) -> int:
    """Return the approximate size of a cache entry in bytes."""
    return len(key) + len(response.body) + 500


class ResultsCache:
    """LRU cache of incremental readers of experiment folders."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, tuple[ResultsReader, threading.Lock]] = OrderedDict()
        self._num_bytes: dict[str, int] = {}
        self._lock = threading.Lock()

    def read(self, folder: ExperimentFolder) -> ResultsSnapshot:
        """Return the current results of an experiment."""
        key = str(folder.path)
        with self._lock:
            reader, lock = self._entries.setdefault(key, (ResultsReader(folder), threading.Lock()))
            self._entries.move_to_end(key)
        with lock:
            results = reader.results()
            num_bytes = results.num_bytes
        with self._lock:
            self._num_bytes[key] = num_bytes
            while (
                len(self._entries) > 1 and sum(self._num_bytes.get(one, 0) for one in self._entries) > MAX_RESULT_BYTES
            ):
                self._entries.popitem(last=False)
        return results


@dataclass(frozen=True)
class SearchSnapshot:
    """State of a search at one time."""

    folder: JobFolder
    #: Version of all files if the state is final, else of the attempts. It is read before the status, so the status is
    #: never older than the version.
    version: str
    status: Mapping[str, Any]
    #: Time of the read, by the monotonic clock.
    moment: float

    @property
    def is_final(self) -> bool:
        """Return whether the search changes only with the version."""
        return self.status["state"] in _FINAL

    @property
    def is_expired(self) -> bool:
        """Return whether the search must be read again although its version is the same."""
        return not self.is_final and monotonic() - self.moment > MAX_AGE_S


class Services:
    """Client of the jobs, registered experiments and caches, shared by all routes."""

    def __init__(self, client: JobClient, registry: Registry) -> None:
        self.client = client
        self.registry = registry
        self.cache = ResponseCache()
        self._results = ResultsCache()
        self._snapshots: OrderedDict[str, SearchSnapshot] = OrderedDict()
        self._lock = threading.Lock()
        self._changes: Counter[str] = Counter()
        self._list: tuple[float, int, Sequence[Mapping[str, Any]]] = (0.0, 0, [])

    async def snapshot(self, search_id: str) -> SearchSnapshot:
        """Return the state of a search."""
        snapshot, version = await self.cache.run(self._cached_snapshot, search_id)
        if snapshot is None:
            snapshot = await self.cache.once(("snapshot", search_id, version), self._read, search_id)
        return snapshot

    async def list(self) -> tuple[int, Sequence[Mapping[str, Any]]]:
        """Return a version and the status of each search, the latest first."""
        until, number, statuses = self._list
        if monotonic() >= until:
            key = "list", sum(self._changes.values())
            number, statuses = await self.cache.once(key, self._read_all)
        return number, statuses

    async def respond(self, search_id: str, key: str, make: Callable[[SearchSnapshot], CachedResponse]) -> Response:
        """Return a response about a search, from the cache if the search has not changed."""
        snapshot = await self.snapshot(search_id)
        response = await self.cache.get(
            f"{key} {search_id}", snapshot.version, snapshot.is_final, lambda: make(snapshot)
        )
        return response.response()

    def results(self, folder: JobFolder, experiment: str | None) -> ResultsSnapshot:
        """Return the current results of an experiment; the name may be None if the search has one experiment."""
        by_name = {plain["name"]: plain for plain in folder.read()["experiments"]}
        if experiment is None and len(by_name) > 1:
            raise RequestError(
                f"{folder.id} has several experiments; choose one with experiment=: {', '.join(by_name)}"
            )
        name = next(iter(by_name)) if experiment is None else experiment
        if name not in by_name:
            raise RequestError(f"{folder.id} has no experiment {name!r}; it has {', '.join(by_name)}", 404)
        experiment_folder = folder.experiment(name)
        if not experiment_folder.holds_experiment:
            return _no_results(by_name[name])
        try:
            return self._results.read(experiment_folder)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise FolderError(f"a file of {folder.id} is damaged ({reason}); restore it from a copy") from error

    def start(self, body: schemas.SearchRequest, key: str | None) -> tuple[Job, bool]:
        """Start a search, once per key; return its job, and whether the job is new."""
        experiment, options = self.registry.build_experiment(body), body.run_options()
        if key is None:
            job, is_new = self.client.submit(experiment, **options), True
        else:
            digest = hashlib.sha256(to_json(body.model_dump(mode="json"))).hexdigest()
            job, is_new = self.client.submit_once(experiment, key, digest, **options)
        self._forget(job.id)
        return job, is_new

    def change(self, search_id: str, body: schemas.Body, key: str | None = None) -> None:
        """Stop, resume, extend or delete a search; restart it once per key."""
        job, options = Job(self.client, self._find(search_id).id), body.model_dump(exclude_none=True)
        if key and isinstance(body, schemas.RestartRequest):
            options["key"] = key
        try:
            _CHANGES[type(body)](job, **options)
        finally:
            self._forget(search_id)

    def _find(self, search_id: str) -> JobFolder:
        try:
            return self.client.folder(search_id)
        except UnknownNameError:
            raise _unknown(search_id) from None

    def _forget(self, search_id: str) -> None:
        """Invalidate the cache of a search that a request has changed."""
        with self._lock:
            self._changes[search_id] += 1
            self._list = (0.0, *self._list[1:])

    def _version(self, search_id: str, is_final: bool) -> str:
        """Return the version of a search: of its files if it is final, else of its attempts.

        The version of the attempts changes when a driver starts or ends, and takes two calls of ``stat``. Results of a
        running search change all the time, so their responses expire after ``MAX_AGE_S`` instead.
        """
        if not is_id(search_id):
            raise _unknown(search_id)
        folder = JobFolder(self.client.storage.root / search_id)
        if is_final or folder.storage.is_remote:
            version = folder.version()
        else:
            version = str([path.stat().st_mtime_ns for path in (folder.job_file, folder.attempts) if path.exists()])
        return hashlib.sha256(f"{is_final} {version} {self._changes[search_id]}".encode()).hexdigest()[:32]

    def _cached_snapshot(self, search_id: str) -> tuple[SearchSnapshot | None, str]:
        """Return the state of a search if the cached one is current, and the version of its files."""
        snapshot = self._snapshots.get(search_id)
        version = self._version(search_id, snapshot is not None and snapshot.is_final)
        return (snapshot if snapshot and snapshot.version == version and not snapshot.is_expired else None), version

    def _read(self, search_id: str) -> SearchSnapshot:
        moment, versions = monotonic(), {is_final: self._version(search_id, is_final) for is_final in (True, False)}
        folder = self._find(search_id)
        status = Job(self.client, search_id).status(timeout_s=CLUSTER_TIMEOUT_S)
        try:
            description = _describe_status(status, folder.read()["experiments"])
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise FolderError(f"a file of {search_id} is malformed ({field}: {first['msg']}); restore it") from error
        snapshot = SearchSnapshot(folder, versions[status.state in _FINAL], description, moment)
        with self._lock:
            self._snapshots[search_id] = snapshot
            self._snapshots.move_to_end(search_id)
            if len(self._snapshots) > _MAX_SNAPSHOTS:
                self._snapshots.popitem(last=False)
        return snapshot

    def _read_all(self) -> tuple[int, Sequence[Mapping[str, Any]]]:
        start, num_changes = monotonic(), sum(self._changes.values())
        statuses = [status for job in self.client.list() if (status := self._read_one(job.id))]
        with self._lock:
            # Large storages are read less often; a change by this service ends the pause.
            pause_s = max(MAX_AGE_S, 5 * (monotonic() - start))
            is_current = num_changes == sum(self._changes.values())
            number = self._list[1] + (statuses != self._list[2])
            self._list = (monotonic() + pause_s if is_current else 0.0, number, statuses)
        return number, statuses

    def _read_one(self, search_id: str) -> Mapping[str, Any] | None:
        """Return the status of a search, or None if it was deleted; an error hides no other search."""
        try:
            snapshot, _ = self._cached_snapshot(search_id)
            return (snapshot or self._read(search_id)).status
        except Exception as error:  # noqa: BLE001
            if isinstance(error, RequestError):
                return None
            return _unreadable(search_id, " ".join(f"{error or type(error).__name__}".split())[:500])


def _describe_status(status: JobStatus, experiments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the status of a job as in responses."""
    by_name = {plain["name"]: plain for plain in experiments}
    values = asdict(status) | {
        "num_trials": status.num_trials,
        "num_ended": status.num_ended,
        "state": str(status.state),
        "is_active": status.state.is_active,
        "location": {key: status.location.get(key) for key in ("kind", "host", "address")},
        "experiments": [
            {**by_name.get(one.name, {}), **asdict(one), "num_ended": one.num_ended, "counts": dict(one.counts)}
            for one in status.experiments
        ],
    }
    return schemas.SearchStatus.model_validate(values, strict=True).model_dump()


def _unreadable(search_id: str, reason: str) -> dict[str, Any]:
    status = JobStatus(search_id, JobState.UNKNOWN, reason, (), 0, {}, "", None, None)
    return _describe_status(status, []) | {"state": "unreadable", "requested_at": None}


def _unknown(search_id: str) -> RequestError:
    return RequestError(f"this storage has no search {search_id[:200]!r}; GET /api/v1/searches lists those it has", 404)


def _no_results(plain: Mapping[str, Any]) -> ResultsSnapshot:
    """Return the results of an experiment that has not begun."""
    keys = list(dict.fromkeys([*plain.get("space", {}), *(["seed"] if plain.get("seeds") else [])]))
    history = pd.DataFrame({"trial_id": pd.Series(dtype="str"), "step": pd.Series(dtype="int64")})
    return ResultsSnapshot(
        {**plain, "config_keys": keys, "state": "waiting"}, trials_frame([], keys), LazyHistory(history, {})
    )
