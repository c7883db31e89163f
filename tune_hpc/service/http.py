"""What speaks HTTP: uvicorn's parser in C, far cheaper than its other one, with the bound on heads that it lacks."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: The largest head of a request, its address included, in bytes.
MAX_HEAD = 64 * 1024


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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send some bytes, in this turn or the next."""
        if not self._pieces:
            self._loop.call_soon(self._send)
        self._pieces.append(data)

    def close(self) -> None:
        """Send all that was written, and close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces and not self._transport.is_closing():
            self._transport.writelines(pieces)


class BoundedHttp(HttpToolsProtocol):
    """One connection; a head that is too large is refused, and the connection ends."""

    _is_reading_head = True
    _num_pending = 0

    def connection_made(self, transport: Any) -> None:
        """Begin with a connection."""
        super().connection_made(cast("asyncio.Transport", GatheredTransport(transport, self.loop)))

    def data_received(self, data: bytes) -> None:
        """Read what has come."""
        # What has come of a head that is not complete; a complete one begins this anew.
        self._num_pending += len(data) if self._is_reading_head else 0
        super().data_received(data)
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
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for the next head."""
        self._is_reading_head = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Say that a request cannot be read, and end the connection."""
        is_too_large = self._num_pending > MAX_HEAD
        super().send_400_response(f"The head of a request has at most {MAX_HEAD} bytes." if is_too_large else msg)
