"""Bounds on what a request may cost: how large its body is, how long it takes to come, how many come a second."""

import asyncio
import math
import time
from collections import OrderedDict
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tune_hpc.errors import RequestError
from tune_hpc.service.answers import error_answer

#: The largest body, in bytes: a space of a thousand values is a tenth of it.
MAX_BODY = 256 * 1024
#: Seconds within which a body has come.
BODY_TIMEOUT_S = 15.0
#: Requests a second of one address that are answered, over some time; and those that change something.
READS_PER_S = 600.0
WRITES_PER_S = 5.0
#: Whoever reads more often is answered later, by so many seconds at most: many behind one address need no more, and a
#: program that asks again as soon as it has its answer is slowed down. What would wait for longer is refused.
MOST_HELD_S = 1.0
#: Addresses that are remembered.
MOST_ADDRESSES = 10_000
_READS = ("GET", "HEAD", "OPTIONS")


class Turn(NamedTuple):
    """When one may do something.

    Attributes:
        wait_s: After so many seconds.
        is_granted: Whether it is reserved; otherwise one is to ask again by then.
    """

    wait_s: float
    is_granted: bool


class Rate:
    """How often each of many may do something: a bucket that fills with time, one for each.

    Args:
        per_s: How much flows in.
        burst: How much it holds.
        ahead_s: For how many seconds what is yet to flow in may be taken.
    """

    def __init__(self, per_s: float, burst: float, ahead_s: float = 0.0) -> None:
        self.per_s = per_s
        self.burst = burst
        self.ahead_s = ahead_s
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, who: str, moment: float | None = None) -> Turn:
        """Take one, if there is one or will be soon enough."""
        now = time.monotonic() if moment is None else moment
        level, at = self._levels.pop(who, (self.burst, now))
        level = min(self.burst, level + (now - at) * self.per_s)
        wait_s = max(0.0, (1 - level) / self.per_s)
        is_granted = wait_s <= self.ahead_s
        self._levels[who] = (level - 1 if is_granted else level, now)
        if len(self._levels) > MOST_ADDRESSES:
            self._levels.popitem(last=False)
        return Turn(wait_s, is_granted)


class Limits:
    """Refuses what is too large, too slow or far too often, before anything of it is read; holds up what is too often.

    Args:
        app: What comes behind it.
        reads_per_s: Requests a second of one address that read.
        writes_per_s: Requests a second of one address that change something.
        max_body: In bytes.

    Attributes:
        reads: How often each address may read.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        reads_per_s: float = READS_PER_S,
        writes_per_s: float = WRITES_PER_S,
        max_body: int = MAX_BODY,
    ) -> None:
        self.app = app
        self.max_body = max_body
        self.reads = Rate(reads_per_s, 2 * reads_per_s, MOST_HELD_S)
        self._writes = Rate(writes_per_s, 6 * writes_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        who = scope["client"][0] if scope.get("client") else "-"
        rate, what = (self.reads, "reads") if scope["method"] in _READS else (self._writes, "changes")
        turn = rate.take(who)
        if not turn.is_granted:
            told = RequestError(
                f"one address may send {rate.per_s:g} {what} a second; {who} sent more: wait {turn.wait_s:.1f} s", 429
            )
            await error_answer(told, {"Retry-After": str(math.ceil(turn.wait_s))})(scope, receive, send)
            return
        if turn.wait_s:
            await asyncio.sleep(turn.wait_s)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.max_body:
            await self._refuse(self._too_large(declared.decode("latin-1")), scope, receive, send)
            return
        try:
            body = await self._body(scope, receive)
        except RequestError as error:
            await self._refuse(error, scope, receive, send)
            return
        await self.app(scope, _given(body, receive), send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        headers = dict(scope["headers"])
        if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
            return b""
        body = b""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    if len(body) > self.max_body:
                        raise self._too_large(str(len(body)))
                    if not message.get("more_body"):
                        return body
        except TimeoutError:
            raise RequestError(
                f"a body comes within {BODY_TIMEOUT_S:g} s; {len(body)} bytes did: send it again", 408
            ) from None

    def _too_large(self, got: str) -> RequestError:
        return RequestError(f"a body has at most {self.max_body} bytes; got {got}: send less", 413)

    async def _refuse(self, error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
        # What else comes of the body is of no use to anybody: the connection ends with the answer.
        await error_answer(error, {"Connection": "close"})(scope, receive, send)


def _given(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body that has come already, and then what else there is to come."""
    told = False

    async def give() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give
