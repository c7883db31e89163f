"""uvicorn protocol (h11) with a time limit for request heads and a bound on idle connections."""

import asyncio
import time
from collections import OrderedDict
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

#: The key of the state of a connection in the state of each of its requests.
CONNECTION = "tune_hpc.connection"


class BoundedH11Protocol(H11Protocol):
    """HTTP/1.1 for clients that need not be trusted.

    A request head arrives within ``head_timeout_s`` of the connection or of its first byte. A client that reads nothing
    of a response for ``write_timeout_s`` is disconnected. Of the connections that
    have no request in progress ``max_idle`` are open; beyond that the oldest is closed, those without authentication
    first. So half-open connections do not take the place of others.
    """

    head_timeout_s = 10.0
    write_timeout_s = 30.0
    max_idle = 512
    #: Connections without a request in progress, the oldest first. A process has one server.
    idle: ClassVar[OrderedDict["BoundedH11Protocol", None]] = OrderedDict()
    _warned_at: ClassVar[float] = -60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first head."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        # Requests of this connection share this dictionary; it is empty before authentication.
        self.authentication: dict[str, Any] = {}
        self.app_state = {**self.app_state, CONNECTION: self.authentication}
        super().connection_made(transport)
        self._start_head_timer()
        self._set_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._set_busy()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the timer at the first byte of a head; stop it at its end."""
        super().data_received(data)
        if self._is_busy:
            self._set_busy()
        else:
            self._start_head_timer()

    def on_response_complete(self) -> None:
        """Count the connection as idle unless it has another request."""
        super().on_response_complete()
        if not self._is_busy and not self.transport.is_closing():
            self._set_idle()
            if self.conn.trailing_data[0]:
                self._start_head_timer()

    def pause_writing(self) -> None:
        """Start the timer of a client that does not read."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the timer of a client that does not read."""
        super().resume_writing()
        if self._write_timer:
            self._write_timer.cancel()

    @property
    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _set_busy(self) -> None:
        self.idle.pop(self, None)
        if self._head_timer:
            self._head_timer.cancel()
            self._head_timer = None

    def _set_idle(self) -> None:
        self.idle[self] = None
        self.idle.move_to_end(self)
        if len(self.idle) <= self.max_idle:
            return
        unauthenticated = (one for one in self.idle if one is not self and not one.authentication)
        oldest = next(unauthenticated, next(iter(self.idle)))
        oldest._set_busy()
        oldest.transport.close()
        if time.monotonic() - BoundedH11Protocol._warned_at > 60:
            BoundedH11Protocol._warned_at = time.monotonic()
            self.logger.warning("more than %d connections are idle: the oldest are closed", self.max_idle)

    def _start_head_timer(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.close)
