"""What speaks HTTP: uvicorn's parser in C, far cheaper than its other one, with the bound on heads that it lacks."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: The largest head of a request, its address included, in bytes.
MAX_HEAD = 64 * 1024


class BoundedHttp(HttpToolsProtocol):
    """One connection; a head that is too large is refused, and the connection ends."""

    _is_reading_head = True
    _num_pending = 0

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
