"""A service as a process of its own, for tests of what a user starts."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Process:
    """A service as a process, and its answers."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "service.log"
        self.url = self.token = ""
        self.process = None

    def begin(self, port=0):
        """Start it; return when it answers."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tune_hpc.cli", "serve", "--storage", "jobs", "--port", str(port),
                 "--register", "climbing:slow"],
                cwd=self.folder, env=environment, stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(lambda: "token: in" in self.log.read_text(encoding="utf-8"), 60)
        told = self.log.read_text(encoding="utf-8").splitlines()
        self.url = told[0].rpartition(" at ")[2]
        self.token = (self.folder / "jobs" / "service-token").read_text(encoding="utf-8").strip()
        wait_until(lambda: self.ask("/health")["status"] == "ok", 30)

    def kill(self):
        """End it at once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def ask(self, path, body=None):
        """Return an answer's JSON."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=30) as answer:
            return json.load(answer)


def wait_until(holds, timeout_s):
    end = time.monotonic() + timeout_s
    while True:
        try:
            if holds():
                return
        except (OSError, urllib.error.URLError):
            pass
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.3)


@contextmanager
def serving(folder, module):
    """A service in a folder of its own, with the experiment ``climbing:slow``; its searches end with it."""
    (folder / "climbing.py").write_text(module, encoding="utf-8")
    one = Process(folder)
    one.begin()
    yield one
    for search in one.ask("/searches")["searches"]:
        if search["is_active"]:
            one.ask(f"/searches/{search['id']}/stop", {"force": True})
    one.process.terminate()
    assert one.process.wait(20) in (0, -signal.SIGTERM)
