"""Many who read from one HTTP server at the same time, each with a connection and a pause of its own.

    python -m benchmarks.peers.http_readers PORT --paths PATH ... [--readers 200] [--pause 1] [--seconds 30]

Written on bare transports and uvicorn's loop, for on a small machine a client library costs more than the server.
Prints one line of JSON: how many answers of which status, errors, seconds until an answer (median, 99th percentile,
longest), processor seconds.
"""

import argparse
import asyncio
import json
import os
import random
import time
from collections import Counter
from typing import cast

import uvloop


class Readers:
    """All of them.

    Args:
        port: Of the server, on this machine.
        token: What each sends.
        paths: What they ask for, one after the other.
        pause_s: Between an answer and the next question.
        end: When they stop, by the monotonic clock.
    """

    def __init__(self, port: int, token: str, paths: list[str], pause_s: float, end: float) -> None:
        self.port = port
        self.paths = paths
        self.pause_s = pause_s
        self.end = end
        self.headers = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n".encode()
        self.statuses: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.num_bytes = 0

    async def read(self, number: int) -> None:
        """Be one of them."""
        loop = asyncio.get_running_loop()
        chance = random.Random(number)
        await asyncio.sleep(chance.random() * max(self.pause_s, 0.2))
        reader = Reader(self, number, chance)
        while time.monotonic() < self.end:
            reader.is_over = loop.create_future()
            try:
                await loop.create_connection(lambda: reader, "127.0.0.1", self.port)
                await reader.is_over
            except OSError as error:
                self.errors[type(error).__name__] += 1
                await asyncio.sleep(0.5)


class Reader(asyncio.Protocol):
    """One of them, on one connection after the other.

    Args:
        readers: All.
        number: Which one.
        chance: How long it pauses.
    """

    is_over: "asyncio.Future[None]"

    def __init__(self, readers: Readers, number: int, chance: random.Random) -> None:
        self._all = readers
        self._place = number
        self._chance = chance
        self._tags: dict[str, bytes] = {}
        self._path = ""
        self._asked_at = 0.0
        self._came = b""
        self._is_waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to ask."""
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        """Say that it has ended, and whether an answer was outstanding."""
        if self._is_waiting:
            self._all.errors["connection lost"] += 1
            self._is_waiting, self._came = False, b""
        self.is_over.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Take an answer, or a part of it."""
        self._came = self._came + data if self._came else data
        size = self._came.find(b"\r\n\r\n")
        if size < 0:
            return
        head = self._came[: size + 2].lower()
        length = _value(head, b"\r\ncontent-length: ")
        if len(self._came) < size + 4 + int(length or 0):
            return
        told = self._all
        told.seconds.append(time.perf_counter() - self._asked_at)
        told.statuses[head[9:12].decode()] += 1
        told.num_bytes += len(self._came)
        if tag := _value(head, b"\r\netag: "):
            self._tags[self._path] = b"If-None-Match: %b\r\n" % tag
        self._came, self._is_waiting = b"", False
        if told.pause_s:
            asyncio.get_running_loop().call_later(told.pause_s * (0.5 + self._chance.random()), self._ask)
        else:
            self._ask()

    def _ask(self) -> None:
        if self._transport.is_closing():
            return
        if time.monotonic() >= self._all.end:
            self._transport.close()
            return
        self._place += 1
        self._path = self._all.paths[self._place % len(self._all.paths)]
        known = self._tags.get(self._path, b"")
        self._asked_at, self._is_waiting = time.perf_counter(), True
        self._transport.write(b"GET %b HTTP/1.1\r\n%b%b\r\n" % (self._path.encode(), self._all.headers, known))


def _value(head: bytes, name: bytes) -> bytes:
    """Return a header's value; empty where there is none."""
    start = head.find(name)
    return head[start + len(name) : head.index(b"\r\n", start + len(name))] if start >= 0 else b""


async def main() -> None:
    """Read, and tell how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--paths", nargs="+", required=True)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--pause", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    flags = parser.parse_args()
    end = time.monotonic() + flags.seconds
    readers = Readers(flags.port, os.environ["TOKEN"], flags.paths, flags.pause, end)
    began = time.monotonic()
    await asyncio.gather(*(readers.read(number) for number in range(flags.readers)))
    took_s = time.monotonic() - began
    seconds = sorted(readers.seconds)
    num_good = readers.statuses["200"] + readers.statuses["304"]
    told = {
        "num_answers": len(seconds),
        "num_errors": len(seconds) - num_good + sum(readers.errors.values()),
        "statuses": dict(readers.statuses),
        "errors": dict(readers.errors),
        "answers_per_s": len(seconds) / took_s,
        "median_ms": 1000 * seconds[len(seconds) // 2],
        "p99_ms": 1000 * seconds[int(len(seconds) * 0.99)],
        "longest_ms": 1000 * seconds[-1],
        "megabytes": readers.num_bytes / 1e6,
        "readers_cpu_s": time.process_time(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    uvloop.run(main())
