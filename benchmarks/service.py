"""Latency and processor time of the HTTP service: 200 readers for 30 seconds while a search runs.

    python benchmarks/service.py [--repeats 3] [--readers 200] [--seconds 30] [--steps 1000]

The readers send the headers of a browser. They read the status of a running search, the fragments of its page, curves
and trials, either with a pause of about a second after each response, or without a pause. Readers, service and search
share the machine. A response that is neither 200 nor 304 makes the measurement void.
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import ROOT, Measurement, benchmark_parser, measure, publish

#: Seconds between a response and the next request of a reader, by contender.
PAUSES = {"readers with a pause": 1.0, "readers without a pause": 0.0}
#: Trials that end before the measurement.
NUM_WARM_UP_TRIALS = 20
PATHS = (
    "/api/v1/searches/{id}", "/view/{id}/summary", "/view/{id}/table", "/api/v1/searches/{id}/curves",
    "/api/v1/searches/{id}/response", "/api/v1/searches/{id}/trials?limit=50",
)  # fmt: skip


class Service:
    """A service process with a search of many trials.

    Args:
        folder: An empty folder.
        steps: Steps of each trial.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        log = folder / "service.log"
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tune_hpc.cli", "serve", "--storage", "jobs", "--port", "0",
                 "--reads-per-s", "1e6"],
                cwd=folder, stdout=file, stderr=file,
                env=os.environ | {"PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
            )  # fmt: skip
        while "token: in" not in log.read_text(encoding="utf-8"):
            if self.process.poll() is not None:
                raise RuntimeError(f"the service ended:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.2)
        self.port = int(log.read_text(encoding="utf-8").splitlines()[0].rpartition(":")[2])
        self.token = (folder / "jobs" / "service-token").read_text(encoding="utf-8").strip()
        values = {"steps": steps, "num_evaluations": 20, "optimizer": "gradient_descent"}
        body = {"space": "exercise2.softmax", "set": values, "seeds": 1000, "fuse": "off"}
        self.search = self.request("/searches", body)["id"]
        while self.num_ended() < NUM_WARM_UP_TRIALS:
            time.sleep(0.3)

    def request(self, path: str, body: Any = None) -> Any:
        """Return the JSON of a response."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/v1{path}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def log_in(self) -> str:
        """Return the cookie of a session."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        headers = {"Origin": f"http://127.0.0.1:{self.port}", "Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/login", f"token={self.token}", headers)
        cookie = connection.getresponse().headers["set-cookie"]
        connection.close()
        return str(cookie).partition(";")[0]

    def num_ended(self) -> int:
        """Return the number of trials that have ended."""
        return int(self.request(f"/searches/{self.search}")["num_ended"])

    def cpu_s(self) -> float:
        """Return the processor seconds that the service has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End the search and the service."""
        self.request(f"/searches/{self.search}/stop", {"force": True})
        while self.request(f"/searches/{self.search}")["is_active"]:
            time.sleep(0.5)
        self.process.terminate()
        self.process.wait(30)


def read(service: Service, num_readers: int, seconds: float, pause: float, _: Path) -> Measurement:
    """Run the readers for a duration and return their measurements."""
    command = [sys.executable, "-m", "benchmarks.peers.http_readers", str(service.port), "--readers", str(num_readers)]
    command += ["--seconds", str(seconds), "--pause", str(pause)]
    command += ["--paths", *(path.format(id=service.search) for path in PATHS)]
    environment = os.environ | {"COOKIE": service.log_in()}
    cpu_s, num_ended = service.cpu_s(), service.num_ended()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    measured: Measurement = json.loads(done.stdout)
    if measured["num_errors"]:
        raise RuntimeError(f"{measured['num_errors']} errors: {measured['statuses']} {measured['errors']}")
    cores = (service.cpu_s() - cpu_s) / seconds
    return measured | {"service_cores": cores, "trials_ended": service.num_ended() - num_ended}


def main() -> None:
    """Measure all contenders in turn and print the table."""
    parser = benchmark_parser(__file__, __doc__, list(PAUSES))
    parser.add_argument("--readers", type=int, default=200, metavar="N", help="concurrent readers (default: 200)")
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="duration (default: 30)")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="steps of each trial (default: 1000)")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True) as folder:
        service = Service(Path(folder), flags.steps)
        try:
            contenders = {
                name: partial(read, service, flags.readers, flags.seconds, PAUSES[name]) for name in flags.only
            }
            measured = measure(contenders, flags.repeats)
        finally:
            service.close()
    columns = {
        "responses/s": "responses_per_s", "p50, ms": "p50_ms", "p99, ms": "p99_ms", "max, ms": "max_ms",
        "cores of the service": "service_cores",
    }  # fmt: skip
    table = [
        {"contender": name, "errors": 0, **{head: max(one[key] for one in runs) for head, key in columns.items()}}
        for name, runs in measured.items()
    ]
    title = f"{flags.readers} readers of the service for {flags.seconds:g} s while a search runs"
    publish(flags, title, measured, table, "the largest")


if __name__ == "__main__":
    main()
