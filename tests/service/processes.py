"""A service as a process, as a user starts it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Process:
    """A service as a process, and its responses."""

    def __init__(self, folder, *flags):
        self.folder = folder
        self.flags = flags
        self.log = folder / "service.log"
        self.url = self.token = ""
        self.process = None

    def start(self, port=0):
        """Start it; return when it responds."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tune_hpc.cli", "serve", "--storage", "jobs", "--port", str(port), *self.flags],
                cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        wait_until(lambda: "token: in" in self.log.read_text(encoding="utf-8"), 120)
        self.url = self.log.read_text(encoding="utf-8").splitlines()[0].rpartition(" at ")[2]
        self.token = (self.folder / "jobs" / "service-token").read_text(encoding="utf-8").strip()
        wait_until(lambda: self.request("/health")["status"] == "ok", 60)

    @property
    def address(self):
        """Host and port."""
        url = urllib.parse.urlsplit(self.url)
        return url.hostname, url.port

    def kill(self):
        """Kill it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def api(self, path, body=None):
        """Return the JSON of a response of the API."""
        return self.request(f"/api/v1{path}", body)

    def request(self, path, body=None):
        """Return the JSON of a response."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=30) as response:
            return json.load(response)

    def rss_bytes(self):
        """Return its memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="utf-8").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def wait_until(is_true, timeout_s):
    end = time.monotonic() + timeout_s
    while True:
        try:
            if is_true():
                return
        except (OSError, urllib.error.URLError):
            pass
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.3)


@contextmanager
def serving(folder, module=None):
    """A service in a folder, with the experiment ``slow`` of a module; its searches end with it."""
    flags = ()
    if module:
        (folder / "user_module.py").write_text(module, encoding="utf-8")
        flags = ("--register", "user_module:slow")
    service = Process(folder, *flags)
    service.start()
    try:
        yield service
        for search in service.api("/searches")["searches"] if module else []:
            if search["is_active"]:
                service.api(f"/searches/{search['id']}/stop", {"force": True})
    finally:
        service.process.terminate()
        assert service.process.wait(30) == 0
