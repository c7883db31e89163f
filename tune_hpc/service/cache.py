"""Response cache with single flight, and cache of results."""

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.responses import Response

from tune_hpc.analysis.reader import ResultsReader, ResultsSnapshot
from tune_hpc.storage.experiment_folder import ExperimentFolder

#: Sizes of the caches of responses and results.
MAX_RESPONSE_BYTES, MAX_RESULT_BYTES = 64_000_000, 1_000_000_000
NUM_THREADS = 8
#: Lifetime of a response about a running search.
MAX_AGE_S = 1.0
T = TypeVar("T")


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
        if entry and entry[0] == version and (is_final or time.monotonic() - entry[1] < MAX_AGE_S):
            self._entries.move_to_end(key)
            return entry[2]

        async def fill() -> CachedResponse:
            moment = time.monotonic()
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
