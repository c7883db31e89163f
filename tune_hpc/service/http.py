"""What speaks HTTP: uvicorn's parser in C, far cheaper than its other one, with the bound on heads that it lacks.

A question that was answered a moment ago (quick.py) is answered here; all else goes to the application.
"""

import asyncio
import time
from typing import Any, NamedTuple, cast

from starlette.types import Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from tune_hpc.service.quick import Again, Headers, Quick

#: The largest head of a request, its address included, in bytes.
MAX_HEAD = 64 * 1024
#: So many connections that ask within so many seconds are many; and how long requests may wait for one another.
MANY, COUNT_S = 20, 0.5
REST_S = 0.03
#: Seconds after a new connection in which there may be more of them: only one is accepted in a turn.
CONNECTING_S = 0.1


class GatheredTransport:
    """A transport that sends at once what is written within one turn of the loop.

    uvicorn writes the head of an answer, then its body: that would be two system calls, and a reader would be woken
    twice, which costs it and whatever else the machine has to do more than the answer itself.

    Args:
        transport: What sends.
        loop: Whose turns they are.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._pieces: list[bytes] = []

    @property
    def is_sending(self) -> bool:
        """Whether something that was written is yet to be sent."""
        return bool(self._pieces) or self._transport.get_write_buffer_size() > 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send some bytes, in this turn or the next."""
        if not self._pieces:
            self._loop.call_soon(self._send)
        self._pieces.append(data)

    def send(self, *pieces: bytes) -> None:
        """Send some bytes in this turn."""
        self._pieces += pieces
        self._send()

    def close(self) -> None:
        """Send all that was written, and close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self._transport.is_closing():
            self._transport.writelines(pieces)


class Coalescing:
    """Has the requests of many readers wait for one another, as network cards have packets wait.

    To wake up costs a service more than to answer, and whatever else the machine has to do, its caches. So where many
    ask, it rests for a moment after it has answered, and then answers all who have asked meanwhile.
    """

    def __init__(self) -> None:
        self._readers: set[int] = set()
        self._counted_at = 0.0
        self._are_many = False
        self._is_about_to = False
        self._connected_at = 0.0

    def note_connection(self) -> None:
        """Take note of a connection that was made."""
        self._connected_at = time.monotonic()

    def note(self, connection: HttpToolsProtocol) -> None:
        """Take note of a connection that has asked something."""
        self._readers.add(id(connection))
        now = time.monotonic()
        if now - self._counted_at >= COUNT_S:
            self._are_many = len(self._readers) >= MANY and now - self._counted_at < 2 * COUNT_S
            self._readers.clear()
            self._counted_at = now
        if self._are_many and not self._is_about_to:
            self._is_about_to = True
            # All that was answered in this turn is sent before.
            connection.loop.call_soon(self._rest, connection.tasks)

    def _rest(self, tasks: set[asyncio.Task[None]]) -> None:
        self._is_about_to = False
        # What the application is to answer takes several turns, and is not held up in each.
        if not tasks and time.monotonic() - self._connected_at > CONNECTING_S:
            time.sleep(REST_S)


class Asked(NamedTuple):
    """A question that the application answers.

    Attributes:
        cycle: What answers it.
        url: What was asked, as it was sent.
        headers: As they were sent.
    """

    cycle: RequestResponseCycle
    url: bytes
    headers: Headers


class ServiceHttp(HttpToolsProtocol):
    """One connection; a head that is too large is refused, and the connection ends.

    Args:
        config: Of the server; its application may have ``quick`` and ``coalescing``.
        arguments: uvicorn's own.
    """

    _gathered: GatheredTransport

    def __init__(self, config: Config, *arguments: Any, **named: Any) -> None:
        super().__init__(config, *arguments, **named)
        self._quick: Quick | None = getattr(config.app, "quick", None)
        self._coalescing: Coalescing | None = getattr(config.app, "coalescing", None)
        self._peer = "-"
        self._is_reading_head = True
        self._num_pending = 0
        self._is_answered = False
        self._asked: Asked | None = None
        self._held: tuple[asyncio.TimerHandle, Again] | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin with a connection."""
        self._gathered = GatheredTransport(transport, self.loop)
        super().connection_made(cast("asyncio.Transport", self._gathered))
        self._peer = self.client[0] if self.client else "-"
        if self._coalescing is not None:
            self._coalescing.note_connection()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._held is not None:
            self._held[0].cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what has come."""
        # What has come of a head that is not complete; a complete one begins this anew.
        self._num_pending += len(data) if self._is_reading_head else 0
        super().data_received(data)
        if self._coalescing is not None:
            self._coalescing.note(self)
        if self._is_reading_head and self._num_pending > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        """Go on to the body, and to whoever answers."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD:
            self._num_pending = size
            # The parser gives up, and what is said is said below.
            raise ValueError(f"a head of {size} bytes")
        self._is_reading_head, self._num_pending = False, 0
        if (again := self._find()) is not None:
            self._is_answered = True
            self._give_later(again)
            return
        is_first = self._is_free
        super().on_headers_complete()
        self._asked = Asked(self.cycle, self.url, self.headers) if is_first else None

    def on_message_complete(self) -> None:
        """Wait for the next head."""
        self._is_reading_head = True
        if self._is_answered:
            self._is_answered = False
        else:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Remember what was answered, and go on to the next question."""
        asked, self._asked = self._asked, None
        if self._quick is not None and asked is not None and asked.cycle.keep_alive:
            self._quick.note(self._peer, asked.url, asked.headers, cast("Scope", asked.cycle.scope))
        super().on_response_complete()

    def shutdown(self) -> None:
        """End as soon as what was asked is answered."""
        self._give_held()
        super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Say that a request cannot be read, and end the connection."""
        is_too_large = self._num_pending > MAX_HEAD
        super().send_400_response(f"The head of a request has at most {MAX_HEAD} bytes." if is_too_large else msg)

    @property
    def _is_free(self) -> bool:
        """Whether all that was asked before is answered."""
        return self.cycle is None or self.cycle.response_complete

    def _find(self) -> Again | None:
        # Whoever asks on before an answer that is held up for him has that at once, and the next one all the later.
        self._give_held()
        # Nobody has more written for him than he reads.
        is_ready = self._is_free and not self._gathered.is_sending and not self.flow.write_paused
        is_plain = self.parser.get_method() == b"GET" and self.parser.get_http_version() == "1.1"
        if self._quick is None or not is_ready or not is_plain:
            return None
        return self._quick.find(self._peer, self.url, self.headers)

    def _give_later(self, again: Again) -> None:
        if again.wait_s:
            self._held = self.loop.call_later(again.wait_s, self._give, again), again
        else:
            self._give(again)

    def _give_held(self) -> None:
        if self._held is not None:
            handle, again = self._held
            handle.cancel()
            self._give(again)

    def _give(self, again: Again) -> None:
        self._held = None
        own = [b"%b: %b\r\n" % one for one in self.server_state.default_headers]
        self._gathered.send(b"".join([STATUS_LINE[again.status], *own, again.head]), again.body)
        self.on_response_complete()
