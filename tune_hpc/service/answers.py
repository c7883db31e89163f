"""Answers: errors as one line of JSON with their HTTP status, and what is made once for all who ask within a moment."""

import asyncio
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from tune_hpc.analysis.folder import NO_ROOM
from tune_hpc.errors import (
    ClusterError,
    DataUnavailableError,
    FolderError,
    MissingPackageError,
    RequestError,
    TuneHpcError,
    UnknownNameError,
)

_log = logging.getLogger(__name__)
#: What kept answers may weigh in all, in bytes.
MOST_BYTES = 64_000_000
#: Threads that read; more would only wait for one another.
NUM_READERS = 4
#: Making an answer anew takes at most this part of a core, for the search may need it; what takes longer holds longer.
MOST_SHARE = 0.005
#: Whoever watches is given what was so a moment ago while it is made anew; whoever has been away for longer waits.
WATCHED_S = 5.0
#: Where a request says by which key it was answered.
ANSWERED = "tune_hpc.answered"


class Json(JSONResponse):
    """JSON in ASCII: whatever a client has sent can be told back to it."""

    def render(self, content: Any) -> bytes:
        """Return the bytes of some plain data."""
        return to_json(content)


def to_json(content: Any) -> bytes:
    """Return plain data as JSON."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def status_code(error: TuneHpcError) -> int:
    """Return the HTTP status that an error is answered with."""
    if isinstance(error, RequestError):
        return error.status
    if isinstance(error, UnknownNameError):
        return 404
    if isinstance(error, ClusterError):
        return 502
    if isinstance(error, DataUnavailableError | MissingPackageError):
        return 503
    if isinstance(error, FolderError):
        number = getattr(error.__cause__, "errno", None)
        if number in NO_ROOM:
            return 507
        return 500 if error.__cause__ else 409
    return 422


def error_answer(error: TuneHpcError, headers: Mapping[str, str] | None = None) -> Json:
    """Return an error as an answer: ``{"error": {"kind": ..., "message": ...}}``, one line."""
    status = status_code(error)
    more = {"WWW-Authenticate": 'Bearer realm="tune_hpc"'} if status == 401 else {}
    told = {"kind": type(error).__name__, "message": " ".join(str(error).split())}
    if status >= 500:
        _log.warning("%d: %s", status, told["message"])
    return Json({"error": told}, status, {"Cache-Control": "no-store", **more, **(headers or {})})


def disposition(name: str) -> dict[str, str]:
    """Return the header by which a browser keeps an answer as a file."""
    return {"Content-Disposition": f'attachment; filename="{name}"'}


@dataclass
class Answer:
    """What is answered to all who ask the same.

    Attributes:
        body: Its bytes.
        media_type: Of what kind.
        headers: More that is told.
        version: Of what it was made from; whoever makes it anew may find that nothing has changed.
        key: What was asked.
        make: Makes it anew.
        until: Until when it holds, by the monotonic clock, if nothing is changed here.
        num_changes: How often something had been changed here when it was made.
        heads: Its headers as they are sent, by status (quick.py).
    """

    body: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    version: object = None
    key: object = None
    make: "Callable[[Answer | None], Answer] | None" = None
    until: float = 0.0
    num_changes: int = 0
    heads: dict[int, bytes] = field(default_factory=dict)

    @cached_property
    def tag(self) -> str:
        """What differs where the body does."""
        return f'"{hashlib.md5(self.body, usedforsecurity=False).hexdigest()}"'

    @cached_property
    def _whole_and_unchanged(self) -> tuple[Response, Response]:
        told = {"Cache-Control": "private, no-cache", "ETag": self.tag, **self.headers}
        whole = Response(self.body, headers=told, media_type=self.media_type)
        return whole, Response(status_code=304, headers=told)

    def response(self, tag: bytes) -> Response:
        """Return it for a client that has what this tag is of: nothing but a status where that is this one."""
        whole, unchanged = self._whole_and_unchanged
        return unchanged if tag == self.tag.encode() else whole

    def as_response(self, scope: Scope) -> Response:
        """Return it for one request."""
        scope[ANSWERED] = self.key
        tags = [value for name, value in scope["headers"] if name == b"if-none-match"]
        return self.response(tags[-1] if tags else b"")


class Kept:
    """Answers, each made once for all who ask within a moment; made in a thread, so that nobody else waits for it.

    Args:
        lasts_s: Seconds for which an answer holds; five times as long, where it takes long to make.
    """

    def __init__(self, lasts_s: float = 2.0) -> None:
        self.lasts_s = lasts_s
        self._answers: OrderedDict[object, Answer] = OrderedDict()
        self._num_bytes = 0
        self._under_way: dict[object, asyncio.Task[Answer]] = {}
        self._readers: anyio.CapacityLimiter | None = None
        self._num_changes = 0

    async def get(self, key: object, make: Callable[[Answer | None], Answer]) -> Answer:
        """Return an answer.

        Args:
            key: What is asked.
            make: Makes the answer, given the last one; it may return that again.

        Raises:
            TuneHpcError: as ``make``.
        """
        if (answer := self.watched(key)) is not None:
            return answer
        # Whoever goes away does not take with him what others wait for.
        return await asyncio.shield(self._begin(key, make))

    def watched(self, key: object) -> Answer | None:
        """Return an answer for whoever watches: what is so, or was a moment ago and is made anew by now."""
        answer = self._answers.get(key)
        if answer is None or not self._holds(answer, WATCHED_S):
            return None
        if not self._holds(answer) and answer.make is not None:
            self._begin(key, answer.make)
        return answer

    def _begin(self, key: object, make: Callable[[Answer | None], Answer]) -> "asyncio.Task[Answer]":
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._make(key, make, self._answers.get(key)))
            # An error that nobody waits for is met again by whoever asks next.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def forget(self) -> None:
        """Have everything looked at again, for something was changed."""
        self._num_changes += 1

    def _holds(self, answer: Answer, longer_s: float = 0.0) -> bool:
        """Whether an answer may be given again, or might have been so many seconds ago."""
        return answer.num_changes == self._num_changes and time.monotonic() < answer.until + longer_s

    async def _make(self, key: object, make: Callable[[Answer | None], Answer], before: Answer | None) -> Answer:
        if self._readers is None:
            self._readers = anyio.CapacityLimiter(NUM_READERS)
        num_changes = self._num_changes
        try:
            answer, took_s = await anyio.to_thread.run_sync(partial(_timed, make, before), limiter=self._readers)
        finally:
            del self._under_way[key]
        lasts_s = min(5 * self.lasts_s, max(self.lasts_s, took_s / MOST_SHARE))
        if (held := self._answers.pop(key, None)) is not None:
            self._num_bytes -= len(held.body)
        # What is changed while it is made may be in it, or not: then it does not hold.
        answer.until, answer.num_changes = time.monotonic() + lasts_s, num_changes
        answer.key, answer.make = key, make
        self._answers[key] = answer
        self._num_bytes += len(answer.body)
        while self._num_bytes > MOST_BYTES:
            _, dropped = self._answers.popitem(last=False)
            self._num_bytes -= len(dropped.body)
        return answer


def _timed(make: Callable[[Answer | None], Answer], before: Answer | None) -> tuple[Answer, float]:
    """Return an answer, and the processor seconds that it took."""
    began = time.thread_time()
    return make(before), time.thread_time() - began


async def in_thread(work: Callable[[], Any]) -> Any:
    """Do what takes a while where nobody else waits for it."""
    return await run_in_threadpool(work)
