"""The service as a process, with searches as processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE = """
import time
from ray import tune
from tune_hpc import Experiment, Space

def climb(config, report, checkpoint):
    height = checkpoint.load() or 0.0
    for step in range(int(height) + 1, 501):
        time.sleep(0.1)
        height += 1
        report(step, {"loss": 1 / (height * config["rate"])})
        checkpoint.save(step, lambda: height)

slow = Experiment("slow", Space({"rate": tune.choice([1.0, 2.0])}, keys={}), climb, metric="loss", mode="min", seeds=())
"""


class Process:
    """A service as a process, and its answers."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "service.log"
        self.url = self.token = ""
        self.process = None

    def begin(self):
        """Start it; return when it answers."""
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tune_hpc.cli", "serve", "--storage", "jobs", "--port", "0", "--register",
                 "climbing:slow"],
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


@pytest.fixture
def service(tmp_path):
    """A service in a folder of its own, with an experiment that takes a minute."""
    (tmp_path / "climbing.py").write_text(MODULE, encoding="utf-8")
    one = Process(tmp_path)
    one.begin()
    yield one
    for search in one.ask("/searches")["searches"]:
        if search["is_active"]:
            one.ask(f"/searches/{search['id']}/stop", {"force": True})
    one.process.terminate()
    assert one.process.wait(20) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_a_service_that_is_killed_loses_nothing_and_running_searches_go_on(service):
    search_id = service.ask("/searches", {"space": "slow"})["id"]
    never_begun = service.ask("/searches", {"space": "exercise1_1stpart", "quick": True})["id"]
    wait_until(lambda: service.ask(f"/searches/{search_id}/curves")["num_trials"] > 0, 90)
    before = service.ask(f"/searches/{search_id}")
    old_token, old_url = service.token, service.url
    service.kill()
    with pytest.raises(urllib.error.URLError):
        service.ask("/health")
    time.sleep(3)
    service.begin()
    assert service.token == old_token
    assert service.url != old_url or service.url
    listed = {one["id"]: one for one in service.ask("/searches")["searches"]}
    assert set(listed) == {search_id, never_begun}
    assert (before["state"], listed[search_id]["state"]) == ("running", "running")
    steps = [max(service.ask(f"/searches/{search_id}/curves")["curves"][0]["steps"]) for _ in (0, time.sleep(12))]
    assert steps[1] > steps[0]
    # The new one steers what the old one started.
    assert service.ask(f"/searches/{search_id}/stop", {})["state"] in ("stopping", "stopped")
    wait_until(lambda: service.ask(f"/searches/{search_id}")["state"] == "stopped", 60)
    service.ask(f"/searches/{search_id}/resume", {})
    wait_until(lambda: service.ask(f"/searches/{search_id}")["state"] == "running", 60)
    wait_until(lambda: not service.ask(f"/searches/{search_id}")["is_active"], 180)
    assert service.ask(f"/searches/{search_id}")["state"] == "finished"
    told = service.ask(f"/searches/{search_id}/history")
    assert told["total"] == 1000
    assert service.log.read_text(encoding="utf-8").count("\n") == 2
