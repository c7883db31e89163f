"""The service as a process, with searches as processes of their own."""

import time
import urllib.error
import urllib.request

import pytest

from tests.service.processes import serving, wait_until

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
    """A service in a folder of its own, with an experiment that takes a minute, if not hurried."""
    with serving(tmp_path, MODULE) as one:
        yield one


@pytest.mark.slow
def test_a_service_that_is_killed_loses_nothing_and_running_searches_go_on(service):
    search_id = service.ask("/api/v1/searches", {"space": "slow"})["id"]
    never_begun = service.ask("/api/v1/searches", {"space": "exercise1_1stpart", "quick": True})["id"]
    wait_until(lambda: service.ask(f"/api/v1/searches/{search_id}/curves")["num_trials"] > 0, 90)
    before = service.ask(f"/api/v1/searches/{search_id}")
    token = service.token
    service.kill()
    with pytest.raises(urllib.error.URLError):
        service.ask("/health")
    time.sleep(3)
    service.start()
    assert service.token == token
    listed = {one["id"]: one for one in service.ask("/api/v1/searches")["searches"]}
    assert set(listed) == {search_id, never_begun}
    assert (before["state"], listed[search_id]["state"]) == ("running", "running")

    def last_step():
        return max(service.ask(f"/api/v1/searches/{search_id}/curves")["curves"][0]["steps"])

    before_it = last_step()
    wait_until(lambda: last_step() > before_it, 60)
    # The new one steers what the old one started.
    assert service.ask(f"/api/v1/searches/{search_id}/stop", {})["state"] in ("stopping", "stopped")
    wait_until(lambda: service.ask(f"/api/v1/searches/{search_id}")["state"] == "stopped", 60)
    service.ask(f"/api/v1/searches/{search_id}/resume", {})
    wait_until(lambda: service.ask(f"/api/v1/searches/{search_id}")["state"] == "running", 60)
    (service.folder / "hurry").touch()
    wait_until(lambda: not service.ask(f"/api/v1/searches/{search_id}")["is_active"], 180)
    assert service.ask(f"/api/v1/searches/{search_id}")["state"] == "finished"
    told = service.ask(f"/api/v1/searches/{search_id}/history")
    assert told["total"] == 1000
    assert service.log.read_text(encoding="utf-8").count("\n") == 2
