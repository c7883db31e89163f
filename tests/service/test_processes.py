"""The service as a process, with searches as processes of their own."""

import http.client
import os
import signal
import time
import urllib.error

import pandas as pd
import pytest

from tests.service.processes import Process, serving, wait_until
from tune_hpc.service.routes import MAX_DOWNLOADS

MODULE = """
import time
from pathlib import Path
from ray import tune
from tune_hpc import Experiment, Space

HURRY = Path(__file__).with_name("hurry")

def climb(config, report, checkpoint):
    height = checkpoint.load() or 0.0
    for step in range(int(height) + 1, 501):
        if not HURRY.exists():
            time.sleep(0.1)
        height += 1
        report(step, {"loss": 1 / (height * config["rate"])})
        checkpoint.save(step, lambda: height)

slow = Experiment("slow", Space({"rate": tune.choice([1.0, 2.0])}, keys={}), climb, metric="loss", mode="min", seeds=())
"""


@pytest.fixture
def service(tmp_path):
    """A service in a folder of its own, with an experiment that takes a minute unless the file ``hurry`` exists."""
    with serving(tmp_path, MODULE) as service:
        yield service


@pytest.mark.slow
def test_searches_continue_after_a_kill_of_the_service(service):
    search_id = service.api("/searches", {"space": "slow"})["id"]
    other = service.api("/searches", {"space": "exercise1_1stpart", "quick": True})["id"]
    wait_until(lambda: service.api(f"/searches/{search_id}/curves")["num_trials"] > 0, 90)
    before, token = service.api(f"/searches/{search_id}"), service.token
    service.kill()
    with pytest.raises(urllib.error.URLError):
        service.request("/health")
    service.start()
    assert service.token == token
    searches = {search["id"]: search for search in service.api("/searches")["searches"]}
    assert set(searches) == {search_id, other}
    assert (before["state"], searches[search_id]["state"]) == ("running", "running")

    def last_step():
        return max(service.api(f"/searches/{search_id}/curves")["curves"][0]["steps"])

    step = last_step()
    wait_until(lambda: last_step() > step, 60)
    # The new process controls the search that the old one started.
    assert service.api(f"/searches/{search_id}/stop", {})["state"] in ("stopping", "stopped")
    wait_until(lambda: service.api(f"/searches/{search_id}")["state"] == "stopped", 60)
    service.api(f"/searches/{search_id}/resume", {})
    wait_until(lambda: service.api(f"/searches/{search_id}")["state"] == "running", 60)
    (service.folder / "hurry").touch()
    wait_until(lambda: not service.api(f"/searches/{search_id}")["is_active"], 180)
    assert service.api(f"/searches/{search_id}")["state"] == "finished"
    assert service.api(f"/searches/{search_id}/history")["total"] == 1000
    assert "Traceback" not in service.log.read_text(encoding="utf-8")


@pytest.mark.slow
def test_service_ends_on_a_signal_to_its_group_and_its_searches_do_not(service):
    search_id = service.api("/searches", {"space": "slow"})["id"]
    wait_until(lambda: service.api(f"/searches/{search_id}")["state"] == "running", 90)
    os.killpg(service.process.pid, signal.SIGTERM)
    assert service.process.wait(30) == 0
    service.start()
    assert service.api(f"/searches/{search_id}")["state"] == "running"


@pytest.mark.slow
def test_download_ends_before_the_service_does(tmp_path):
    """A signal during a download: it is completed or cut off, without a stack trace, and the exit code is 0."""
    with serving(tmp_path) as service:
        search_id = service.api("/searches", {"space": "exercise1_1stpart", "quick": True})["id"]
        wait_until(lambda: service.api(f"/searches/{search_id}")["state"] == "finished", 120)
        folder = service.folder / "jobs" / search_id / "experiments" / "exercise1_1stpart"
        history = pd.read_parquet(folder / "history.parquet")
        large = pd.concat([history] * (1_000_000 // len(history)), ignore_index=True)
        large.to_parquet(folder / "history.parquet", index=False)
        before = service.rss_bytes()
        connections = []
        for _ in range(MAX_DOWNLOADS):
            connection = http.client.HTTPConnection(*service.address, timeout=60)
            headers = {"Authorization": f"Bearer {service.token}"}
            connection.request("GET", f"/api/v1/searches/{search_id}/history?format=csv", headers=headers)
            response = connection.getresponse()
            assert response.status == 200
            assert len(response.read(1000)) == 1000
            connections.append((connection, response))
        # Four files of tens of megabytes are sent, and not built in memory.
        assert service.rss_bytes() - before < 400e6
        start = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == 0
        assert time.monotonic() - start < 25
        for connection, _ in connections:
            connection.close()
        assert "Traceback" not in service.log.read_text(encoding="utf-8")


@pytest.mark.slow
def test_client_behind_a_proxy_has_its_own_address(tmp_path):
    """The address of the client, and whether it uses TLS, come from the proxy."""
    service = Process(tmp_path, "--behind-proxy", "127.0.0.1", "--root-path", "/tune")
    service.start()
    try:
        statuses = []
        for address in ["10.0.0.1"] * 25 + ["10.0.0.2"]:
            connection = http.client.HTTPConnection(*service.address, timeout=30)
            headers = {"Authorization": "Bearer wrong-token-of-some-length", "X-Forwarded-For": address}
            connection.request("GET", "/tune/api/v1/searches", headers=headers)
            statuses.append(connection.getresponse().status)
            connection.close()
        assert (429 in statuses[:25], statuses[25]) == (True, 401)
        connection = http.client.HTTPConnection(*service.address, timeout=30)
        headers = {"X-Forwarded-For": "10.0.0.3", "X-Forwarded-Proto": "https", "Origin": "https://a", "Host": "a"}
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection.request("POST", "/tune/login", f"token={service.token}", headers)
        cookie = connection.getresponse().getheader("set-cookie")
        assert {"Secure", "Path=/tune"} <= {part.strip() for part in cookie.split(";")}
        connection.close()
    finally:
        service.process.terminate()
        assert service.process.wait(30) == 0
