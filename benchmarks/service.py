"""What the HTTP service costs a search that is read by many: 200 readers for 30 seconds, none, or of another server.

    python benchmarks/service.py [--repeats 3] [--readers 200] [--seconds 30] [--pause 1] [--steps 1000] [--apart]

A search is started through the service, its trials cost the same, and both cores of a small machine are busy with it.
While it runs contenders take turns of some seconds: no readers; readers of the service, who ask for the status, the
page's parts, curves and trials, each with a pause of half to one and a half times --pause between an answer and the
next question; and the same readers of a server that answers with as many bytes at once, for on one machine the readers
take their part of it, too. Compared is how fast trials end; an answer that is an error makes the measurement void.

With --apart the search has the first core to itself, and the service and all readers share the others: what they cost a
search that runs elsewhere.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from bisect import bisect
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import ROOT, Measurement, benchmark_parser, measure, publish, summarise

NAMES = ("no readers", "readers of the service", "readers of another server")
STEPS = 1000
#: Trials that end before anything is measured, and seconds between two measurements.
WARM_UP, PAUSE_S = 20, 1.0
#: Seconds after which a trial that is waited for will not end any more.
LONGEST_S = 60.0
#: What a page asks for, and what a program does.
PATHS = (
    "/searches/{id}", "/view/{id}/summary", "/view/{id}/table", "/searches/{id}/curves", "/searches/{id}/response",
    "/searches/{id}/trials?limit=50",
)  # fmt: skip
#: The size of the other server's answers, about that of the service's.
NUM_BYTES = 8000


class Service:
    """A service as a process of its own.

    Args:
        folder: Where its storage is.
    """

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.log = folder / "service.log"
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "tune_hpc.cli", "serve", "--storage", "jobs", "--port", "0"]
            self.process = subprocess.Popen(
                command, cwd=folder, stdout=log, stderr=log,
                env=os.environ | {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
            )  # fmt: skip
        while "token: in" not in self.log.read_text(encoding="utf-8"):
            if self.process.poll() is not None:
                raise RuntimeError(f"the service ended:\n{self.log.read_text(encoding='utf-8')}")
            time.sleep(0.2)
        self.port = int(self.log.read_text(encoding="utf-8").splitlines()[0].rpartition(":")[2])
        self.token = (folder / "jobs" / "service-token").read_text(encoding="utf-8").strip()

    def ask(self, path: str, body: Any = None) -> Any:
        """Return an answer's JSON."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def cpu_s(self) -> float:
        """Return the processor seconds that it has used."""
        parts = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    def move(self, cores: set[int]) -> None:
        """Keep to some cores; a search that it has begun stays where it is."""
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores)

    def end(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)


class Search:
    """A search through the service, of trials that cost the same, for as long as it is wanted.

    Args:
        service: Whose it is.
        folder: Of the service.
        steps: Of each trial.
    """

    def __init__(self, service: Service, folder: Path, steps: int) -> None:
        self._service = service
        values = {"steps": steps, "num_evaluations": 20, "optimizer": "gradient_descent"}
        body = {"space": "exercise2.softmax", "set": values, "seeds": 1000, "fuse": "off"}
        self.id = service.ask("/searches", body)["id"]
        self._parts = folder / "jobs" / self.id / "exercise2.softmax" / "trials"
        while self.told()["num_ended"] < WARM_UP:
            time.sleep(0.3)

    def told(self) -> Any:
        """Return how it stands."""
        return self._service.ask(f"/searches/{self.id}")["experiments"][0]

    def num_ended(self, moment: float) -> float:
        """Return how many trials had ended, a trial counting by its part between the end before and its own.

        Raises:
            RuntimeError: no trial has ended since; the search does not run any more.
        """
        while True:
            ends = sorted(one.stat().st_mtime for one in self._parts.glob("*.parquet"))
            place = bisect(ends, moment)
            if 0 < place < len(ends):
                return place + (moment - ends[place - 1]) / (ends[place] - ends[place - 1])
            if time.time() - moment > LONGEST_S:
                raise RuntimeError(f"no trial has ended for {LONGEST_S:g} s; is the search still running?")
            time.sleep(0.2)

    def end(self) -> None:
        """End it, and wait until it has ended."""
        self._service.ask(f"/searches/{self.id}/stop", {"force": True})
        while self._service.ask(f"/searches/{self.id}")["is_active"]:
            time.sleep(0.5)


def window(
    readers: str, service: Service, searched: Search, number: int, seconds: float, pause: float, _: Path
) -> Measurement:  # fmt: skip
    """Let a search go on for some time, read by some or by nobody.

    Args:
        readers: One of ``NAMES``.
        service: What is read.
        searched: The search.
        number: How many readers there are.
        seconds: How long they read.
        pause: Between an answer and the next question.
    """
    other = None
    try:
        port, paths = service.port, [path.format(id=searched.id) for path in PATHS]
        if readers == NAMES[2]:
            other = subprocess.Popen([sys.executable, __file__, "--answer"], stdout=subprocess.PIPE, text=True)
            assert other.stdout is not None
            port = int(other.stdout.readline())
        time.sleep(PAUSE_S)
        began, measured = time.time(), {}
        if readers == NAMES[0]:
            time.sleep(seconds)
        else:
            measured = read(service, port, paths, number, seconds, pause)
        ended = time.time()
        time.sleep(PAUSE_S)
    finally:
        if other:
            other.terminate()
            other.communicate()
    num_ended = searched.num_ended(ended) - searched.num_ended(began)
    return {**measured, "trials": num_ended, "s_per_trial": (ended - began) / num_ended}


def read(
    service: Service, port: int, paths: list[str], number: int, seconds: float, pause: float
) -> Measurement:  # fmt: skip
    """Have many read; return how it went, and what the service spent on it."""
    command = [sys.executable, "-m", "benchmarks.peers.http_readers", str(port), "--readers", str(number)]
    command += ["--seconds", str(seconds), "--pause", str(pause), "--paths", *paths]
    before = service.cpu_s()
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"TOKEN": service.token}, capture_output=True, text=True, check=True
    )  # fmt: skip
    told: Measurement = json.loads(done.stdout)
    if told["num_errors"]:
        raise RuntimeError(f"{told['num_errors']} answers were errors: {told['statuses']} {told['errors']}")
    return told | {"service_cpu_s": service.cpu_s() - before, "read_s": seconds}


async def answer_at_once() -> None:
    """Be the other server: whatever is asked, the same bytes."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % NUM_BYTES + b"x" * NUM_BYTES

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    """Measure all contenders in turn and print the table."""
    parser = benchmark_parser(__file__, __doc__, list(NAMES))
    parser.add_argument("--readers", type=int, default=200, metavar="N", help="at the same time (default: 200)")
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="for so long (default: 30)")
    parser.add_argument("--pause", type=float, default=1.0, metavar="S", help="of each, about (default: 1)")
    parser.add_argument("--steps", type=int, default=STEPS, metavar="N", help=f"of each trial (default: {STEPS})")
    parser.add_argument("--apart", action="store_true", help="the search on the first core, all else on the others")
    flags = parser.parse_args()
    first, *others = sorted(os.sched_getaffinity(0))
    if flags.apart and not others:
        parser.error("--apart needs two cores; this process may use one: leave it out")
    if flags.apart:
        os.sched_setaffinity(0, {first})
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as folder:
        service = Service(Path(folder))
        try:
            searched = Search(service, Path(folder), flags.steps)
            if flags.apart:
                service.move(set(others))
                os.sched_setaffinity(0, others)
            settings = (service, searched, flags.readers, flags.seconds, flags.pause)
            try:
                measured = measure({name: partial(window, name, *settings) for name in flags.only}, flags.repeats)
            finally:
                # It would outlive the service.
                searched.end()
        finally:
            service.end()
    os.sched_setaffinity(0, {first, *others})
    table = summarise(measured, "s_per_trial")
    for row in table:
        runs = [one for one in measured[row["contender"]] if "p99_ms" in one]
        row["answers a second"] = max((one["answers_per_s"] for one in runs), default=0.0)
        row["worst p99, ms"] = max((one["p99_ms"] for one in runs), default=0.0)
        row["cores of the service"] = max((one["service_cpu_s"] / one["read_s"] for one in runs), default=0.0)
    where = ", on cores of their own" if flags.apart else ""
    publish(flags, f"Seconds until a trial of a search ends, {flags.readers} readers for {flags.seconds:g} s{where}",
            measured, table)  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:] == ["--answer"]:
        asyncio.run(answer_at_once())
    else:
        main()
