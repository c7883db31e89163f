"""Many who read from one HTTP server at the same time, each with a connection and a pause of its own.

    python -m benchmarks.peers.http_readers PORT --paths PATH ... [--readers 200] [--pause 1] [--seconds 30]

Written on bare sockets, for on a small machine a client library costs more than the server. Prints one line of JSON:
how many answers of which status, errors, seconds until an answer (median, 99th percentile, longest), processor seconds.
"""

import argparse
import asyncio
import json
import os
import random
import time
from collections import Counter


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
        self.headers = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        self.statuses: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.num_bytes = 0

    async def read(self, number: int) -> None:
        """Be one of them."""
        chance = random.Random(number)
        await asyncio.sleep(chance.random() * max(self.pause_s, 0.2))
        tags: dict[str, str] = {}
        place = number
        while time.monotonic() < self.end:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError as error:
                self.errors[type(error).__name__] += 1
                await asyncio.sleep(0.5)
                continue
            try:
                while time.monotonic() < self.end:
                    place += 1
                    await self._ask(reader, writer, self.paths[place % len(self.paths)], tags)
                    await asyncio.sleep(self.pause_s * (0.5 + chance.random()))
            except (OSError, asyncio.IncompleteReadError) as error:
                self.errors[type(error).__name__] += 1
            finally:
                writer.close()

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, tags: dict[str, str]
    ) -> None:
        known = f"If-None-Match: {tags[path]}\r\n" if path in tags else ""
        began = time.perf_counter()
        writer.write(f"GET {path} HTTP/1.1\r\n{self.headers}{known}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        told = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        size = int(told.get("content-length", 0))
        if size:
            await reader.readexactly(size)
        self.seconds.append(time.perf_counter() - began)
        self.statuses[first.split()[1]] += 1
        self.num_bytes += size + len(head)
        if "etag" in told:
            tags[path] = told["etag"]


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
    asyncio.run(main())
