"""Shared services of the routes: job client, registered experiments, caches."""

import hashlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from time import monotonic
from typing import Any

import pandas as pd
from pydantic import ValidationError
from starlette.responses import Response

from tune_hpc.analysis.frames import LazyHistory, trials_frame
from tune_hpc.analysis.reader import ResultsSnapshot
from tune_hpc.errors import FolderError, InvalidExperimentError, InvalidSpaceError, RequestError, UnknownNameError
from tune_hpc.jobs.client import Job, JobClient
from tune_hpc.jobs.job_folder import JobFolder, is_id
from tune_hpc.jobs.status import JobState, JobStatus
from tune_hpc.search.experiment import Experiment
from tune_hpc.search.options import MAX_REQUEST_SAMPLES
from tune_hpc.search.space.space import Space
from tune_hpc.service.cache import MAX_AGE_S, CachedResponse, ResponseCache, ResultsCache
from tune_hpc.service.problems import to_json
from tune_hpc.service.schemas import (
    Body,
    DeleteRequest,
    ExtendRequest,
    ResumeRequest,
    SearchRequest,
    SearchStatus,
    SpaceDetail,
    StopRequest,
)

#: Seconds in which a cluster must report whether a driver is alive; after that its state is unknown.
CLUSTER_TIMEOUT_S = 2.0
_MAX_SNAPSHOTS = 20_000
#: Values of a parameter or a condition.
MAX_VALUES = 1000
_FINAL = (JobState.FINISHED, JobState.STOPPED, JobState.FAILED)
_CHANGES: Mapping[type[Body], Callable[..., object]] = {
    StopRequest: Job.stop,
    ResumeRequest: Job.resume,
    ExtendRequest: Job.extend,
    DeleteRequest: Job.delete,
}


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


class Registry:
    """Experiments that requests may start, by name."""

    def __init__(self, experiments: Iterable[Experiment]) -> None:
        self._by_name: dict[str, Experiment] = {}
        for experiment in experiments:
            if self._by_name.setdefault(experiment.name, experiment) != experiment:
                raise InvalidExperimentError(f"two registered experiments have the name {experiment.name}; rename one")
        self.describe = cache(self._describe)

    def __iter__(self) -> Iterator[Experiment]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Experiment:
        """Return an experiment."""
        if name not in self._by_name:
            raise UnknownNameError(f"no space has the name {name[:200]!r}; there are {', '.join(self._by_name)}")
        return self._by_name[name]

    def build_experiment(self, request: SearchRequest) -> Experiment:
        """Return the experiment of a request, or raise the error of a field."""
        experiment = self[request.space]
        keys = experiment.space.value_keys
        if request.quick:
            experiment = experiment.quick_version()
        if request.parameters is not None:
            _check_size(request.parameters)
            experiment = experiment.replace(space=Space.from_json(request.parameters, keys=keys))
        if roles := [name for name, value in request.set.items() if isinstance(value, dict) and "role" in value]:
            raise InvalidSpaceError(
                f"{roles[0]}: set takes no role; give the whole space in parameters to change roles"
            )
        _check_size(request.set)
        # Conditions may refer to other parameters of the space.
        plain = {**experiment.space.to_json(), **request.set}
        space = Space.from_json(plain, keys=keys) if request.set else {}
        values = {name: space[name] for name in request.set}
        built = replace(request.overrides(), quick=False).apply(experiment, values)
        num_configurations = built.num_trials / max(1, len(built.seeds))
        if num_configurations > MAX_REQUEST_SAMPLES:
            raise RequestError(
                f"a search that is started over HTTP has at most {MAX_REQUEST_SAMPLES} configurations; got "
                f"{num_configurations:.0f}: use fewer values, or tune-hpc submit"
            )
        return built

    def _describe(self, name: str) -> dict[str, Any]:
        """Return the description of an experiment, as in responses."""
        experiment = self[name]
        plain, quick = experiment.to_json(), experiment.quick_version()
        values = plain | {
            "quick_num_trials": quick.num_trials,
            "parameters": plain["space"],
            "quick_parameters": quick.space.to_json(),
            "varies": experiment.space.varying,
        }
        return {name: values[name] for name in SpaceDetail.model_fields}


def _check_size(plain: Mapping[str, Any]) -> None:
    """Reject lists that would take long to evaluate; the space bounds its conditions."""
    for name, value in plain.items():
        waiting = [value]
        while waiting:
            current = waiting.pop()
            if isinstance(current, list) and len(current) > MAX_VALUES:
                text = f"a list has at most {MAX_VALUES} values; got {len(current)}: use fewer"
                raise InvalidSpaceError(f"{str(name)[:100]}: {text}")
            if isinstance(current, Mapping | list):
                waiting.extend(current.values() if isinstance(current, Mapping) else current)


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

    def start(self, body: SearchRequest, key: str | None) -> tuple[Job, bool]:
        """Start a search, once per key; return its job, and whether the job is new."""
        experiment, options = self.registry.build_experiment(body), body.run_options()
        if key is None:
            job, is_new = self.client.submit(experiment, **options), True
        else:
            digest = hashlib.sha256(to_json(body.model_dump(mode="json"))).hexdigest()
            job, is_new = self.client.submit_once(experiment, key, digest, **options)
        self._forget(job.id)
        return job, is_new

    def change(self, search_id: str, body: Body, key: str | None = None) -> None:
        """Stop, resume, extend or delete a search; restart it once per key."""
        job, options = Job(self.client, self._find(search_id).id), body.model_dump(exclude_none=True)
        if key and isinstance(body, ResumeRequest):
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
    return SearchStatus.model_validate(values, strict=True).model_dump()


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
