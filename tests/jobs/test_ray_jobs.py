"""Requests to the dashboard of a Ray cluster, with a fake dashboard."""

import json
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import ray

from tests.jobs.conftest import free_ports
from tests.jobs.job_factories import beat, job_in
from tune_hpc.errors import ClusterError
from tune_hpc.jobs.client import Client
from tune_hpc.jobs.launchers import RayJobsLauncher
from tune_hpc.jobs.status import DriverState, JobState
from tune_hpc.storage.checksum import load_json


@pytest.fixture
def dashboard(monkeypatch, tmp_path):
    """Return a function that starts a fake dashboard and returns its address."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(token=None, status=200, answer=None, delay_s=0.0, seen=None):
        class Dashboard(BaseHTTPRequestHandler):
            def do_GET(self):
                time.sleep(delay_s)
                if seen is not None:
                    seen.append(self.headers.get("Authorization"))
                wrong = token and self.headers.get("Authorization") != f"Bearer {token}"
                body = json.dumps({"ray_version": ray.__version__} if answer is None else answer).encode()
                self.send_response(401 if wrong else status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://head:8265", "http://head:8265"),
        ("head", "http://head:8265"),
        ("head:9000/", "http://head:9000"),
        ("https://gate.example/", "https://gate.example:443"),
        ("[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_address_of_a_dashboard_is_completed(address, url):
    assert RayJobsLauncher(address).address == url


@pytest.mark.parametrize("address", ["", "http://", "ray://head:10001", "http://head/jobs", "head:port", "http://[::1"])
def test_malformed_address_is_rejected(address):
    with pytest.raises(
        ClusterError, match="the address of a cluster is that of its dashboard, like http://head:8265; got"
    ):
        RayJobsLauncher(address)


def test_token_is_the_given_one_or_that_of_ray(dashboard, tmp_path):
    address = dashboard(token="right")
    RayJobsLauncher(address, "right").check()
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("right\n", encoding="utf-8")
    RayJobsLauncher(address).check()
    with pytest.raises(ClusterError, match="rejects the token of this machine"):
        RayJobsLauncher(address, "wrong").check()


def test_missing_token_is_reported_with_its_file(dashboard):
    with pytest.raises(
        ClusterError, match=r"requires a token, and this machine has none; copy ~/\.ray/auth_token from its"
    ):
        RayJobsLauncher(dashboard(token="right")).check()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"answer": {"ray_version": "1.2.3"}}, r"runs Ray 1\.2\.3 and this machine Ray .*pip install ray==1\.2\.3"),
        ({"answer": ["a shop"]}, r"is not a Ray dashboard \(status 200\); its address is usually"),
        ({"status": 404}, r"is not a Ray dashboard \(status 404\); its address is usually"),
        ({"status": 503}, r"is not a Ray dashboard \(status 503\); its address is usually"),
    ],
)
def test_other_server_or_release_is_reported(dashboard, answers, message):
    with pytest.raises(ClusterError, match=message):
        RayJobsLauncher(dashboard(**answers)).check()


def test_submission_to_an_unreachable_cluster_writes_nothing(tmp_path):
    from search_spaces import exercise1_1stpart

    address = f"127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(ClusterError, match=f"no Ray cluster answers at http://{address} .connection refused"):
        Client(address, storage=tmp_path / "jobs").submit(exercise1_1stpart.experiments)
    assert not (tmp_path / "jobs").exists()


def test_job_is_readable_without_its_cluster(tmp_path):
    job = job_in(tmp_path)
    client = Client(f"127.0.0.1:{free_ports(1)[0]}", storage=tmp_path)
    beat(job)
    assert client.job(job.id).status().state is JobState.RUNNING
    beat(job, seconds_since_heartbeat=1000)
    assert client.job(job.id).status().state is JobState.UNKNOWN
    job.output.write_text("3/5 trials\n", encoding="utf-8")
    assert "".join(client.job(job.id).logs(follow=True)) == "3/5 trials\n"
    assert [one.id for one in client.list()] == [job.id]


def test_unreachable_cluster_gets_no_request_for_a_while(tmp_path, monkeypatch):
    job = job_in(tmp_path)
    launcher = RayJobsLauncher(f"127.0.0.1:{free_ports(1)[0]}")
    attempt = replace(job.last_attempt(), location={"kind": "ray"})
    assert launcher.state(job, attempt) is DriverState.UNKNOWN
    monkeypatch.setattr(launcher, "_request", lambda *arguments: pytest.fail("unexpected request"))
    assert launcher.state(job, attempt) is DriverState.UNKNOWN


def test_timeout_of_a_request_is_that_of_the_caller(dashboard, tmp_path):
    job = job_in(tmp_path)
    attempt = replace(job.last_attempt(), location={"kind": "ray"})
    slow = dashboard(answer={"status": "RUNNING"}, delay_s=0.6)
    assert RayJobsLauncher(slow).state(job, attempt, timeout_s=5.0) is DriverState.ALIVE
    assert RayJobsLauncher(slow).state(job, attempt, timeout_s=0.1) is DriverState.UNKNOWN


def test_token_is_not_sent_to_an_address_from_a_job_folder(dashboard, tmp_path, monkeypatch, capsys):
    from tune_hpc import cli
    from tune_hpc.cli.main import USAGE

    seen = []
    address = dashboard(answer={"status": "RUNNING"}, seen=seen)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    job = job_in(tmp_path / "jobs")
    beat(job, seconds_since_heartbeat=1000)
    planted = load_json((job.attempts / "1.json").read_bytes()) | {"location": {"address": address}}
    (job.attempts / "1.json").write_text(json.dumps(planted | {"kind": "ray"}), encoding="utf-8")
    for command in (["jobs"], ["status", job.id], ["logs", job.id], ["resume", job.id, "--force"]):
        code = cli.main([*command, "--storage", str(tmp_path / "jobs")])
        assert code == (USAGE if command[0] == "resume" else 0)
    assert "which you have not used before; pass it with --address" in capsys.readouterr().err
    assert seen == []
    assert cli.main(["status", job.id, "--storage", str(tmp_path / "jobs"), "--address", address]) == 0
    assert cli.main(["status", job.id, "--storage", str(tmp_path / "jobs")]) == 0
