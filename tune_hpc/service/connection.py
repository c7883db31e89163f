"""uvicorn server, and its HTTP protocol (h11) with limits on request heads and idle connections."""

import asyncio
import http
import json
import logging
import re
import resource
import signal
import socket
import time
from collections import OrderedDict
from typing import Any, ClassVar

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tune_hpc.errors import InvalidExperimentError

#: The key of the state of a connection in the state of each of its requests.
CONNECTION = "tune_hpc.connection"
MAX_HEAD_BYTES, MAX_HEAD_LINES, MAX_REQUEST_LINE_BYTES = 65536, 200, 8192
_HEAD_END = re.compile(rb"\n\r?\n")
_CONTENT_LENGTH = re.compile(rb"\ncontent-length[ \t]*:[ \t]*(\d{1,12})[ \t]*\r?\n", re.IGNORECASE)
_TRANSFER_ENCODING = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)


class BoundedH11Protocol(H11Protocol):
    """HTTP/1.1 for clients that are not trusted.

    A request head must arrive within ``head_timeout_s`` of the connection or of its first byte. A client that does not
    read a response for ``write_timeout_s`` is disconnected. At most ``max_idle`` connections without a request stay
    open; beyond that the oldest is closed, unauthenticated ones first.

    h11 spends a few microseconds on each header and chunk before the application can reject a request. Therefore h11
    gets one complete request at a time, with few headers and a body of known length.
    """

    head_timeout_s = 10.0
    write_timeout_s = 30.0
    max_idle = 512
    #: Connections without a request in progress, the oldest first. A process has one server.
    idle: ClassVar[OrderedDict["BoundedH11Protocol", None]] = OrderedDict()
    _warned_at: ClassVar[float] = -60.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request head."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        # All requests of a connection share this dictionary; it is empty before authentication.
        self.authentication: dict[str, Any] = {}
        self._received = bytearray()
        self._num_body_bytes = 0
        self.app_state = {**self.app_state, CONNECTION: self.authentication}
        super().connection_made(transport)
        self._start_head_timer()
        self._set_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers and remove the connection."""
        self._set_busy()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass the data of the current request to h11, and buffer the following requests."""
        self._received += data
        while self._received and not self.transport.is_closing():
            if self._num_body_bytes:
                part = bytes(self._received[: self._num_body_bytes])
                self._num_body_bytes -= len(part)
            elif self._is_busy:
                if len(self._received) > MAX_HEAD_BYTES:
                    self.flow.pause_reading()
                return
            elif (head := self._next_head()) is not None:
                part = head
            else:
                self._start_head_timer()
                return
            del self._received[: len(part)]
            super().data_received(part)
            if self._is_busy:
                self._set_busy()

    def _next_head(self) -> bytes | None:
        """Return the head of the next request if it is complete; reject one that is too large or has no length."""
        end = _HEAD_END.search(self._received)
        head = bytes(self._received[: end.end() if end else None])
        if len(head) > MAX_HEAD_BYTES or head.count(b"\n") > MAX_HEAD_LINES:
            self._reject(431, f"a request head has at most {MAX_HEAD_BYTES} bytes and {MAX_HEAD_LINES} lines")
        elif len(head.partition(b"\n")[0]) > MAX_REQUEST_LINE_BYTES:
            self._reject(414, f"a request line has at most {MAX_REQUEST_LINE_BYTES} bytes; send a shorter address")
        elif end and _TRANSFER_ENCODING.search(head):
            self._reject(411, "a body must be sent with Content-Length; chunks are not accepted")
        elif end and (b"\n " in head or b"\n\t" in head):
            self._reject(400, "a header must be one line")
        elif end:
            length = _CONTENT_LENGTH.search(head)
            self._num_body_bytes = int(length[1]) if length else 0
            return head
        return None

    def _reject(self, status: int, detail: str) -> None:
        title = http.HTTPStatus(status).phrase
        problem = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        body = json.dumps(problem).encode("ascii", "replace")
        head = (
            f"HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode("ascii") + body)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Reject a request that h11 cannot parse."""
        self._reject(400, msg)

    def on_response_complete(self) -> None:
        """Count the connection as idle unless it has another request."""
        super().on_response_complete()
        if not self._is_busy and not self.transport.is_closing():
            self._set_idle()
            # The client may have sent the next request before this response.
            self.loop.call_soon(self.data_received, b"")

    def pause_writing(self) -> None:
        """Start the timer of a client that does not read its response."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the timer of a client that reads again."""
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


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InvalidExperimentError(
            f"the service cannot listen at {host} port {port}: {error}; use another --host or --port"
        ) from error
    # asyncio does this for sockets with an explicit protocol only; without it each response waits 40 ms for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def run_server(app: ASGIApp, listener: socket.socket, proxy: str | None) -> None:
    """Serve an application until SIGINT or SIGTERM."""
    # Each connection is an open file.
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    # A log line for each invalid request would let anyone fill the log.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "Invalid HTTP" not in record.getMessage())
    config = uvicorn.Config(
        app, http=BoundedH11Protocol, ws="none", loop="asyncio", lifespan="off", access_log=False, log_config=None,
        log_level="warning", server_header=False, limit_concurrency=1000, timeout_keep_alive=30,
        timeout_graceful_shutdown=10, h11_max_incomplete_event_size=MAX_HEAD_BYTES, proxy_headers=proxy is not None,
        forwarded_allow_ips=proxy or "",
    )  # fmt: skip
    server = uvicorn.Server(config)
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn raises the signal again after the shutdown.
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
