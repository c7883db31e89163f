"""Concurrent readers of an HTTP server, with the headers of a browser.

    python -m benchmarks.peers.http_readers PORT --paths PATH ... [--readers 200] [--pause 1] [--seconds 30]

Each reader has one connection, sends the session of the environment variable ``COOKIE`` and the ETag that it has seen,
and pauses between a response and the next request. Prints one line of JSON: responses by status, errors, latencies, and
the processor seconds of the readers.
"""

import argparse
import asyncio
import json
import os
import random
import time
from collections import Counter

HEADERS = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    "Accept: */*",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Accept-Language: en-US,en;q=0.9",
    "Cache-Control: max-age=0",
    "Connection: keep-alive",
    "HX-Request: true",
    "Sec-Fetch-Dest: empty",
    "Sec-Fetch-Mode: cors",
    "Sec-Fetch-Site: same-origin",
    'sec-ch-ua: "Chromium";v="142"',
)


class Readers:
    """All readers and their measurements.

    Args:
        flags: The command line.
    """

    def __init__(self, flags: argparse.Namespace) -> None:
        self.flags = flags
        headers = [f"Host: 127.0.0.1:{flags.port}", f"Cookie: {os.environ['COOKIE']}", *HEADERS]
        self.headers = "".join(f"{line}\r\n" for line in headers)
        self.end = time.monotonic() + flags.seconds
        self.statuses: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.latencies: list[float] = []

    async def read(self, number: int) -> None:
        """Send requests until the end, over a new connection after an error."""
        rng, tags = random.Random(number), dict[str, str]()
        await asyncio.sleep(rng.random() * max(self.flags.pause, 0.2))
        while time.monotonic() < self.end:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.flags.port)
                while time.monotonic() < self.end:
                    number += 1
                    path = self.flags.paths[number % len(self.flags.paths)]
                    await self._request(reader, writer, path, tags)
                    await asyncio.sleep(self.flags.pause * (0.5 + rng.random()))
                writer.close()
            except (OSError, asyncio.IncompleteReadError) as error:
                self.errors[type(error).__name__] += 1
                await asyncio.sleep(0.5)

    async def _request(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, tags: dict[str, str]
    ) -> None:
        known = f"If-None-Match: {tags[path]}\r\n" if path in tags else ""
        start = time.perf_counter()
        writer.write(f"GET {path} HTTP/1.1\r\n{self.headers}{known}\r\n".encode())
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        await reader.readexactly(int(headers.get("content-length", 0)))
        self.latencies.append(time.perf_counter() - start)
        self.statuses[status.split()[1]] += 1
        if "etag" in headers:
            tags[path] = headers["etag"]


async def main() -> None:
    """Read, and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--paths", nargs="+", required=True)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--pause", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    readers = Readers(parser.parse_args())
    await asyncio.gather(*(readers.read(number) for number in range(readers.flags.readers)))
    latencies = sorted(readers.latencies)
    num_good = readers.statuses["200"] + readers.statuses["304"]
    measured = {
        "num_responses": len(latencies),
        "num_errors": len(latencies) - num_good + sum(readers.errors.values()),
        "statuses": readers.statuses,
        "errors": readers.errors,
        "responses_per_s": len(latencies) / readers.flags.seconds,
        "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[int(len(latencies) * 0.99)],
        "max_ms": 1000 * latencies[-1],
        "readers_cpu_s": time.process_time(),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    asyncio.run(main())
