"""What was answered a moment ago is given again before anything else of the service runs.

Many who watch one search ask the same, again and again. Who may ask, and what is meant, is found out by the layers of
the service (app.py) the first time, and remembered: by the headers for who may ask, by the address for what is meant.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

from starlette.types import Scope

from tune_hpc.service.access import LET_IN, guarded
from tune_hpc.service.answers import ANSWERED, Kept
from tune_hpc.service.limits import Rate

#: Seconds for which whoever was let in is let in again with the same headers; a session may last so much longer.
LET_IN_S = 60.0
#: Different headers, and different addresses, that are remembered, at most.
MOST_REMEMBERED = 10_000
#: What makes a request more than a question.
_NOT_PLAIN = frozenset({b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"connection"})

Headers = Sequence[tuple[bytes, bytes]]


class Again(NamedTuple):
    """An answer that is given again.

    Attributes:
        wait_s: After so many seconds, for its reader has read too often.
        status: 200, or 304 where the reader has it already.
        head: Its headers but those of the server, as they are sent.
        body: Empty where the reader has it.
    """

    wait_s: float
    status: int
    head: bytes
    body: bytes


class Quick:
    """Remembers who was let in, and what is meant by an address.

    Args:
        kept: The answers.
        reads: How often each address may read.
    """

    def __init__(self, kept: Kept, reads: Rate) -> None:
        self._kept = kept
        self._reads = reads
        self._keys: dict[bytes, object] = {}
        self._let_in: dict[tuple[str, Headers], tuple[str, float]] = {}

    def find(self, peer: str, url: bytes, headers: Headers) -> Again | None:
        """Return what is answered to a question; ``None``: it is yet to be found out.

        Args:
            peer: The address at the other end of the connection.
            url: What is asked, as it was sent.
            headers: As they were sent, their names in lower case.
        """
        if (key := self._keys.get(url)) is None:
            return None
        known, tag = _split(headers)
        who, until = self._let_in.get((peer, known), ("", 0.0))
        if time.monotonic() >= until or (answer := self._kept.watched(key)) is None:
            return None
        turn = self._reads.take(who)
        # What is not granted takes nothing, and is refused by the layer whose duty that is.
        if not turn.is_granted:
            return None
        response = answer.response(tag)
        status = response.status_code
        if (head := answer.heads.get(status)) is None:
            lines = [b"%b: %b\r\n" % one for one in guarded(response.raw_headers)]
            head = answer.heads[status] = b"".join([*lines, b"\r\n"])
        return Again(turn.wait_s, status, head, answer.body if status == 200 else b"")

    def note(self, peer: str, url: bytes, headers: Headers, scope: Scope) -> None:
        """Remember what was answered, if it was an answer that is kept, to somebody who was let in.

        Args:
            peer: As for ``find``.
            url: As for ``find``.
            headers: As for ``find``.
            scope: Of the request, when it was answered.
        """
        is_plain = scope["method"] == "GET" and all(name not in _NOT_PLAIN for name, _ in headers)
        if not is_plain or ANSWERED not in scope or not scope.get(LET_IN):
            return
        for memory in (self._keys, self._let_in):
            if len(memory) >= MOST_REMEMBERED:
                memory.clear()
        self._keys[url] = scope[ANSWERED]
        who = scope["client"][0] if scope.get("client") else "-"
        self._let_in[peer, _split(headers)[0]] = (who, time.monotonic() + LET_IN_S)


def _split(headers: Headers) -> tuple[Headers, bytes]:
    """Return all headers but the one that says what the reader has already, and that."""
    tag = b""
    others = []
    for one in headers:
        if one[0] == b"if-none-match":
            tag = one[1]
        else:
            others.append(one)
    return tuple(others), tag
